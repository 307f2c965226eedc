"""Events and small raw folders for the tests of the offline jobs to read."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.rules.events import Event

START = datetime(2024, 3, 1, 22, tzinfo=UTC)
# Two hours before a midnight, the midnight itself, and the microseconds beside each: every edge of every interval.
OFFSETS = [
    timedelta(hours=hours, microseconds=micros) for hours in (0, 2, 3, 26, 50, 170, 194) for micros in (-1, 0, 1)
]


@pytest.fixture(scope="session")
def drawn_events() -> Callable[[Iterable[int]], list[Event]]:
    """Events from integers, one each: few users, items, requests and moments, so that all of them collide often."""

    def one(code: int) -> Event:
        def pick(options: int) -> int:
            nonlocal code
            code, choice = divmod(code, options)
            return choice

        request = pick(24)
        user = request % 5 if pick(20) else pick(5)  # now and then someone else's request
        return Event(
            user_id=f"u{user}",
            item_id="abcdefg"[pick(7)],
            event_time=START + OFFSETS[pick(len(OFFSETS))],
            event_type=("impression", "impression", "impression", "click", "click", "cart", "purchase")[pick(7)],
            request_id=f"r{request}",
            position=pick(9),
        )

    return lambda codes: [one(code) for code in codes]


@pytest.fixture(scope="session")
def write_events() -> Callable[[Path, Iterable[Event]], Path]:
    """Write events as the table `events` of a raw folder, and return the folder."""

    def write(raw: Path, events: Iterable[Event]) -> Path:
        names = ("user_id", "item_id", "event_time", "event_type", "request_id", "position")
        kinds = [pa.string(), pa.string(), pa.timestamp("us", tz="UTC"), pa.string(), pa.string(), pa.int32()]
        rows = [{name: getattr(one, name) for name in names} for one in events]
        schema = pa.schema(list(zip(names, kinds, strict=True)))
        raw.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), raw / "events.parquet")
        return raw

    return write
