"""Open, verify, hash and resize every image that the items table refers to: a portable Beam pipeline.

Run it as `python -m jobs.images.pipeline --raw RAW --out DIR`, with any Beam option after it. On a runner with
several machines, RAW and DIR lie on a file system that all of them see.
"""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import apache_beam as beam
import structlog
import typer
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared
from upath import UPath

from jobs.config import ImagesConfig
from jobs.engines import beam_progress, beam_runner
from jobs.images import coverage, write
from jobs.images.decode_pool import DecodePool
from jobs.images.examine import KIND
from jobs.images.store import ImageStore, alone, open_store
from jobs.images.transforms import ExamineReferences, FindPictures, KeepItems, ReadItems, WriteShards, WriteTable
from jobs.paths import path_option
from jobs.raw.canonical import CanonicalTable, canonical_table
from jobs.raw.identity import images_digest
from model import artifact, strict_json
from model.artifact import AnyPath, Manifest

log = structlog.get_logger()

LARGE: Final = 2**16  # bytes of a table that names files enough for processes to pay
STORE: Final = "image_store"
WORK: Final = ("references", "opened", "decoded", "shards_written")  # what a run did, as the runner counted it


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one run reads and writes: the table, the folder its references start from, the store, the artifact."""

    table: CanonicalTable
    folder: AnyPath
    store: ImageStore
    out: AnyPath
    config: ImagesConfig
    retry_failed: bool = False
    pool: Shared | None = None  # the handle of a DecodePool, where the runner has no more than this process


def wire(pipeline: Any, job: Job) -> None:
    """Put the transforms together."""
    config, out = job.config, job.out
    read = pipeline | "ReadItems" >> ReadItems(job.table)
    items, rejected = read | "KeepItems" >> KeepItems(config.store_shards)
    examine = ExamineReferences(job.store, job.folder, config, job.retry_failed, job.pool)
    examined = items | "ExamineReferences" >> examine
    pictures = examined | "FindPictures" >> FindPictures(config)

    write_items = partial(write.write_items, config=config)
    write_placeholders = partial(write.write_placeholders, store=job.store)
    pictures.images | "WriteShards" >> WriteShards(out / "shards", config, job.store)
    pictures.placeholders | "WritePlaceholders" >> WriteTable(out / "placeholders.parquet", write_placeholders)
    examined | "WriteItems" >> WriteTable(out / "items.parquet", write_items)
    rejected | "WriteRejected" >> WriteTable(out / "rejected.parquet", write.write_rejected)
    read | "Lengths" >> beam.Map(len) | "WriteCount" >> WriteTable(out / write.READ, write.write_count)


def build(
    *,
    ingest: AnyPath,
    raw: AnyPath,
    raw_digest: str,
    store: AnyPath,
    out: AnyPath,
    config: ImagesConfig,
    retry_failed: bool = False,
    beam_args: Sequence[str] = (),
) -> Manifest:
    """Build the images artifact at `out` from the items that were ingested of `raw`.

    ingest: the ingest artifact, or `raw` itself where it holds canonical parquet. raw: where image paths start.
    raw_digest: the identity of the images in it, for the manifest. store: the folder of what earlier runs examined.
    retry_failed: of what the store knows, look at nothing but the failures that may pass. beam_args: Beam's own
    options, such as --runner=... Raises RawTableUnusable for a table that cannot be read, StoreBusy where another job
    holds the store.
    """
    table = canonical_table(ingest, "items", raw)
    options = beam_runner.options(beam_args)
    opened = open_store(store, config)
    with (
        alone(opened),
        artifact.write_together(out, kind=KIND, inputs={"raw": raw_digest}, config=asdict(config)) as draft,
    ):
        opened.sweep()
        folder = draft.path.absolute()
        started = time.monotonic()
        job = Job(
            table=table,
            folder=raw.absolute(),
            store=opened,
            out=folder,
            config=config,
            retry_failed=retry_failed,
            pool=Shared() if beam_runner.in_one_process(options) else None,
        )
        with _processes(job), _without_full_collections():
            work = _run(options, job)
        took = time.monotonic() - started
        draft.facts.update(write.facts(draft.path))
        draft.parts["pictures"] = write.pictures_digest(draft.path, config.size)
        draft.notes.update(work={name: work.get(name, 0) for name in WORK}, seconds=round(took, 2))
        draft.notes["images_per_second"] = round(draft.facts["items_accepted"] / took, 1)
        found = coverage.write_coverage(draft.path)
    manifest = artifact.read(out, kind=KIND)
    speed = {name: manifest.notes[name] for name in ("seconds", "images_per_second")}
    log.info("images_built", **manifest.notes["work"], **speed, **_flat_facts(manifest))
    coverage.tell_lost(found)
    return manifest


def _flat_facts(manifest: Manifest) -> dict[str, Any]:
    return {name: fact for name, fact in manifest.facts.items() if not isinstance(fact, dict)}


@contextmanager
def _processes(job: Job) -> Iterator[None]:
    """Have the DecodePool of this job until the block ends.

    For files that no store knows yet they start at once, while Beam still builds the pipeline.
    """
    if job.pool is None:
        yield
        return
    pool = job.pool.acquire(partial(DecodePool, job.folder, job.config, job.retry_failed))
    try:
        near = isinstance(job.folder, Path) and job.store.is_empty()
        if near and sum(file.stat().st_size for file in job.table.files) > LARGE:
            pool.start()
        yield
    finally:
        pool.close()


@contextmanager
def _without_full_collections() -> Iterator[None]:
    """Let the collector of garbage not look again and again at the million objects that Beam's modules are."""
    if gc.get_freeze_count():  # somebody else's, which unfreeze would undo
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _run(options: PipelineOptions, job: Job) -> dict[str, int]:
    pipeline = beam.Pipeline(options=options)
    wire(pipeline, job)
    bar = beam_progress.bar("images", beam_progress.TALLY) if beam_runner.in_one_process(options) else nullcontext()
    with bar:
        return beam_progress.counters(beam_runner.wait(pipeline))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(**beam_runner.COMMAND)
def image_references(
    context: typer.Context,
    raw: Annotated[UPath, path_option("The raw folder: image paths start here.")],
    out: Annotated[UPath, path_option("Where the images artifact is written.")],
    ingest: Annotated[
        UPath | None,
        path_option("What was ingested of it; default: the raw folder, whose items are canonical parquet."),
    ] = None,
    store: Annotated[
        UPath | None, path_option("What earlier runs examined; default: the folder image_store beside the output.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Open again what failed and may succeed, and nothing else.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A host that https:// references may name; *.example.com for all below it.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the square each image is resized to, in pixels.")] = 96,
    shard_bytes: Annotated[int, typer.Option(help="The most that a file of pictures may hold.")] = 128_000_000,
) -> None:
    """Open, verify, hash and resize every image of the items table."""
    args = beam_runner.beam_args(context)
    config = ImagesConfig(size=size, shard_bytes=shard_bytes, allowed_hosts=tuple(allow_host or ()))
    manifest = build(
        ingest=ingest or raw,
        raw=raw,
        raw_digest=images_digest(raw),
        store=store or out.absolute().parent / STORE,
        out=out,
        config=config,
        retry_failed=retry_failed,
        beam_args=args,
    )
    typer.echo(strict_json.dumps(dict(manifest.facts), indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; its answer on stdout, its log on stderr."""
    beam_runner.main(app, argv)


if __name__ == "__main__":
    main()
