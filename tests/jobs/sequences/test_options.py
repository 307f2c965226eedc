"""The programs that build sequences, of either engine, take the same options for the same config."""

from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
import typer

from jobs.config import SequencesConfig
from jobs.sequences.options import AS_OF, with_config


def told(*argv: str) -> dict[str, Any]:
    """What a program with these options is told on its command line."""
    app, heard = typer.Typer(add_completion=False), {}

    @app.command()
    @with_config
    def program(place: str, config: SequencesConfig, as_of: Annotated[datetime | None, AS_OF] = None) -> None:
        heard.update(place=place, config=config, as_of=as_of)

    app(args=[*argv], standalone_mode=False)
    return heard


def test_without_options_a_program_has_the_default_config_and_no_clock() -> None:
    assert told("here") == {"place": "here", "config": SequencesConfig(), "as_of": None}


def test_every_field_of_the_config_has_an_option_of_its_name() -> None:
    other = {
        name: value / 2 if isinstance(value, float) else value + 1 for name, value in asdict(SequencesConfig()).items()
    }
    options = [word for name, value in other.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert len(options) == 2 * len(fields(SequencesConfig))
    assert told("here", *options)["config"] == replace(SequencesConfig(), **other)


@pytest.mark.parametrize(
    "option",
    [("--ctr-history", "0"), ("--pretrain-history", "1001"), ("--max-clicks-per-day", "0"), ("--page-view-size", "0")]
    + [("--train-fraction", "1.1"), ("--valid-fraction", "-0.1"), ("--as-of", "2024-03-01"), ("--as-of", "soon")],
)
def test_what_is_out_of_range_is_refused_by_the_options_name(option: tuple[str, str]) -> None:
    with pytest.raises(typer.BadParameter) as refusal:
        told("here", *option)
    assert option[0] in str(refusal.value.param.opts)


def test_the_clock_is_a_moment_with_its_offset() -> None:
    assert told("here", "--as-of", "2024-03-01T12:00:00+02:00")["as_of"] == datetime(2024, 3, 1, 10, tzinfo=UTC)
