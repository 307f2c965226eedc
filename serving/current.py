"""Follow the database of releases: load the release that was promoted beside the one that answers, then switch."""

import threading
import time
from collections.abc import Callable

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from model import releases
from model.release_database import connect, require_schema, unreadable
from serving.routes import World

log = structlog.get_logger()

POLL_SECONDS = 1.0  # three small queries each time
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
        poll_seconds: float = POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.world = world
        self._load = load
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
        """Load what was promoted since and let it answer; whether it does. Nothing is raised: the old world goes on."""
        try:
            wanted = self._current_id()
            if wanted in (None, self.world.release.release_id):
                self._refused = self._said = None
                return False
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

    def _current_id(self) -> str | None:
        try:
            with Session(self._engine) as session:
                require_schema(session)
                return releases.current_id(session)
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
