"""Write a file of any size whole or not at all, and tables of pictures the way their readers want them."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from model.artifact import AnyPath

ROW_GROUP = 1024  # pictures; small enough for a reader to stream


@contextmanager
def aside(path: AnyPath) -> Iterator[Path]:
    """Where to write what shall appear at `path`, whole, when the block ends well; nothing is left behind otherwise.

    A runner may do a piece of work twice, even at once: each writes its own file, and the rename is atomic.
    """
    if not isinstance(path, Path):  # an object store shows an object when all of it has come
        with TemporaryDirectory() as scratch:
            unfinished = Path(scratch) / path.name
            yield unfinished
            path.fs.put_file(str(unfinished), path.path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_pictures(table: pa.Table, path: AnyPath, *, pixels: str) -> None:
    """Write a table whose column `pixels` holds PNGs."""
    small = [name for name in table.column_names if name != pixels]
    with aside(path) as unfinished:
        # PNG does not compress further, and to look for equal or for extreme PNGs is vain.
        pq.write_table(
            table,
            unfinished,
            compression="none",
            row_group_size=ROW_GROUP,
            use_dictionary=small,
            write_statistics=small,
        )
