"""What makes which stages stale, on the real table of stages and a tiny shop: content, and nothing else."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

import courier
from jobs.pipeline import NAMES, explain, run_stages, stage_states
from jobs.workspace import Workspace, open_workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
OF_THE_ENCODER = ["pretrain", "embed", "cluster", "index"]


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


def test_another_day_of_events_is_no_matter_of_the_images(workspace: Workspace) -> None:
    events = read(workspace, "events")
    place = events.schema.get_field_index("event_time")
    moments = events["event_time"]
    last = pc.max(moments).as_py()
    newest = events.filter(pc.greater(moments, pa.scalar(last - timedelta(days=1), moments.type)))
    later = pc.add(newest["event_time"], pa.scalar(timedelta(days=1), pa.duration("us"))).cast(moments.type)
    names = pa.array([f"{name}-again" for name in newest["request_id"].to_pylist()])
    newest = newest.set_column(place, "event_time", later)
    newest = newest.set_column(newest.schema.get_field_index("request_id"), "request_id", names)
    rewrite(workspace, "events", pa.concat_tables([events, newest.cast(events.schema)]))
    [root] = [one for one in explain(workspace, "embed") if one.startswith("ingest: ")]
    assert "the content of events changed" in root
    assert built(workspace) == [name for name in NAMES if name != "images"]


def test_a_changed_picture_is_no_matter_of_the_sequences(workspace: Workspace) -> None:
    usable = pq.read_table(stage_states(workspace)["images"].folder / "items.parquet").to_pylist()
    uri = next(row["image_uri"] for row in usable if row["status"] == "ok" and row["duplicate_of"] is None)
    Image.new("RGB", (96, 96), (200, 30, 60)).save(workspace.raw / uri)
    assert built(workspace) == [name for name in NAMES if name not in ("ingest", "check", "sequences")]


def test_a_price_trains_no_encoder(workspace: Workspace) -> None:
    items = read(workspace, "items")
    prices = items["price"].to_pylist()
    prices[0] = 12345.0
    place = items.schema.get_field_index("price")
    rewrite(workspace, "items", items.set_column(place, "price", pa.array(prices, items.schema.field(place).type)))
    assert built(workspace) == [name for name in NAMES if name not in ("sequences", *OF_THE_ENCODER)]


@pytest.mark.parametrize("stage", ["ingest", "sequences", "images", "pretrain", "embed", "cluster", "features"])
def test_a_rebuild_to_the_same_bytes_makes_nothing_stale(workspace: Workspace, stage: str) -> None:
    done = run_stages(workspace, rebuild=frozenset({stage}))
    assert [name for name, what in done.items() if what == "built"] == [stage]
