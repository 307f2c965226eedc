"""Open DuckDB in this process with the settings that every job of ours relies on."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import duckdb

# DuckDB's own limit is four fifths, which leaves too little to Python, Arrow and whoever else works on the machine.
MEMORY: Final = "50%"

# What the results depend on, and what must not happen behind a job's back.
SETTINGS: Final = {
    "TimeZone": "'UTC'",  # casts between moments and days follow it; DuckDB's own is the machine's
    "preserve_insertion_order": "false",  # with it DuckDB holds back what is ready early, and no table of ours has one
    "enable_progress_bar": "false",
    "autoinstall_known_extensions": "false",  # nothing is fetched from anywhere
    "autoload_known_extensions": "false",
}


@contextmanager
def connect(
    spill: Path, *, memory: int | None = None, threads: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that spills to the folder `spill`, which is made here, and removed when all is done.

    memory: bytes; None: MEMORY of what the machine or the container has.  threads: None: one a core.
    """
    settings = SETTINGS | {
        "memory_limit": literal(MEMORY if memory is None else f"{memory}B"),
        "temp_directory": literal(spill),
    }
    if threads is not None:
        settings["threads"] = str(threads)
    spill.mkdir(parents=True)
    try:
        with duckdb.connect() as db:
            db.execute("; ".join(f"SET {name} = {value}" for name, value in settings.items()))
            yield db
    finally:
        shutil.rmtree(spill)


def literal(value: object) -> str:
    """A text, path or number as a text of SQL."""
    return "'" + str(value).replace("'", "''") + "'"
