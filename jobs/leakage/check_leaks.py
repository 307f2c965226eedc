"""Prove that nothing of the future reaches a training row: an audit of the artifacts, and planted probes."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final, cast

import typer
from rich.console import Console
from rich.table import Table

from feature_repo.store_settings import FILE_VARIABLE
from jobs.leakage.audit import AUDITED, audit
from jobs.leakage.check import CheckResult, verdict
from jobs.paths import local_folder
from jobs.pipeline import stage_states
from jobs.workspace import DATABASE, StageError, Workspace, open_workspace
from model import strict_json
from model.errors import CourierError

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SAMPLE_USERS: Final = 100


class Leak(CourierError):
    """Something of the future is known too early, or a probe that must be seen is not; the message says which."""


def check(stages: Mapping[str, Path], workspace: Path, *, users: int) -> Iterator[CheckResult]:
    """Every check of the audit and of the probes. stages: the folder of each stage in AUDITED; they are only read."""
    from jobs.leakage.probes import check_probes  # Feast costs seconds, and the audit does without it

    yield from audit(stages, workspace)
    with tempfile.TemporaryDirectory(prefix="courier-leaks-") as scratch, own_stores():
        yield from check_probes(stages, Path(scratch), users=users)


@contextmanager
def own_stores() -> Iterator[None]:
    """Let every workspace have stores of its own: nothing that is planted may reach those that servers read."""
    named = {name: os.environ.pop(name) for name in (FILE_VARIABLE, DATABASE) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(named)


def fresh_stages(workspace: Workspace) -> dict[str, Path]:
    """The folders of the stages that are checked. Raises StageError where one is not up to date."""
    stand = stage_states(workspace)
    for name in AUDITED:
        if not stand[name].fresh:
            raise StageError(f"{workspace.folder}: stage {name} is not up to date: `courier run` builds it")
    return {name: cast(Path, stand[name].folder) for name in AUDITED}


def as_table(results: Iterable[CheckResult]) -> Table:
    """The results for the terminal, one line each."""
    table = Table("check", "claim", "rows", "violations", "example", title="leaks")
    for one in results:
        shown = one.example or one.note or ""
        style = None if one.passed else "red"
        table.add_row(one.name, one.claim, f"{one.rows:,}", f"{one.violations:,}", shown, style=style)
    return table


@app.command()
def check_leaks(
    workspace: Annotated[
        Path, typer.Argument(parser=local_folder, metavar="FOLDER", help="The workspace whose artifacts are checked.")
    ] = Path("workspace"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    sample_users: Annotated[int, typer.Option(min=1, help="How many users the probes are planted among.")] = (
        SAMPLE_USERS
    ),
) -> None:
    """Hold every row against what was known at its moment, and run the stages over planted probes; exit 1 on a leak."""
    opened = open_workspace(workspace)
    stages = fresh_stages(opened)
    results = []
    for one in check(stages, opened.folder, users=sample_users):
        console.print(f"[{'dim' if one.passed else 'red'}]{one.name}: {one.violations:,} of {one.rows:,} rows[/]")
        results.append(one)
    versions = {name: folder.name for name, folder in stages.items()}
    failed = verdict(results)
    if as_json:
        checks = [asdict(one) | {"passed": one.passed} for one in results]
        typer.echo(strict_json.dumps({"passed": failed is None, "versions": versions, "checks": checks}, indent=1))
    else:
        Console().print(as_table(results))
        Console().print("of " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if failed:
        raise Leak(failed)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of the check."""
    app(args=argv, prog_name="courier check-leaks")
