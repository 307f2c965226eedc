"""The transforms of the images job, one idea each."""

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import chain, islice, pairwise
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

from jobs.config import ImagesConfig
from jobs.engines import beam_progress
from jobs.images import duplicates
from jobs.images.examine import EXAMINED, KIND, ExamineShards
from jobs.images.shards import Wanted, cut, most_pictures, plan
from jobs.images.store import ImageStore
from jobs.images.write import write_shard
from jobs.paths import any_path
from jobs.raw import beam_rows
from jobs.raw.beam_rows import Row
from jobs.raw.canonical import CanonicalTable
from jobs.raw.typed import REASON
from jobs.rules.items import Item, described, precedence, reject_reason, why_not_kept
from model.artifact import AnyPath

# Rows travel in lists: to pickle and to carry one costs more than to read it.
Place = tuple[int, int]  # a row's file and its number in that file: the order of the table
Placed = list[tuple[Place, Row]]

ROWS: Final = 4096  # of a list
SHOWN: Final = ("image_id", "item_id", "category", "image_uri", "uri")  # what tells who shows a picture
COMPARED: Final = ("image_id", "category", "title", "price")  # what tells whether a picture is a placeholder

ITEMS_READ: Final = Metrics.counter(KIND, "items_read")


class ReadItems(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Every row of the items table with its place: lists of (Place, Row)."""

    def __init__(self, table: CanonicalTable) -> None:
        super().__init__()
        self.files = [str(path.absolute()) for path in table.files]

    def expand(self, begin: Any) -> Any:
        """Begin -> PCollection of Placed."""
        return (
            begin
            | "Files" >> beam.Create(list(enumerate(self.files)), reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Rows" >> beam.FlatMap(_read_rows)
        )


class KeepItems(beam.PTransform):  # type: ignore[misc]
    """Accept the first acceptable row of each item; output `items`, and (Place, Row, reason) at `rejected`.

    groups: into so many the items are divided by their ids; a worker holds the rows of one.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def expand(self, rows: Any) -> Any:
        """PCollection of Placed -> (PCollection of lists of Item, PCollection of (Place, Row, reason))."""
        check = beam.FlatMap(_check_rows, groups=self.groups)
        tried = rows | "Check" >> check.with_outputs("rejected", main="rows")
        unique = (
            tried.rows
            | "ByItem" >> beam.GroupByKey()
            | "First" >> beam.FlatMap(_keep_first).with_outputs("rejected", main="items")
        )
        rejected = (tried.rejected, unique.rejected) | "Rejected" >> beam.Flatten()
        return unique.items, rejected


class ExamineReferences(beam.PTransform):  # type: ignore[misc]
    """What the reference of each item gives, by way of the store: each distinct reference is opened at most once."""

    def __init__(
        self,
        store: ImageStore,
        folder: AnyPath,
        config: ImagesConfig,
        retry_failed: bool,
        pool: Shared | None = None,
    ) -> None:
        super().__init__()
        self.store = store
        self.work = ExamineShards(store, folder, config, retry_failed, pool)

    def expand(self, items: Any) -> Any:
        """PCollection of lists of Item -> PCollection of tables, EXAMINED. No pixels travel: they stay in the store."""
        placed = items | "Place" >> beam.FlatMap(_place, store=self.store)
        # Empty ones too: what the store holds there is of items that are gone.
        return _grouped(placed, list(range(self.store.shards))) | "Examine" >> beam.ParDo(self.work)


class FindPictures(beam.PTransform):  # type: ignore[misc]
    """Each distinct picture once: outputs `images`, and the "no image" pictures at `placeholders`.

    Which pictures are placeholders one worker finds by the COMPARED of all items. Then they are divided by their ids
    into as many groups as the store has shards; a worker holds the uses of one group, rows without pixels.
    """

    def __init__(self, config: ImagesConfig) -> None:
        super().__init__()
        self.config = config

    def expand(self, examined: Any) -> Any:
        """PCollection of EXAMINED -> outputs of lists of (image_id, Location), and of rows of `pictures.uses`."""
        compared = examined | "Compared" >> beam.Map(_compared)
        found = _grouped(compared, [0]) | "Placeholders" >> beam.Map(_placeholders, config=self.config)
        divide = beam.FlatMap(_divide, beam.pvalue.AsSingleton(found))
        return (
            examined
            | "Use" >> beam.FlatMap(_uses, groups=self.config.store_shards)
            | "Uses" >> beam.GroupByKey()
            | "Divide" >> divide.with_outputs("placeholders", main="images")
        )


class WriteShards(beam.PTransform):  # type: ignore[misc]
    """Assemble each shard from its share of the store's shards, sorted; without any image there is an empty one.

    How many shards there are, and which of the store's each holds, follows from how many pictures each of those holds.
    """

    def __init__(self, folder: AnyPath, config: ImagesConfig, store: ImageStore) -> None:
        super().__init__()
        self.most, self.store = most_pictures(config.size, config.shard_bytes), store
        self.write = partial(write_shard, folder=folder, store=store)

    def expand(self, images: Any) -> Any:
        """PCollection of lists of (image_id, Location) -> PCollection of the paths written."""
        stored = images | "Stored" >> beam.FlatMap(_stored, store=self.store) | "ByStoreShard" >> beam.GroupByKey()
        counted = beam.pvalue.AsDict(stored | "Count" >> beam.Map(_count))
        parts = stored | "Cut" >> beam.FlatMap(_cut, counted, most=self.most)
        one = images.pipeline | "One" >> beam.Create([0], reshuffle=False)
        first = one | "First" >> beam.Map(_first, counted, most=self.most)
        shards = (parts, first) | "Shards" >> beam.Flatten() | "ByShard" >> beam.GroupByKey()
        return shards | "Write" >> beam.ParDo(TwoAtOnce(self.write))


class WriteTable(beam.PTransform):  # type: ignore[misc]
    """Write all elements as one parquet file, sorted: small rows without pixels, so one worker holds them."""

    def __init__(self, path: AnyPath, write: Callable[[list[Any], AnyPath], None]) -> None:
        super().__init__()
        self.path, self.write = path, write

    def expand(self, rows: Any) -> Any:
        """PCollection of anything -> PCollection of None."""
        keyed = rows | "Gather" >> beam.Map(lambda row: (0, row))
        return _grouped(keyed, [0]) | "Write" >> beam.Map(_write_all, write=self.write, path=self.path)


class TwoAtOnce(beam.DoFn):  # type: ignore[misc]
    """Do it to the elements of a bundle in two threads, so that one reads while the other writes.

    Memory holds what the deed needs for two elements, however many cores there are.
    """

    def __init__(self, deed: Callable[[Any], Any]) -> None:
        super().__init__()
        self.deed = deed

    def setup(self) -> None:
        """Start the threads."""
        self.threads = ThreadPoolExecutor(2)
        self.begun: list[Future[Any]] = []

    def teardown(self) -> None:
        """End them."""
        self.threads.shutdown(cancel_futures=True)

    def start_bundle(self) -> None:
        """Nothing is begun yet; what is left of a bundle that failed comes to its end first."""
        wait(self.begun)
        self.begun = []

    def process(self, element: Any) -> None:
        """Begin with this one."""
        self.begun.append(self.threads.submit(self.deed, element))

    def finish_bundle(self) -> Iterator[Any]:
        """What each of them gave, when all have come to their end."""
        wait(self.begun)
        for done in self.begun:
            yield GlobalWindows.windowed_value(done.result())


# --- what the transforms do to an element ---------------------------------------------------------------------------


def _read_rows(file: tuple[int, str]) -> Iterator[Placed]:
    number, path = file
    placed = (((number, n), row) for n, row in enumerate(beam_rows.rows(any_path(path), "items")))
    while rows := list(islice(placed, ROWS)):
        ITEMS_READ.inc(len(rows))
        beam_progress.TALLY.add(read=len(rows))
        yield rows


def _check_rows(rows: Placed, groups: int) -> Iterator[Any]:
    found: defaultdict[int, list[tuple[Place, dict[str, Any]]]] = defaultdict(list)
    for place, row in rows:
        if reason := row.get(REASON) or reject_reason(row):
            yield _reject(place, row, reason)
        else:
            found[zlib.crc32(str(row["item_id"]).encode(errors="replace")) % groups].append((place, row))
    yield from found.items()


def _keep_first(group: tuple[int, Iterable[list[tuple[Place, dict[str, Any]]]]]) -> Iterator[Any]:
    rows_of: defaultdict[str, list[tuple[Place, dict[str, Any]]]] = defaultdict(list)
    for rows in group[1]:
        for place, row in rows:
            rows_of[str(row["item_id"])].append((place, row))
    unique = []
    for rows in rows_of.values():
        rows_of_item = [(described(row), place, row) for place, row in rows]
        if len(rows_of_item) > 1:
            rows_of_item.sort(key=lambda one: (precedence(one[0]), one[1]))
        unique.append(rows_of_item[0][0])
        for (before, _, _), (one, place, row) in pairwise(rows_of_item):
            yield _reject(place, row, why_not_kept(one, before))
    yield unique


def _place(items: list[Item], store: ImageStore) -> Iterator[tuple[int, list[Item]]]:
    found: defaultdict[int, list[Item]] = defaultdict(list)
    for item in items:
        found[store.number(item.image_uri or "")].append(item)
    yield from found.items()


def _reject(place: Place, row: Row, reason: str) -> Any:
    Metrics.counter(KIND, reason).inc()
    beam_progress.TALLY.add(done=1)
    return TaggedOutput("rejected", (place, row, reason))


def _uses(examined: pa.Table, groups: int) -> Iterator[tuple[int, pa.Table]]:
    shown = examined.select(SHOWN).filter(pc.is_valid(examined["image_id"]))
    found: defaultdict[int, list[int]] = defaultdict(list)
    for n, image_id in enumerate(shown["image_id"].to_pylist()):
        found[int(image_id, 16) % groups].append(n)
    for group, rows in found.items():
        yield group, shown.take(rows)


def _compared(examined: pa.Table) -> tuple[int, pa.Table]:
    return 0, examined.select(COMPARED).filter(pc.is_valid(examined["image_id"]))


def _placeholders(group: tuple[int, list[pa.Table]], config: ImagesConfig) -> list[str]:
    return duplicates.placeholders(pa.concat_tables([EXAMINED.empty_table().select(COMPARED), *group[1]]), config)


def _divide(group: tuple[int, Iterable[pa.Table]], placeholders: list[str]) -> Iterator[Any]:
    used = duplicates.uses(pa.concat_tables(group[1]), placeholders)
    for shared in used.filter(used["is_placeholder"]).to_pylist():
        yield TaggedOutput("placeholders", shared)
    images = used.filter(pc.invert(used["is_placeholder"]))
    image_ids, *locations = (images[name].to_pylist() for name in ("image_id", "image_uri", "uri"))
    yield list(zip(image_ids, zip(*locations, strict=True), strict=True))


def _stored(images: list[Wanted], store: ImageStore) -> Iterator[tuple[int, list[Wanted]]]:
    found: defaultdict[int, list[Wanted]] = defaultdict(list)
    for image_id, location in images:
        found[store.number(location[0])].append((image_id, location))
    yield from found.items()


def _count(group: tuple[int, Iterable[list[Wanted]]]) -> tuple[int, int]:
    return group[0], sum(map(len, group[1]))


def _cut(
    group: tuple[int, Iterable[list[Wanted]]], pictures: Mapping[int, int], most: int
) -> Iterator[tuple[tuple[int, int], list[Wanted]]]:
    shards = plan(pictures, most)
    for shard, wanted in cut(list(chain.from_iterable(group[1])), shards.parts[group[0]]):
        yield (shard, shards.count), wanted


def _first(_: int, pictures: Mapping[int, int], most: int) -> tuple[tuple[int, int], list[Wanted]]:
    """No picture of the first shard: so that it is written without any picture too."""
    return (0, plan(pictures, most).count), []


def _write_all(group: tuple[int, list[Any]], write: Callable[[list[Any], AnyPath], None], path: AnyPath) -> None:
    write(group[1], path)


def _grouped(keyed: Any, keys: list[int]) -> Any:
    """Group by key, with an empty group for a key that has no element: (key, iterable)."""
    seeds = keyed.pipeline | "Keys" >> beam.Create([(key, None) for key in keys], reshuffle=False)
    return (
        (keyed, seeds)
        | "WithKeys" >> beam.Flatten()
        | "ByKey" >> beam.GroupByKey()
        | "Real" >> beam.MapTuple(lambda key, values: (key, [value for value in values if value is not None]))
    )
