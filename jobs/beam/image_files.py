"""The files of the images artifact: write them deterministically, and count what they hold."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.beam.item_rows import Place, Raw
from jobs.logic import catalogue
from jobs.logic.catalogue import CatalogueRow
from model import artifact

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
    ]
)
REJECTED_SCHEMA: Final = pa.schema([("row", pa.string()), ("reason", pa.string())])
SHARD_SCHEMA: Final = pa.schema([("image_id", pa.string()), ("image", pa.binary())])


def write_shard(group: tuple[int, list[tuple[str, bytes]]], folder: Path, shards: int) -> str:
    """Write (shard, [(image_id, png)]) sorted by id, and its statistics beside it; returns the shard's path."""
    shard, pictures = group
    path = folder / f"images-{shard:05d}-of-{shards:05d}.parquet"
    ids, pngs = zip(*sorted(pictures), strict=True) if pictures else ((), ())
    with _aside(path) as aside:
        # PNG does not compress further; small row groups let a reader stream.
        table = pa.table([pa.array(ids, pa.string()), pa.array(pngs, pa.binary())], schema=SHARD_SCHEMA)
        pq.write_table(table, aside, compression="none", row_group_size=1024)
    stats = {"images": len(ids), "png_bytes": sum(map(len, pngs)), "sha256": artifact.sha256_file(path)}
    with _aside(path.with_suffix(".json")) as aside:
        aside.write_text(json.dumps(stats, sort_keys=True))
    return str(path)


def write_items(rows: list[CatalogueRow], path: Path) -> None:
    """Write items.parquet, sorted by item_id."""
    flat = [_flat(row) for row in sorted(rows, key=lambda row: row.item.item_id)]
    with _aside(path) as aside:
        pq.write_table(pa.Table.from_pylist(flat, ITEMS_SCHEMA), aside, compression="zstd")


def _flat(row: CatalogueRow) -> dict[str, Any]:
    return {name: getattr(row.item if hasattr(row.item, name) else row, name) for name in ITEMS_SCHEMA.names}


def write_rejected(rejected: list[tuple[Place, Raw, str]], path: Path) -> None:
    """Write rejected.parquet in the order of the raw table: each row as JSON, and why it was rejected."""
    ordered = sorted(rejected, key=lambda one: one[0])
    flat = [{"row": _as_json(row), "reason": reason} for _, row, reason in ordered]
    with _aside(path) as aside:
        pq.write_table(pa.Table.from_pylist(flat, REJECTED_SCHEMA), aside, compression="zstd")


def _as_json(row: Raw) -> str:
    return json.dumps(row, default=str, ensure_ascii=False)


def facts(folder: Path) -> dict[str, Any]:
    """Every count of the images artifact in `folder`, from the tables themselves: exact whatever the runner retried."""
    items = pq.read_table(folder / "items.parquet", columns=["status", "reason", "image_id", "duplicate_of"])
    rejected = Counter(pq.read_table(folder / "rejected.parquet")["reason"].to_pylist())
    statuses, reasons = Counter(items["status"].to_pylist()), Counter(items["reason"].to_pylist())
    return {
        "items_accepted": len(items),
        "items_rejected": dict(sorted(rejected.items())),
        "images_ok": statuses[catalogue.OK],
        "distinct_images": len(items["image_id"].drop_null().unique()),
        "duplicates": len(items["duplicate_of"].drop_null()),
        **{status: statuses[status] for status in catalogue.STATUSES if status != catalogue.OK},
        "by_reason": {reason: count for reason, count in sorted(reasons.items()) if reason},
    }


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    # A runner may do a piece of work twice, even at once: each writes its own file, and the rename is atomic.
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
