"""A pool of processes that open image files, one a core: for Python's own part of it one process has one core."""

import os
import threading
from collections.abc import Sequence
from typing import Any, Final

import loky
import structlog

from jobs.config import ImagesConfig
from jobs.images.look import CORES, Look, Reference, begin, open_files
from model.artifact import AnyPath

log = structlog.get_logger()

MANY: Final = 64  # files after which they are started: that takes half a second of each core
IDLE_SECONDS: Final = 20.0  # without work, after which a process ends; where there is some again another one starts
# Else glibc gives the memory of each image back and asks for it again: of 120 page faults an image 20 are left.
KEPT_MEMORY: Final = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**26)}


class DecodePool:
    """One process a core that opens files, for any number of threads of this process.

    The processes are neither forked, while Beam's threads hold locks, nor do they run the main module again. One that
    dies at its work ends the job, for the image that broke it would break the next one too; what is done stands.
    """

    def __init__(self, folder: AnyPath, config: ImagesConfig, retry_failed: bool) -> None:
        given = (os.getpid(), folder, config, retry_failed)
        self._pool = loky.ProcessPoolExecutor(
            CORES, timeout=IDLE_SECONDS, initializer=begin, initargs=given, env=KEPT_MEMORY
        )
        self._lock = threading.Lock()
        self._opened = 0
        self._first: Any = None  # the answer that tells that they are up
        self._closed = False

    def start(self) -> None:
        """Let them come up, and do not wait for it."""
        with self._lock:
            if self._first is None:
                self._first = self._pool.submit(open_files, ())
                self._first.add_done_callback(self._warn)

    def once_worthwhile(self, more: int) -> "DecodePool | None":
        """The pool once its processes are up; they start when files enough were opened. more: files to be opened."""
        with self._lock:
            self._opened += more
            many = self._opened > MANY
        if many:
            self.start()
        first = self._first
        are_up = first is not None and first.done() and not first.cancelled() and first.exception() is None
        return self if are_up else None

    def open(self, references: Sequence[Reference]) -> list[Look]:
        """The looks at these references, none of them far away; one process opens them all."""
        looks: list[Look] = self._pool.submit(open_files, references).result()
        return looks

    def close(self) -> None:
        """End them, whatever they do."""
        self._closed = True  # before what they have not begun fails for it
        self._pool.shutdown(kill_workers=True)

    def _warn(self, first: Any) -> None:
        # A job with few files may be done before they are up: then it is their end that they fail for.
        if not self._closed and not first.cancelled() and first.exception() is not None:
            log.warning("files_opened_in_threads", why=f"the processes for it did not start: {first.exception()}")
