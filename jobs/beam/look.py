"""Look at image references: what each gives now, and whether it has to be read to know; in a thread or a process.

Beam is not imported here, so that a process which only decodes starts quickly.
"""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import loky
import structlog

from jobs.beam.fetch import Fetcher, NotFetched
from jobs.beam.outcome import Outcome
from jobs.config import ImagesConfig
from jobs.logic import catalogue
from model.artifact import AnyPath
from model.courier import images
from model.courier.images import ImageRefused

log = structlog.get_logger()

LIMITS: Final = ("max_bytes", "max_pixels", "min_side", "max_side")
CORES: Final = os.cpu_count() or 1


@dataclass(frozen=True)  # here and below no slots, which slow pickling down threefold
class Reference:
    """What is to be looked at: the words of the items table, their absolute form, and what the store holds of it."""

    words: str
    uri: str
    before: Outcome | None = None


@dataclass(frozen=True)
class Look:
    """One look at a reference: the outcome, and what had to be done for it."""

    outcome: Outcome
    png: bytes | None = None  # where the image was decoded
    opened: bool = False  # its bytes were read
    microseconds: int = 0


class Looker:
    """Looks at references, in any number of threads."""

    def __init__(self, fetcher: Fetcher, config: ImagesConfig, retry_failed: bool) -> None:
        self.fetcher, self.config, self.retry_failed = fetcher, config, retry_failed
        self.decoding = threading.Semaphore(CORES)  # bounds the memory too: one decoded image a core

    def __call__(self, reference: Reference) -> Look:
        """What the reference gives now; it is read only where the outcome before does not still stand.

        With retry_failed nothing that the store holds is looked at but the failures that may pass.
        """
        return self.at_a_glance(reference) or self.open(reference)

    def at_a_glance(self, reference: Reference) -> Look | None:
        """The look, where it takes neither the network nor a byte of the file."""
        before = reference.before
        if before is None:
            return None
        if self.retry_failed and before.reason not in catalogue.RETRYABLE and not before.stale:
            return Look(before)
        if before.fingerprint and self.fetcher.is_near(reference.words):
            try:
                stands = self.fetcher.fingerprint(reference.words) == before.fingerprint
            except NotFetched as refusal:
                return _nothing(reference, refusal.reason)
            return Look(_fresh(before)) if stands else None
        return None

    def open(self, reference: Reference) -> Look:
        """The look, by reading; or by asking a server that answers that nothing has changed."""
        before, uri = reference.before, reference.uri
        started = time.monotonic()
        try:
            fetched = self.fetcher.fetch_if_changed(reference.words, (before and before.fingerprint) or "")
        except NotFetched as refusal:
            return _nothing(reference, refusal.reason)
        if fetched is None and before is not None:
            return Look(_fresh(before))
        assert fetched is not None  # of what the store does not hold there is no fingerprint that could stand
        outcome, png = self._examine(Outcome(uri=uri, fingerprint=fetched.fingerprint), fetched.data, before)
        return Look(outcome, png, opened=True, microseconds=int((time.monotonic() - started) * 1e6))

    def _examine(self, found: Outcome, data: bytes, before: Outcome | None) -> tuple[Outcome, bytes | None]:
        digest = hashlib.sha256(data).hexdigest()
        if before is not None and before.bytes_sha256 == digest:
            return replace(before, fingerprint=found.fingerprint, stale=None), None
        found = replace(found, bytes_sha256=digest)
        try:
            with self.decoding:
                return self._decode(found, data)
        except ImageRefused as refusal:
            # Of a file that is too large only a part was read.
            whole = None if refusal.reason == "too_large" else digest
            return replace(found, reason=refusal.reason, bytes_sha256=whole), None

    def _decode(self, found: Outcome, data: bytes) -> tuple[Outcome, bytes]:
        limits = {name: getattr(self.config, name) for name in LIMITS}
        image, facts = images.open_image(data, **limits)
        square = images.squash(image, self.config.size)
        usable = replace(
            found,
            image_id=images.pixel_hash(image),
            # The square holds all that the hash looks at; of the whole image it takes a third of the decoding again.
            phash=images.perceptual_hash(square),
            width=facts.width,
            height=facts.height,
            mode=facts.mode,
            frames=facts.frames,
        )
        return usable, images.to_png(square)


def _nothing(reference: Reference, reason: str) -> Look:
    """The look at what gives no bytes: a picture that was there stays, where no answer says that it is gone."""
    before = reference.before
    if before is not None and before.image_id is not None and reason in catalogue.OUTAGES:
        return Look(replace(before, stale=reason))
    return Look(Outcome(uri=reference.uri, reason=reason))


def _fresh(before: Outcome) -> Outcome:
    return replace(before, stale=None) if before.stale else before


# --- in processes ---------------------------------------------------------------------------------------------------

MANY: Final = 64  # files after which they are started: that takes half a second of each core
IDLE_SECONDS: Final = 20.0  # after which a process ends: with work again, or where its parent was killed
# Else glibc gives the memory of each image back and asks for it again: of 120 page faults an image 20 are left.
KEPT_MEMORY: Final = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**26)}

_LOOKER: Looker  # of a process that does nothing but look


class Processes:
    """One process a core that opens files, for any number of threads of this process.

    They are neither forked, while Beam's threads hold locks, nor do they run the main module again.
    """

    def __init__(self, folder: AnyPath, config: ImagesConfig, retry_failed: bool) -> None:
        given = (folder, config, retry_failed)
        self._pool = loky.ProcessPoolExecutor(
            CORES, timeout=IDLE_SECONDS, initializer=_begin, initargs=given, env=KEPT_MEMORY
        )
        self._lock = threading.Lock()
        self._opened = 0
        self._first: Any = None  # the answer that tells that they are up

    def start(self) -> None:
        """Let them come up, and do not wait for it."""
        with self._lock:
            if self._first is None:
                self._first = self._pool.submit(_look_at_files, ())
                self._first.add_done_callback(_warn)

    def when_they_pay(self, more: int) -> "Processes | None":
        """Themselves, once they are up; they start when files enough were opened. more: files that are to be opened."""
        with self._lock:
            self._opened += more
            many = self._opened > MANY
        if many:
            self.start()
        return self if self._first is not None and self._first.done() and not self._first.exception() else None

    def open(self, references: Sequence[Reference]) -> list[Look]:
        """The looks at these references, none of them far away; one process opens them all."""
        looks: list[Look] = self._pool.submit(_look_at_files, references).result()
        return looks

    def close(self) -> None:
        """End them, whatever they do."""
        self._pool.shutdown(kill_workers=True)


def _warn(first: Any) -> None:
    if not first.cancelled() and first.exception() is not None:
        log.warning("files_opened_in_threads", why=f"the processes for it did not start: {first.exception()}")


def _look_at_files(references: Sequence[Reference]) -> list[Look]:
    return [_LOOKER.open(reference) for reference in references]


def _begin(folder: AnyPath, config: ImagesConfig, retry_failed: bool) -> None:
    global _LOOKER
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: the process that waits for us ends us
    _LOOKER = Looker(Fetcher(folder, config.max_bytes), config, retry_failed)
