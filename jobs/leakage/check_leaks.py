"""Prove that nothing of the future reaches a training row: an audit of the artifacts, and a release of canaries."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final, cast

import typer
from rich.console import Console
from rich.table import Table

from jobs.leakage.audit import AUDITED, audit
from jobs.leakage.check_result import Finding, verdict
from jobs.paths import local_folder
from jobs.pipeline import stage_states
from jobs.workspace import StageError, Workspace, open_workspace
from model.errors import CourierError

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SAMPLE_USERS: Final = 100


class Leak(CourierError):
    """Something of the future is known too early, or a canary that must be seen is silent; the message says which."""


def check(stages: Mapping[str, Path], *, users: int) -> Iterator[Finding]:
    """Every law of the audit and of the canaries. stages: the folder of each stage in AUDITED; they are only read."""
    from jobs.leakage.planted_probes import (
        release_canaries,  # Feast and Spark cost seconds, and the audit needs neither
    )

    yield from audit(stages)
    with tempfile.TemporaryDirectory(prefix="courier-leaks-") as scratch:
        yield from release_canaries(stages, Path(scratch), users=users)


def fresh_stages(workspace: Workspace) -> dict[str, Path]:
    """The folders of the stages that are checked. Raises StageError where one is not up to date."""
    stand = stage_states(workspace)
    for name in AUDITED:
        if not stand[name].fresh:
            raise StageError(f"{workspace.folder}: stage {name} is not up to date: `courier run` builds it")
    return {name: cast(Path, stand[name].folder) for name in AUDITED}


def as_table(findings: Iterable[Finding]) -> Table:
    """The findings for the terminal, one line each."""
    table = Table("check", "law", "rows", "broken", "example", title="leaks")
    for one in findings:
        told = one.example or one.note or ""
        style = None if one.holds else "red"
        table.add_row(one.check, one.law, f"{one.rows:,}", f"{one.broken:,}", told, style=style)
    return table


@app.command()
def check_leaks(
    workspace: Annotated[
        Path, typer.Argument(parser=local_folder, metavar="FOLDER", help="The workspace whose artifacts are checked.")
    ] = Path("workspace"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    sample_users: Annotated[int, typer.Option(min=1, help="How many users the canaries are planted among.")] = (
        SAMPLE_USERS
    ),
) -> None:
    """Hold every row against what was known at its moment, and walk the road over canaries; exit 1 on a leak."""
    stages = fresh_stages(open_workspace(workspace))
    findings = []
    for one in check(stages, users=sample_users):
        console.print(f"[{'dim' if one.holds else 'red'}]{one.check}: {one.broken:,} of {one.rows:,} rows broken[/]")
        findings.append(one)
    versions = {name: folder.name for name, folder in stages.items()}
    failed = verdict(findings)
    if as_json:
        said = [asdict(one) | {"holds": one.holds} for one in findings]
        typer.echo(json.dumps({"holds": failed is None, "versions": versions, "findings": said}, indent=1))
    else:
        Console().print(as_table(findings))
        Console().print("of " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if failed:
        raise Leak(failed)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of the check."""
    app(args=argv, prog_name="courier check-leaks")
