"""Files of raw tables, good ones and bad ones, for the tests to lay."""

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

AT = "2024-03-01T12:00:00Z"
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
EVENT = {
    "user_id": "u",
    "item_id": "i",
    "event_time": AT,
    "event_type": "impression",
    "request_id": "r",
    "position": "0",
}
ITEM = {
    "item_id": "i",
    "image_uri": "i.png",
    "category": "shoe",
    "title": "Schön",
    "price": "1.5",
    "created_at": AT,
}


def items(count: int = 30, **changed: Any) -> list[dict[str, Any]]:
    """Good items, of which the last one is changed."""
    rows = [ITEM | {"item_id": f"i{n}"} for n in range(count)]
    return [*rows[:-1], rows[-1] | changed]


def events(count: int = 30, **changed: Any) -> list[dict[str, Any]]:
    rows = [EVENT | {"request_id": f"r{n}"} for n in range(count)]
    return [*rows[:-1], rows[-1] | changed]


def as_csv(rows: Sequence[Mapping[str, Any]], **options: Any) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), **{"lineterminator": "\n"} | options)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_parquet(row: Mapping[str, Any], **columns: Any) -> bytes:
    """One row of text, and other columns as arrays of one value; None leaves a column out."""
    table = {name: pa.array([value]) for name, value in row.items()} | columns
    stream = io.BytesIO()
    pq.write_table(pa.table({name: column for name, column in table.items() if column is not None}), stream)
    return stream.getvalue()


def moments(unit: str, *values: int) -> pa.Array:
    return pa.array(values, pa.timestamp(unit, tz="UTC"))


Files = (
    Mapping[str, bytes] | Callable[[Path], None]
)  # path below the raw folder -> content, or whatever lays them there


@dataclass(frozen=True)
class Case:
    """A raw table and what becomes of it: `said` of it, or `counted` in it: rows by reason, None for the accepted."""

    name: str
    files: Files
    said: str = ""
    counted: Mapping[str | None, int] | None = None
    lost: Mapping[str, int] | None = None  # the accepted items without a value that could not be read, by why

    def lay(self, raw: Path) -> Path:
        raw.mkdir(exist_ok=True)
        if callable(self.files):
            self.files(raw)
        else:
            for path, content in self.files.items():
                (raw / path).parent.mkdir(parents=True, exist_ok=True)
                (raw / path).write_bytes(content)
        return raw

    @property
    def table(self) -> str:
        return "events" if self.name.startswith("events") else "items"


def without(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def renamed(row: Mapping[str, Any], name: str, other: str) -> dict[str, Any]:
    return {other if key == name else key: value for key, value in row.items()}


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def noise(lines: int) -> bytes:
    """Lines from which nothing else can be read: without commas, quotes, NULs or line breaks, many of them no UTF-8."""
    rng = np.random.default_rng(0)
    kept = np.array([byte for byte in range(1, 256) if chr(byte) not in '\n\r",'], np.uint8)
    return b"".join(b"#" + rng.choice(kept, 40).tobytes() + b"\n" for _ in range(lines))


def strewn(good: bytes, bad: bytes, head: int) -> bytes:
    """The lines of `good` and `bad` in any order, after the first `head` lines of `good`."""
    lines = good.splitlines(keepends=True)
    rest = lines[head:] + bad.splitlines(keepends=True)
    random.Random(0).shuffle(rest)
    return b"".join(lines[:head] + rest)


def link(path: str, target: str, **files: bytes) -> Callable[[Path], None]:
    def lay(raw: Path) -> None:
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (raw / path).with_name(f"{name}.csv").write_bytes(content)
        (raw / path).symlink_to(target)

    return lay


def pipe(raw: Path) -> None:
    os.mkfifo(raw / "events.csv")


HUGE = "x" * 10_000_000


def counted(good: int, **bad: int) -> dict[str | None, int]:
    return {None: good, **bad} if good else dict(bad)
