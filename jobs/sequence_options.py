"""The options of the programs that build sequences, said once for both engines."""

from datetime import UTC, datetime
from typing import Any, Final

import typer

from jobs.logic.events import moment


def _moment(text: str) -> datetime:
    try:
        return moment(text)
    except ValueError:
        raise typer.BadParameter(f"write it as {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, not as {text!r}") from None


AS_OF: Final[Any] = typer.Option(
    parser=_moment, metavar="MOMENT", help="The clock by which an event lies in the future; else that of this machine."
)
