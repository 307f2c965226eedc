"""Bring clicks into the users' histories in the online store, through Feast's push: the transforms.

What comes out does not depend on the order in which clicks come, nor on how often: a history is the newest K of a set
(jobs.rules.online_histories), and every update reads, merges and writes only what differs. So nothing is ever too late;
event time only says how long the identities of clicks are remembered. One user's clicks are always in one shard, and a
shard is processed in one place at a time. While a batch load runs on the same machine, the two take turns
(jobs.features.history_store). A click is judged by itself here; what only its whole request tells is judged by the
batch, whose load then corrects the history.
"""

import hashlib
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.deduplicate import DeduplicatePerKey
from apache_beam.transforms.trigger import AccumulationMode, AfterProcessingTime, Repeatedly
from apache_beam.transforms.window import FixedWindows, GlobalWindows
from apache_beam.utils.shared import Shared

from feature_repo.contract import CTR_HISTORY
from jobs.engines import beam_progress
from jobs.features.click_stream.sources import ReadRow, Row
from jobs.features.history_store import HistoryStore
from jobs.rules import events
from jobs.rules.online_histories import Click, History, click, merge
from model import strict_json

KIND: Final = "clicks"
READ, CLICKS, DISTINCT, PASSED_OVER = "read", "clicks", "distinct", "passed_over"
PUSHED, UNCHANGED, REJECTED = "users_pushed", "users_unchanged", "rejected_"
REFUSED_FILES, VANISHED_FILES = "files_refused", "files_vanished"
COUNTED: Final = (READ, CLICKS, PASSED_OVER, DISTINCT, PUSHED, UNCHANGED, REFUSED_FILES, VANISHED_FILES)

GATHER_SECONDS: Final = 1  # that a stream gathers a user's clicks before it looks at the store
REJECTED_FILE_SECONDS: Final = 60  # a stream begins another file of rejected rows this often
DEDUP_HOURS: Final = 48  # that a stream remembers a click; the store itself knows older ones
COMPACT_AT: Final = 4  # histories in one accumulator before it is cut back to one
TALLY: Final = beam_progress.Tally()  # rows read and users settled; one per process, as DoFns are copied

UserClick = tuple[str, str, int, str]  # user_id, item_id, microseconds since 1970, request_id: a click's identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the pipeline depends on beside its source."""

    workspace: str
    rejected: str  # a folder
    batch: int = 1000  # users that one push brings
    shards: int = 16  # into which the users are dealt: the most workers that update at once


# --- transforms: one idea each --------------------------------------------------------------------------------------


class ParseClicks(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Judge each row by itself, as the road does; outputs `clicks`, and (row, reason) at `rejected`.

    as_of: the clock that says what lies in the future; None, for a stream: the clock when each row is read.
    """

    def __init__(self, as_of: datetime | None) -> None:
        super().__init__()
        self.as_of = as_of

    def expand(self, rows: Any) -> Any:
        """PCollection of ReadRow -> outputs of UserClick and (Row, str)."""
        return rows | "Judge" >> beam.ParDo(_Judge(self.as_of)).with_outputs("rejected", main="clicks")


class DropDuplicates(beam.PTransform):  # type: ignore[misc]
    """Each click once. A stream remembers identities for some hours after the watermark has passed them."""

    def __init__(self, hours: float) -> None:
        super().__init__()
        self.seconds = hours * 3600

    def expand(self, clicks: Any) -> Any:
        """PCollection of UserClick -> PCollection of UserClick."""
        keyed = clicks | "Identity" >> beam.Map(_identity).with_output_types(tuple[UserClick, None])
        if clicks.is_bounded:  # all of them lie together, nothing needs to be remembered
            once = keyed | "Once" >> beam.CombinePerKey(_nothing)
        else:
            once = keyed | "Once" >> DeduplicatePerKey(event_time_duration=self.seconds)
        return once | "Click" >> beam.Map(_counted_key).with_output_types(UserClick)


class NewestOfUser(beam.PTransform):  # type: ignore[misc]
    """Each user's newest clicks among those that came together: of everything, or in a stream of a second or so."""

    def expand(self, clicks: Any) -> Any:
        """PCollection of UserClick -> PCollection of (user_id, History)."""
        keyed = clicks | "ByUser" >> beam.Map(_by_user).with_output_types(tuple[str, Click])
        if not clicks.is_bounded:
            keyed = keyed | "Gather" >> beam.WindowInto(
                GlobalWindows(),
                trigger=Repeatedly(AfterProcessingTime(GATHER_SECONDS)),
                accumulation_mode=AccumulationMode.DISCARDING,
            )
        return keyed | "Newest" >> beam.CombinePerKey(NewestClicks(CTR_HISTORY))


class UpdateHistories(beam.PTransform):  # type: ignore[misc]
    """Merge clicks into the online store, a batch of users at a time; a user is always in the same shard."""

    def __init__(self, workspace: str, batch: int, shards: int, shared: Shared) -> None:
        super().__init__()
        self.shards, self.update = shards, _Update(workspace, batch, shared)

    def expand(self, newest: Any) -> Any:
        """PCollection of (user_id, History) -> PCollection of nothing."""
        dealt = newest | "Shard" >> beam.Map(_by_shard, shards=self.shards).with_output_types(
            tuple[int, tuple[str, Any]]
        )
        return dealt | "Together" >> beam.GroupByKey() | "Update" >> beam.ParDo(self.update)


class WriteRejected(beam.PTransform):  # type: ignore[misc]
    """Keep rejected rows as JSON lines in a folder, each with its reason; the same rows again are the same file."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def expand(self, rejected: Any) -> Any:
        """PCollection of (Row, reason) -> PCollection of the files written."""
        lines = rejected | "Line" >> beam.Map(_rejected_line).with_output_types(str)
        if not rejected.is_bounded:
            lines = lines | "Minutes" >> beam.WindowInto(FixedWindows(REJECTED_FILE_SECONDS))
        together = lines | "Together" >> beam.GroupBy(_one_key)
        return together | "Write" >> beam.Map(_write_rejected, folder=self.folder)


# --- what the transforms do -----------------------------------------------------------------------------------------


class _Judge(beam.DoFn):  # type: ignore[misc]
    def __init__(self, as_of: datetime | None) -> None:
        super().__init__()
        self.as_of = as_of

    def process(self, read: ReadRow) -> Iterator[Any]:
        """A row -> its click, if it is one; or at `rejected` the row and why."""
        (row, flaw), now = read, self.as_of or datetime.now(UTC)
        _count(READ)
        TALLY.add(read=1)
        reason = flaw or (events.BAD_ROW if isinstance(row, str) else events.reject_reason(row, now))
        if isinstance(row, str) or reason:
            _count(f"{REJECTED}{reason}")
            yield TaggedOutput("rejected", (row, reason))
        elif events.event_type(row["event_type"]) != events.CLICK:
            _count(PASSED_OVER)
        else:
            _count(CLICKS)
            yield _user_click(events.event(row, now))


class NewestClicks(beam.CombineFn):  # type: ignore[misc]
    """The newest clicks of one user, combined where they are before they travel."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def create_accumulator(self) -> list[Click]:
        """Clicks in any order, at most a few histories long."""
        return []

    def add_input(self, clicks: list[Click], one: Click) -> list[Click]:
        """One click more."""
        clicks.append(one)
        return self.compact(clicks) if len(clicks) > COMPACT_AT * self.length else clicks

    def merge_accumulators(self, accumulators: Iterable[list[Click]]) -> list[Click]:
        """All of them in one."""
        return list(merge((), (one for clicks in accumulators for one in clicks), self.length))

    def compact(self, clicks: list[Click]) -> list[Click]:
        """Cut back to one history."""
        return list(merge((), clicks, self.length))

    def extract_output(self, clicks: list[Click]) -> History:
        """The newest clicks as a history."""
        return merge((), clicks, self.length)


class _Update(beam.DoFn):  # type: ignore[misc]
    def __init__(self, workspace: str, batch: int, shared: Shared) -> None:
        super().__init__()
        self.workspace, self.batch, self.shared = workspace, batch, shared

    def setup(self) -> None:
        """Open the store, once in a process."""
        self.store = open_once(self.shared, self.workspace)

    def process(self, shard: tuple[int, Iterable[tuple[str, History]]]) -> None:
        """A shard's users and their new clicks -> the online store."""
        users = iter(shard[1])
        while batch := list(islice(users, self.batch)):
            clicks: dict[str, list[Click]] = {}
            for user, newest in batch:
                clicks.setdefault(user, []).extend(newest)
            written = self.store.add(clicks)
            _count(PUSHED, written.pushed)
            _count(UNCHANGED, written.unchanged)
            TALLY.add(done=len(clicks))


def open_once(shared: Shared, workspace: str) -> HistoryStore:
    """The process's store of a workspace. Raises StoreNotReady."""
    store: HistoryStore = shared.acquire(lambda: HistoryStore(Path(workspace)), tag=workspace)
    return store


_counter = cache(partial(Metrics.counter, KIND))  # made once a name: making one costs twice what counting does


def _count(name: str, n: int = 1) -> None:
    _counter(name).inc(n)


def _user_click(one: events.Event) -> UserClick:
    return one.user_id, *click(one), one.request_id


def _identity(one: UserClick) -> tuple[UserClick, None]:
    return one, None


def _nothing(_: Iterable[None]) -> None:
    return None


def _counted_key(pair: tuple[UserClick, None]) -> UserClick:
    _count(DISTINCT)
    return pair[0]


def _by_user(one: UserClick) -> tuple[str, Click]:
    user_id, item_id, at, _ = one
    return user_id, (item_id, at)


def _by_shard(one: tuple[str, History], shards: int) -> tuple[int, tuple[str, History]]:
    return zlib.crc32(one[0].encode()) % shards, one  # the same on every machine, as hash() of text is not


def _rejected_line(one: tuple[Row | str, str]) -> str:
    return strict_json.dumps({"reason": one[1], "row": one[0]}, default=str, ensure_ascii=False)


def _one_key(_: str) -> int:
    return 0  # few rows are rejected: one worker writes them


def _write_rejected(group: tuple[int, Iterable[str]], folder: str) -> str:
    text = "".join(f"{line}\n" for line in sorted(group[1]))
    path = Path(folder) / f"rejected-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    aside.write_text(text, "utf-8")
    aside.replace(path)
    return str(path)


# --- the job --------------------------------------------------------------------------------------------------------


def wire(rows: Any, settings: Settings, shared: Shared, as_of: datetime | None) -> None:
    """Put the transforms together behind a source of ReadRow. as_of: as ParseClicks has it."""
    parsed = rows | "ParseClicks" >> ParseClicks(as_of)
    newest = parsed.clicks | "DropDuplicates" >> DropDuplicates(DEDUP_HOURS) | "NewestOfUser" >> NewestOfUser()
    newest | "UpdateHistories" >> UpdateHistories(settings.workspace, settings.batch, settings.shards, shared)
    parsed.rejected | "WriteRejected" >> WriteRejected(settings.rejected)


def report(counted: dict[str, int]) -> dict[str, Any]:
    """The counters of a run as its answer: read = clicks + passed_over + all rejected. A file that could not be opened
    as a table of events, or was gone before it was, was read by nobody, and is counted apart.
    """
    reasons = {name.removeprefix(REJECTED): n for name, n in sorted(counted.items()) if name.startswith(REJECTED)}
    counts = {name: counted.get(name, 0) for name in COUNTED}
    duplicates = counts[CLICKS] - counts.pop(DISTINCT)
    return {**counts, "duplicates": duplicates, "rejected": reasons}
