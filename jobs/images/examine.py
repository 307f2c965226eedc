"""Examine image references: look each up in the store, and open only what is new or has changed."""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

from jobs.config import ImagesConfig
from jobs.engines import beam_progress
from jobs.images.decode_pool import DecodePool
from jobs.images.fetch.hosts import Hosts
from jobs.images.fetch.references import Fetcher, HttpsConfig
from jobs.images.look import CORES, Look, Looker, Reference
from jobs.images.outcome import Outcome
from jobs.images.store import ImageStore, absolute
from jobs.rules.items import OK, STATUS_OF, Item
from model.artifact import AnyPath

KIND: Final = "images"
WAITING: Final = 16  # threads that may wait for a disk or a network; no more than CORES of them decode at a time
CHUNK: Final = 16  # files that one thread, or one process, looks at in turn
NO_REFERENCE: Final = Outcome(uri="", reason="no_reference")

# Accepted items, and what the reference of each gave: of Outcome the fields of this name.
EXAMINED: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("item_id", "image_uri", "category", "title")),
        ("price", pa.float64()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        *((name, pa.string()) for name in ("uri", "status", "reason", "bytes_sha256", "image_id", "phash")),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("frames", pa.int32()),
        ("stale", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Begun:
    """A shard that is being looked at: its items, what it held before, and the looks on their way."""

    number: int
    items: list[Item]
    known: dict[str, Outcome]
    looking: list[Future[dict[str, Look]]]


class ExamineShards(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """Bring the shards of the store up to date with the references of their items; each reference is opened once.

    While one shard is written the next is looked at already, so that no core waits for the last image of each.
    pool: the handle of this process's DecodePool, where files are opened in it when they are many.
    """

    def __init__(
        self, store: ImageStore, folder: AnyPath, config: ImagesConfig, retry_failed: bool, pool: Shared | None
    ) -> None:
        super().__init__()
        self.store, self.folder, self.config, self.retry_failed = store, folder, config, retry_failed
        self.shared_pool = pool
        self.hosts = Shared()  # by every copy of this in a process
        self.took = Metrics.distribution(KIND, "open_microseconds")

    def setup(self) -> None:
        """Start the threads and what fetches for them."""
        self.threads = ThreadPoolExecutor(max(WAITING, CORES))
        start = partial(DecodePool, self.folder, self.config, self.retry_failed)
        self.pool: DecodePool | None = self.shared_pool and self.shared_pool.acquire(start)
        https = HttpsConfig(allowed_hosts=self.config.allowed_hosts)
        hosts = self.hosts.acquire(lambda: Hosts(https.per_host, https.down_after))
        self.begun: deque[Begun] = deque()
        self.fetcher = Fetcher(self.folder, self.config.max_bytes, https, hosts=hosts)
        self.looker = Looker(self.fetcher, self.config, self.retry_failed)

    def teardown(self) -> None:
        """End them."""
        self.threads.shutdown(cancel_futures=True)  # and wait for what has begun
        self.fetcher.close()

    def start_bundle(self) -> None:
        """No shard is begun yet; the looks that are left of a bundle that failed are called off."""
        for looking in (one for begun in self.begun for one in begun.looking):
            looking.cancel()
        self.begun.clear()

    def process(self, group: tuple[int, Iterable[list[Item]]]) -> Iterator[pa.Table]:
        """(shard, lists of its items) -> the items of the shard before, as EXAMINED has them."""
        self.begun.append(self._begin(group[0], list(chain.from_iterable(group[1]))))
        if len(self.begun) > 1:
            yield self._finish(self.begun.popleft())

    def finish_bundle(self) -> Iterator[Any]:
        """As `process`, of the last shard."""
        while self.begun:
            yield GlobalWindows.windowed_value(self._finish(self.begun.popleft()))

    def _begin(self, number: int, items: list[Item]) -> Begun:
        known = self.store.known(number)
        uses = Counter(item.image_uri for item in items if item.image_uri is not None)
        beam_progress.TALLY.add(done=len(items) - uses.total())
        references = [Reference(one, uri, known.get(uri)) for one in uses for uri in [absolute(one, self.folder)]]
        looking = [self.threads.submit(self._look, chunk, uses) for chunk in self._chunks(references)]
        return Begun(number, items, known, looking)

    def _chunks(self, references: Sequence[Reference]) -> list[Sequence[Reference]]:
        """What one thread looks at in turn: of files some, of what comes over a network one."""
        near = [one for one in references if self.fetcher.is_near(one.words)]
        far = [[one] for one in references if not self.fetcher.is_near(one.words)]
        return [*far, *(near[start : start + CHUNK] for start in range(0, len(near), CHUNK))]

    def _look(self, references: Sequence[Reference], uses: Mapping[str, int]) -> dict[str, Look]:
        """image_uri -> what it gives now. uses: image_uri -> how many items name it."""
        glances = [(one, self.looker.at_a_glance(one)) for one in references]
        looks = {one.words: look for one, look in glances if look is not None}
        unknown = [one for one, look in glances if look is None]
        looks |= {one.words: look for one, look in zip(unknown, self._open(unknown), strict=True)}
        beam_progress.TALLY.add(done=sum(uses[one] for one in looks))
        return looks

    def _open(self, references: Sequence[Reference]) -> Iterable[Look]:
        if references and self.fetcher.is_near(references[0].words):
            pool = self.pool and self.pool.once_worthwhile(len(references))
            if pool is not None:
                return pool.open(references)
        return map(self.looker.open, references)

    def _finish(self, begun: Begun) -> pa.Table:
        """Wait for the looks at a shard, and save it where they differ from what it held."""
        found = {words: look for looking in begun.looking for words, look in looking.result().items()}
        outcomes = {look.outcome.uri: look.outcome for look in found.values()}
        if self.retry_failed:  # which is about what is held already
            outcomes = begun.known | outcomes
        if outcomes != begun.known:
            pngs = {look.outcome.uri: look.png for look in found.values() if look.png is not None}
            self.store.save(begun.number, outcomes, pngs)
            Metrics.counter(KIND, "shards_written").inc()
        self._count(found.values())
        gave = {words: look.outcome for words, look in found.items()} | {None: NO_REFERENCE}
        return pa.Table.from_pylist([examined(item, gave[item.image_uri]) for item in begun.items], EXAMINED)

    def _count(self, looks: Collection[Look]) -> None:
        opened = [look for look in looks if look.opened]
        for look in opened:
            self.took.update(look.microseconds)
        for reason, times in Counter(look.outcome.reason or OK for look in looks).items():
            Metrics.counter(KIND, reason).inc(times)
        Metrics.counter(KIND, "references").inc(len(looks))
        Metrics.counter(KIND, "opened").inc(len(opened))
        Metrics.counter(KIND, "decoded").inc(sum(look.png is not None for look in opened))


def examined(item: Item, outcome: Outcome) -> dict[str, Any]:
    """A row of EXAMINED: the item's as far as its own image tells; `duplicates.settle` has the last word."""
    return {**vars(outcome), **vars(item), "status": STATUS_OF[outcome.reason]}
