"""What makes which stages stale, on the real table of stages and a tiny shop: content, and what the release pins."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

import courier
from jobs.leakage.audit import audit
from jobs.leakage.check_leaks import fresh_stages
from jobs.pipeline import NAMES, explain, run_stages, stage_states
from jobs.workspace import Workspace, open_workspace
from model import artifact, releases
from model.release_database import reading, url_in
from model.releases import Release

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PINNED = ["pretrain", "codebook"]
OF_THE_ENCODER = ["pretrain", "embed", "codebook", "cluster", "index"]
NEW_ITEMS = 50


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny shop in `raw` and its finished workspace in `ws`."""
    folder = tmp_path_factory.mktemp("staleness")
    shop = ["--items", "60", "--users", "30", "--requests", "500"]
    courier.main(["world", str(folder / "raw"), *shop])
    for truth in (folder / "raw").glob("truth*.parquet"):  # it knows nothing of the events that a test adds
        truth.unlink()
    courier.main(["run", str(folder / "raw"), "--workspace", str(folder / "ws"), "--preset", "tiny"])
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Workspace:
    """A copy of it, which a test may change."""
    shutil.copytree(finished, tmp_path / "shop", symlinks=True)
    return open_workspace(tmp_path / "shop" / "ws", tmp_path / "shop" / "raw")


def built(workspace: Workspace) -> list[str]:
    return [stage for stage, what in run_stages(workspace).items() if what == "built"]


def rewrite(workspace: Workspace, name: str, table: pa.Table) -> None:
    pq.write_table(table, next((workspace.raw / name).glob("*.parquet"), workspace.raw / f"{name}.parquet"))


def read(workspace: Workspace, name: str) -> pa.Table:
    there = workspace.raw / name
    return pq.read_table(there if there.is_dir() else workspace.raw / f"{name}.parquet")


def test_touching_all_files_and_copying_the_raw_folder_makes_nothing_stale(workspace: Workspace) -> None:
    for path in (*workspace.raw.rglob("*"), *workspace.folder.rglob("*")):
        if not path.is_symlink():
            os.utime(path, (1e9, 1e9))
    assert all(state.fresh for state in stage_states(workspace).values())
    elsewhere = workspace.raw.with_name("elsewhere")
    shutil.copytree(workspace.raw, elsewhere)
    shutil.rmtree(workspace.raw)
    assert built(open_workspace(workspace.folder, elsewhere)) == []


def add_day(workspace: Workspace, renamed: dict[str, str] | None = None) -> None:
    """The last day of events again, a day later; `renamed` items under their new names."""
    events = read(workspace, "events")
    moments = events["event_time"]
    last = pc.max(moments).as_py()
    newest = events.filter(pc.greater(moments, pa.scalar(last - timedelta(days=1), moments.type)))
    later = pc.add(newest["event_time"], pa.scalar(timedelta(days=1), pa.duration("us"))).cast(moments.type)
    changed = {
        "event_time": later,
        "request_id": pa.array([f"{name}-again" for name in newest["request_id"].to_pylist()]),
        "item_id": pa.array([(renamed or {}).get(item, item) for item in newest["item_id"].to_pylist()]),
    }
    for name, column in changed.items():
        newest = newest.set_column(newest.schema.get_field_index(name), name, column)
    rewrite(workspace, "events", pa.concat_tables([events, newest.cast(events.schema)]))


def add_items(workspace: Workspace) -> list[str]:
    """New items with a picture each, created when the last event was; their ids."""
    items, rng = read(workspace, "items"), np.random.default_rng(5)
    created = pc.max(read(workspace, "events")["event_time"]).as_py()
    folder, rows = (workspace.raw / items["image_uri"][0].as_py()).parent, []
    for number in range(NEW_ITEMS):
        picture = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((96, 96))
        picture.save(folder / f"new-{number}.png")
        uri = (folder / f"new-{number}.png").relative_to(workspace.raw).as_posix()
        told = {"item_id": f"new-{number}", "image_uri": uri, "category": items["category"][0].as_py()}
        rows.append(told | {"title": "new", "price": 1.0, "created_at": created})
    added = [{name: row.get(name) for name in items.column_names} for row in rows]
    rewrite(workspace, "items", pa.concat_tables([items, pa.Table.from_pylist(added, items.schema)]))
    return [row["item_id"] for row in rows]


def folder_of(workspace: Workspace, stage: str) -> Path:
    folder = stage_states(workspace)[stage].folder
    assert folder is not None
    return folder


def promoted(workspace: Workspace) -> Release:
    """The newest release, which answers from now on."""
    with reading(url_in(workspace.folder)) as session:
        newest = releases.list_releases(session)[0]
    courier.main(["release", "promote", newest.release_id, "--workspace", str(workspace.folder)])
    assert releases.current(url_in(workspace.folder)).release_id == newest.release_id
    return newest


def codes(workspace: Workspace) -> dict[str, int]:
    table = pq.read_table(folder_of(workspace, "cluster") / "items.parquet")
    return dict(zip(table["item_id"].to_pylist(), table["cluster_id"].to_pylist(), strict=True))


def test_a_new_day_and_fifty_new_items_keep_space_and_codes_and_embed_only_what_is_new(workspace: Workspace) -> None:
    before, known = promoted(workspace), codes(workspace)
    new = add_items(workspace)
    add_day(workspace, dict(zip(sorted(known), new, strict=False)))
    assert built(workspace) == [name for name in NAMES if name not in PINNED]
    after = promoted(workspace)
    embed = artifact.read(folder_of(workspace, "embed"), kind="embed")
    assert embed.notes["embedded"] == NEW_ITEMS
    assert (after.release_id != before.release_id, after.space_id) == (True, before.space_id)
    assert after.artifacts["codebook"] == before.artifacts["codebook"]
    assert {item: code for item, code in codes(workspace).items() if item in known} == known
    assert codes(workspace).keys() - known.keys() == {*new}
    index = artifact.read(folder_of(workspace, "index"), kind="index")
    assert index.facts["items"] == len(known) + NEW_ITEMS
    assert [one.name for one in audit(fresh_stages(workspace)) if not one.passed] == []
    assert built(workspace) == []

    done = run_stages(workspace, anew=frozenset({"pretrain"}))  # as --encoder train asks for it
    assert [name for name, what in done.items() if what == "skipped"] == ["ingest", "check", "sequences", "images"]
    trained = promoted(workspace)
    assert trained.space_id != after.space_id
    codebook = artifact.read(folder_of(workspace, "codebook"), kind="codebook").facts
    assert (codebook["overlap"], codebook["space_id"]) == (len(known) + NEW_ITEMS, trained.space_id)
    assert (
        codebook["continues"]
        == artifact.read(workspace.folder / after.artifacts["codebook"]["path"], kind="codebook").facts["codebook_id"]
    )
    assert built(workspace) == []


def test_another_day_of_events_is_no_matter_of_images_and_vectors(workspace: Workspace) -> None:
    add_day(workspace)
    [root] = [one for one in explain(workspace, "sequences") if one.startswith("ingest: ")]
    assert "the content of events changed" in root
    assert built(workspace) == [name for name in NAMES if name not in ("images", *OF_THE_ENCODER)]


def test_a_changed_picture_is_no_matter_of_the_sequences(workspace: Workspace) -> None:
    usable = pq.read_table(stage_states(workspace)["images"].folder / "items.parquet").to_pylist()
    uri = next(row["image_uri"] for row in usable if row["status"] == "ok" and row["duplicate_of"] is None)
    Image.new("RGB", (96, 96), (200, 30, 60)).save(workspace.raw / uri)
    assert built(workspace) == [name for name in NAMES if name not in ("ingest", "check", "sequences", *PINNED)]


def test_a_price_that_is_edited_after_the_log_has_ended_trains_nothing(workspace: Workspace) -> None:
    items = read(workspace, "items")
    prices = items["price"].to_pylist()
    prices[0] = 12345.0
    place = items.schema.get_field_index("price")
    rewrite(workspace, "items", items.set_column(place, "price", pa.array(prices, items.schema.field(place).type)))
    # No training row has it, and the online store has.
    unmoved = ("sequences", *OF_THE_ENCODER, "ctr", "evaluate")
    assert built(workspace) == [name for name in NAMES if name not in unmoved]


@pytest.mark.parametrize("stage", ["ingest", "sequences", "images", "pretrain", "embed", "cluster", "features"])
def test_a_rebuild_to_the_same_bytes_makes_nothing_stale(workspace: Workspace, stage: str) -> None:
    done = run_stages(workspace, rebuild=frozenset({stage}), anew=frozenset({stage}))
    assert [name for name, what in done.items() if what == "built"] == [stage]
