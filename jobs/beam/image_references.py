"""Open, verify, hash and resize every image that the items table refers to: a portable Beam pipeline.

Run it as `python -m jobs.beam.image_references --raw RAW --out DIR`, with any Beam option after it. On a runner with
several machines, RAW and DIR lie on a file system that all of them see.
"""

import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import apache_beam as beam
import structlog
import typer
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.pvalue import TaggedOutput

from jobs.beam import image_files, item_rows, progress
from jobs.beam.fetch import NotFetched, fetch
from jobs.beam.item_rows import Place, Raw
from jobs.config import ImagesConfig
from jobs.logic import catalogue
from jobs.logic.catalogue import CatalogueRow, ImageUse, Item
from jobs.sources.raw import RawTableUnusable, TableFiles, raw_digest, table_files
from model import artifact
from model.artifact import Manifest
from model.courier import images
from model.courier.images import ImageRefused

log = structlog.get_logger()

KIND: Final = "images"
LOCAL_RUNNER: Final = "FnApiRunner"  # in this process; plain DirectRunner first tries to download another runner
THREADS: Final = 2  # a worker's: Pillow, zlib and sha256 work outside the interpreter lock
BATCH: Final = 16  # images in a worker's memory at once


@dataclass(frozen=True, slots=True)
class Opened:
    """An item and the bytes that its reference gave."""

    item: Item
    data: bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """An item's image, verified and resized; `png` is the encoder's square."""

    row: CatalogueRow
    png: bytes


# --- transforms: one idea each --------------------------------------------------------------------------------------


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


class OpenImages(beam.PTransform):  # type: ignore[misc]
    """Fetch what each item's reference names; outputs `opened` and, as catalogue rows, `unusable`."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        super().__init__()
        self.work = partial(_open, folder=folder, max_bytes=max_bytes)

    def expand(self, items: Any) -> Any:
        """PCollection of Item -> outputs of Opened and CatalogueRow."""
        return (
            items
            | "Batch" >> beam.BatchElements(min_batch_size=BATCH, max_batch_size=BATCH)
            | "Open" >> beam.ParDo(InThreads(self.work, "fetch")).with_outputs("unusable", main="opened")
        )


class ResizeImages(beam.PTransform):  # type: ignore[misc]
    """Verify, hash and resize each image; outputs `pictures` and, as catalogue rows, `unusable`."""

    def __init__(self, config: ImagesConfig) -> None:
        super().__init__()
        self.work = partial(_resize, config=config)

    def expand(self, opened: Any) -> Any:
        """PCollection of Opened -> outputs of Picture and CatalogueRow."""
        return (
            opened
            | "Batch" >> beam.BatchElements(min_batch_size=BATCH, max_batch_size=BATCH)
            | "Resize" >> beam.ParDo(InThreads(self.work, "resize")).with_outputs("unusable", main="pictures")
        )


class SettleDuplicates(beam.PTransform):  # type: ignore[misc]
    """Bring the items of each picture together; outputs final `rows`, and each distinct usable picture at `images`."""

    def __init__(self, min_items: int, min_categories: int) -> None:
        super().__init__()
        self.settle = partial(_settle, min_items=min_items, min_categories=min_categories)

    def expand(self, pictures: Any) -> Any:
        """PCollection of Picture -> outputs of CatalogueRow and (image_id, png)."""
        uses = pictures | "Use" >> beam.Map(_use) | "Uses" >> beam.CombinePerKey(catalogue.together)
        # Combined before the shuffle: a placeholder's pixels travel once a worker, not once an item.
        pngs = pictures | "Png" >> beam.Map(_png) | "Once" >> beam.CombinePerKey(_any)
        rows = pictures | "Row" >> beam.Map(_row)
        return (
            {"uses": uses, "pngs": pngs, "rows": rows}
            | "ByImage" >> beam.CoGroupByKey()
            | "Settle" >> beam.FlatMap(self.settle).with_outputs("images", main="rows")
        )


class WriteShards(beam.PTransform):  # type: ignore[misc]
    """Write each image into the shard that its id names, sorted; a shard without images is written too."""

    def __init__(self, folder: Path, shards: int) -> None:
        super().__init__()
        self.folder, self.shards = folder, shards

    def expand(self, pictures: Any) -> Any:
        """PCollection of (image_id, png) -> PCollection of the paths written."""
        keyed = pictures | "Shard" >> beam.Map(lambda pair, n: (int(pair[0], 16) % n, pair), n=self.shards)
        return _together(keyed, list(range(self.shards))) | "Write" >> beam.Map(
            image_files.write_shard, folder=self.folder, shards=self.shards
        )


class WriteTable(beam.PTransform):  # type: ignore[misc]
    """Write all elements as one parquet file, sorted: small rows without pixels, so one worker holds them."""

    def __init__(self, path: Path, write: Callable[[list[Any], Path], None]) -> None:
        super().__init__()
        self.path, self.write = path, write

    def expand(self, rows: Any) -> Any:
        """PCollection of anything -> PCollection of the path written."""
        keyed = rows | "Gather" >> beam.Map(lambda row: (0, row))
        return _together(keyed, [0]) | "Write" >> beam.Map(_write_all, write=self.write, path=self.path)


class InThreads(beam.DoFn):  # type: ignore[misc]
    """Do one deed for each element of a batch, in threads; a CatalogueRow that comes back goes to `unusable`."""

    def __init__(self, deed: Callable[[Any], Any], name: str) -> None:
        super().__init__()
        self.deed, self.name = deed, name
        self.took = Metrics.distribution(KIND, f"{name}_microseconds")

    def setup(self) -> None:
        """Start the threads."""
        self.pool = ThreadPoolExecutor(THREADS)

    def teardown(self) -> None:
        """End them."""
        self.pool.shutdown()

    def process(self, batch: list[Any]) -> Iterator[Any]:
        """A batch -> its results, in order."""
        for result, microseconds in self.pool.map(self._timed, batch):
            self.took.update(microseconds)
            if isinstance(result, CatalogueRow):
                Metrics.counter(KIND, result.reason).inc()
                progress.TALLY.add(done=1)
                yield TaggedOutput("unusable", result)
            else:
                yield result

    def _timed(self, element: Any) -> tuple[Any, int]:
        started = time.monotonic()
        return self.deed(element), int((time.monotonic() - started) * 1e6)


# --- what the transforms do to an element ---------------------------------------------------------------------------


def _read_rows(file: tuple[int, str], form: str) -> Iterator[tuple[Place, Raw]]:
    number, path = file
    for n, row in enumerate(item_rows.rows(form, Path(path))):
        Metrics.counter(KIND, "items_read").inc()
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
    (_, first), *others = sorted(group[1], key=lambda placed: placed[0])
    yield catalogue.item(first)
    for place, row in others:
        yield _reject(place, row, catalogue.DUPLICATE_ITEM_ID)


def _reject(place: Place, row: Raw, reason: str) -> Any:
    Metrics.counter(KIND, reason).inc()
    progress.TALLY.add(done=1)
    return TaggedOutput("rejected", (place, row, reason))


def _open(item: Item, folder: Path, max_bytes: int) -> Opened | CatalogueRow:
    try:
        return Opened(item, fetch(item.image_uri, folder, max_bytes))
    except NotFetched as refusal:
        return catalogue.unusable(item, refusal.reason)


def _resize(opened: Opened, config: ImagesConfig) -> Picture | CatalogueRow:
    bytes_sha256 = hashlib.sha256(opened.data).hexdigest()
    try:
        image = images.decode(
            opened.data, max_bytes=config.max_bytes, max_pixels=config.max_pixels, min_side=config.min_side
        )
    except ImageRefused as refusal:
        return catalogue.unusable(opened.item, refusal.reason, bytes_sha256)
    row = catalogue.usable(opened.item, images.pixel_hash(image), bytes_sha256)
    progress.TALLY.add(done=1)
    return Picture(row, images.to_png(images.resize(image, config.size)))


def _use(picture: Picture) -> tuple[str | None, ImageUse]:
    return picture.row.image_id, catalogue.use(picture.row.item.item_id, picture.row.item.category)


def _png(picture: Picture) -> tuple[str | None, bytes]:
    return picture.row.image_id, picture.png


def _row(picture: Picture) -> tuple[str | None, CatalogueRow]:
    return picture.row.image_id, picture.row


def _any(equal: Iterable[bytes]) -> bytes:
    return next(iter(equal))


def _settle(group: tuple[str, dict[str, list[Any]]], min_items: int, min_categories: int) -> Iterator[Any]:
    image_id, found = group
    (used,), (png,) = found["uses"], found["pngs"]
    for row in found["rows"]:
        settled = catalogue.settle(row, used, min_items, min_categories)
        Metrics.counter(KIND, settled.reason or settled.status).inc()
        yield settled
    if not catalogue.is_placeholder(used, min_items, min_categories):
        yield TaggedOutput("images", (image_id, png))


def _write_all(group: tuple[int, list[Any]], write: Callable[[list[Any], Path], None], path: Path) -> str:
    write(group[1], path)
    return str(path)


def _together(keyed: Any, keys: list[int]) -> Any:
    """Group by key, with an empty group for a key that has no element: (key, iterable)."""
    seeds = keyed.pipeline | "Keys" >> beam.Create([(key, None) for key in keys])
    return (
        (keyed, seeds)
        | "WithKeys" >> beam.Flatten()
        | "ByKey" >> beam.GroupByKey()
        | "Real" >> beam.MapTuple(lambda key, values: (key, [value for value in values if value is not None]))
    )


# --- the job --------------------------------------------------------------------------------------------------------


def wire(pipeline: Any, table: TableFiles, folder: Path, out: Path, config: ImagesConfig) -> None:
    """Put the transforms together: read `table`, follow references from `folder`, write into `out`."""
    items, rejected = pipeline | "ReadItems" >> ReadItems(table) | "KeepItems" >> KeepItems()
    opened = items | "OpenImages" >> OpenImages(folder, config.max_bytes)
    resized = opened.opened | "ResizeImages" >> ResizeImages(config)
    settled = resized.pictures | "SettleDuplicates" >> SettleDuplicates(
        config.placeholder_items, config.placeholder_categories
    )
    rows = (settled.rows, opened.unusable, resized.unusable) | "EveryItem" >> beam.Flatten()
    settled.images | "WriteShards" >> WriteShards(out / "shards", config.shards)
    rows | "WriteItems" >> WriteTable(out / "items.parquet", image_files.write_items)
    rejected | "WriteRejected" >> WriteTable(out / "rejected.parquet", image_files.write_rejected)


def build(*, raw: Path, raw_digest: str, out: Path, config: ImagesConfig, beam_args: Sequence[str] = ()) -> Manifest:
    """Build the images artifact at `out` from the items table in `raw`.

    raw_digest: the raw folder's identity, for the manifest. beam_args: Beam's own options, such as --runner=...
    Raises RawTableUnusable for a table that cannot be read.
    """
    table = table_files(raw, "items")
    for file in table.files:
        item_rows.check_columns(table.format, file)
    options = PipelineOptions(_with_runner(beam_args))
    with artifact.write(out, kind=KIND, inputs={"raw": raw_digest}, config=asdict(config)) as draft:
        started = time.monotonic()
        counted = _run(options, table, raw.absolute(), draft.path.absolute(), config)
        took = time.monotonic() - started
        draft.facts.update(items_read=counted.get("items_read", 0), **image_files.facts(draft.path))
        draft.facts.update(seconds=round(took, 2), images_per_second=round(draft.facts["items_accepted"] / took, 1))
    manifest = artifact.read(out, kind=KIND)
    log.info("images_built", **{name: fact for name, fact in manifest.facts.items() if not isinstance(fact, dict)})
    return manifest


def _with_runner(beam_args: Sequence[str]) -> list[str]:
    named = any(arg.split("=")[0] == "--runner" for arg in beam_args)
    return [*beam_args] if named else [f"--runner={LOCAL_RUNNER}", *beam_args]


def _run(options: PipelineOptions, table: TableFiles, folder: Path, out: Path, config: ImagesConfig) -> dict[str, int]:
    pipeline = beam.Pipeline(options=options)
    wire(pipeline, table, folder, out, config)
    if options.view_as(StandardOptions).runner == LOCAL_RUNNER:
        with _quiet(), progress.bar("images", progress.TALLY):
            return progress.counters(_run_here(pipeline))
    result = pipeline.run()
    with progress.report(result):
        result.wait_until_finish()
    return progress.counters(result)


def _run_here(pipeline: Any) -> Any:
    try:
        return pipeline.run()
    except RawTableUnusable as error:  # Beam adds the transform's name to what a user is to read
        raise RawTableUnusable(str(error).partition(" [while running")[0]) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Beam's notes, and its own copy of a traceback that is raised anyway, off the terminal of a local run."""
    beams = logging.getLogger("apache_beam")
    level = beams.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        beams.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            beams.setLevel(level)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def image_references(
    context: typer.Context,
    raw: Annotated[Path, typer.Option(help="The raw folder: holds the items table; image paths start here.")],
    out: Annotated[Path, typer.Option(help="Where the images artifact is written.")],
    size: Annotated[int, typer.Option(help="Side of the square each image is resized to, in pixels.")] = 96,
    shards: Annotated[int, typer.Option(help="Number of files the images are spread over.")] = 8,
) -> None:
    """Open, verify, hash and resize every image of the items table. Beam's own options may follow, e.g. --runner=..."""
    config = replace(ImagesConfig(), size=size, shards=shards)
    manifest = build(raw=raw, raw_digest=raw_digest(raw), out=out, config=config, beam_args=context.args)
    typer.echo(json.dumps(dict(manifest.facts), indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; its answer on stdout, its log on stderr."""
    if not structlog.is_configured():
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    app(args=argv)


if __name__ == "__main__":
    main()
