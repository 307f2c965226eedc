"""The transforms of the images job, one idea each."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from jobs.beam import image_files, progress, raw_rows
from jobs.beam.examine import KIND, ExaminedShard, ExamineShards
from jobs.beam.image_files import Shared
from jobs.beam.image_store import ImageStore, Location
from jobs.beam.raw_rows import Place, Raw
from jobs.config import ImagesConfig
from jobs.logic import catalogue
from jobs.logic.catalogue import ImageUse
from jobs.paths import any_path
from jobs.sources.raw import TableFiles
from model.artifact import AnyPath

Uses = list[tuple[str, ImageUse, Location]]  # (image_id, one use of the picture, where the store holds it)

ITEMS_READ: Final = Metrics.counter(KIND, "items_read")


class ReadItems(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Every row of the items table with its place: (Place, Raw)."""

    def __init__(self, table: TableFiles) -> None:
        super().__init__()
        self.form, self.files = table.format, [str(path.absolute()) for path in table.files]

    def expand(self, begin: Any) -> Any:
        """Begin -> PCollection of (Place, Raw)."""
        return (
            begin
            | "Files" >> beam.Create(list(enumerate(self.files)))
            | "Spread" >> beam.Reshuffle()
            | "Rows" >> beam.FlatMap(_read_rows, form=self.form)
        )


class KeepItems(beam.PTransform):  # type: ignore[misc]
    """Accept the first acceptable row of each item; output `items`, and (Place, Raw, reason) at `rejected`."""

    def expand(self, rows: Any) -> Any:
        """PCollection of (Place, Raw) -> (PCollection of Item, PCollection of (Place, Raw, reason))."""
        tried = rows | "Check" >> beam.FlatMap(_check_row).with_outputs("rejected", main="rows")
        kept = (
            tried.rows
            | "ByItem" >> beam.GroupByKey()
            | "First" >> beam.FlatMap(_keep_first).with_outputs("rejected", main="items")
        )
        rejected = (tried.rejected, kept.rejected) | "Rejected" >> beam.Flatten()
        return kept.items, rejected


class ExamineReferences(beam.PTransform):  # type: ignore[misc]
    """What the reference of each item gives, by way of the store: each distinct reference is opened at most once."""

    def __init__(
        self,
        store: ImageStore,
        folder: AnyPath,
        config: ImagesConfig,
        retry_failed: bool,
        *,
        in_processes: bool = False,
    ) -> None:
        super().__init__()
        self.store = store
        self.work = ExamineShards(store, folder, config, retry_failed, in_processes=in_processes)

    def expand(self, items: Any) -> Any:
        """PCollection of Item -> PCollection of ExaminedShard. No pixels travel: they stay in the store."""
        placed = items | "Place" >> beam.Map(lambda item, store: (store.number(item.image_uri or ""), item), self.store)
        # Empty ones too: what the store holds there is of items that are gone.
        return _grouped(placed, list(range(self.store.shards))) | "Examine" >> beam.ParDo(self.work)


class FindPictures(beam.PTransform):  # type: ignore[misc]
    """Each distinct picture once: outputs `images`, and the "no image" pictures at `placeholders`.

    groups: into so many the pictures are divided by their ids; a worker holds the uses of one, rows without pixels.
    """

    def __init__(self, groups: int, min_items: int, min_categories: int) -> None:
        super().__init__()
        self.groups = groups
        self.divide = partial(_divide, min_items=min_items, min_categories=min_categories)

    def expand(self, examined: Any) -> Any:
        """PCollection of ExaminedShard -> outputs of lists of (image_id, Location), and of Shared."""
        return (
            examined
            | "Use" >> beam.FlatMap(_uses, groups=self.groups)
            | "Uses" >> beam.GroupByKey()
            | "Divide" >> beam.FlatMap(self.divide).with_outputs("placeholders", main="images")
        )


class WriteShards(beam.PTransform):  # type: ignore[misc]
    """Assemble each shard from its share of the store's shards, sorted; a shard without images is written too."""

    def __init__(self, folder: AnyPath, shards: int, store: ImageStore) -> None:
        super().__init__()
        self.shards, self.store = shards, store
        self.write = partial(image_files.write_shard, folder=folder, shards=shards, store=store)

    def expand(self, images: Any) -> Any:
        """PCollection of lists of (image_id, Location) -> PCollection of the paths written."""
        keyed = images | "Shard" >> beam.FlatMap(_shards, shards=self.shards, store=self.store)
        return _grouped(keyed, list(range(self.shards))) | "Write" >> beam.Map(self.write)


class WriteCount(beam.PTransform):  # type: ignore[misc]
    """Count the elements, none or more, and write down how many they are."""

    def __init__(self, path: AnyPath) -> None:
        super().__init__()
        self.path = path

    def expand(self, rows: Any) -> Any:
        """PCollection of anything -> PCollection of None."""
        counted = rows | "Count" >> beam.combiners.Count.Globally()
        return counted | "Write" >> beam.Map(image_files.write_count, path=self.path)


class WriteTable(beam.PTransform):  # type: ignore[misc]
    """Write all elements as one parquet file, sorted: small rows without pixels, so one worker holds them."""

    def __init__(self, path: AnyPath, write: Callable[[list[Any], AnyPath], None]) -> None:
        super().__init__()
        self.path, self.write = path, write

    def expand(self, rows: Any) -> Any:
        """PCollection of anything -> PCollection of None."""
        keyed = rows | "Gather" >> beam.Map(lambda row: (0, row))
        return _grouped(keyed, [0]) | "Write" >> beam.Map(_write_all, write=self.write, path=self.path)


# --- what the transforms do to an element ---------------------------------------------------------------------------


def _read_rows(file: tuple[int, str], form: str) -> Iterator[tuple[Place, Raw]]:
    number, path = file
    for n, row in enumerate(raw_rows.rows(form, any_path(path))):
        ITEMS_READ.inc()
        progress.TALLY.add(read=1)
        yield (number, n), row


def _check_row(placed: tuple[Place, Raw]) -> Iterator[Any]:
    place, row = placed
    reason = catalogue.BAD_ROW if isinstance(row, str) else catalogue.reject_reason(row)
    if isinstance(row, str) or reason:
        yield _reject(place, row, str(reason))
    else:
        yield str(row["item_id"]), placed


def _keep_first(group: tuple[str, Iterable[tuple[Place, dict[str, Any]]]]) -> Iterator[Any]:
    described = [(catalogue.described(row), place, row) for place, row in group[1]]
    if len(described) > 1:
        described.sort(key=lambda one: (catalogue.precedence(one[0]), one[1]))
    (first, _, _), *others = described
    yield first
    for _, place, row in others:
        yield _reject(place, row, catalogue.DUPLICATE_ITEM_ID)


def _reject(place: Place, row: Raw, reason: str) -> Any:
    Metrics.counter(KIND, reason).inc()
    progress.TALLY.add(done=1)
    return TaggedOutput("rejected", (place, row, reason))


def _uses(shard: ExaminedShard, groups: int) -> Iterator[tuple[int, Uses]]:
    """(group, the uses of its pictures in this shard): a list is pickled in a fraction of its elements' time."""
    found: defaultdict[int, Uses] = defaultdict(list)
    for one in shard.rows:
        item, image_id = one.row.item, one.row.image_id
        if image_id is not None:
            used = catalogue.use(item.item_id, item.category)
            found[int(image_id, 16) % groups].append((image_id, used, (str(item.image_uri), one.outcome.uri)))
    yield from found.items()


def _divide(group: tuple[int, Iterable[Uses]], min_items: int, min_categories: int) -> Iterator[Any]:
    found: defaultdict[str, list[tuple[ImageUse, Location]]] = defaultdict(list)
    for uses in group[1]:
        for image_id, used, location in uses:
            found[image_id].append((used, location))
    images: list[tuple[str, Location]] = []
    for image_id, every in found.items():
        used, location = catalogue.together(one for one, _ in every), min(one for _, one in every)
        if catalogue.is_placeholder(used, min_items, min_categories):
            yield TaggedOutput("placeholders", Shared(image_id, location, used))
        else:
            images.append((image_id, location))
    yield images


def _shards(
    images: list[tuple[str, Location]], shards: int, store: ImageStore
) -> Iterator[tuple[int, list[tuple[str, Location]]]]:
    # By the store's shard, so that each shard of the store is read for one shard of the artifact only.
    found: defaultdict[int, list[tuple[str, Location]]] = defaultdict(list)
    for image_id, location in images:
        found[store.number(location[0]) % shards].append((image_id, location))
    yield from found.items()


def _write_all(group: tuple[int, list[Any]], write: Callable[[list[Any], AnyPath], None], path: AnyPath) -> None:
    write(group[1], path)


def _grouped(keyed: Any, keys: list[int]) -> Any:
    """Group by key, with an empty group for a key that has no element: (key, iterable)."""
    seeds = keyed.pipeline | "Keys" >> beam.Create([(key, None) for key in keys])
    return (
        (keyed, seeds)
        | "WithKeys" >> beam.Flatten()
        | "ByKey" >> beam.GroupByKey()
        | "Real" >> beam.MapTuple(lambda key, values: (key, [value for value in values if value is not None]))
    )
