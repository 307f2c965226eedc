"""The offline sources of the feature views."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import ITEM_PROFILE, VIEWS
from jobs.features import offline
from model.artifact import ArtifactMismatch


def rows(folder, view):
    return ds.dataset(folder / view, format="parquet").to_table().to_pylist()


def test_every_view_has_the_contracts_columns(shop):
    for view in VIEWS:
        schema = ds.dataset(shop.features / view.name, format="parquet").schema
        assert schema.names == [*view.keys, "event_timestamp", *(feature.name for feature in view.features)]
        assert schema.field("event_timestamp").type == pa.timestamp("us", tz="UTC")


def test_an_item_is_known_since_its_creation_or_its_first_event_if_that_is_earlier(shop):
    start, as_of = offline.period(shop.sequences)
    seen = {}
    for row in [*shop.impressions, *shop.clicks]:
        at = row.get("request_time") or row["event_time"]
        seen[row["item_id"]] = min(at, seen.get(row["item_id"], at))
    known = {row["item_id"]: row["event_timestamp"] for row in rows(shop.features, "item_profile")}
    for item in shop.items:
        stated = item["created_at"] or start
        expected = max(start, min(stated, seen.get(item["item_id"], as_of), as_of))
        assert known[item["item_id"]] == expected


def test_what_an_item_does_not_state_has_its_stated_default(shop):
    profile = {row["item_id"]: row for row in rows(shop.features, "item_profile")}
    assert profile["i0"]["category"] == ""  # every 11th item has no category, every 7th no price, every 5th no date
    assert np.isnan(profile["i0"]["price"])
    assert profile["i0"]["created_at"] == -1
    created = next(item["created_at"] for item in shop.items if item["item_id"] == "i1")
    assert profile["i1"]["category"] == "c1"
    assert profile["i1"]["price"] == 1.5
    assert profile["i1"]["created_at"] == created.timestamp() * 1_000_000


def test_a_packed_embedding_is_the_items_vector_to_the_last_bit(shop):
    packed = {row["item_id"]: row["image_embedding"] for row in rows(shop.features, "item_embedding")}
    assert packed == {item: vector.astype("<f4").tobytes() for item, vector in shop.vectors.items()}


def test_an_item_without_a_usable_picture_has_no_cluster_and_no_embedding(shop):
    unusable = {item["item_id"] for item in shop.items} - set(shop.vectors)
    assert unusable
    for view in ("item_cluster", "item_embedding"):
        assert not unusable & {row["item_id"] for row in rows(shop.features, view)}


def test_the_period_ends_at_the_midnight_after_the_last_event(shop):
    last = max(click["event_time"] for click in shop.clicks)
    _, as_of = offline.period(shop.sequences)
    assert as_of - timedelta(days=1) <= last < as_of
    assert as_of == datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC)


def test_embeddings_and_clusters_of_different_spaces_are_refused(shop, tmp_path):
    from model import artifact

    with artifact.write(tmp_path / "cluster", kind="cluster", inputs={}, config={}) as draft:
        draft.facts = {"space_id": "sother"}
    with pytest.raises(ArtifactMismatch, match="is of space sother"):
        offline.shared_space(shop.embed, tmp_path / "cluster")


@pytest.mark.parametrize("column", ["price", "created_at"])
def test_a_column_that_is_missing_or_of_another_type_is_refused(tmp_path, column):
    schema = offline.source_schema(ITEM_PROFILE)
    place = schema.get_field_index(column)
    for wrong in (schema.remove(place), schema.set(place, pa.field(column, pa.string()))):
        (tmp_path / "item_profile").mkdir(exist_ok=True)
        pq.write_table(wrong.empty_table(), tmp_path / "item_profile" / "part-0.parquet")
        with pytest.raises(ArtifactMismatch, match=f"column {column} is"):
            offline.checked_rows(tmp_path, ITEM_PROFILE)


def test_the_stage_writes_what_counting_event_by_event_gives(shop, tmp_path):
    manifest = offline.build(
        sequences=shop.sequences, images=shop.images, embed=shop.embed, cluster=shop.cluster, out=tmp_path / "features"
    )
    for view in VIEWS:
        keys = [*view.keys, "event_timestamp"]
        built, plain = (
            sorted(rows(folder, view.name), key=lambda row: [row[key] for key in keys])
            for folder in (tmp_path / "features", shop.features)
        )
        assert str(built) == str(plain)  # as text, for NaN is not equal to itself
        assert manifest.facts["rows"][view.name] == len(plain)
    assert datetime.fromisoformat(manifest.facts["as_of"]) == shop.as_of
