"""The facts in the manifest of the sequences artifact, counted by the pipeline itself: exact whatever was retried."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow.parquet as pq
from apache_beam.io.textio import WriteToText
from apache_beam.transforms import combiners

from jobs.beam.page_views import EPOCH, MICROSECOND, micros
from jobs.logic.page_views import TimeSplit

FOLDER: Final = "facts"  # beside the tables while the pipeline runs; gone once the manifest holds them
REJECTED: Final = "rejected"


class CountFacts(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Write the counts of a run as JSON lines [group, name, value]."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.prefix = str(out / FOLDER / "part")

    def expand(self, counted: Any) -> Any:
        """PCollections `rows`, `events` (Event), `rejected` ((row, reason)), `unmatched` (int), `split` (TimeSplit)."""
        events = counted["events"]
        times = events | "Times" >> beam.Map(lambda one: micros(one.event_time))
        found = [
            _named("rows", counted["rows"] | "Rows" >> combiners.Count.Globally()),
            _named("events", events | "Events" >> combiners.Count.Globally()),
            _named("users", events | "Users" >> _CountDistinct("user_id")),
            _named("items", events | "Items" >> _CountDistinct("item_id")),
            _named("start", times | "First" >> beam.CombineGlobally(_least)),
            _named("last", times | "Last" >> beam.CombineGlobally(_greatest)),
            _named("unmatched_clicks", counted["unmatched"] | "Unmatched" >> beam.CombineGlobally(sum)),
            counted["rejected"]
            | "Reasons" >> beam.MapTuple(lambda _, reason: reason)
            | "PerReason" >> combiners.Count.PerElement()
            | "Reason" >> beam.MapTuple(lambda reason, count: (REJECTED, reason, count)),
            counted["split"] | "Splits" >> beam.FlatMap(_split_facts),
        ]
        lines = found | "Facts" >> beam.Flatten() | "Lines" >> beam.Map(json.dumps)
        return lines | "Write" >> WriteToText(self.prefix, num_shards=1)


class _CountDistinct(beam.PTransform):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def expand(self, events: Any) -> Any:
        values = events | "Value" >> beam.Map(getattr, self.name)
        return values | "Distinct" >> beam.Distinct() | "Count" >> combiners.Count.Globally()


def _named(name: str, value: Any) -> Any:
    return value | f"Name_{name}" >> beam.Map(lambda found: ("", name, found))


def _least(times: Iterable[int]) -> int | None:
    return min((at for at in times if at is not None), default=None)


def _greatest(times: Iterable[int]) -> int | None:
    return max((at for at in times if at is not None), default=None)


def _split_facts(split: TimeSplit) -> list[tuple[str, str, int]]:
    return [("", "valid_start", micros(split.valid_start)), ("", "test_start", micros(split.test_start))]


def collect(out: Path) -> dict[str, Any]:
    """The facts of the tables in `out`, in the order of the Spark job; their folder is removed."""
    found: dict[str, int] = {}
    refused: dict[str, int] = {}
    for path in sorted((out / FOLDER).iterdir()):
        for group, name, value in map(json.loads, path.read_text().splitlines()):
            (refused if group == REJECTED else found)[name] = value
    shutil.rmtree(out / FOLDER)
    rows = {name: _rows(out / name) for name in ("page_views", "impressions", "clicks", "conversions")}
    accepted = found["rows"] - sum(refused.values())
    ends = {"start": found["start"], "valid_start": found["valid_start"], "test_start": found["test_start"]}
    ends["end"] = found["last"] + 1
    return {
        "events_read": found["rows"],
        "events_accepted": accepted,
        "events_rejected": dict(sorted(refused.items())),
        "duplicates": accepted - found["events"],
        "clicks": rows["clicks"],
        "conversions": rows["conversions"],
        "users": found["users"],
        "items": found["items"],
        "impressions": rows["impressions"],
        "unmatched_clicks": found["unmatched_clicks"],
        "requests": rows["page_views"],
        "splits": {name: (EPOCH + at * MICROSECOND).isoformat() for name, at in ends.items()},
    }


def _rows(folder: Path) -> int:
    return sum(pq.ParquetFile(path).metadata.num_rows for path in folder.glob("*.parquet"))
