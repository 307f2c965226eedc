"""The HTTP answers: each route parses, calls, answers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, cast

from fastapi import APIRouter, Depends, File, Form, HTTPException, Request, UploadFile

from model.additions import AddedItems
from model.releases import Release
from serving import ranker, visual_search
from serving.ranker import Ranker
from serving.schemas import RankAnswer, RankRequest, Ready, Refusal, SearchAnswer
from serving.visual_search import VisualSearch


@dataclass(frozen=True, slots=True)
class World:
    """All that the routes ask: one release, its search, its ranker, and the clock.

    added: digests of the additions that the search knows, in their order.
    """

    release: Release
    search: VisualSearch
    ranker: Ranker
    max_upload_bytes: int
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    added: tuple[str, ...] = ()

    def with_added(self, digests: tuple[str, ...], items: AddedItems) -> "World":
        """The same release with what was added since. digests: of the additions that `items` are of."""
        return replace(self, search=self.search.with_added(items), added=digests)


def world_of(request: Request) -> World:
    """The world that answers this request, from its beginning to its end."""
    return cast(World, request.app.state.find_world())


WorldDep = Annotated[World, Depends(world_of)]
REFUSALS = {"model": Refusal, "description": "refused, in one sentence"}

router = APIRouter()


@router.post("/search", responses={404: REFUSALS, 413: REFUSALS, 422: REFUSALS})
def search(
    world: WorldDep,
    image: Annotated[UploadFile | None, File(description="look-alikes of this picture")] = None,
    item_id: Annotated[str | None, Form(description="look-alikes of this item, which is itself left out")] = None,
    k: Annotated[int, Form(ge=1, description="how many; all there are where there are fewer")] = 10,
) -> SearchAnswer:
    """Items that look like a picture or like an item, best first; exact duplicates come first of all."""
    if (image is None) == (item_id is None):
        raise HTTPException(422, "send an image or an item_id, one of the two")
    if image is not None:
        hits = world.search.by_image(image.file.read(), k)
    else:
        hits = world.search.by_item(cast(str, item_id), k)
    return visual_search.answer_of(hits, world.release.release_id)


@router.post("/rank", responses={413: REFUSALS, 422: REFUSALS})
def rank(world: WorldDep, asked: RankRequest) -> RankAnswer:
    """A user's candidates in order of predicted click probability, each once."""
    ranking = world.ranker.rank(asked.user_id, asked.item_ids, asked.as_of or world.now())
    return ranker.answer_of(ranking, world.release.release_id)


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process lives."""
    return {"status": "alive"}


@router.get("/readyz")
def readyz(world: WorldDep) -> Ready:
    """A release is loaded and answers."""
    return Ready(
        status="ready",
        release=world.release.release_id,
        released_at=world.release.created_at,
        items=len(world.search),
    )
