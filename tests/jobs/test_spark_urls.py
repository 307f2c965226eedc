"""Spark reads and writes at a URL what it reads and writes in a folder of this machine.

The file system is Hadoop's own viewfs://, whose mount table leads to a folder, and a driver of fsspec for the same
URLs: two programs that know nothing of each other see the same bytes, as with an object store.
"""

import gzip
import json
import random
import uuid
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from jobs.config import SequencesConfig
from jobs.daily_log import read_watermark
from jobs.paths import any_path
from jobs.sources.raw import RawTableUnusable
from model import artifact
from model.artifact import AnyPath


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
    folder.mkdir()
    options = spark.sparkContext._jsc.hadoopConfiguration()
    options.set(f"fs.viewfs.mounttable.{name}.link./store", f"file://{folder}")
    ViewFileSystem.mounted[name] = str(folder)
    fsspec.register_implementation("viewfs", ViewFileSystem, clobber=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # upath knows no class of its own for viewfs
        parts = spark.conf.get("spark.sql.shuffle.partitions")
        spark.conf.set("spark.sql.shuffle.partitions", "2")  # few files: what is tested is where they lie
        yield lambda path: any_path(f"viewfs://{name}/store/{path}")
        spark.conf.set("spark.sql.shuffle.partitions", parts)


@pytest.fixture
def raw(drawn_events, write_events, tmp_path) -> Path:
    return write_events(tmp_path / "store" / "raw", drawn_events(n * 7_919_317_003 % 10**12 for n in range(300)))


def hashes(out: AnyPath, kind: str = "sequences") -> dict[str, str]:
    return {name: facts["sha256"] for name, facts in artifact.read(out, kind=kind).files.items()}


def called(main: Callable[[list[str]], None], *argv: object) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, argv)))
    assert end.value.code == 0


def test_sequences_and_statistics_at_a_url_are_the_bytes_of_those_in_a_folder(mount, raw, tmp_path) -> None:
    from jobs.spark import behavior_sequences, item_statistics

    there = mount("deep/sequences")
    called(behavior_sequences.main, "--raw", raw, "--out", tmp_path / "sequences")
    called(behavior_sequences.main, "--raw", mount("raw"), "--out", there)
    assert hashes(there) == hashes(tmp_path / "sequences")
    assert len(hashes(there)) > 6
    assert artifact.read(there, kind="sequences").facts == artifact.read(tmp_path / "sequences", kind="sequences").facts

    called(item_statistics.main, "--sequences", tmp_path / "sequences", "--out", tmp_path / "statistics")
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
    from jobs.spark import behavior_sequences
    from jobs.spark.parquet_parts import write_parts

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

    monkeypatch.setattr(behavior_sequences, "write_parts", dies)
    with pytest.raises(KeyboardInterrupt):
        behavior_sequences.build(raw=raw, raw_digest="r", out=there, config=behavior_sequences.DEFAULTS)
    assert written
    assert not (there / "manifest.json").exists()
    monkeypatch.undo()
    behavior_sequences.build(raw=raw, raw_digest="r", out=there, config=behavior_sequences.DEFAULTS)
    assert b"PAR1" not in {path.read_bytes() for path in there.rglob("*.parquet")}
    assert hashes(there)


def test_a_daily_log_at_a_url_is_that_of_a_folder_and_so_is_what_is_assembled_of_it(mount, raw, tmp_path) -> None:
    from jobs.spark.daily_log import add_days, build

    there, config = mount("workspace"), SequencesConfig()
    days = [date(2024, 3, 1), date(2024, 3, 2), date(2024, 3, 3)]
    add_days(raw=raw, workspace=tmp_path / "here", start=days[0], end=days[2], config=config)
    add_days(raw=mount("raw"), workspace=there, start=days[0], end=days[1], config=config)
    add_days(raw=mount("raw"), workspace=there, start=days[2], end=days[2], config=config)
    assert logged(there) == logged(tmp_path / "here")
    assert read_watermark(there) == read_watermark(tmp_path / "here")
    assert not [path for path in (there / "days").rglob("*") if artifact.PARTIAL in str(path)]

    arguments = {"raw": raw, "raw_digest": "r", "config": config}
    build(**arguments, workspace=tmp_path / "here", out=tmp_path / "joined")
    build(**arguments, workspace=there, out=mount("joined"))
    assert hashes(mount("joined")) == hashes(tmp_path / "joined")


def logged(workspace: AnyPath) -> dict[str, dict[str, str]]:
    """What the manifests of a log say: its days, its states, its undated rows."""
    found = {}
    for path in (workspace / "days").rglob("manifest.json"):
        name = str(path.parent).removeprefix(f"{workspace}/days/")
        kind = {"undated": "undated", "states": "state"}.get(name.partition("/")[0], "day")
        found[name] = hashes(path.parent, kind)
    return found


def test_tables_of_every_format_are_checked_at_a_url_and_rejected_rows_name_their_file(mount, tmp_path, capsys) -> None:
    from jobs import check

    folder = tmp_path / "store" / "raw"
    (folder / "events").mkdir(parents=True)
    head = "user_id,item_id,event_time,event_type,request_id,position\n"
    (folder / "events" / "a [1] b.csv").write_text(f"{head}u,i,2024-03-01T12:00:00Z,impression,r,0\nu,i,,click,r,\n")
    (folder / "items.jsonl").write_text('{"item_id": "i", "image_uri": "i.png"}\n')
    called(check.main, mount("raw"), "--json")
    found = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in found["events"]["examples"]["null_event_time"]] == ["events/a [1] b.csv"]
    assert (found["events"]["read"], found["items"]["accepted"]) == (2, 1)


def test_a_file_at_a_url_that_proves_damaged_is_named_by_its_url(spark, mount, tmp_path) -> None:
    from jobs.spark.raw_files import damage_named
    from jobs.spark.raw_tables import read_items

    folder = tmp_path / "store" / "raw"
    folder.mkdir()
    rng = random.Random(0)
    rows = "".join(f"i{n},i.png,c,{rng.random()},1,\n" for n in range(9_000))
    head = "item_id,image_uri,category,title,price,created_at\n"
    (folder / "items.csv.gz").write_bytes(gzip.compress((head + rows).encode())[:-20])
    named = r"^viewfs://\w+/store/raw/items\.csv\.gz is damaged or cut short"
    with pytest.raises(RawTableUnusable, match=named), damage_named():
        read_items(spark, mount("raw")).collect()
