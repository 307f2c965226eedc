"""The options of the programs that build sequences, said once for both engines."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from functools import wraps
from typing import Annotated, Any, Final

import typer

from jobs.config import LONGEST_HISTORY, SequencesConfig
from jobs.rules.events import moment

RANGES: Final[dict[str, dict[str, Any]]] = {
    "page_view_size": {"min": 1},
    "pretrain_history": {"min": 1, "max": LONGEST_HISTORY},
    "ctr_history": {"min": 1, "max": LONGEST_HISTORY},
    "max_clicks_per_day": {"min": 1},
    "train_fraction": {"min": 0, "max": 1},
    "valid_fraction": {"min": 0, "max": 1},
}


def with_config(command: Callable[..., None]) -> Callable[..., None]:
    """`command(..., config)` as typer shall see it: with an option for each field of SequencesConfig instead."""
    whole = inspect.signature(command)
    kept = [one for one in whole.parameters.values() if one.name != "config"]
    options = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=one.default,
            annotation=Annotated[one.type, typer.Option(**RANGES[one.name])],
        )
        for one in fields(SequencesConfig)
    ]

    @wraps(command)
    def asked(*args: Any, **given: Any) -> None:
        config = SequencesConfig(**{one.name: given.pop(one.name) for one in options})
        command(*args, config=config, **given)

    shown = whole.replace(parameters=[*kept, *options])
    asked.__signature__ = shown  # type: ignore[attr-defined]  # where inspect looks first
    asked.__annotations__ = {name: one.annotation for name, one in shown.parameters.items()}
    return asked


def _moment(text: str) -> datetime:
    try:
        return moment(text)
    except ValueError:
        raise typer.BadParameter(f"write it as {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, not as {text!r}") from None


AS_OF: Final[Any] = typer.Option(
    parser=_moment, metavar="MOMENT", help="The clock by which an event lies in the future; else that of this machine."
)
