"""Examine image references: look each up in the store, and open only what is new or has changed."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Semaphore
from typing import Any, Final

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from jobs.beam import progress
from jobs.beam.fetch import Fetcher, NotFetched
from jobs.beam.image_store import ImageStore, Outcome, absolute
from jobs.config import ImagesConfig
from jobs.logic import catalogue
from jobs.logic.catalogue import CatalogueRow, Item
from model.courier import images
from model.courier.images import ImageRefused

KIND: Final = "images"
UNUSABLE: Final = "unusable"
LIMITS: Final = ("max_bytes", "max_pixels", "min_side", "max_side")
CORES: Final = os.cpu_count() or 1
WAITING: Final = 16  # threads that may wait for a disk or a network; no more than CORES of them decode at a time


@dataclass(frozen=True, slots=True)
class Examined:
    """An accepted item and what its reference gave."""

    row: CatalogueRow
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a reference: the outcome, and what had to be done for it."""

    outcome: Outcome
    png: bytes | None = None  # where the image was decoded
    opened: bool = False
    microseconds: int = 0


class ExamineShards(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """Bring one shard of the store up to date with the references of its items; each reference is opened once."""

    def __init__(self, store: ImageStore, folder: Path, config: ImagesConfig, retry_failed: bool) -> None:
        super().__init__()
        self.store, self.folder, self.config, self.retry_failed = store, folder, config, retry_failed
        self.took = Metrics.distribution(KIND, "open_microseconds")

    def setup(self) -> None:
        """Start the threads."""
        self.pool = ThreadPoolExecutor(max(WAITING, CORES))
        self.look = Looker(Fetcher(self.folder, self.config.max_bytes), self.config, self.retry_failed)

    def teardown(self) -> None:
        """End them."""
        self.pool.shutdown()

    def process(self, group: tuple[int, Iterable[Item]]) -> Iterator[Any]:
        """(shard, its items, each with a reference) -> usable items with their outcomes; at UNUSABLE the others."""
        number, items = group[0], list(group[1])
        known = self.store.known(number)
        uses = Counter(str(item.image_uri) for item in items)
        looks = self._look(sorted(uses), known, uses)
        outcomes = {look.outcome.uri: look.outcome for look in looks.values()}
        if outcomes != known:
            pngs = {look.outcome.uri: look.png for look in looks.values() if look.png is not None}
            self.store.save(number, outcomes, pngs)
            Metrics.counter(KIND, "shards_written").inc()
        for item in items:
            one = examined(item, looks[str(item.image_uri)].outcome)
            yield one if one.row.status == catalogue.OK else TaggedOutput(UNUSABLE, one)

    def _look(self, references: list[str], known: dict[str, Outcome], uses: Counter[str]) -> dict[str, Look]:
        uris = [absolute(one, self.folder) for one in references]
        found = self.pool.map(self.look, references, uris, map(known.get, uris))
        looks = {}
        for one, look in zip(references, found, strict=True):
            looks[one] = look
            self._count(look)
            progress.TALLY.add(done=uses[one])
        return looks

    def _count(self, look: Look) -> None:
        Metrics.counter(KIND, "references").inc()
        Metrics.counter(KIND, "opened").inc(int(look.opened))
        Metrics.counter(KIND, "decoded").inc(int(look.png is not None))
        if look.opened:
            self.took.update(look.microseconds)


class Looker:
    """Looks at references, in any number of threads."""

    def __init__(self, fetcher: Fetcher, config: ImagesConfig, retry_failed: bool) -> None:
        self.fetcher, self.config, self.retry_failed = fetcher, config, retry_failed
        self.decoding = Semaphore(CORES)  # bounds the memory too: one decoded image a core

    def __call__(self, reference: str, uri: str, before: Outcome | None) -> Look:
        """What the reference gives now; its file is read only where the outcome before does not still stand.

        uri: its absolute form.  before: what the store holds of it. With retry_failed a failure that may pass is tried again, however little
        its file has changed, and nothing else that is known is looked at.
        """
        again = self.retry_failed and before is not None and before.reason in catalogue.RETRYABLE
        if before is not None and self.retry_failed and not again:
            return Look(before)
        fingerprint = None
        started = time.monotonic()
        try:
            # Before the bytes: a file that is changed while it is being read has another fingerprint the next time.
            fingerprint = self.fetcher.fingerprint(reference)
            if before is not None and not again and fingerprint == before.fingerprint is not None:
                return Look(before)
            data = self.fetcher.fetch(reference)
        except NotFetched as refusal:
            outcome = Outcome(uri=uri, fingerprint=fingerprint, reason=refusal.reason)
            return Look(outcome, opened=fingerprint is not None, microseconds=_since(started))
        outcome, png = self._examine(Outcome(uri=uri, fingerprint=fingerprint), data, before)
        return Look(outcome, png, opened=True, microseconds=_since(started))

    def _examine(self, found: Outcome, data: bytes, before: Outcome | None) -> tuple[Outcome, bytes | None]:
        digest = hashlib.sha256(data).hexdigest()
        if before is not None and before.bytes_sha256 == digest:
            return replace(before, fingerprint=found.fingerprint), None
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
        usable = replace(
            found,
            image_id=images.pixel_hash(image),
            phash=images.perceptual_hash(image),
            width=facts.width,
            height=facts.height,
            mode=facts.mode,
            frames=facts.frames,
        )
        return usable, images.to_png(images.resize(image, self.config.size))


def examined(item: Item, outcome: Outcome) -> Examined:
    """The item's row of the catalogue as far as its own image tells; `catalogue.settle` has the last word."""
    if outcome.image_id is None:
        return Examined(catalogue.unusable(item, outcome.reason, outcome.bytes_sha256), outcome)
    return Examined(catalogue.usable(item, outcome.image_id, str(outcome.bytes_sha256)), outcome)


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1e6)
