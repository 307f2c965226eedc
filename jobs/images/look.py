"""Look at image references: what each gives now, and whether it has to be read to know; in a thread or a process.

Nothing is imported here that a process which only decodes does without, so that it starts quickly.
"""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from jobs.config import ImagesConfig
from jobs.images.fetch.references import Fetcher, NotFetched
from jobs.images.outcome import Outcome
from jobs.rules import items
from model.artifact import AnyPath
from model.courier.data import images
from model.courier.data.images import ImageRefused

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
        if self.retry_failed and before.reason not in items.RETRYABLE and not before.stale:
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

    def _decode(self, found: Outcome, data: bytes) -> tuple[Outcome, bytes | None]:
        limits = {name: getattr(self.config, name) for name in LIMITS}
        image, facts = images.open_image(data, **limits)
        square = images.squash(image, self.config.size)
        shown = replace(found, width=facts.width, height=facts.height, mode=facts.mode, frames=facts.frames)
        # The square holds all that is looked at; of the whole image it takes a third of the decoding again.
        if images.is_blank(square):
            return replace(shown, reason=items.BLANK), None
        usable = replace(shown, image_id=images.pixel_hash(image), phash=images.perceptual_hash(square))
        return usable, images.to_png(square)


def _nothing(reference: Reference, reason: str) -> Look:
    """The look at what gives no bytes: a picture that was there stays, where no answer says that it is gone."""
    before = reference.before
    if before is not None and before.image_id is not None and reason in items.OUTAGES:
        return Look(replace(before, stale=reason))
    return Look(Outcome(uri=reference.uri, reason=reason))


def _fresh(before: Outcome) -> Outcome:
    return replace(before, stale=None) if before.stale else before


# --- in a process of jobs.images.decode_pool --------------------------------------------------------------------------

PARENT_SECONDS: Final = 1.0

_LOOKER: Looker  # of a process that does nothing but look


def begin(parent: int, folder: AnyPath, config: ImagesConfig, retry_failed: bool) -> None:
    """Make this process one that opens files, until it is ended or its parent, of that process id, is gone."""
    global _LOOKER
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: the process that waits for us ends us
    _LOOKER = Looker(Fetcher(folder, config.max_bytes), config, retry_failed)


def _end_with(parent: int) -> None:
    # A parent that was killed ends nobody, and a pipe that nobody reads any more, but a sibling holds, blocks for ever.
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def open_files(references: Sequence[Reference]) -> list[Look]:
    """The looks at these references, none of them far away, in a process that has begun."""
    return [_LOOKER.open(reference) for reference in references]
