"""Rows that come in one order and are wanted in another: appended to parts on disk, of which few are read at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

NUMBER: Final = "key_number"
PART: Final = "part"

_COMPRESSED: Final = pa.ipc.IpcWriteOptions(compression="zstd")


class RowParts:
    """Rows with a number and a part: stored in `folder`, a file a part; memory holds the parts asked for last.

    ready: what is done to a part when it is read.
    """

    def __init__(self, folder: Path, ready: Callable[[pa.Table], pa.Table] = lambda rows: rows) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._ready = ready
        self._at_hand: dict[int, pa.Table] = {}

    def append(self, rows: pa.Table) -> None:
        """Add rows, each to the part that its column `part` names. All rows must be added before any is asked for."""
        for part in pc.unique(rows.column(PART)).to_pylist():
            own = rows.filter(pc.field(PART) == part).drop_columns([PART])
            # A stream for each append, one behind the other: no file stays open, however many parts there are.
            with self._path(part).open("ab") as file, pa.ipc.new_stream(file, own.schema, options=_COMPRESSED) as sink:
                sink.write_table(own)

    def rows(self, numbers: pa.ChunkedArray, parts: Sequence[int]) -> pa.Table:
        """The rows of these numbers, in their order, without the number. parts: distinct, with all of them in it.

        Raises KeyError for a number that is in none of the parts.
        """
        self._at_hand = {part: self._at_hand[part] if part in self._at_hand else self._read(part) for part in parts}
        known = pa.concat_tables(self._at_hand.values())
        places = pc.index_in(numbers, value_set=known.column(NUMBER).combine_chunks())
        if places.null_count:
            raise KeyError(f"{places.null_count} of {len(numbers)} rows are in none of the parts {list(parts)}")
        return known.drop_columns([NUMBER]).take(places)

    def _read(self, part: int) -> pa.Table:
        tables, path = [], self._path(part)
        with path.open("rb") as file:
            while file.tell() < path.stat().st_size:
                tables.append(pa.ipc.open_stream(file).read_all())
        return self._ready(pa.concat_tables(tables).combine_chunks())

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:06d}.arrows"
