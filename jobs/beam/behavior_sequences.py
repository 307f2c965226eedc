"""Turn raw events into behaviour sequences with Beam: the tables of the Spark job, by transforms that also stream.

Run it as `python -m jobs.beam.behavior_sequences --raw RAW --out DIR`, with any Beam option after it. On a runner with
several machines, RAW and DIR lie on a file system that all of them see.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final

import apache_beam as beam
import structlog
import typer
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsSingleton
from upath import UPath

from jobs.beam import event_rows, running, sequence_facts
from jobs.beam.event_rows import ReadEvents
from jobs.beam.sequence_facts import CountFacts
from jobs.beam.sequence_tables import WriteTable
from jobs.beam.sequences import BuildSequences, tables
from jobs.beam.time_split import SplitByTime
from jobs.config import LONGEST_HISTORY, SequencesConfig
from jobs.paths import path_option
from jobs.sources.raw import TableFiles, raw_digest, source, table_files
from model import artifact
from model.artifact import AnyPath, Manifest

log = structlog.get_logger()

KIND: Final = "sequences"
DEFAULTS: Final = SequencesConfig()


# --- the job --------------------------------------------------------------------------------------------------------


def wire(pipeline: Any, table: TableFiles, out: AnyPath, config: SequencesConfig) -> None:
    """Put the transforms together: read `table`, write the tables and the facts into `out`."""
    rows = pipeline | "ReadEvents" >> ReadEvents(table)
    made = rows | "BuildSequences" >> BuildSequences(config)
    times = made.views | "RequestTimes" >> beam.Map(lambda view: view.request_time)
    split = times | "SplitByTime" >> SplitByTime(config.train_fraction, config.valid_fraction)
    for name, rows_of in tables(made, config, AsSingleton(split)).items():
        rows_of | f"Write_{name}" >> WriteTable(name, out)
    counted = {"rows": rows, "events": made.events, "rejected": made.rejected, "unmatched": made.unmatched}
    {**counted, "split": split} | "CountFacts" >> CountFacts(out)


def build(
    *, raw: AnyPath, raw_digest: str, out: AnyPath, config: SequencesConfig, beam_args: Sequence[str] = ()
) -> Manifest:
    """The sequences artifact, as the Spark job builds it: the same tables, the same facts.

    beam_args: Beam's own options, such as --runner=...
    Raises RawTableUnusable where the events cannot be read or hold no accepted impression.
    """
    began = time.monotonic()
    table = table_files(raw, "events")
    event_rows.check_columns(table)
    running.require_writable(out)
    options = running.options(beam_args)
    with artifact.write_together(out, kind=KIND, inputs={"raw": raw_digest}, config=asdict(config)) as draft:
        _run(options, table, draft.path.absolute(), config)
        draft.facts = sequence_facts.collect(draft.path, config.max_clicks_per_day)
        draft.facts["sampled_negatives"] = bool(source(raw).get("sampled_negatives", False))
    manifest = artifact.read(out, kind=KIND)
    counts = {name: manifest.facts[name] for name in ("requests", "impressions", "clicks", "users", "items")}
    log.info("sequences_written", **counts, seconds=round(time.monotonic() - began, 1))
    return manifest


def _run(options: PipelineOptions, table: TableFiles, out: AnyPath, config: SequencesConfig) -> None:
    pipeline = beam.Pipeline(options=options)
    wire(pipeline, table, out, config)
    running.wait(pipeline)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sequences(
    context: typer.Context,
    raw: Annotated[UPath, path_option("The folder that holds the tables events and items.")],
    out: Annotated[UPath, path_option("Where the artifact is written; an older one there is replaced.")],
    page_view_size: Annotated[int, typer.Option(min=1)] = DEFAULTS.page_view_size,
    pretrain_history: Annotated[int, typer.Option(min=1, max=LONGEST_HISTORY)] = DEFAULTS.pretrain_history,
    ctr_history: Annotated[int, typer.Option(min=1, max=LONGEST_HISTORY)] = DEFAULTS.ctr_history,
    max_clicks_per_day: Annotated[int, typer.Option(min=1)] = DEFAULTS.max_clicks_per_day,
    train_fraction: Annotated[float, typer.Option(min=0, max=1)] = DEFAULTS.train_fraction,
    valid_fraction: Annotated[float, typer.Option(min=0, max=1)] = DEFAULTS.valid_fraction,
) -> None:
    """Turn raw events into behaviour sequences. Beam's own options may follow, e.g. --runner=..."""
    config = SequencesConfig(
        page_view_size=page_view_size,
        pretrain_history=pretrain_history,
        ctr_history=ctr_history,
        max_clicks_per_day=max_clicks_per_day,
        train_fraction=train_fraction,
        valid_fraction=valid_fraction,
    )
    manifest = build(raw=raw, raw_digest=raw_digest(raw), out=out, config=config, beam_args=context.args)
    typer.echo(json.dumps(dict(manifest.facts), indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; its answer on stdout, its log on stderr."""
    if not structlog.is_configured():
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    app(args=argv)


if __name__ == "__main__":
    main()
