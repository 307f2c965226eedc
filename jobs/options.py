"""The options that several verbs take, and how a function becomes a verb's command line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from upath import UPath

from jobs.paths import local_folder, path_argument

Folder = Annotated[
    Path, typer.Option(parser=local_folder, metavar="FOLDER", help="the folder that holds every artifact")
]
Preset = Annotated[
    Literal["tiny", "demo", "full"] | None,
    typer.Option(help="sizes and lengths of training; default: as before"),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="settings over those of the other courier.toml files")
]
Given = Annotated[
    list[str] | None, typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="a setting for this run alone")
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host", help="a host that https:// images may come from, or *.example.com; default: as before"
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="OURS=THEIRS,...",
        help="what the raw files call a column: user_id=visitorid,items.item_id=sku; default: as before",
    ),
]
Master = Annotated[
    str | None,
    typer.Option(
        envvar="MASTER", help="where Spark runs, as for spark-submit: local[*] (default), spark://HOST:PORT, yarn"
    ),
]
Engine = Annotated[
    Literal["duckdb", "spark", "beam"] | None,
    typer.Option(
        help="what makes sequences and training rows: duckdb (default), spark (where a master is named), beam"
    ),
]
Promote = Annotated[
    Literal["never", "gated", "force"] | None,
    typer.Option(help="let the release answer: never, if the gates pass, or whatever they say"),
]
By = Annotated[str | None, typer.Option(help="who does it, for the history; default: the user of this process")]
Why = Annotated[str, typer.Option(help="why, for the history")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
RawFolder = Annotated[UPath, path_argument("the folder with the raw tables `events` and `items`")]
LastRaw = Annotated[UPath | None, path_argument("default: the raw folder of the last run")]


def parted(columns: str | None) -> tuple[str, ...] | None:
    """What --columns says, pair by pair; None where it is not given."""
    return None if columns is None else tuple(pair.strip() for pair in columns.split(",") if pair.strip())


def call(function: Callable[..., None], name: str, argv: Sequence[str], obj: object = None) -> None:
    """Run a function as the command line NAME. obj: what its context carries."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    app(args=list(argv), prog_name=name, standalone_mode=True, obj=obj)
