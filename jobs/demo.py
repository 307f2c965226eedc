"""What the demo asks its new release: a user to rank for, an item with a twin to search by, and an image file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, cast

import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from jobs.pipeline import stage_states
from jobs.workspace import open_workspace


def options(argv: Sequence[str]) -> tuple[Path, str]:
    """The demo's workspace and size."""
    chosen: list[tuple[Path, str]] = []

    def demo(
        workspace: Annotated[Path, typer.Option(help="the folder to work in")] = Path("workspace"),
        size: Annotated[Literal["tiny", "demo"], typer.Option(help="how large a shop")] = "demo",
    ) -> None:
        """A generated shop, the whole road over it, and three example answers."""
        chosen.append((workspace, size))

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(demo)
    app(args=list(argv), prog_name="courier demo", standalone_mode=False)
    if not chosen:  # `--help` was asked, and printed
        raise SystemExit(0)
    return chosen[0]


def pick_questions(workspace: Path) -> list[list[str]]:
    """Three command lines for `courier`: the newest page view ranked, a twin searched, an image file searched."""
    opened = open_workspace(workspace)
    stages = stage_states(opened)
    sequences, images = (cast(Path, stages[name].folder) for name in ("sequences", "images"))
    page = pq.read_table(sequences / "page_views", columns=["request_time", "user_id", "item_ids"])
    last = page.sort_by([("request_time", "descending"), ("user_id", "ascending")]).slice(0, 1).to_pylist()[0]
    items = pq.read_table(images / "items.parquet", columns=["item_id", "image_uri", "status", "duplicate_of"])
    usable = items.filter(pc.equal(items["status"], "ok"))
    twins = usable.filter(pc.is_valid(usable["duplicate_of"])).to_pylist() or usable.to_pylist()
    at = ["--workspace", str(workspace)]
    sheet = ["--sheet", str(workspace / "reports" / "search.png")]
    shown = [word for item_id in last["item_ids"] for word in ("--items", item_id)]
    return [
        ["rank", *at, "--user", last["user_id"], *shown],
        ["search", *at, "--item", twins[0]["item_id"], "-k", "10", *sheet],
        ["search", *at, "--image", str(opened.raw / twins[-1]["image_uri"]), "-k", "5"],
    ]
