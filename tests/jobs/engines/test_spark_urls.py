"""Spark reads and writes at a URL what it reads and writes in a folder of this machine.

The file system is Hadoop's own viewfs://, whose mount table leads to a folder, and a driver of fsspec for the same
URLs: two programs that know nothing of each other see the same bytes, as with an object store.
"""

import json
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from jobs.config import SequencesConfig
from jobs.paths import any_path
from jobs.raw.canonical import canonical_table
from jobs.raw.folder import RawTableUnusable
from jobs.sequences.daily.log import read_watermark
from model import artifact
from model.artifact import AnyPath

DAYS = [date(2024, 3, 1), date(2024, 3, 2), date(2024, 3, 3)]


class ViewFileSystem(DirFileSystem):
    """fsspec's view of viewfs://NAME/store, for the mount tables of this test."""

    protocol, sep, root_marker = "viewfs", "/", ""
    mounted: ClassVar[dict[str, str]] = {}  # NAME/store -> folder

    def __init__(self, **options: Any) -> None:
        super().__init__(path="/", fs=LocalFileSystem(auto_mkdir=True), **options)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return str(path).removeprefix("viewfs://").rstrip("/")

    def _join(self, path: Any) -> Any:
        if isinstance(path, list):
            return [self._join(one) for one in path]
        name, _, rest = self._strip_protocol(path).partition("/store")
        return self.mounted[name] + rest

    def _relpath(self, path: Any) -> Any:
        if isinstance(path, list):
            return [self._relpath(one) for one in path]
        name = next(name for name, folder in self.mounted.items() if str(path).startswith(folder))
        return f"{name}/store{str(path).removeprefix(self.mounted[name])}"


@pytest.fixture
def mount(spark, tmp_path) -> Iterator[Callable[[str], AnyPath]]:
    """A URL below which Spark and fsspec see the folder tmp_path/store, and nothing else does."""
    name, folder = uuid.uuid4().hex, tmp_path / "store"
    folder.mkdir(exist_ok=True)
    options = spark.sparkContext._jsc.hadoopConfiguration()
    options.set(f"fs.viewfs.mounttable.{name}.link./store", f"file://{folder}")
    ViewFileSystem.mounted[name] = str(folder)
    fsspec.register_implementation("viewfs", ViewFileSystem, clobber=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # upath knows no class of its own for viewfs
        yield lambda path: any_path(f"viewfs://{name}/store/{path}")


@pytest.fixture(scope="module")
def here(spark, drawn_events, write_events, tmp_path_factory) -> Path:  # noqa: ARG001
    """A folder of this machine: raw events of DAYS, and the sequences made of them."""
    from jobs.sequences.spark import behavior_sequences

    folder = tmp_path_factory.mktemp("here")
    events = [one for one in drawn_events(n * 7_919_317_003 % 10**12 for n in range(400)) if one.day in DAYS]
    write_events(folder / "raw", events)
    called(behavior_sequences.main, "--raw", folder / "raw", "--out", folder / "sequences", *CLOCK)
    return folder


@pytest.fixture
def raw(here, tmp_path) -> Path:
    return Path(shutil.copytree(here / "raw", tmp_path / "store" / "raw"))


def hashes(out: AnyPath, kind: str = "sequences") -> dict[str, str]:
    return {name: facts["sha256"] for name, facts in artifact.read(out, kind=kind).files.items()}


CLOCK = ("--as-of", "2026-01-01T00:00Z")


def called(main: Callable[[list[str]], None], *argv: object) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, argv)))
    assert end.value.code == 0


@pytest.mark.usefixtures("raw")
def test_sequences_and_statistics_at_a_url_are_the_bytes_of_those_in_a_folder(mount, here, tmp_path) -> None:
    from jobs.sequences.spark import behavior_sequences, item_statistics

    there = mount("deep/sequences")
    called(behavior_sequences.main, "--raw", mount("raw"), "--out", there, *CLOCK)
    assert hashes(there) == hashes(here / "sequences")
    assert len(hashes(there)) > 6
    assert artifact.read(there, kind="sequences").facts == artifact.read(here / "sequences", kind="sequences").facts

    called(item_statistics.main, "--sequences", here / "sequences", "--out", tmp_path / "statistics")
    called(item_statistics.main, "--sequences", there, "--out", mount("statistics"))
    written = [
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}
        for folder in (tmp_path / "statistics", tmp_path / "store" / "statistics")
    ]
    assert written[0] == written[1]
    assert written[0]


def test_what_a_killed_job_left_at_a_url_is_no_artifact_and_is_replaced_by_the_next_one(
    mount, raw, monkeypatch
) -> None:
    from jobs.engines.parquet_parts import write_parts
    from jobs.sequences.spark import behavior_sequences

    there, written = mount("sequences"), []
    (there / "clicks" / "_temporary").mkdir(parents=True)
    (there / "clicks" / "_temporary" / "part-0.parquet").write_bytes(b"half")
    (there / "impressions").mkdir()
    (there / "impressions" / "part-00009.parquet").write_bytes(b"PAR1")

    def dies(frame: Any, folder: AnyPath, **options: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write_parts(frame, folder, **options)
        with pytest.raises(artifact.ArtifactMissing):
            artifact.read(there, kind="sequences")
        written.append(folder.name)

    given = {"events": canonical_table(raw, "events"), "sampled_negatives": False, "inputs": {}}
    monkeypatch.setattr(behavior_sequences, "write_parts", dies)
    with pytest.raises(KeyboardInterrupt):
        behavior_sequences.build(**given, out=there, config=SequencesConfig())
    assert written
    assert not (there / "manifest.json").exists()
    monkeypatch.undo()
    behavior_sequences.build(**given, out=there, config=SequencesConfig())
    assert b"PAR1" not in {path.read_bytes() for path in there.rglob("*.parquet")}
    assert hashes(there)


@pytest.mark.slow
@pytest.mark.usefixtures("raw")
def test_a_daily_log_at_a_url_grows_and_is_assembled_to_the_bytes_of_a_folder(mount, here) -> None:
    from jobs.sequences.build import build
    from jobs.sequences.daily.build import add_days

    place, raw, config = mount("workspace"), mount("raw"), SequencesConfig()
    given = {"events": canonical_table(raw, "events"), "sampled_negatives": False, "workspace": place}
    add_days(**given, start=DAYS[0], end=DAYS[1], config=config, engine="spark")
    assert (place / "days" / "2024-03-02" / "manifest.json").exists()
    add_days(**given, start=DAYS[2], end=DAYS[2], config=config, engine="spark")
    assert read_watermark(place).last == DAYS[2]
    assert not [path for path in (place / "days").rglob("*") if artifact.PARTIAL in str(path)]
    build(ingest=raw, raw=raw, workspace=place, out=mount("joined"), config=config, engine="spark")
    assert hashes(mount("joined")) == hashes(here / "sequences")


def test_tables_of_every_format_are_checked_at_a_url_and_rejected_rows_name_their_file(mount, tmp_path, capsys) -> None:
    from jobs import check

    folder = tmp_path / "store" / "raw"
    (folder / "events").mkdir(parents=True)
    head = "user_id,item_id,event_time,event_type,request_id,position\n"
    (folder / "events" / "a [1] b.csv").write_text(
        f"{head}u,i,2024-03-01T12:00:00Z,impression,r,0\nu,i,2024-03-01T12:00:01Z,click,r,\nu,i,,click,r,\n", "utf-8"
    )
    (folder / "events" / "c.csv").write_text(f"{head}v,i,2024-03-01T12:00:00Z,impression,s,0\n", "utf-8")
    (folder / "items.jsonl").write_text('{"item_id": "i", "image_uri": "i.png"}\n', "utf-8")
    called(check.main, mount("raw"), "--json")
    found = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in found["events"]["examples"]["null_event_time"]] == ["events/a [1] b.csv"]
    assert (found["events"]["read"], found["items"]["accepted"]) == (4, 1)


def test_a_file_at_a_url_that_proves_damaged_is_named_by_its_url(spark, mount, tmp_path) -> None:
    from jobs.raw.spark_tables import damage_named, read_items

    folder = tmp_path / "store" / "raw"
    folder.mkdir()
    texts = {name: [f"{name} {n}" for n in range(9_000)] for name in ("item_id", "image_uri", "category", "title")}
    pq.write_table(pa.table(texts), folder / "items.parquet")
    data = bytearray((folder / "items.parquet").read_bytes())
    data[4:1004] = bytes(1000)  # of the first page; what a file says of itself stands at its end
    (folder / "items.parquet").write_bytes(data)
    named = r"^viewfs://\w+/store/raw/items\.parquet is damaged or cut short"
    with pytest.raises(RawTableUnusable, match=named), damage_named():
        read_items(spark, canonical_table(mount("raw"), "items")).collect()
