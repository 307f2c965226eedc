"""Examine image references: look each up in the store, and open only what is new or has changed."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Semaphore
from typing import Final

import apache_beam as beam
from apache_beam.metrics import Metrics
from PIL import Image

from jobs.beam import progress
from jobs.beam.fetch import Fetcher, HttpsConfig, NotFetched
from jobs.beam.image_store import ImageStore, Outcome, absolute
from jobs.config import ImagesConfig
from jobs.logic import catalogue
from jobs.logic.catalogue import CatalogueRow, Item
from model.artifact import AnyPath
from model.courier import images
from model.courier.images import ImageRefused

KIND: Final = "images"
LIMITS: Final = ("max_bytes", "max_pixels", "min_side", "max_side")
CORES: Final = os.cpu_count() or 1
WAITING: Final = 16  # threads that may wait for a disk or a network; no more than CORES of them decode at a time
NO_REFERENCE: Final = Outcome(uri="", reason="no_reference")


@dataclass(frozen=True)  # here and in what it holds no slots, which slow pickling down threefold
class Examined:
    """An accepted item and what its reference gave."""

    row: CatalogueRow
    outcome: Outcome


@dataclass(frozen=True)
class ExaminedShard:
    """The items of one shard; one element of a pipeline, for a thousand rows pickle faster at once than one by one."""

    rows: tuple[Examined, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a reference: the outcome, and what had to be done for it."""

    outcome: Outcome
    png: bytes | None = None  # where the image was decoded
    opened: bool = False  # its bytes were read
    microseconds: int = 0


class ExamineShards(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """Bring one shard of the store up to date with the references of its items; each reference is opened once."""

    def __init__(self, store: ImageStore, folder: AnyPath, config: ImagesConfig, retry_failed: bool) -> None:
        super().__init__()
        self.store, self.folder, self.config, self.retry_failed = store, folder, config, retry_failed
        self.took = Metrics.distribution(KIND, "open_microseconds")

    def setup(self) -> None:
        """Start the threads and what fetches for them."""
        self.pool = ThreadPoolExecutor(max(WAITING, CORES))
        self.fetcher = Fetcher(self.folder, self.config.max_bytes, HttpsConfig(allowed_hosts=self.config.allowed_hosts))
        self.look = Looker(self.fetcher, self.config, self.retry_failed)

    def teardown(self) -> None:
        """End them."""
        self.pool.shutdown()
        self.fetcher.close()

    def process(self, group: tuple[int, Iterable[Item]]) -> Iterator[ExaminedShard]:
        """(shard, its items) -> every item with its outcome."""
        number, items = group[0], list(group[1])
        known = self.store.known(number)
        uses = Counter(item.image_uri for item in items if item.image_uri is not None)
        looks = self._look(known, uses)
        outcomes = {look.outcome.uri: look.outcome for look in looks.values()}
        if outcomes != known:
            pngs = {look.outcome.uri: look.png for look in looks.values() if look.png is not None}
            self.store.save(number, outcomes, pngs)
            Metrics.counter(KIND, "shards_written").inc()
        progress.TALLY.add(done=len(items) - uses.total())
        found = {reference: look.outcome for reference, look in looks.items()}
        yield ExaminedShard(tuple(examined(item, found.get(item.image_uri or "", NO_REFERENCE)) for item in items))

    def _look(self, known: Mapping[str, Outcome], uses: Mapping[str, int]) -> dict[str, Look]:
        """image_uri -> what it gives now. uses: image_uri -> how many items name it."""
        uris = [absolute(one, self.folder) for one in uses]
        looks = {}
        for one, look in zip(uses, self.pool.map(self.look, uses, uris, map(known.get, uris)), strict=True):
            looks[one] = look
            progress.TALLY.add(done=uses[one])
        self._count(looks.values())
        return looks

    def _count(self, looks: Collection[Look]) -> None:
        opened = [look for look in looks if look.opened]
        for look in opened:
            self.took.update(look.microseconds)
        for reason, times in Counter(look.outcome.reason or catalogue.OK for look in looks).items():
            Metrics.counter(KIND, reason).inc(times)
        Metrics.counter(KIND, "references").inc(len(looks))
        Metrics.counter(KIND, "opened").inc(len(opened))
        Metrics.counter(KIND, "decoded").inc(sum(look.png is not None for look in opened))


class Looker:
    """Looks at references, in any number of threads."""

    def __init__(self, fetcher: Fetcher, config: ImagesConfig, retry_failed: bool) -> None:
        self.fetcher, self.config, self.retry_failed = fetcher, config, retry_failed
        self.decoding = Semaphore(CORES)  # bounds the memory too: one decoded image a core

    def __call__(self, reference: str, uri: str, before: Outcome | None) -> Look:
        """What the reference gives now; it is read only where the outcome before does not still stand.

        uri: its absolute form.  before: what the store holds of it. With retry_failed nothing that the store holds is
        looked at but the failures that may pass.
        """
        if self.retry_failed and before is not None and before.reason not in catalogue.RETRYABLE:
            return Look(before)
        started = time.monotonic()
        try:
            fetched = self.fetcher.fetch_if_changed(reference, (before and before.fingerprint) or "")
        except NotFetched as refusal:
            return Look(Outcome(uri=uri, reason=refusal.reason))
        if fetched is None and before is not None:
            return Look(before)
        assert fetched is not None  # of what the store does not hold there is no fingerprint that could stand
        outcome, png = self._examine(Outcome(uri=uri, fingerprint=fetched.fingerprint), fetched.data, before)
        return Look(outcome, png, opened=True, microseconds=int((time.monotonic() - started) * 1e6))

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
        square = images.resize(image, self.config.size)
        usable = replace(
            found,
            image_id=images.pixel_hash(image),
            # The square holds all that the hash looks at; of the whole image it takes a third of the decoding again.
            phash=images.perceptual_hash(Image.fromarray(square)),
            width=facts.width,
            height=facts.height,
            mode=facts.mode,
            frames=facts.frames,
        )
        return usable, images.to_png(square)


def examined(item: Item, outcome: Outcome) -> Examined:
    """The item's row of the catalogue as far as its own image tells; `catalogue.settle` has the last word."""
    if outcome.image_id is None:
        return Examined(catalogue.unusable(item, outcome.reason, outcome.bytes_sha256), outcome)
    return Examined(catalogue.usable(item, outcome.image_id, str(outcome.bytes_sha256)), outcome)
