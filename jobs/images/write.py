"""The files of the images artifact: write them deterministically, and count what they hold."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from jobs.config import ImagesConfig
from jobs.engines.whole_files import aside, write_pictures
from jobs.images import duplicates
from jobs.images.examine import EXAMINED
from jobs.images.store import ImageStore, Location
from jobs.paths import arrow_source
from jobs.raw.beam_rows import Row
from jobs.raw.typed import ROW
from jobs.rules import near_duplicates
from jobs.rules.items import OK, STATUSES
from model import artifact, strict_json
from model.artifact import AnyPath
from model.errors import RowsLost

ITEMS_SCHEMA: Final = pa.schema(
    [
        ("item_id", pa.string()),
        ("image_uri", pa.string()),
        ("image_id", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("bytes_sha256", pa.string()),
        ("category", pa.string()),
        ("title", pa.string()),
        ("price", pa.float64()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("duplicate_of", pa.string()),
        # Of the image as its file holds it, upright; null where none could be decoded.
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("frames", pa.int32()),
        ("phash", pa.string()),
        ("near_duplicate_of", pa.string()),
        ("stale", pa.string()),  # why the picture could not be looked at again: it is as it was before
    ]
)
REJECTED_SCHEMA: Final = pa.schema([("row", pa.string()), ("reason", pa.string())])
PLACEHOLDERS_SCHEMA: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.binary()),
        ("items", pa.int64()),
        ("categories", pa.list_(pa.string())),
        ("first_item_id", pa.string()),
    ]
)
READ: Final = "read.json"
NEAR: Final = "near_duplicates.json"


def write_shard(
    group: tuple[tuple[int, int], list[list[tuple[str, Location]]]], folder: AnyPath, store: ImageStore
) -> str:
    """Write ((shard, of so many), lists of (image_id, where the store holds it)), sorted by id; returns its path.

    Statistics of it lie beside it.
    """
    (shard, shards), wanted = group
    path = folder / f"images-{shard:05d}-of-{shards:05d}.parquet"
    images = store.gather(chain.from_iterable(wanted))
    write_pictures(images, path, pixels="image")
    png_bytes = pc.sum(pc.binary_length(images["image"])).as_py() or 0
    _write_json({"images": len(images), "png_bytes": png_bytes, "sha256": artifact.sha256_file(path)}, path)
    return str(path)


def write_items(shards: list[pa.Table], path: AnyPath, config: ImagesConfig) -> None:
    """Write items.parquet, sorted by item_id: every item with its final status, duplicates and placeholders settled.

    shards: rows of EXAMINED.
    """
    settled = duplicates.settle(pa.concat_tables([EXAMINED.empty_table(), *shards]), config)
    near, not_compared = near_duplicates_of(settled, config.near_distance)
    _write_json({"not_compared": not_compared}, path.with_name(NEAR))
    _write(settled.append_column("near_duplicate_of", near).select(ITEMS_SCHEMA.names).cast(ITEMS_SCHEMA), path)


def near_duplicates_of(settled: pa.Table, near_distance: int) -> tuple[pa.Array, int]:
    """Of each row the smallest item_id that shows a near-duplicate of its picture; null for that item itself.

    The second is how many pairs of pictures were not compared: jobs.rules.near_duplicates.

    settled: of `pictures.settle`, sorted by item_id. Where a picture has no other near it, the items that show it have
    none: they are plain duplicates.
    """
    ids = settled["image_id"].to_pylist()
    hashes = {image_id: phash for image_id, phash in zip(ids, settled["phash"].to_pylist(), strict=True) if image_id}
    search = near_duplicates.search(hashes, near_distance)
    first: dict[str | None, str] = {None: ""}
    near: list[str | None] = []
    for item_id, image_id in zip(settled["item_id"].to_pylist(), ids, strict=True):
        group = search.group_of.get(image_id or "")
        smallest = first.setdefault(group, item_id)
        near.append(smallest if group is not None and smallest != item_id else None)
    return pa.array(near, pa.string()), search.not_compared


def write_rejected(rejected: list[tuple[tuple[int, int], Row, str]], path: AnyPath) -> None:
    """Write rejected.parquet in the order of the raw table: each row as JSON, and why it was rejected.

    rejected: (place of the row in the table, row, reason).
    """
    ordered = sorted(rejected, key=lambda one: one[0])
    rows = [{"row": _as_json(row), "reason": reason} for _, row, reason in ordered]
    _write(pa.Table.from_pylist(rows, REJECTED_SCHEMA), path)


def _as_json(row: Row) -> str:
    read = row.get(ROW)
    return strict_json.dumps(row, default=str, ensure_ascii=False) if read is None else str(read)


def write_placeholders(shared: list[dict[str, Any]], path: AnyPath, store: ImageStore) -> None:
    """Write placeholders.parquet, sorted by image_id: each "no image" picture, its items and their categories.

    shared: rows of `pictures.uses`.
    """
    used = {one["image_id"]: one for one in shared}
    wanted = ((image_id, (one["image_uri"], one["uri"])) for image_id, one in used.items())
    rows = [
        {**used[row["image_id"]], **row, "categories": sorted(used[row["image_id"]]["categories"])}
        for row in store.gather(wanted).to_pylist()
    ]
    _write(pa.Table.from_pylist(rows, PLACEHOLDERS_SCHEMA), path)


def write_count(lengths: list[int], path: AnyPath) -> None:
    """Write how many rows the items table gave: counted by the pipeline itself, exact whatever the runner retried.

    lengths: of the lists in which the rows came.
    """
    _write_json({"items_read": sum(lengths)}, path)


def facts(folder: AnyPath) -> dict[str, Any]:
    """Every count of the images artifact in `folder`, from its own tables. Raises RowsLost if they do not add up."""
    columns = ["status", "reason", "image_id", "duplicate_of", "near_duplicate_of", "stale"]
    where, files = arrow_source(folder)
    items = pq.read_table(f"{where}/items.parquet", columns=columns, filesystem=files)
    rejected = Counter(pq.read_table(f"{where}/rejected.parquet", filesystem=files)["reason"].to_pylist())
    statuses, reasons = Counter(items["status"].to_pylist()), Counter(items["reason"].to_pylist())
    near = items["near_duplicate_of"].drop_null()
    counted = {
        **json.loads((folder / READ).read_text("utf-8")),
        "items_accepted": len(items),
        "items_rejected": dict(sorted(rejected.items())),
        "images_ok": statuses[OK],
        "distinct_images": len(items["image_id"].drop_null().unique()),
        "duplicates": len(items["duplicate_of"].drop_null()),
        "near_duplicates": len(near),
        "near_duplicate_groups": len(near.unique()),
        "placeholder_pictures": pq.read_metadata(f"{where}/placeholders.parquet", filesystem=files).num_rows,
        **{status: statuses[status] for status in STATUSES if status != OK},
        "stale": dict(sorted(Counter(items["stale"].drop_null().to_pylist()).items())),
        **json.loads((folder / NEAR).read_text("utf-8")),
        "by_reason": {reason: count for reason, count in sorted(reasons.items()) if reason},
    }
    _check(counted, folder)
    return counted


def _check(counted: Mapping[str, Any], folder: AnyPath) -> None:
    read, accepted, rejected = counted["items_read"], counted["items_accepted"], sum(counted["items_rejected"].values())
    if read != accepted + rejected:
        raise RowsLost(f"{folder}: {read} rows were read, {accepted} accepted and {rejected} rejected")
    shards = map(arrow_source, (folder / "shards").glob("*.parquet"))
    held = sum(pq.read_metadata(where, filesystem=files).num_rows for where, files in shards)
    if held != counted["distinct_images"]:
        raise RowsLost(f"{folder}: {counted['distinct_images']} distinct images were found, the shards hold {held}")


def _write(table: pa.Table, path: AnyPath) -> None:
    with aside(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")


def _write_json(stats: Mapping[str, Any], path: AnyPath) -> None:
    artifact.write_whole(path.with_suffix(".json"), strict_json.dumps(stats, sort_keys=True).encode())


class _Sha256Sink:
    """A file to write into that keeps no more than the digest of what was written."""

    closed = False

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def pictures_digest(folder: AnyPath, size: int) -> str:
    """The identity of what an encoder reads of the images artifact in `folder`: which item has which picture.

    Of every usable item its id, its picture's, category and title; the picture's id is the hash of its pixels, stored
    at `size`. A price or a date that changes changes nothing here.
    """
    where, files = arrow_source(folder)
    columns = ["item_id", "image_id", "category", "title"]
    rows = pq.read_table(f"{where}/items.parquet", columns=[*columns, "status"], filesystem=files)
    usable = rows.filter(pc.equal(rows["status"], OK)).select(columns).sort_by("item_id")
    sink = _Sha256Sink()
    pa_csv.write_csv(usable, pa.PythonFile(sink, mode="w"))
    sink.digest.update(f"{size}".encode())
    return sink.digest.hexdigest()
