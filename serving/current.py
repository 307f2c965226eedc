"""Follow the database of releases: load the release that was promoted beside the one that answers, then switch."""

import threading
import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from model import releases
from model.additions import Addition, list_additions
from model.release_database import connect, require_schema, unreadable
from serving.routes import World

log = structlog.get_logger()

POLL_SECONDS = 1.0  # four small queries each time
RETRY_SECONDS = 30.0  # a release that could not be loaded may have its artifacts copied meanwhile


class Current:
    """The world that answers, and the thread that lets the next one answer in its place.

    `world` is one reference, switched at once: whoever took it goes on with it to the end. What cannot be loaded is
    logged once, in its sentence, and the old world goes on answering; it is tried again every 30 s, and by `look`.
    """

    def __init__(
        self,
        world: World,
        load: Callable[[], World],
        url: str,
        *,
        add: Callable[[World, Sequence[Addition]], World] | None = None,
        poll_seconds: float = POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.world = world
        self._load = load
        self._add = add
        self._engine = connect(url)
        self._url = url
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._refused: str | None = None  # the release that could not be loaded
        self._retry_at = 0.0
        self._said: str | None = None
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="current-release", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer; a load that has begun is waited for."""
        self._ended.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._engine.dispose()

    def look(self) -> None:
        """Look now, and try again what could not be loaded. Safe in a signal handler."""
        self._retry_at = 0.0
        self._wake.set()

    def refresh(self) -> bool:
        """Load what was promoted or added since and let it answer; whether it does. The old world goes on else.

        Nothing is raised.
        """
        try:
            wanted, added = self._looked_up()
            if wanted in (None, self.world.release.release_id):
                self._refused = None
                return self._take_up(added)
            if wanted == self._refused and self._clock() < self._retry_at:
                return False
            self._refused, self._retry_at = wanted, self._clock() + RETRY_SECONDS
            world = self._load()
        except Exception as error:  # whatever a driver, a damaged file or a full memory raises: others wait for answers
            self._tell(error)
            return False
        left, self.world = self.world, world
        self._refused = self._said = None
        log.info("release_switched", release=world.release.release_id, before=left.release.release_id)
        return True

    def _take_up(self, added: list[Addition]) -> bool:
        """Let what was added to this release's space, or is there no more, be found or not; whether that is another."""
        if self._add is None or tuple(one.digest for one in added) == self.world.added:
            self._said = None
            return False
        self.world = self._add(self.world, added)
        self._said = None
        log.info("items_added", release=self.world.release.release_id, items=len(self.world.search))
        return True

    def _looked_up(self) -> tuple[str | None, list[Addition]]:
        """The release that is promoted, and what was added to the space of the one that answers here."""
        try:
            with Session(self._engine) as session:
                require_schema(session)
                return releases.current_id(session), list_additions(session, self.world.release.space_id)
        except sa.exc.DBAPIError as error:
            raise unreadable(self._url, error) from None

    def _tell(self, error: Exception) -> None:
        sentence = str(error) or repr(error)
        if sentence != self._said:
            self._said = sentence
            log.error("release_not_loaded", still=self.world.release.release_id, error=sentence)

    def _follow(self) -> None:
        while not self._ended.is_set():
            self.refresh()
            self._wake.wait(self._poll_seconds)
            self._wake.clear()
