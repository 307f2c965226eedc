"""The point-in-time join, against a plain loop over everything that was known at the moment."""

import math
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import (
    ITEM_STATISTICS,
    PERIODS,
    USER_STATISTICS,
)
from jobs.features import training_rows
from model import artifact
from model.artifact import ArtifactMismatch
from model.ctr.inputs.rows import ROW_COLUMNS
from model.errors import RowsLost

EPOCH = datetime.fromtimestamp(0, UTC)
MICROSECOND = timedelta(microseconds=1)


def paths(shop):
    folders = {name: getattr(shop, name) for name in ("sequences", "features", "workspace")}
    return {**folders, "materialize": shop.workspace / "materialize" / "k"}


@pytest.fixture(scope="module")
def built(loaded_shop, tmp_path_factory):
    out = tmp_path_factory.mktemp("rows") / "k"
    training_rows.build(**paths(loaded_shop), out=out)
    return out


@pytest.fixture(scope="module")
def table(built):
    return {period: pq.read_table(built / f"{period}.parquet") for period in PERIODS}


@pytest.fixture(scope="module")
def rows(table):
    return [row for period in PERIODS for row in table[period].to_pylist()]


def latest(rows, key, entity, moment):
    """The newest row of the entity that is valid at the moment, by looking at all of them."""
    valid = [row for row in rows if row[key] == entity and row["event_timestamp"] <= moment]
    return max(valid, key=lambda row: row["event_timestamp"], default=None)


@pytest.fixture(scope="module")
def statistics(shop):
    """name of the view -> its rows."""
    views = (USER_STATISTICS, ITEM_STATISTICS)
    return {v.name: ds.dataset(shop.features / v.name, format="parquet").to_table().to_pylist() for v in views}


def unseen(name: str) -> float:
    """A statistic of whoever was neither shown nor clicked."""
    return 1 / 20 if "_ctr_" in name else 0


def expected_row(shop, statistics, shown, test_start):
    """The row of one impression, from the plain events."""
    moment, user, item = shown["request_time"], shown["user_id"], shown["item_id"]
    clicks = [c for c in shop.clicks if c["user_id"] == user and c["event_time"] < moment]
    clicks = sorted(clicks, key=lambda c: (-((c["event_time"] - EPOCH) // MICROSECOND), c["item_id"]))[:50]
    catalogue = {row["item_id"]: row for row in shop.items}
    profile = catalogue[item]
    row = {
        **{name: shown[name] for name in ("request_id", "user_id", "item_id", "request_time", "position", "clicked")},
        "history_item_ids": [c["item_id"] for c in clicks],
        "history_clicked_at": [(c["event_time"] - EPOCH) // MICROSECOND for c in clicks],
        "category": profile["category"] or "",
        "price": math.nan if profile["price"] is None else profile["price"],
        "created_at": -1 if profile["created_at"] is None else (profile["created_at"] - EPOCH) // MICROSECOND,
        "cluster_id": shop.cluster_ids.get(item, -1),
        "history_cluster_ids": [shop.cluster_ids.get(c["item_id"], -1) for c in clicks],
        "history_categories": [catalogue[c["item_id"]]["category"] or "" for c in clicks],
        "cold": not any(c["item_id"] == item and c["event_time"] < test_start for c in shop.clicks),
    }
    for view, key in ((USER_STATISTICS, "user_id"), (ITEM_STATISTICS, "item_id")):
        snapshot = latest(statistics[view.name], key, shown[key], moment)
        row |= {f.name: snapshot[f.name] if snapshot else unseen(f.name) for f in view.features}
    return {name: row[name] for name in ROW_COLUMNS}


def test_every_impression_is_a_row_that_knows_what_a_plain_loop_finds_known_at_its_moment(shop, rows, statistics):
    splits = artifact.read(shop.sequences, kind="sequences").facts["splits"]
    test_start = datetime.fromisoformat(splits["test_start"])
    in_order = sorted(
        shop.impressions, key=lambda row: (row["request_time"], row["request_id"], row["position"], row["item_id"])
    )
    expected = [expected_row(shop, statistics, shown, test_start) for shown in in_order]
    assert len(rows) == len(expected)
    for row, plain in zip(rows, expected, strict=True):
        assert str(row) == str({**plain, "request_time": row["request_time"]})  # as text: NaN is not equal to itself
        assert row["request_time"] == plain["request_time"]


def test_a_click_at_the_very_moment_of_the_request_is_not_in_its_history(shop, rows):
    clicked_at = {(click["user_id"], click["event_time"]) for click in shop.clicks}
    at_the_edge = [row for row in rows if (row["user_id"], row["request_time"]) in clicked_at]
    assert len(at_the_edge) > 100
    for row in at_the_edge:
        assert (row["request_time"] - EPOCH) // MICROSECOND not in row["history_clicked_at"]


def test_a_statistic_that_becomes_valid_at_the_very_moment_of_the_request_is_seen(shop, rows, statistics):
    snapshots = {(row["item_id"], row["event_timestamp"]): row for row in statistics["item_statistics"]}
    at_the_edge = [row for row in rows if (row["item_id"], row["request_time"]) in snapshots]
    assert len(at_the_edge) > 20
    for row in at_the_edge:
        snapshot = snapshots[row["item_id"], row["request_time"]]
        assert all(row[f.name] == snapshot[f.name] for f in ITEM_STATISTICS.features)
    assert shop.impressions


def test_the_files_have_the_form_of_model_ctr_rows_and_no_feature_is_null(table):
    for part in table.values():
        assert part.schema.names == list(ROW_COLUMNS)
        for column in part.schema:
            expected = ROW_COLUMNS[column.name]
            found = column.type
            assert found.value_type == expected.value_type if pa.types.is_list(expected) else found == expected
        assert all(part.column(name).null_count == 0 for name in ROW_COLUMNS)


def test_the_periods_follow_each_other_in_time(table):
    moments = [table[period].column("request_time").to_pylist() for period in PERIODS]
    assert max(moments[0]) < min(moments[1]) <= max(moments[1]) < min(moments[2])


def test_an_impression_without_a_row_is_a_fault_that_is_told():
    training_rows._check_all(3, 3)
    with pytest.raises(RowsLost, match="3 impressions were read, and 2 rows written"):
        training_rows._check_all(3, 2)


def test_the_facts_count_the_rows_the_clicks_and_the_cold_test_rows(built, table):
    facts = artifact.read(built, kind="rows").facts
    for period, part in table.items():
        assert facts["rows"][period] == part.num_rows
        assert facts["positives"][period] == sum(part.column("clicked").to_pylist())
    assert facts["impressions_read"] == sum(facts["rows"].values())
    assert facts["cold_test_rows"] == sum(table["test"].column("cold").to_pylist()) > 0


def test_calls_of_another_size_give_the_same_rows(loaded_shop, built, tmp_path, monkeypatch):
    monkeypatch.setattr(training_rows, "ROWS_A_CALL", 97)
    spans, calls = training_rows._spans, []
    monkeypatch.setattr(training_rows, "_spans", lambda *asked: calls.extend(found := spans(*asked)) or found)
    training_rows.build(**paths(loaded_shop), out=tmp_path / "k")
    for period in PERIODS:
        again, once = (pq.read_table(folder / f"{period}.parquet").to_pylist() for folder in (tmp_path / "k", built))
        assert str(again) == str(once)
    assert len(calls) > 10


def test_nothing_but_the_rows_is_left_behind(loaded_shop, tmp_path):
    training_rows.build(**paths(loaded_shop), out=tmp_path / "rows" / "k")
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["k"]
    assert not any((loaded_shop.workspace / "feast" / "spill").iterdir())
    names = {path.name for path in (tmp_path / "rows" / "k").iterdir()}
    assert names == {"manifest.json", *(f"{period}.parquet" for period in PERIODS)}


def test_the_rows_are_the_same_in_another_time_zone(loaded_shop, built, tmp_path):
    out = tmp_path / "k"
    given = ", ".join(f"{name}=Path({str(path)!r})" for name, path in {**paths(loaded_shop), "out": out}.items())
    program = f"from pathlib import Path; from jobs.features import training_rows; training_rows.build({given})"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "TZ": "America/New_York"}
    done = subprocess.run(command, cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nanobind" not in done.stderr
    files = artifact.read(built, kind="rows").files
    assert artifact.read(out, kind="rows").files == files


def test_a_store_that_was_loaded_from_other_features_is_refused(loaded_shop, tmp_path):
    with artifact.write(tmp_path / "features", kind="features", inputs={}, config={}):
        pass
    with pytest.raises(ArtifactMismatch, match="run materialize again"):
        training_rows.build(**{**paths(loaded_shop), "features": tmp_path / "features"}, out=tmp_path / "rows")
    assert not (tmp_path / "rows").exists()
