"""From raw events to sequences in Beam: all transforms in their order."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import apache_beam as beam

from jobs.config import SequencesConfig
from jobs.raw.beam_events import JudgeEvents
from jobs.rules.events import CLICK, CONVERSIONS
from jobs.sequences.beam import tables as sequence_tables
from jobs.sequences.beam.histories import JoinHistories
from jobs.sequences.beam.page_views import AttributeToPageViews, BuildPageViews, CapClicks, Deduplicate
from jobs.sequences.beam.settling import forever


class Sequences(NamedTuple):
    """What comes of raw events, as PCollections."""

    events: Any  # accepted, distinct Event
    views: Any  # PageView
    joined: Any  # (PageView, history)
    snapshots: Any  # Snapshot
    rejected: Any  # (Row or Event, reason)
    unmatched: Any  # int: clicks that label nothing


class BuildSequences(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Raw events -> Sequences.  as_of: the clock that says which events lie in the future."""

    def __init__(self, config: SequencesConfig, *, as_of: datetime) -> None:
        super().__init__()
        self.config, self.as_of = config, as_of

    def expand(self, rows: Any) -> Any:
        """PCollection of Row -> Sequences."""
        judged = rows | "JudgeEvents" >> JudgeEvents(self.as_of)
        placed = judged.events | "AttributeToPageViews" >> AttributeToPageViews()
        capped, surplus = placed.accepted | "CapClicks" >> CapClicks(self.config.max_clicks_per_day)
        distinct = capped | "Deduplicate" >> Deduplicate()
        pages = distinct | "BuildPageViews" >> BuildPageViews()
        events = distinct | "Events" >> beam.Keys()
        clicks = events | "Clicks" >> beam.Filter(lambda one: one.event_type == CLICK)
        longest = max(self.config.ctr_history, self.config.pretrain_history)
        walked = (clicks, pages.views) | "JoinHistories" >> JoinHistories(longest)
        refused = [
            part | f"Refused{number}" >> forever()
            for number, part in enumerate((judged.rejected, placed.rejected, surplus))
        ]
        return Sequences(
            events=events | "EventsForever" >> forever(),
            views=pages.views | "ViewsForever" >> forever(),
            joined=walked.views,
            snapshots=walked.snapshots,
            rejected=refused | "Rejected" >> beam.Flatten(),
            unmatched=pages.unmatched | "UnmatchedForever" >> forever(),
        )


def tables(made: Sequences, config: SequencesConfig, split: Any) -> dict[str, Any]:
    """The rows of each table of jobs.sequences.beam.tables. split: the TimeSplit, or a side input of it."""
    size, history = config.page_view_size, config.pretrain_history
    return {
        "impressions": made.views | "Impressions" >> beam.FlatMap(sequence_tables.impression_rows, split),
        "page_views": made.joined
        | "PageViews" >> beam.Map(sequence_tables.page_view_row, split, size=size, history=history),
        "histories": made.snapshots | "Histories" >> beam.Map(sequence_tables.history_row, length=config.ctr_history),
        "clicks": made.events | "Clicks" >> beam.FlatMap(_rows_of, types=(CLICK,), table="clicks"),
        "conversions": made.events | "Conversions" >> beam.FlatMap(_rows_of, types=CONVERSIONS, table="conversions"),
        "rejected": made.rejected | "Rejected" >> beam.MapTuple(sequence_tables.rejected_row),
    }


def _rows_of(one: Any, types: Sequence[str], table: str) -> Iterator[sequence_tables.Row]:
    if one.event_type in types:
        yield sequence_tables.event_row(one, table)
