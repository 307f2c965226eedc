"""Probe an encoder: does what a user clicked last find the next click, on images it was trained on and on new ones?"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import structlog
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from feature_repo.contract import ITEM_KEY, PRETRAIN_HISTORY
from jobs.options import Folder
from jobs.pipeline import State, stage_states
from jobs.workspace import StageError, open_workspace
from model import artifact, strict_json
from model.artifact import Manifest
from model.courier.inference import probe
from model.courier.inference.probe import FIRST, NEGATIVES, PADDING, PAGE, Clicks, Ints, Measured, Pool
from model.ctr.inputs.encoded import MICROSECONDS_A_DAY
from model.errors import CourierError
from model.metrics import Floats, UserBootstrap
from model.strict_json import nulled

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

POPULAR: Final = "popular"
CATEGORY: Final = "category"
MATCHED: Final = "matched"
SAID: Final = {
    POPULAR: "{} by popularity",
    CATEGORY: "{} of its category",
    MATCHED: "{} alike in {}",
    PAGE: "of the same page",
}
BOOTSTRAP: Final = 2000
Period = Literal["valid", "test"]


@dataclass(frozen=True, slots=True)
class Attribute:
    """A number that an item has, and where it stands: in a parquet table with item_id, or in the images artifact's."""

    name: str
    table: Path | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """What encoders of one images artifact are asked: the clicks, the negatives' pools, and what was left out.

    image_ids: (images,) the image of each row that `clicks` and `pools` speak of.  match, value: the attribute that
    negatives are alike in, (images,).
    """

    period: str
    image_ids: tuple[str, ...]
    clicks: Clicks
    pools: dict[str, Pool]
    repeats: int
    match: str | None
    value: Floats | None


def ask(*, sequences: Path, images: Path, embed: Path, period: Period, match: Attribute | None = None) -> Questions:
    """The clicks of a period whose user had clicked before, and among whom their negatives are drawn.

    Negatives are drawn by their clicks in the training period. A category is that of an image's first item by id, an
    attribute the mean of its items' ones.  Raises ArtifactMissing or ArtifactMismatch for the inputs,
    CourierError where no click can be asked about or the attribute cannot be read.
    """
    splits = artifact.read(sequences, kind="sequences").facts["splits"]
    _of(artifact.read(embed, kind="embed"), images)
    listed = pq.read_table(embed / "items.parquet")
    rows = _Rows(listed)
    popularity, seen = _trained(sequences, rows, datetime.fromisoformat(splits["valid_start"]))
    clicks, repeats = _clicks(sequences, rows, period, seen)
    items = pq.read_table(images / "items.parquet")
    pools = {
        POPULAR: probe.everyone(popularity, clicks.target),
        CATEGORY: probe.of_the_same(popularity, clicks.target, _categories(items, rows)),
    }
    value = None if match is None else _values(items, match, rows)
    if value is not None:
        pools[MATCHED] = probe.alike(popularity, clicks.target, value)
    return Questions(period, rows.image_ids, clicks, pools, repeats, match.name if match else None, value)


def measure(questions: Questions, embed: Path, *, seed: int = 0) -> Measured:
    """The figures of every click, as model.courier.inference.probe.measure gives them, of one encoder's vectors.

    Raises CourierError where the vectors are of other images than the questions.
    """
    listed = pq.read_table(embed / "items.parquet")
    if _Rows(listed).image_ids != questions.image_ids:
        raise CourierError(f"{embed} holds vectors of other images than were asked about: embed them again")
    vectors = np.load(embed / "vectors.npy")
    return probe.measure(vectors, questions.clicks, questions.pools, seed=seed, value=questions.value)


def summary(questions: Questions, measured: Measured, *, bootstrap: int = BOOTSTRAP, seed: int = 0) -> dict[str, Any]:
    """What the figures come to, as JSON: `negatives` by kind and part, `left` where an attribute was matched."""
    clicks = questions.clicks
    draws = UserBootstrap(clicks.user, replicates=bootstrap, seed=seed)
    found: dict[str, Any] = {
        "period": questions.period,
        "clicks": len(clicks),
        "users": len(np.unique(clicks.user)),
        "cold_clicks": int(clicks.cold.sum()),
        "repeats_left_out": questions.repeats,
        "negatives": probe.summarise(measured, clicks, draws),
    }
    if questions.match:
        left = probe.effect_left(measured[POPULAR]["auc"], measured[MATCHED]["auc"], clicks, draws)
        found |= {"match": questions.match, "left": left}
    plain: dict[str, Any] = nulled(found)
    return plain


def run(
    *, sequences: Path, images: Path, embed: Path, period: Period, match: Attribute | None = None, seed: int = 0
) -> dict[str, Any]:
    """Ask, measure and sum up, with the encoder's name and space. Raises as `ask` does."""
    begun = time.monotonic()
    questions = ask(sequences=sequences, images=images, embed=embed, period=period, match=match)
    found = summary(questions, measure(questions, embed, seed=seed), seed=seed)
    facts = artifact.read(embed, kind="embed").facts
    log.info("encoder_probed", clicks=found["clicks"], seconds=round(time.monotonic() - begun, 1))
    return {"encoder": facts["encoder"], "space_id": facts["space_id"], **found}


def attribute(match: str | None, table: Path | None) -> Attribute | None:
    """What the command line names. Raises CourierError for a table of which no attribute is asked."""
    if match is None and table is not None:
        raise CourierError(f"--attributes {table} needs --match: name its column that negatives shall be alike in")
    return None if match is None else Attribute(match, table)


def fresh(stages: Mapping[str, State], name: str) -> Path:
    """The folder of a stage that is up to date. Raises StageError where it is not."""
    state = stages[name]
    if not state.fresh or state.folder is None:
        raise StageError(f"stage {name} is not up to date: `courier run` builds it")
    return state.folder


# --- reading ---------------------------------------------------------------------------------------------------------


class _Rows:
    """Which row of the vectors an item's image has. listed: item_id, image_id, row of an embed artifact."""

    def __init__(self, listed: pa.Table) -> None:
        self._item_ids = listed[ITEM_KEY].combine_chunks()
        self._rows = np.append(listed["row"].to_numpy(), PADDING).astype(np.int64)
        image_of = dict(zip(self._rows[:-1].tolist(), listed["image_id"].to_pylist(), strict=True))
        self.image_ids = tuple(image_of[row] for row in range(len(image_of)))

    def __len__(self) -> int:
        return len(self.image_ids)

    def of(self, item_ids: pa.Array | pa.ChunkedArray) -> Ints:
        """The row of each item, -1 where it has none: (n,)."""
        found = pc.index_in(item_ids, value_set=self._item_ids).fill_null(-1)
        rows: Ints = self._rows[found.to_numpy()]
        return rows

    def padded(self, lists: pa.ChunkedArray, width: int) -> Ints:
        """The rows of the first `width` entries of each list: (n, width), -1 padded."""
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
        out = np.full((len(lengths), max(width, lengths.max(initial=0))), PADDING, dtype=np.int64)
        out[np.arange(out.shape[1]) < lengths[:, None]] = self.of(pc.list_flatten(lists))
        return out[:, :width]


def _of(embedded: Manifest, images: Path) -> None:
    if embedded.inputs["images/pictures"] != artifact.digest(images, "pictures"):
        raise artifact.ArtifactMismatch(f"the vectors were not made from {images}: run the embed stage again")


def _trained(sequences: Path, rows: _Rows, cut: datetime) -> tuple[Ints, NDArray[np.bool_]]:
    """Clicks on each image before `cut`, and whether it was shown or clicked by then: (images,) each."""
    clicked, shown = (
        rows.of(
            ds.dataset(sequences / table, format="parquet").to_table(
                columns=[ITEM_KEY], filter=ds.field(moment) < pa.scalar(cut)
            )[ITEM_KEY]
        )
        for table, moment in (("clicks", "event_time"), ("impressions", "request_time"))
    )
    popularity = np.bincount(clicked[clicked >= 0], minlength=len(rows)).astype(np.int64)
    return popularity, (popularity > 0) | (np.bincount(shown[shown >= 0], minlength=len(rows)) > 0)


def _clicks(sequences: Path, rows: _Rows, period: str, seen: NDArray[np.bool_]) -> tuple[Clicks, int]:
    """The clicks of a period that can be asked about, in time order, and how many repeated one of their history.

    Raises CourierError where none is left.
    """
    columns = ["request_id", "request_time", "user_id", "item_ids", "labels", "history_item_ids"]
    pages = pq.read_table(sequences / "page_views", columns=columns, filters=[("period", "==", period)])
    pages = pages.sort_by([("request_time", "ascending"), ("request_id", "ascending")])
    width = pc.max(pc.list_value_length(pages["item_ids"])).as_py() or 0
    page = rows.padded(pages["item_ids"], width)
    clicked = np.zeros(page.shape, dtype=bool)
    clicked[np.arange(width) < pc.list_value_length(pages["item_ids"]).to_numpy()[:, None]] = (
        pc.list_flatten(pages["labels"]).to_numpy() > 0
    )
    history = rows.padded(pages["history_item_ids"], PRETRAIN_HISTORY)  # the newest, all before the page was opened
    user = np.unique(pages["user_id"].to_numpy(), return_inverse=True)[1]
    with_image, with_history = clicked & (page != PADDING), (history != PADDING).any(axis=1)
    row, column = np.nonzero(with_image & with_history[:, None])
    target = page[row, column]
    repeated = (history[row] == target[:, None]).any(axis=1)
    if repeated.all():
        raise CourierError(
            f"of {clicked.sum()} clicks of the {period} period {with_image.sum()} are on an item with a usable image, "
            f"{len(row)} of them after another such click, and {repeated.sum()} of these on an item clicked before: "
            "none is left to ask about; give another --period"
        )
    row, target = row[~repeated], target[~repeated]
    unclicked = np.where(clicked, PADDING, page)[row]
    return Clicks(target, history[row], unclicked, user[row], ~seen[target]), int(repeated.sum())


def _categories(items: pa.Table, rows: _Rows) -> Ints:
    """The category of each image's first item by id, as a number; -1 where unknown."""
    items = items.select([ITEM_KEY, "category"]).sort_by([(ITEM_KEY, "descending")])
    names = pc.fill_null(items["category"], "").to_numpy()
    known, codes = np.unique(names, return_inverse=True)
    row = rows.of(items[ITEM_KEY])
    out = np.full(len(rows), PADDING, dtype=np.int64)
    out[row[row >= 0]] = np.where(known == "", PADDING, np.arange(len(known)))[codes][row >= 0]  # the last stays
    return out


def _values(items: pa.Table, match: Attribute, rows: _Rows) -> Floats:
    """The mean of an attribute over each image's items, moments in days; NaN where none of them has it."""
    where = match.table or "the items"
    if match.table is not None:
        if not match.table.is_file():
            raise CourierError(f"{match.table} is not a file: give a parquet table with item_id and {match.name}")
        items = pq.read_table(match.table)
    if not {ITEM_KEY, match.name} <= set(items.column_names):
        raise CourierError(f"{where} have no column {match.name}: choose among {', '.join(items.column_names)}")
    values = items[match.name]
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        values = pc.divide(values.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64()), MICROSECONDS_A_DAY)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise CourierError(f"column {match.name} of {where} is {values.type}: only numbers and moments can be matched")
    number = values.cast(pa.float64()).fill_null(np.nan).to_numpy()
    row = rows.of(items[ITEM_KEY].cast(pa.string()))
    known = (row >= 0) & ~np.isnan(number)
    if not known.any():
        raise CourierError(f"no item with a usable image has a {match.name} in {where}: give another --match")
    count = np.bincount(row[known], minlength=len(rows))
    total = np.bincount(row[known], weights=number[known], minlength=len(rows))
    out = np.full(len(rows), np.nan)
    np.divide(total, count, out=out, where=count > 0)
    return out


# --- command line ----------------------------------------------------------------------------------------------------


def print_table(found: Mapping[str, Any], title: str) -> None:
    """The figures as a table on stderr: a line for each kind of negatives and each part of the clicks."""
    table = Table(title=title, caption="means over clicks, with 95 % intervals from a bootstrap over users")
    for name in ("negatives", "images"):
        table.add_column(name, no_wrap=True)
    for name in ("clicks", "AUC", "95 % CI", f"recall@{FIRST}", "MRR"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, parts in found["negatives"].items():
        for part, figures in parts.items():
            named = SAID[kind].format(NEGATIVES, found.get("match")) if part == "all" else ""
            cells = (_cell(figures.get(name), "value") for name in (f"recall_at_{FIRST}", "mrr"))
            auc = figures["auc"]
            table.add_row(named, part, f"{figures['clicks']:,}", _cell(auc, "value"), interval(auc), *cells)
    console = Console(stderr=True)
    console.width = max(console.width, 100)  # figures are not cut
    console.print(table)
    for part, figures in found.get("left", {}).items():
        share, between = _percent(figures["value"]), f"{_percent(figures['ci_low'])} to {_percent(figures['ci_high'])}"
        apart = [_cell(found["negatives"][kind][part]["distance"], "value", 1) for kind in (POPULAR, MATCHED)]
        console.print(
            f"left of the effect where {found['match']} is alike, {part}: {share} ({between}); "
            f"{found['match']} differs by {apart[1]}, by popularity {apart[0]}",
            soft_wrap=True,
        )


def interval(figure: Mapping[str, Any]) -> str:
    """The two ends of an interval, or a dash."""
    return "-" if figure["ci_low"] is None else f"{figure['ci_low']:.3f} to {figure['ci_high']:.3f}"


def _cell(figure: Mapping[str, Any] | None, name: str, digits: int = 4) -> str:
    return "-" if figure is None or figure[name] is None else f"{figure[name]:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


Match = Annotated[
    str | None, typer.Option(help="an attribute of the items, as price or created_at, that negatives shall be alike in")
]
Attributes = Annotated[
    Path | None, typer.Option(help="a parquet table with item_id and the attribute; default: the workspace's own items")
]


@app.command()
def command(
    workspace: Folder = Path("workspace"),
    period: Annotated[Period, typer.Option(help="whose clicks are asked about")] = "valid",
    match: Match = None,
    attributes: Attributes = None,
    seed: Annotated[int, typer.Option(min=0, help="of the negatives and the bootstrap")] = 0,
) -> None:
    """Does the mean of a user's last clicks find the next one among 50 others? JSON on stdout, a table on stderr."""
    opened = open_workspace(workspace)
    stages = stage_states(opened)
    sequences, images = (fresh(stages, name) for name in ("sequences", "images"))
    found = run(
        sequences=sequences,
        images=images,
        embed=fresh(stages, "embed"),
        period=period,
        match=attribute(match, attributes),
        seed=seed,
    )
    print_table(found, f"{found['encoder']} on the {period} period of {opened.folder}")
    print(strict_json.dumps(found, indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """`courier probe`."""
    app(args=argv, prog_name="courier probe")
