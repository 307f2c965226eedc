"""Write a raw folder: the contract's tables, SOURCE.json and images, aside first and then renamed."""

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contract import EVENTS, ITEMS, Column
from model import strict_json
from model.errors import CourierError

_ARROW = {"str": pa.string(), "int": pa.int32(), "float": pa.float64(), "timestamp": pa.timestamp("us", tz="UTC")}


def schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of a raw table of the contract."""
    return pa.schema([pa.field(c.name, _ARROW[c.kind], nullable=c.nullable) for c in columns])


@contextmanager
def write(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; on a clean exit it becomes `out`, else nothing is left behind.

    Raises CourierError if something other than an empty folder lies at `out`.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CourierError(f"{out} already exists and is not an empty folder: remove it or name another one")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}.partial"
    aside.mkdir()
    try:
        yield aside
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_events(folder: Path, columns: Mapping[str, Any]) -> None:
    """Write events.parquet; `columns` name -> values in the order of time, as the contract's EVENTS names them."""
    _write(folder / "events.parquet", columns, schema(EVENTS))


def write_items(folder: Path, columns: Mapping[str, Any]) -> None:
    """Write items.parquet; `columns` name -> values, as the contract's ITEMS names them; others are null throughout."""
    unknown = {column.name: [None] * len(columns["item_id"]) for column in ITEMS if column.nullable}
    _write(folder / "items.parquet", unknown | dict(columns), schema(ITEMS))


def write_source(folder: Path, *, name: str, sampled_negatives: bool, description: str) -> None:
    """Write SOURCE.json: where the data came from, and whether the items not clicked were drawn, not shown."""
    facts = {"name": name, "sampled_negatives": sampled_negatives, "description": description}
    (folder / "SOURCE.json").write_text(strict_json.dumps(facts, indent=1) + "\n", "utf-8")


def _write(path: Path, columns: Mapping[str, Any], table_schema: pa.Schema) -> None:
    arrays = [pa.array(columns[field.name], type=field.type) for field in table_schema]
    pq.write_table(pa.Table.from_arrays(arrays, schema=table_schema), path)
