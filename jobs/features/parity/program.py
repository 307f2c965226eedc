"""Hold a workspace's logged requests against its offline tables: `courier parity`."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.features.parity.causes import CAUSES, PUSHED
from jobs.features.parity.compare import Difference, FeatureParity, ParityReport, compare
from jobs.features.parity.logged import RequestLogFiles
from jobs.features.parity.replay import ReplayFailed, replay
from jobs.options import call
from jobs.paths import local_folder
from model import strict_json
from model.ctr.inputs.request_log import LOG_FOLDER, log_key
from model.errors import CourierError

SHOWN: Final = 60  # characters of a value


class Skew(CourierError):
    """Serving used other values than the offline tables have; the message says of which feature, and why."""


def parity(
    workspace: Annotated[
        Path, typer.Argument(parser=local_folder, metavar="FOLDER", help="The workspace whose tables are compared.")
    ] = Path("workspace"),
    log: Annotated[
        Path | None, typer.Option(help="The folder of logged requests. Default: request_log in the workspace.")
    ] = None,
    key: Annotated[
        str, typer.Option(envvar="COURIER_REQUEST_LOG_KEY", help="What serving hashed users' ids with.")
    ] = "",
    requests: Annotated[
        int | None,
        typer.Option("--replay", min=1, metavar="N", help="Let a server rank the N newest page views first."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Compare the features that serving used with the offline ones of the same moment; exit 1 where they differ."""
    secret = log_key(key) if key else b""
    if requests is None:
        report = compare(workspace, RequestLogFiles(log or workspace / LOG_FOLDER, secret))
    else:
        report = _replayed(workspace, requests, secret)
    failed = verdict(report)
    if as_json:
        typer.echo(strict_json.dumps(document(report), indent=1, default=str))
    else:
        _print(report)
    if failed:
        raise Skew(failed)


def _replayed(workspace: Path, requests: int, secret: bytes) -> ParityReport:
    with tempfile.TemporaryDirectory(prefix="courier-parity-") as scratch:
        log = Path(scratch) / LOG_FOLDER
        asked = replay(workspace, log, requests)
        report = compare(workspace, RequestLogFiles(log, secret))
    if report.requests < asked:
        raise ReplayFailed(
            f"{asked - report.requests} of {asked} page views were ranked without features: run `courier rank` to see"
            " why"
        )
    return report


def verdict(report: ParityReport) -> str | None:
    """One sentence that names the features that differ, the causes and the worst value; None where none does."""
    if not report.faulty:
        return None
    first, *others = report.faulty
    cause = next(cause for cause, _ in first.causes.most_common() if cause != PUSHED)
    where = first.worst and f", e.g. {_where(first.worst)}"
    also = f"; and of {', '.join(one.feature for one in others)}" if others else ""
    return f"{first.faults:,} of {first.values:,} values of {first.feature} differ: {CAUSES[cause]}{where}{also}"


def document(report: ParityReport) -> dict[str, Any]:
    """The report as JSON has it."""
    return {
        "passed": not report.faulty,
        "requests": report.requests,
        "candidates": report.candidates,
        "values": report.values,
        "differences": sum(one.differences for one in report.by_feature.values()),
        "first": report.first and report.first.isoformat(),
        "last": report.last and report.last.isoformat(),
        "releases": dict(report.releases),
        "compared_with": {
            "features": report.features.name,
            "space_id": report.space_id,
            "codebook_id": report.codebook_id,
        },
        "skipped_files": report.skipped,
        "features": [_feature(one) for one in report.by_feature.values()],
    }


def _feature(one: FeatureParity) -> dict[str, Any]:
    worst = None if one.worst is None else asdict(one.worst) | {"moment": one.worst.moment.isoformat()}
    counts = {"values": one.values, "differences": one.differences, "causes": dict(one.causes)}
    return {"feature": one.feature, "view": one.view, **counts, "worst": worst}


def _print(report: ParityReport) -> None:
    table = Table("feature", "values", "differ", "causes", "worst", title="serving against the offline tables")
    for one in report.by_feature.values():
        causes = ", ".join(f"{cause}: {count:,}" for cause, count in one.causes.most_common())
        worst = "" if one.worst is None else escape(_where(one.worst))
        style = "red" if one.faults else None
        table.add_row(one.feature, f"{one.values:,}", f"{one.differences:,}", causes, worst, style=style)
    console = Console()
    console.print(table)
    for cause in {cause: None for one in report.by_feature.values() for cause in one.causes}:
        console.print(f"{cause}: {CAUSES[cause]}", markup=False)
    told = f"{report.requests:,} requests of {report.first} to {report.last}, {report.candidates:,} candidates"
    console.print(f"{told}; against features {report.features.name}", markup=False, soft_wrap=True)
    if report.skipped:
        console.print(f"{len(report.skipped)} files of another version of courier were not read", markup=False)


def _where(worst: Difference) -> str:
    item = "" if worst.item_id is None else f" and item {worst.item_id}"
    online, offline = (_short(value) for value in (worst.online, worst.offline))
    return f"user {worst.user_id}{item} at {worst.moment}: online {online}, offline {offline}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def main(argv: Sequence[str]) -> None:
    """`courier parity`."""
    call(parity, "courier parity", argv)
