"""Put the HTTP service together, and run it: `courier serve`."""

import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_repo.contract import EMBEDDING_DIM
from model.additions import Addition
from model.artifact import ArtifactMismatch
from model.courier.data.images import ImageRefused
from serving.additions import additions_of, read_additions
from serving.current import Current
from serving.ranker import load_ranker
from serving.release import ReleasedEncoder, open_release
from serving.request_log import LoggedFeatures, RequestLog, open_request_log
from serving.routes import World, router
from serving.settings import Settings, database_url, read_settings
from serving.visual_search import NoUsableImage, UnknownItem, load_search

log = structlog.get_logger()
cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

STATUS_OF: dict[type[Exception], int] = {UnknownItem: 404, NoUsableImage: 422, ImageRefused: 422}
API_VERSION = "1"
FORM_OVERHEAD = 16_384  # bytes that a form adds to the file it carries


def load_world(settings: Settings, request_log: RequestLog | None = None) -> World:
    """Load the workspace's current release, its encoder and its CTR model included, and open its feature store.

    request_log: where rankings are logged, if anywhere.
    Raises NoRelease, ArtifactMissing or ArtifactMismatch.
    """
    begun = time.monotonic()
    opened = open_release(settings.workspace, settings.releases, settings.artifacts)
    search = load_search(opened)
    if search.index.width != EMBEDDING_DIM:
        raise ArtifactMismatch(
            f"{opened.folders['index']} is {search.index.width} wide, contract says {EMBEDDING_DIM}: rebuild the index"
        )
    if isinstance(search.encoder, ReleasedEncoder):
        search.encoder.load()  # the first upload must not wait for torch
    ranker = load_ranker(opened, settings.workspace)
    if request_log is not None:
        ranker = replace(ranker, features=LoggedFeatures(ranker.features, request_log, opened.release_id))
    world = World(opened.release, search, ranker, settings.max_upload_bytes)
    world = with_added(world, additions_of(opened, settings.releases), settings)
    log.info(
        "release_loaded",
        release=opened.release_id,
        items=len(world.search),
        seconds=round(time.monotonic() - begun, 1),
    )
    return world


def with_added(world: World, found: Sequence[Addition], settings: Settings) -> World:
    """The world with these additions, which are of its release's space. Raises ArtifactMissing, ArtifactMismatch."""
    items = read_additions(found, world.release.space_id, settings.workspace, settings.artifacts)
    return world.with_added(tuple(one.digest for one in found), items)


def create_app(world: World | Current, request_log: RequestLog | None = None) -> FastAPI:
    """The service over one world, or over whichever is the current one when a request comes.

    request_log: closed when the service ends.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if request_log is not None:
            request_log.close()

    app = FastAPI(
        lifespan=lifespan,
        title="courier",
        description="Search by what items look like; rank by what a user is likely to click.",
        version=API_VERSION,
    )
    current = world if isinstance(world, Current) else None
    app.state.find_world = lambda: current.world if current else world
    app.include_router(router)
    app.add_middleware(BodyLimit, limit=app.state.find_world().max_upload_bytes + FORM_OVERHEAD)
    app.add_exception_handler(RequestValidationError, _refuse_form)
    for error in STATUS_OF:
        app.add_exception_handler(error, _refuse)
    return app


def _refuse(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, STATUS_OF[type(error)])


def _refuse_form(_: Request, error: Exception) -> JSONResponse:
    problems: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else ()
    problem = "; ".join(f"{'.'.join(str(part) for part in one['loc'][1:]) or 'body'}: {one['msg']}" for one in problems)
    return JSONResponse({"detail": problem}, 422)


class BodyLimit:
    """Refuses a request with 413 once its body is larger than `limit` bytes, before it fills memory or disk."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body counted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _declared_length(scope) > self.limit:
            await self._refuse(scope, receive, send)
            return
        counted = _Counted(receive, self.limit)
        try:
            await self.app(scope, counted, send)
        except _TooLarge:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = JSONResponse({"detail": f"the request is larger than {self.limit} bytes"}, 413)
        await answer(scope, receive, send)


class _TooLarge(BaseException):
    """Not an Exception: FastAPI would answer 400 for any that reading a body raises."""


class _Counted:
    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive = receive
        self.left = limit

    async def __call__(self) -> Message:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise _TooLarge
        return message


def _declared_length(scope: Scope) -> int:
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    return int(declared) if declared.isdigit() else 0


@cli.command()
def serve(
    workspace: Annotated[Path | None, typer.Option(help="the folder that holds the release")] = None,
    host: Annotated[str | None, typer.Option(help="the address to listen on (127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="the port to listen on (8000)")] = None,
) -> None:
    """Answer /search and /rank over HTTP; /docs describes them.

    Another release that is promoted answers a second later, without a restart; SIGHUP looks at once.
    """
    settings = read_settings(workspace=workspace, host=host, port=port)
    request_log = open_request_log(settings)

    def load() -> World:
        return load_world(settings, request_log)

    def add(world: World, found: Sequence[Addition]) -> World:
        return with_added(world, found, settings)

    current = Current(load(), load, database_url(settings), add=add)
    signal.signal(signal.SIGHUP, lambda *_: current.look())
    current.start()
    try:
        uvicorn.run(create_app(current, request_log), host=settings.host, port=settings.port)
    finally:
        current.stop()


def main(argv: Sequence[str] | None = None) -> None:
    """`courier serve`."""
    cli(args=list(argv) if argv is not None else None, prog_name="courier serve")
