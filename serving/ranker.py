"""Order a user's candidates by predicted click probability: `courier rank` and the answer to POST /rank."""

import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.artifact import ArtifactMismatch
from model.errors import CourierError
from serving.release import OpenRelease, load_ctr_model, open_release
from serving.schemas import MAX_CANDIDATES, RankAnswer, Ranked
from serving.settings import read_settings

if TYPE_CHECKING:
    from model.ctr.export.saved import CtrModel
    from model.released_items import ReleasedItems
    from serving.features import RankingRows

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

STORE_FAILED = "the feature store does not answer: the items are in the order given"


class BadRanking(CourierError):
    """The command line asks for a ranking that cannot be made; the message says what to change."""


class FeatureSource(Protocol):
    """Where the rows of a user and some items come from."""

    def ranking_rows(
        self, user_id: str, item_ids: Sequence[str], space_id: str, codebook_id: str, *, as_of: datetime, vectors: bool
    ) -> "RankingRows":
        """One row per item, in the order given; whether user and items are known; image vectors if asked for."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates, likeliest click first, and what was missing."""

    results: list[Ranked]
    degraded: str | None


@dataclass(frozen=True, slots=True)
class Ranker:
    """Ranks with one release's CTR model over the features of one space and one codebook."""

    features: FeatureSource
    model: "CtrModel"
    space_id: str
    codebook_id: str
    # More threads than cores would take Python's lock from each other in the middle of an answer.
    turns: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(os.cpu_count() or 1), repr=False)

    def rank(self, user_id: str, item_ids: Sequence[str], as_of: datetime) -> Ranking:
        """The distinct candidates by predicted click probability; equal ones keep the order given.

        as_of: the moment that the items' and clicks' ages are counted to.  An unknown user is ranked without a history,
        an unknown item on default values. Where the feature store fails, the order given is kept, and the answer tells.
        """
        with self.turns:
            return self._rank(user_id, list(dict.fromkeys(item_ids)), as_of)

    def _rank(self, user_id: str, candidates: Sequence[str], as_of: datetime) -> Ranking:
        try:
            rows = self._rows(user_id, candidates, as_of)
        except Exception as error:  # whatever its driver raises: a page without an order helps nobody
            log.error("features_failed", user_id=user_id, items=len(candidates), error=repr(error))
            return Ranking([Ranked(item_id=item, score=None, known=None) for item in candidates], STORE_FAILED)
        scores = self.model.predict(rows.table, rows.vectors)
        scored = zip(candidates, scores.tolist(), rows.known_items, strict=True)
        ranked = [Ranked(item_id=item, score=_rounded(score), known=known) for item, score, known in scored]
        return Ranking(sorted(ranked, key=lambda one: -(one.score or 0.0)), _what_was_missing(user_id, rows))

    def _rows(self, user_id: str, candidates: Sequence[str], as_of: datetime) -> "RankingRows":
        from model.ctr.inputs.inputs import needs_vectors

        return self.features.ranking_rows(
            user_id,
            candidates,
            self.space_id,
            self.codebook_id,
            as_of=as_of,
            vectors=needs_vectors(self.model.images),
        )


def _rounded(score: float) -> float | None:
    return round(score, 6) if math.isfinite(score) else None


def _what_was_missing(user_id: str, rows: "RankingRows") -> str | None:
    missing = [] if rows.known_user else [f"user '{user_id}' is unknown: ranked without a history"]
    strangers = rows.known_items.count(False)
    if strangers:
        missing.append(f"{strangers} of {len(rows.known_items)} items unknown: scored on default values")
    return "; ".join(missing) or None


def load_ranker(opened: OpenRelease, workspace: Path) -> Ranker:
    """The ranker of a release, reading the workspace's online store.

    The store need not have been loaded for this release: what moves daily is of no release, and clusters and vectors
    are the release's own artifacts'; the store is asked for those of items that were added since.
    Of a release that was recorded before releases named their codebook, items that its artifacts do not hold have no
    cluster ID: no code in the store can be told to be its own.
    Raises StoreNotLoaded, RowUnreadable where the store's layout is stale, ArtifactMismatch where a release holds
    neither a codebook's name nor cluster IDs of its own.
    """
    from feature_repo.online_views import open_views
    from serving.features import RankingFeatures  # what a search needs none of

    views = open_views(workspace)
    views.check()
    features = RankingFeatures(views, _released_items(opened))
    return Ranker(features, load_ctr_model(opened), opened.space_id, opened.codebook_id)


def _released_items(opened: OpenRelease) -> "ReleasedItems | None":
    from model.released_items import FOLDER, ReleasedItems

    lookup = opened.folders["cluster"] / FOLDER
    if not lookup.is_dir():  # of a release that was made before there were any: the store may hold its codebook
        if not opened.codebook_id:
            raise ArtifactMismatch(
                f"{opened.release_id} neither names its codebook nor holds cluster IDs of its own: "
                "`courier run` makes one that does"
            )
        return None
    if not opened.codebook_id:
        log.warning("codebook_not_named", release=opened.release_id, lost="cluster IDs of items added since")
    return ReleasedItems(opened.space_id, opened.codebook_id, lookup, opened.folders["embed"] / "vectors.npy")


def answer_of(ranking: Ranking, release_id: str) -> RankAnswer:
    """The ranking in the form that goes out."""
    return RankAnswer(results=ranking.results, release=release_id, degraded=ranking.degraded)


# --- command line ---------------------------------------------------------------------------------------------------


@app.command()
def rank(
    user: Annotated[str, typer.Option(help="whose candidates they are")],
    items: Annotated[
        list[str], typer.Option(metavar="ID", help="a candidate, as it stands, blanks and commas too; once for each")
    ],
    workspace: Annotated[Path | None, typer.Option(help="the folder that holds the release")] = None,
    as_of: Annotated[str | None, typer.Option(help="ISO 8601 with offset: count ages to here (now)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """A user's items in order of predicted click probability, from the features in the online store."""
    if len(items) > MAX_CANDIDATES:
        raise BadRanking(f"--items is given {len(items)} times: give it 1 to {MAX_CANDIDATES} times")
    moment = _moment(as_of) if as_of is not None else datetime.now(UTC)
    settings = read_settings(workspace=workspace)
    opened = open_release(settings.workspace, settings.releases, settings.artifacts)
    ranking = load_ranker(opened, settings.workspace).rank(user, items, moment)
    if as_json:
        print(answer_of(ranking, opened.release_id).model_dump_json(indent=1, ensure_ascii=True))
    else:
        _print_table(user, ranking, opened.release_id)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadRanking(f"--as-of {text!r} is not an ISO 8601 moment such as 2024-06-01T12:00:00Z") from None
    if moment.tzinfo is None:
        raise BadRanking(f"--as-of {text} names no offset from UTC: write {moment.isoformat()}Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise BadRanking(f"--as-of {text} lies outside the calendar: give a moment of this age") from None


def _print_table(user: str, ranking: Ranking, release_id: str) -> None:
    table = Table("", "item", "P(click)", "known", title=escape(f"ranked for {user}"), caption=release_id)
    for place, one in enumerate(ranking.results, start=1):
        score = "" if one.score is None else f"{one.score:.4f}"
        table.add_row(str(place), escape(one.item_id), score, {True: "yes", False: "no", None: "?"}[one.known])
    Console().print(table)
    if ranking.degraded:
        Console().print(f"degraded: {ranking.degraded}", markup=False)


def main(argv: Sequence[str] | None = None) -> None:
    """`courier rank`; returns on success, so that another verb may follow in the same process."""
    try:
        app(args=list(argv) if argv is not None else None, prog_name="courier rank")
    except SystemExit as end:
        if end.code:
            raise
