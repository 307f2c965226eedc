"""The files of the images artifact: write them deterministically, and count what they hold."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.beam.examine import Examined, ExaminedShard
from jobs.beam.image_store import ImageStore, Location
from jobs.beam.raw_rows import Place, Raw
from jobs.beam.whole_files import aside, write_pictures
from jobs.config import ImagesConfig
from jobs.logic import catalogue, near_duplicates
from jobs.logic.catalogue import ImageUse
from jobs.paths import arrow_source
from model import artifact
from model.artifact import AnyPath

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


class RowsLost(RuntimeError):
    """The job has a fault: what it accepted and rejected is not what it read."""


@dataclass(frozen=True)
class Shared:
    """A "no image" picture: where the store holds it, and who shows it."""

    image_id: str
    location: Location
    used: ImageUse


def write_shard(
    group: tuple[int, list[list[tuple[str, Location]]]], folder: AnyPath, shards: int, store: ImageStore
) -> str:
    """Write (shard, lists of (image_id, where the store holds it)), sorted by id, and statistics; returns its path."""
    shard, wanted = group
    path = folder / f"images-{shard:05d}-of-{shards:05d}.parquet"
    pictures = store.gather(chain.from_iterable(wanted))
    write_pictures(pictures, path, pixels="image")
    png_bytes = pc.sum(pc.binary_length(pictures["image"])).as_py() or 0
    _write_json({"images": len(pictures), "png_bytes": png_bytes, "sha256": artifact.sha256_file(path)}, path)
    return str(path)


def write_items(shards: list[ExaminedShard], path: AnyPath, config: ImagesConfig) -> None:
    """Write items.parquet, sorted by item_id: every item with its final status, duplicates and placeholders settled."""
    rows = (one for shard in shards for one in shard.rows)
    settled = settle(sorted(rows, key=lambda one: one.row.item.item_id), config)
    near, not_compared = near_duplicates_of(settled, config.near_distance)
    flat = [
        {
            **vars(one.outcome),
            **vars(one.row.item),
            **vars(one.row),
            "near_duplicate_of": near.get(one.row.item.item_id),
        }
        for one in settled
    ]
    _write_json({"not_compared": not_compared}, path.with_name(NEAR))
    _write(flat, ITEMS_SCHEMA, path)


def settle(rows: Sequence[Examined], config: ImagesConfig) -> list[Examined]:
    """The rows, each with what all items that show its picture make of it."""
    uses: defaultdict[str, list[ImageUse]] = defaultdict(list)
    for one in rows:
        if one.row.image_id is not None:
            uses[one.row.image_id].append(catalogue.use(one.row.item.item_id, one.row.item.category))
    used = {image_id: catalogue.together(every) for image_id, every in uses.items()}
    limits = (config.placeholder_items, config.placeholder_categories)
    return [
        Examined(catalogue.settle(one.row, used[one.row.image_id], *limits), one.outcome) if one.row.image_id else one
        for one in rows
    ]


def near_duplicates_of(rows: Sequence[Examined], near_distance: int) -> tuple[dict[str, str], int]:
    """item_id -> the smallest item_id that shows a near-duplicate of its picture, for every item but that one.

    The second is how many pairs of pictures were not compared: jobs.logic.near_duplicates.

    rows: settled, sorted by item_id. Where a picture has no other near it, the items that show it are not in here:
    they are plain duplicates.
    """
    hashes = {one.row.image_id: str(one.outcome.phash) for one in rows if one.row.image_id is not None}
    search = near_duplicates.search(hashes, near_distance)
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for one in rows:
        group, item_id = search.group_of.get(one.row.image_id or ""), one.row.item.item_id
        if group is not None and first.setdefault(group, item_id) != item_id:
            found[item_id] = first[group]
    return found, search.not_compared


def write_rejected(rejected: list[tuple[Place, Raw, str]], path: AnyPath) -> None:
    """Write rejected.parquet in the order of the raw table: each row as JSON, and why it was rejected."""
    ordered = sorted(rejected, key=lambda one: one[0])
    _write([{"row": _as_json(row), "reason": reason} for _, row, reason in ordered], REJECTED_SCHEMA, path)


def _as_json(row: Raw) -> str:
    return json.dumps(row, default=str, ensure_ascii=False)


def write_placeholders(shared: list[Shared], path: AnyPath, store: ImageStore) -> None:
    """Write placeholders.parquet, sorted by image_id: each "no image" picture, its items and their categories."""
    used = {one.image_id: one.used for one in shared}
    flat = [
        {**row, **vars(use), "categories": sorted(use.categories)}
        for row in store.gather((one.image_id, one.location) for one in shared).to_pylist()
        for use in [used[row["image_id"]]]
    ]
    _write(flat, PLACEHOLDERS_SCHEMA, path)


def write_count(rows: int, path: AnyPath) -> None:
    """Write how many rows the items table gave: counted by the pipeline itself, exact whatever the runner retried."""
    _write_json({"items_read": rows}, path)


def facts(folder: AnyPath) -> dict[str, Any]:
    """Every count of the images artifact in `folder`, from its own tables. Raises RowsLost if they do not add up."""
    columns = ["status", "reason", "image_id", "duplicate_of", "near_duplicate_of", "stale"]
    where, files = arrow_source(folder)
    items = pq.read_table(f"{where}/items.parquet", columns=columns, filesystem=files)
    rejected = Counter(pq.read_table(f"{where}/rejected.parquet", filesystem=files)["reason"].to_pylist())
    statuses, reasons = Counter(items["status"].to_pylist()), Counter(items["reason"].to_pylist())
    near = items["near_duplicate_of"].drop_null()
    counted = {
        **json.loads((folder / READ).read_text()),
        "items_accepted": len(items),
        "items_rejected": dict(sorted(rejected.items())),
        "images_ok": statuses[catalogue.OK],
        "distinct_images": len(items["image_id"].drop_null().unique()),
        "duplicates": len(items["duplicate_of"].drop_null()),
        "near_duplicates": len(near),
        "near_duplicate_groups": len(near.unique()),
        "placeholder_pictures": pq.read_metadata(f"{where}/placeholders.parquet", filesystem=files).num_rows,
        **{status: statuses[status] for status in catalogue.STATUSES if status != catalogue.OK},
        "stale": dict(sorted(Counter(items["stale"].drop_null().to_pylist()).items())),
        **json.loads((folder / NEAR).read_text()),
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


def _write(rows: list[dict[str, Any]], schema: pa.Schema, path: AnyPath) -> None:
    with aside(path) as unfinished:
        pq.write_table(pa.Table.from_pylist(rows, schema), unfinished, compression="zstd")


def _write_json(stats: Mapping[str, Any], path: AnyPath) -> None:
    artifact.write_whole(path.with_suffix(".json"), json.dumps(stats, sort_keys=True).encode())
