"""The releases of a workspace: which there are, and which one answers from now on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from jobs.options import call
from jobs.releases.build import document
from model import releases, strict_json
from model.releases import NoRelease, Release

Workspace = Annotated[Path, typer.Option(help="the workspace whose catalogue is asked")]


@contextmanager
def opened(workspace: Path) -> Iterator[Session]:
    """A transaction on the workspace's catalogue. Raises NoRelease where it has none, CatalogueUnreadable."""
    if releases.current(workspace) is None:
        raise NoRelease(f"{workspace} has no release: `courier run RAW --workspace {workspace}` makes one")
    engine = releases.connect(releases.url_in(workspace))
    try:
        with Session(engine) as session, session.begin():
            yield session
    finally:
        engine.dispose()


def list_releases(
    workspace: Workspace = Path("workspace"),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Every release, newest first, and which one answers."""
    with opened(workspace) as session:
        known, now = releases.history(session), releases.answering(session)
    if as_json:
        answer = {"current": now and now.release_id, "releases": [document(one) for one in known]}
        print(strict_json.dumps(answer, indent=1))
        return
    table = Table("release", "made at (UTC)", "space", "CTR model", "", title=str(workspace))
    for one in known:
        answers = "answers" if now and one.release_id == now.release_id else ""
        table.add_row(one.release_id, f"{one.created_at:%Y-%m-%d %H:%M}", one.space_id, one.ctr_model, answers)
    Console().print(table)


def promote_release(
    release: Annotated[str, typer.Argument(help="the release's id, as `courier releases` prints it")],
    workspace: Workspace = Path("workspace"),
) -> None:
    """Let this release answer, until another one is promoted or `courier run` comes to its own."""
    with opened(workspace) as session:
        _print_current(releases.promote(session, release, now=datetime.now(UTC)))


def roll_back(workspace: Workspace = Path("workspace")) -> None:
    """Let the release that answered before the current one answer again."""
    with opened(workspace) as session:
        _print_current(releases.roll_back(session, now=datetime.now(UTC)))


def _print_current(now: Release) -> None:
    print(strict_json.dumps({"release": now.release_id, "space_id": now.space_id, "ctr_model": now.ctr_model}))


def releases_main(argv: Sequence[str]) -> None:
    """`courier releases`."""
    call(list_releases, "courier releases", argv)


def promote_main(argv: Sequence[str]) -> None:
    """`courier promote`."""
    call(promote_release, "courier promote", argv)


def rollback_main(argv: Sequence[str]) -> None:
    """`courier rollback`."""
    call(roll_back, "courier rollback", argv)
