"""Run a pipeline in this process unless another runner is named, and keep Beam's notes off the terminal then."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

LOCAL_RUNNER: Final = "FnApiRunner"  # plain DirectRunner first tries to download another runner


def options(beam_args: Sequence[str]) -> PipelineOptions:
    """Beam's options, with the local runner where none is named."""
    named = any(arg.split("=")[0] == "--runner" for arg in beam_args)
    return PipelineOptions([*beam_args] if named else [f"--runner={LOCAL_RUNNER}", *beam_args])


def is_local(chosen: PipelineOptions) -> bool:
    """Whether the pipeline runs in this process."""
    return bool(chosen.view_as(StandardOptions).runner == LOCAL_RUNNER)


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
