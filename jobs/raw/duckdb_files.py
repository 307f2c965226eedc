"""The files of a raw table as DuckDB queries of the contract's columns, still as they were read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb

from jobs.engines.duckdb_session import literal
from jobs.raw import layout as raw_layout
from jobs.raw.folder import TableFiles
from model.artifact import AnyPath

CORRUPT: Final = "_corrupt_record"  # the line itself, where it is no row; else null
UNREADABLE: Final = "_bad_encoding"  # whether bytes of the row are not UTF-8
FILE: Final = "_file"


@dataclass(frozen=True, slots=True)
class Part:
    """Files of one layout.

    query: a SELECT of the contract's columns, CORRUPT, UNREADABLE and FILE.
    kinds: the type of each of the contract's columns, as jobs.raw.layout.parquet_kinds names them.
    """

    query: str
    kinds: Mapping[str, str]


def parts(db: duckdb.DuckDBPyConnection, table: TableFiles) -> list[Part]:
    """The table's files, a part for each layout among them. Raises RawTableUnusable.

    A column that need not be there and is not is null.
    """
    raw_layout.check(table)
    _register_store(db, table.path)
    if table.format != "parquet":
        raise NotImplementedError(f"{table.path} is {table.format}, which DuckDB does not read yet")
    return list(_parquet_parts(table))


def _register_store(db: duckdb.DuckDBPyConnection, path: AnyPath) -> None:
    if not isinstance(path, Path) and path.protocol not in db.list_filesystems():
        db.register_filesystem(path.fs)


def _names(files: Sequence[AnyPath]) -> str:
    return f"[{', '.join(literal(file.absolute()) for file in files)}]"


# --- parquet --------------------------------------------------------------------------------------------------------


def _parquet_parts(table: TableFiles) -> Iterator[Part]:
    names = [column.name for column in raw_layout.COLUMNS[table.name]]
    for kinds, files in raw_layout.grouped(table, raw_layout.parquet_kinds).items():
        known = dict(zip(names, kinds, strict=True))
        columns = [_parquet_column(name, kind) for name, kind in known.items()]
        yield Part(
            f"SELECT {', '.join(columns)}, NULL::VARCHAR AS {CORRUPT}, FALSE AS {UNREADABLE}, {FILE} "
            f"FROM read_parquet({_names(files)}, filename = '{FILE}', hive_partitioning = false)",
            known,
        )


def _parquet_column(name: str, kind: str) -> str:
    if kind == raw_layout.ABSENT:
        return f"NULL::VARCHAR AS {name}"
    return f"{name}::VARCHAR AS {name}" if kind == "null" else name
