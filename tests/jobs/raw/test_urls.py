"""Raw tables at a URL are read, refused and told apart as the same files in a folder of this machine."""

import gzip
import io
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import _registry as loaded_drivers
from fsspec.registry import known_implementations
from upath import UPath

from jobs.config import IngestConfig
from jobs.paths import UrlUnusable, any_path, arrow_source, from_spark, spark_uri
from jobs.raw import beam_rows, identity
from jobs.raw import folder as raw
from jobs.raw.canonical import canonical_table
from jobs.raw.ingest import read_tables
from model.artifact import AnyPath

ITEM = {"item_id": "i", "image_uri": "i.png", "category": "shoe", "title": "Schön", "price": "1.5", "created_at": ""}
CSV = (",".join(ITEM) + "\n" + ",".join(ITEM.values()) + "\n").encode()
JSONL = b'{"item_id": "i", "image_uri": "\xff.png"}\nno row\n' + b'{"item_id": "j", "image_uri": "j.png"}\n' * 20


def parquet(**columns: str) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({name: [value] for name, value in (columns or ITEM).items()}), stream)
    return stream.getvalue()


GOOD = {
    "a CSV file": {"items.csv": CSV, "other.txt": b""},
    "a zipped CSV file": {"items.csv.gz": gzip.compress(CSV)},
    "JSON lines with a mark": {"items.jsonl": b"\xef\xbb\xbf" + JSONL},
    "zipped JSON lines": {"items.ndjson.gz": gzip.compress(JSONL)},
    "parquet": {"items.parquet": parquet()},
    "a folder with markers": {
        "items/b/2.csv": CSV,
        "items/1.csv": CSV,
        "items/_SUCCESS": b"",
        "items/.1.csv.crc": b"?",
    },
    "a folder with a draft": {"items/1.parquet": parquet(), "items/_temporary/0/2.parquet": b"half"},
}
BAD = {
    "no table": {"item.csv": CSV},
    "two tables": {"items.csv": CSV, "items/1.parquet": parquet()},
    "two formats": {"items/1.csv": CSV, "items/1.parquet": parquet()},
    "an unknown format": {"items/1.xlsx": b"PK"},
    "an empty folder": {"items/_SUCCESS": b""},
    "zipped twice": {"items.csv.gz": gzip.compress(gzip.compress(CSV))},
    "cut short": {"items.csv.gz": gzip.compress(CSV)[:20]},
    "a missing column": {"items.csv": CSV.replace(b"image_uri", b"image_url")},
    "no parquet": {"items.parquet": b"PAR1, or so it says"},
    "parquet without a column": {"items.parquet": parquet(item_id="i", uri="u")},
    "Latin-1": {"items.csv": CSV.decode().encode("latin-1")},
}


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> AnyPath:
    if request.param == "s3":
        return any_path(str(request.getfixturevalue("bucket") / "shop/"))
    return any_path(f"memory://{uuid.uuid4().hex}/shop")


def digest(folder: AnyPath) -> list[str]:
    """What ingesting and the images stage are made from."""
    return [
        *identity.tables_inputs(Path(), folder).values(),
        *identity.images_inputs(Path(), folder).values(),
    ]


def lay(folder: AnyPath, files: dict[str, bytes]) -> AnyPath:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def all_rows(folder: AnyPath, out: Path) -> list[beam_rows.Row]:
    """The rows of the items as Beam reads them once they are ingested."""
    read_tables(raw=folder, raw_digest="", out=out, config=IngestConfig(), threads=1)
    table = canonical_table(out, "items", folder)
    return [row for file in table.files for row in beam_rows.rows(any_path(str(file)), "items")]


@pytest.mark.parametrize("files", GOOD.values(), ids=lambda files: next(iter(files)))
def test_the_rows_at_a_url_are_those_of_the_same_folder(files, store, tmp_path) -> None:
    here, there = lay(tmp_path, files), lay(store, files)
    read = all_rows(here, tmp_path / "read here")
    assert all_rows(there, tmp_path / "read there") == read != []
    tables = [raw.table_files(folder, "items") for folder in (here, there)]
    names = [
        [str(file).removeprefix(f"{folder}/") for file in t.files]
        for t, folder in zip(tables, (here, there), strict=True)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("files", BAD.values(), ids=lambda files: next(iter(files)))
def test_what_cannot_be_read_at_a_url_is_refused_in_the_words_for_the_same_folder(files, store, tmp_path) -> None:
    said = []
    for folder in (lay(tmp_path, files), lay(store, files)):
        with pytest.raises(raw.RawTableUnusable) as refusal:
            all_rows(folder, tmp_path / "read")
        said.append(str(refusal.value).replace(str(folder), "RAW"))
    assert said[0].partition("(")[0] == said[1].partition("(")[0]  # in brackets stands what pyarrow says
    assert "RAW" in said[1]


@pytest.mark.parametrize("files", GOOD.values(), ids=lambda files: next(iter(files)))
def test_duckdb_reads_at_a_url_what_it_reads_in_the_same_folder(files, store, tmp_path, duck) -> None:
    here, there = (duck.rows(lay(folder / "raw", files), "items") for folder in (tmp_path, store))
    assert sorted(there, key=repr) == sorted(here, key=repr) != []


def test_a_name_that_looks_like_a_pattern_is_a_name_at_a_url_too(store, duck) -> None:
    assert len(duck.rows(lay(store / "raw", {"items/d=1/a [1]*?.parquet": parquet()}), "items")) == 1


def test_the_digest_of_a_url_follows_every_object_but_the_truth(store) -> None:
    lay(store, {"items.csv": CSV, "images/1.png": b"1", "truth.parquet": b"t"})
    first, about = digest(store), identity.evaluation_inputs(Path(), store)
    assert digest(any_path(str(store))) == first
    lay(store, {"truth.parquet": b"u"})
    assert digest(store) == first
    assert identity.evaluation_inputs(Path(), store) != about
    lay(store, {"images/1.png": b"2"})  # as long as before
    second = digest(store)
    assert second != first
    lay(store, {"images/2.png": b"2"})
    assert digest(store) not in (first, second)


def test_a_whole_bucket_may_be_a_raw_folder(bucket, tmp_path) -> None:
    lay(bucket, {"items/1.csv": CSV, "truth.parquet": b"t"})
    assert len(all_rows(any_path(str(bucket)), tmp_path / "read")) == 1
    first = digest(bucket)
    lay(bucket, {"truth.parquet": b"u"})
    assert digest(bucket) == first


def test_what_a_raw_folder_says_of_itself_is_read_at_a_url(store) -> None:
    lay(store, {"items.csv": CSV})
    assert raw.source(store) == {}
    lay(store, {raw.SOURCE: b'{"name": "shop"}'})
    assert raw.source(store) == {"name": "shop"}


def test_a_url_that_holds_nothing_or_whose_store_does_not_answer_is_said_in_one_sentence(store, monkeypatch) -> None:
    for read in (digest, lambda place: raw.table_files(place, "events")):
        with pytest.raises(raw.RawTableMissing, match=r"nowhere is not a folder: give the folder"):
            read(store / "nowhere")

    def refuse(*_: object, **__: object) -> bool:
        raise PermissionError("Access Denied.\nat great length")

    monkeypatch.setattr(type(store.fs), "isdir", refuse)
    store.fs.isdir = refuse  # fsspec gives an instance its own
    try:
        with pytest.raises(raw.RawTableMissing, match=r"cannot be looked into \(Access Denied\): check the address"):
            digest(store)
    finally:
        del store.fs.isdir


# --- how a place is named -------------------------------------------------------------------------------------------


def test_a_place_is_a_path_of_this_machine_or_a_url_whose_slashes_stay() -> None:
    assert any_path("a/b") == Path("a/b")
    assert any_path("file:///tmp/a%20b") == any_path("file://localhost/tmp/a%20b") == Path("/tmp/a b")
    assert type(any_path("/tmp")) is type(Path())
    urls = ("s3://bucket/a b", "s3a://bucket/a b/", "S3N://bucket/a b")
    assert {str(any_path(url)) for url in urls} == {"s3://bucket/a b"}
    assert isinstance(any_path("s3://bucket"), UPath)
    assert str(any_path("memory://a/b") / "c.csv") == "memory://a/b/c.csv"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftps4://host/a", "fsspec knows no ftps4://"),
        ("file://host/a", "names a file on another machine"),
        ("s3://key:secret@bucket/a", "a password would be written down"),
        ("gs://bucket/a", r"pip install 'courier\[gcs\]'"),
    ],
)
def test_a_url_that_nothing_opens_is_refused_with_the_cure_and_without_its_secret(url, said, monkeypatch) -> None:
    monkeypatch.setitem(known_implementations, "gs", {"class": "nowhere.GCS", "err": "Install gcsfs"})
    monkeypatch.delitem(loaded_drivers, "gs", raising=False)
    with pytest.raises(UrlUnusable, match=said) as refusal:
        any_path(url)
    assert "secret" not in str(refusal.value)


def test_each_library_is_told_of_a_place_in_its_own_way(tmp_path) -> None:
    assert spark_uri(tmp_path / "a b") == f"file://{tmp_path}/a b"
    assert spark_uri(any_path("s3://bucket/a")) == "s3a://bucket/a"
    assert spark_uri(any_path("memory://bucket/a")) == "memory://bucket/a"
    assert from_spark("s3a://bucket/a%20b.csv") == "s3://bucket/a b.csv"
    assert from_spark("file:///tmp/a%20b.csv") == from_spark("file:/tmp/a b.csv") == "/tmp/a b.csv"
    assert arrow_source(tmp_path) == (str(tmp_path), None)
    place = any_path("s3://bucket/a")
    assert arrow_source(place) == ("bucket/a", place.fs)


def test_spark_without_the_connector_of_a_store_says_which_package_it_needs_to_write_there(spark, bucket) -> None:
    from jobs.engines.spark_session import ConnectorMissing, spark_place

    version = spark._jvm.org.apache.hadoop.util.VersionInfo.getVersion()
    said = f"Spark has no connector for s3a://, .*`--packages=org.apache.hadoop:hadoop-aws:{version}` to spark-submit"
    with pytest.raises(ConnectorMissing, match=said):
        spark_place(spark, bucket / "sequences")
