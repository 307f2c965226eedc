"""Count with Beam what happened to each item and each user in windows of days: the tables of the Spark job.

Run it as `python -m jobs.sequences.beam.item_statistics --sequences DIR --out DIR`, with any Beam option after it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import apache_beam as beam
import pyarrow as pa
import structlog
import typer
from apache_beam.io.parquetio import ReadFromParquet, WriteToParquet
from upath import UPath

from feature_repo.contract import EVENT_TIME, WINDOWS_DAYS, View
from jobs.engines import beam_runner
from jobs.paths import path_option
from jobs.rules.statistics import AT, CLICKS, IMPRESSIONS, VIEWS, midnight_after, smoothed_ctr
from model import artifact
from model.artifact import AnyPath, Manifest

log = structlog.get_logger()

KIND: Final = "statistics"
COLUMN_TYPES: Final = {"int": pa.int64(), "float": pa.float64()}

Row = dict[str, Any]
PerDay = tuple[str, tuple[int, str, int]]  # key, (day, what, how often)


class CountPerDay(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """How often something happened to each key on each UTC day."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__()
        self.key, self.what = key, what

    def expand(self, rows: Any) -> Any:
        """PCollection of Row -> PCollection of PerDay."""
        return (
            rows
            | "Day" >> beam.Map(_on_its_day, key=self.key, at=AT[self.what])
            | "Sum" >> beam.CombinePerKey(sum)
            | "Name" >> beam.Map(_per_day, what=self.what)
        )


class StatisticsAtMidnights(beam.PTransform):  # type: ignore[misc]
    """Counts and smoothed CTRs of [midnight - window, midnight), a row for each midnight where a count changes."""

    def __init__(self, *, key: str, prefix: str, windows: Sequence[int], until: datetime) -> None:
        """prefix: of the features' names. until: the last midnight of which a row may speak."""
        super().__init__()
        self.key, self.prefix, self.windows, self.until = key, prefix, tuple(windows), until.toordinal()

    def expand(self, per_day: Any) -> Any:
        """PCollection of PerDay -> PCollection of Row; jobs.rules.statistics.changes says the same."""
        return per_day | "ByKey" >> beam.GroupByKey() | "Midnights" >> beam.FlatMap(self._midnights)

    def _midnights(self, group: tuple[str, Iterable[tuple[int, str, int]]]) -> Iterator[Row]:
        steps: dict[int, Counter[tuple[str, int]]] = {}
        for day, what, count in group[1]:
            for window in self.windows:
                # A day's events enter every window at the next midnight and leave it `window` days later.
                steps.setdefault(day + 1, Counter())[what, window] += count
                steps.setdefault(day + 1 + window, Counter())[what, window] -= count
        counts: Counter[tuple[str, int]] = Counter()
        for day in sorted(steps):
            if day > self.until:
                return
            counts.update(steps[day])
            if any(steps[day].values()):
                midnight = datetime.fromordinal(day).replace(tzinfo=UTC)
                yield {self.key: group[0], EVENT_TIME: midnight, **self._features(counts)}

    def _features(self, counts: Counter[tuple[str, int]]) -> dict[str, float]:
        features: dict[str, float] = {}
        for window in self.windows:
            shown, clicked = counts[IMPRESSIONS, window], counts[CLICKS, window]
            features[f"{self.prefix}_{IMPRESSIONS}_{window}d"] = shown
            features[f"{self.prefix}_{CLICKS}_{window}d"] = clicked
            features[f"{self.prefix}_ctr_{window}d"] = smoothed_ctr(shown, clicked)
        return features


def _on_its_day(row: Row, key: str, at: str) -> tuple[tuple[str, int], int]:
    return (row[key], row[at].toordinal()), 1


def _per_day(counted: tuple[tuple[str, int], int], what: str) -> PerDay:
    (key, day), count = counted
    return key, (day, what, count)


# --- the job --------------------------------------------------------------------------------------------------------


def wire(pipeline: Any, sequences: AnyPath, out: AnyPath, until: datetime) -> None:
    """Put the transforms together: read the tables of a sequences artifact, write the statistics under `out`."""
    for prefix, (key, view) in VIEWS.items():
        counted = [
            pipeline
            | f"Read_{prefix}_{what}" >> ReadFromParquet(f"{sequences}/{what}/*.parquet", columns=[key, at])
            | f"Count_{prefix}_{what}" >> CountPerDay(key, what)
            for what, at in AT.items()
        ]
        rows = (
            counted
            | f"Both_{prefix}" >> beam.Flatten()
            | f"At_{prefix}" >> StatisticsAtMidnights(key=key, prefix=prefix, windows=WINDOWS_DAYS, until=until)
        )
        part = str(out / view.name / "part")
        rows | f"Write_{prefix}" >> WriteToParquet(part, schema(key, view), file_name_suffix=".parquet")


def schema(key: str, view: View) -> pa.Schema:
    """The columns of a statistics table."""
    features = [(feature.name, COLUMN_TYPES[feature.kind]) for feature in view.features]
    return pa.schema([(key, pa.string()), (EVENT_TIME, pa.timestamp("us", tz="UTC")), *features])


def build(*, sequences: AnyPath, out: AnyPath, beam_args: Sequence[str] = ()) -> Manifest:
    """The statistics artifact: the folders item_statistics and user_statistics.

    sequences: a sequences artifact, of either engine.  Raises ArtifactMissing, ArtifactMismatch, UnknownOption.
    """
    options = beam_runner.options(beam_args)
    end = datetime.fromisoformat(artifact.read(sequences, kind="sequences").facts["splits"]["end"])
    until, inputs = midnight_after(end), {"sequences": artifact.digest(sequences)}
    beam_runner.require_writable(out)
    with artifact.write_together(out, kind=KIND, inputs=inputs, config={}) as draft:
        pipeline = beam.Pipeline(options=options)
        wire(pipeline, sequences.absolute(), draft.path.absolute(), until)
        beam_runner.wait(pipeline)
        draft.facts = {"until": until.isoformat()}
    log.info("statistics_written", until=until.isoformat())
    return artifact.read(out, kind=KIND)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(**beam_runner.COMMAND)
def item_statistics(
    context: typer.Context,
    sequences: Annotated[UPath, path_option("A sequences artifact.")],
    out: Annotated[UPath, path_option("Where the artifact is written; an older one there is replaced.")],
) -> None:
    """Count clicks and impressions of items and users over windows of days."""
    build(sequences=sequences, out=out, beam_args=beam_runner.beam_args(context))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of this job; its log on stderr."""
    beam_runner.main(app, argv)


if __name__ == "__main__":
    main()
