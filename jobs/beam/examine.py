"""Examine image references: look each up in the store, and open only what is new or has changed."""

import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

from jobs.beam import progress
from jobs.beam.fetch import Fetcher, HttpsConfig
from jobs.beam.hosts import Hosts
from jobs.beam.image_store import ImageStore, absolute
from jobs.beam.look import CORES, Look, Looker, Reference, look_at_files, start_processes
from jobs.beam.outcome import Outcome
from jobs.config import ImagesConfig
from jobs.logic import catalogue
from jobs.logic.catalogue import CatalogueRow, Item
from model.artifact import AnyPath

KIND: Final = "images"
WAITING: Final = 16  # threads that may wait for a disk or a network; no more than CORES of them decode at a time
CHUNK: Final = 16  # files that one thread, or one process, looks at in turn
MANY: Final = 64  # files after which processes are started: that takes half a second of each core
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
class Begun:
    """A shard that is being looked at: its items, what it held before, and the looks on their way."""

    number: int
    items: list[Item]
    known: dict[str, Outcome]
    looking: list[Future[dict[str, Look]]]


class ExamineShards(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """Bring the shards of the store up to date with the references of their items; each reference is opened once.

    While one shard is written the next is looked at already, so that no core waits for the last image of each.
    in_processes: where files are many, open them in a process for each core.
    """

    def __init__(
        self, store: ImageStore, folder: AnyPath, config: ImagesConfig, retry_failed: bool, *, in_processes: bool
    ) -> None:
        super().__init__()
        self.store, self.folder, self.config, self.retry_failed = store, folder, config, retry_failed
        self.in_processes = in_processes
        self.hosts = Shared()  # by every copy of this in a process
        self.took = Metrics.distribution(KIND, "open_microseconds")

    def setup(self) -> None:
        """Start the threads and what fetches for them."""
        self.threads = ThreadPoolExecutor(max(WAITING, CORES))
        self.processes: Any = None
        self.opened, self.counting = 0, threading.Lock()
        self.starting: Future[None] | None = None
        https = HttpsConfig(allowed_hosts=self.config.allowed_hosts)
        hosts = self.hosts.acquire(lambda: Hosts(https.per_host, https.down_after))
        self.fetcher = Fetcher(self.folder, self.config.max_bytes, https, hosts=hosts)
        self.looker = Looker(self.fetcher, self.config, self.retry_failed)

    def teardown(self) -> None:
        """End them."""
        self.threads.shutdown(cancel_futures=True)  # and wait for what has begun
        if self.processes is not None:
            self.processes.shutdown(kill_workers=True)
        self.fetcher.close()

    def start_bundle(self) -> None:
        """No shard is begun yet."""
        self.begun: deque[Begun] = deque()

    def process(self, group: tuple[int, Iterable[Item]]) -> Iterator[ExaminedShard]:
        """(shard, its items) -> every item of the shard before with its outcome."""
        self.begun.append(self._begin(group[0], list(group[1])))
        if len(self.begun) > 1:
            yield self._finish(self.begun.popleft())

    def finish_bundle(self) -> Iterator[Any]:
        """As `process`, of the last shard."""
        while self.begun:
            yield GlobalWindows.windowed_value(self._finish(self.begun.popleft()))

    def _begin(self, number: int, items: list[Item]) -> Begun:
        known = self.store.known(number)
        uses = Counter(item.image_uri for item in items if item.image_uri is not None)
        progress.TALLY.add(done=len(items) - uses.total())
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
        progress.TALLY.add(done=sum(uses[one] for one in looks))
        return looks

    def _open(self, references: Sequence[Reference]) -> Iterable[Look]:
        if references and self.fetcher.is_near(references[0].words):
            processes = self._processes_for(len(references))
            if processes is not None:
                opened: list[Look] = processes.submit(look_at_files, references).result()
                return opened
        return map(self.looker.open, references)

    def _processes_for(self, more: int) -> Any:
        """The processes, or None until files enough were opened for them to pay and they have come up."""
        with self.counting:
            self.opened += more
            if self.in_processes and self.starting is None and self.opened > MANY:
                self.starting = self.threads.submit(self._start)
            return self.processes

    def _start(self) -> None:
        """Start the processes while threads go on opening files."""
        processes = start_processes(self.folder, self.config, self.retry_failed)
        processes.submit(look_at_files, ()).result()
        self.processes = processes

    def _finish(self, begun: Begun) -> ExaminedShard:
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
        return ExaminedShard(tuple(examined(item, gave[item.image_uri]) for item in begun.items))

    def _count(self, looks: Collection[Look]) -> None:
        opened = [look for look in looks if look.opened]
        for look in opened:
            self.took.update(look.microseconds)
        for reason, times in Counter(look.outcome.reason or catalogue.OK for look in looks).items():
            Metrics.counter(KIND, reason).inc(times)
        Metrics.counter(KIND, "references").inc(len(looks))
        Metrics.counter(KIND, "opened").inc(len(opened))
        Metrics.counter(KIND, "decoded").inc(sum(look.png is not None for look in opened))


def examined(item: Item, outcome: Outcome) -> Examined:
    """The item's row of the catalogue as far as its own image tells; `catalogue.settle` has the last word."""
    if outcome.image_id is None:
        return Examined(catalogue.unusable(item, outcome.reason, outcome.bytes_sha256), outcome)
    return Examined(catalogue.usable(item, outcome.image_id, str(outcome.bytes_sha256)), outcome)
