"""Turn raw events into behaviour sequences with Beam: the tables of the Spark job.

Run it as `python -m jobs.sequences.beam.behavior_sequences --raw RAW --out DIR`, with any Beam option after it. On a
runner with several machines, RAW and DIR lie on a file system that all of them see.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import apache_beam as beam
import structlog
import typer
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsSingleton
from upath import UPath

from jobs.config import SequencesConfig
from jobs.engines import beam_runner
from jobs.paths import path_option
from jobs.raw.beam_events import ReadEvents
from jobs.raw.canonical import CanonicalTable, canonical_table, has_sampled_negatives, inputs_of
from jobs.sequences.beam import facts
from jobs.sequences.beam.facts import CountFacts
from jobs.sequences.beam.tables import WriteTable
from jobs.sequences.beam.time_split import SplitByTime
from jobs.sequences.beam.transforms import BuildSequences, tables
from jobs.sequences.options import AS_OF, with_config
from model import artifact, strict_json
from model.artifact import AnyPath, Manifest

log = structlog.get_logger()

KIND: Final = "sequences"


# --- the job --------------------------------------------------------------------------------------------------------


def wire(pipeline: Any, table: CanonicalTable, out: AnyPath, config: SequencesConfig, as_of: datetime) -> None:
    """Put the transforms together: read `table`, write the tables and the facts into `out`."""
    rows = pipeline | "ReadEvents" >> ReadEvents(table)
    made = rows | "BuildSequences" >> BuildSequences(config, as_of=as_of)
    times = made.views | "RequestTimes" >> beam.Map(lambda view: view.request_time)
    split = times | "SplitByTime" >> SplitByTime(config.train_fraction, config.valid_fraction)
    for name, rows_of in tables(made, config, AsSingleton(split)).items():
        rows_of | f"Write_{name}" >> WriteTable(name, out)
    counted = {"rows": rows, "events": made.events, "views": made.views, "rejected": made.rejected}
    counted |= {"unmatched": made.unmatched, "split": split}
    counted | "CountFacts" >> CountFacts(out, config.page_view_size)


def build(
    *,
    events: CanonicalTable,
    sampled_negatives: bool,
    inputs: Mapping[str, str],
    out: AnyPath,
    config: SequencesConfig,
    beam_args: Sequence[str] = (),
    as_of: datetime | None = None,
) -> Manifest:
    """The sequences artifact, as the Spark job builds it: the same tables, the same facts.

    sampled_negatives: whether the items that were not clicked were drawn, not shown.  inputs: for the manifest.
    beam_args: Beam's own options, such as --runner=...
    as_of: the clock that says which events lie in the future; None: that of this machine, now.
    Raises RawTableUnusable where a file is damaged or no impression is accepted.
    """
    began, as_of = time.monotonic(), as_of or datetime.now(UTC)
    beam_runner.require_writable(out)
    options = beam_runner.options(beam_args)
    with artifact.write_together(out, kind=KIND, inputs=inputs, config=asdict(config)) as draft:
        _run(options, events, draft.path.absolute(), config, as_of)
        draft.facts = facts.collect(draft.path, config.max_clicks_per_day)
        draft.facts["sampled_negatives"] = sampled_negatives
        draft.notes["as_of"] = as_of.isoformat()
    manifest = artifact.read(out, kind=KIND)
    counts = {name: manifest.facts[name] for name in ("requests", "impressions", "clicks", "users", "items")}
    log.info("sequences_written", **counts, seconds=round(time.monotonic() - began, 1))
    return manifest


def _run(
    options: PipelineOptions, table: CanonicalTable, out: AnyPath, config: SequencesConfig, as_of: datetime
) -> None:
    pipeline = beam.Pipeline(options=options)
    wire(pipeline, table, out, config, as_of)
    beam_runner.wait(pipeline)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(**beam_runner.COMMAND)
@with_config
def sequences(
    context: typer.Context,
    raw: Annotated[UPath, path_option("The folder that holds the tables events and items.")],
    out: Annotated[UPath, path_option("Where the artifact is written; an older one there is replaced.")],
    config: SequencesConfig,
    as_of: Annotated[datetime | None, AS_OF] = None,
) -> None:
    """Turn raw events into behaviour sequences."""
    args = beam_runner.beam_args(context)
    manifest = build(
        events=canonical_table(raw, "events"),
        sampled_negatives=has_sampled_negatives(raw),
        inputs=inputs_of(raw, "events"),
        out=out,
        config=config,
        beam_args=args,
        as_of=as_of,
    )
    typer.echo(strict_json.dumps(dict(manifest.facts), indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; its answer on stdout, its log on stderr."""
    beam_runner.main(app, argv)


if __name__ == "__main__":
    main()
