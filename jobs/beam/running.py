"""Run a Beam pipeline: on which runner, and what a user sees of it."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from jobs.beam import progress
from jobs.paths import UrlUnusable
from jobs.sources.raw import RawTableUnusable
from model.artifact import AnyPath

LOCAL_RUNNER: Final = "FnApiRunner"  # in this process; plain DirectRunner first tries to download another runner


def options(beam_args: Sequence[str]) -> PipelineOptions:
    """Beam's options as they were given; where they name no runner, the one in this process."""
    named = any(arg.split("=")[0] == "--runner" for arg in beam_args)
    return PipelineOptions([*beam_args] if named else [f"--runner={LOCAL_RUNNER}", *beam_args])


def require_writable(out: AnyPath) -> None:
    """Raises UrlUnusable for a URL that Beam's own readers and writers do not know, or lack the driver of."""
    if isinstance(out, Path):
        return
    try:
        FileSystems.get_filesystem(str(out))
    except ValueError:
        raise UrlUnusable(
            f"Beam cannot write to {out}: give a folder, s3:// (pip install 'courier[s3]'), "
            "gs:// (pip install 'apache-beam[gcp]') or hdfs://"
        ) from None


def is_local(chosen: PipelineOptions) -> bool:
    """Whether the pipeline runs in this process."""
    return bool(chosen.view_as(StandardOptions).runner == LOCAL_RUNNER)


def wait(pipeline: Any) -> Any:
    """Run the pipeline to its end; returns its result. Raises RawTableUnusable as a transform raised it.

    The runner of this process does all its work at once; how far another one is, is logged.
    """
    try:
        with quiet():
            result = pipeline.run()
    except RawTableUnusable as error:  # Beam adds the transform's name to what a user is to read
        raise RawTableUnusable(str(error).partition(" [while running")[0]) from None
    with progress.report(result):
        result.wait_until_finish()
    return result


@contextmanager
def quiet() -> Iterator[None]:
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
