"""The facts in the manifest of the sequences artifact, counted by the pipeline itself: exact whatever was retried."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import apache_beam as beam
import pyarrow.parquet as pq
from apache_beam.io.textio import WriteToText
from apache_beam.transforms import combiners

from jobs.paths import arrow_source
from jobs.rules.events import IMPRESSION, TOO_MANY_CLICKS, Event, micros
from jobs.rules.page_views import TEST, TRAIN, VALID, PageView, TimeSplit, kept_on_page
from jobs.rules.sequence_tables import PERIOD
from jobs.sequences.facts import of_artifact
from jobs.sequences.splits import Splits
from model import artifact, strict_json
from model.artifact import AnyPath

FOLDER: Final = "facts"  # beside the tables while the pipeline runs; gone once the manifest holds them
REJECTED: Final = "rejected"


class CountFacts(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Write the counts of a run as JSON lines [group, name, value]."""

    def __init__(self, out: AnyPath, page_view_size: int) -> None:
        super().__init__()
        self.prefix, self.size = str(out / FOLDER / "part"), page_view_size

    def expand(self, counted: Any) -> Any:
        """PCollections `rows`, `events` (Event), `views` (PageView), `rejected` ((row, reason)), `unmatched` (int),
        `split` (TimeSplit).
        """
        events, views, rejected = counted["events"], counted["views"], counted["rejected"]
        shown = events | "Shown" >> beam.Filter(lambda one: one.event_type == IMPRESSION)
        kept = views | "Kept" >> beam.Map(lambda view, size: len(kept_on_page(view.shown, size)), size=self.size)
        periods = views | "Periods" >> beam.Map(_period, beam.pvalue.AsSingleton(counted["split"]))
        times = events | "Times" >> beam.Map(lambda one: micros(one.event_time))
        surplus = rejected | "Surplus" >> beam.FlatMap(_surplus) | "Once" >> beam.Distinct()
        over_cap = surplus | "Crowds" >> beam.Keys() | "PerCrowd" >> combiners.Count.PerElement()
        reasons = rejected | "Reasons" >> beam.Values() | "PerReason" >> combiners.Count.PerElement()
        found = [
            _named("rows", counted["rows"] | "Rows" >> combiners.Count.Globally()),
            _named("events", events | "Events" >> combiners.Count.Globally()),
            _named("shown", shown | "EachShown" >> combiners.Count.Globally()),
            _named("page_view_items", kept | "AllKept" >> beam.CombineGlobally(sum)),
            _named("users", events | "Users" >> beam.Map(lambda one: one.user_id) | "EachUser" >> CountDistinct()),
            _named("items", events | "Items" >> beam.Map(lambda one: one.item_id) | "EachItem" >> CountDistinct()),
            _named("first", times | "First" >> beam.CombineGlobally(_least)),
            _named("last", times | "Last" >> beam.CombineGlobally(_greatest)),
            _named("unmatched_clicks", counted["unmatched"] | "Unmatched" >> beam.CombineGlobally(sum)),
            _named("capped", over_cap | "Capped" >> beam.Map(lambda one: one[0][0]) | "EachCapped" >> CountDistinct()),
            _named("beyond", over_cap | "Beyond" >> beam.Values() | "Most" >> beam.CombineGlobally(_greatest)),
            reasons | "Reason" >> beam.MapTuple(lambda reason, count: (REJECTED, reason, count)),
            periods
            | "PerPeriod" >> combiners.Count.PerElement()
            | "Period" >> beam.MapTuple(lambda period, count: (PERIOD, period, count)),
            counted["split"] | "Splits" >> beam.FlatMap(_split_facts),
        ]
        lines = found | "Facts" >> beam.Flatten() | "Lines" >> beam.Map(strict_json.dumps)
        return lines | "Write" >> WriteToText(self.prefix, num_shards=1)


class CountDistinct(beam.PTransform):  # type: ignore[misc]
    """How many different values there are."""

    def expand(self, values: Any) -> Any:
        """PCollection of anything -> PCollection of one int."""
        return values | "Distinct" >> beam.Distinct() | "Count" >> combiners.Count.Globally()


def _named(name: str, value: Any) -> Any:
    return value | f"Name_{name}" >> beam.Map(lambda found: ("", name, found))


def _surplus(rejected: tuple[Any, str]) -> Iterator[tuple[tuple[str, int], tuple[int, str, str]]]:
    """(user_id, day) and identity of a click beyond the cap."""
    one, reason = rejected
    if reason == TOO_MANY_CLICKS and isinstance(one, Event):
        yield (one.user_id, one.day.toordinal()), (micros(one.event_time), one.item_id, one.request_id)


# Beam combines what was combined before, and nothing at all is None.
def _least(times: Iterable[int | None]) -> int | None:
    return min((at for at in times if at is not None), default=None)


def _greatest(times: Iterable[int | None]) -> int | None:
    return max((at for at in times if at is not None), default=None)


def _period(view: PageView, split: TimeSplit) -> str:
    return split.period(view.request_time)


def _split_facts(split: TimeSplit) -> list[tuple[str, str, int]]:
    return [("", "valid_start", micros(split.valid_start)), ("", "test_start", micros(split.test_start))]


def collect(out: AnyPath, max_clicks_per_day: int) -> dict[str, Any]:
    """The facts of the tables in `out`, as the Spark job says them; their folder is removed."""
    groups: dict[str, dict[str, int]] = {"": {}, REJECTED: {}, PERIOD: dict.fromkeys((TRAIN, VALID, TEST), 0)}
    for path in (out / FOLDER).iterdir():
        for group, name, value in map(json.loads, path.read_text("utf-8").splitlines()):
            groups[group][name] = value
    artifact.remove_folder(out / FOLDER)
    found, refused = groups[""], groups[REJECTED]
    accepted, beyond = found["rows"] - sum(refused.values()), found["beyond"]
    clicks, impressions = _rows(out / "clicks"), _rows(out / "impressions")
    counted = {
        "events_read": found["rows"],
        "events_accepted": accepted,
        "events_rejected": dict(sorted(refused.items())),
        "duplicates": accepted - found["events"],
        "clicks": clicks,
        "attributed": clicks - found["unmatched_clicks"],
        "conversions": _rows(out / "conversions"),
        "users": found["users"],
        "items": found["items"],
        "requests": _rows(out / "page_views"),
        "requests_by_period": groups[PERIOD],
        "impressions": impressions,
        "shown_again": found["shown"] - impressions,
        "page_view_items": found["page_view_items"],
        # Whoever has a click beyond the cap has as many below as it allows.
        "capped_users": {"users": found["capped"], "most_clicks": max_clicks_per_day + beyond if beyond else 0},
    }
    starts = {"start": found["first"], **{name: found[name] for name in ("valid_start", "test_start")}}
    return of_artifact(counted, Splits(**starts, end=found["last"] + 1))


def _rows(folder: AnyPath) -> int:
    parts = map(arrow_source, folder.glob("*.parquet"))
    return sum(pq.read_metadata(where, filesystem=files).num_rows for where, files in parts)
