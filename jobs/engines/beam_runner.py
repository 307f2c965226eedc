"""Run a Beam pipeline: its command line, on which runner, and what a user sees of it."""

import difflib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog
import typer
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from jobs.engines import beam_progress
from jobs.engines.beam_arguments import APART, part
from jobs.paths import UrlUnusable
from model.artifact import AnyPath
from model.errors import CourierError

LOCAL_RUNNER: Final = "FnApiRunner"  # in this process; plain DirectRunner first tries to download another runner
# How typer is told about a program that also takes Beam's options.
COMMAND: Final[dict[str, Any]] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "epilog": "Beam's own options may follow, such as --runner=FlinkRunner --flink_master=HOST:PORT. One that neither "
    "this program nor Beam knows is refused; what only the runner's own server knows stands behind a -- and is passed "
    "on unread: --runner=FlinkRunner -- --checkpointing_interval=60000.",
}


class UnknownOption(CourierError):
    """An option that nobody knows; the message is one sentence that names the nearest."""


# --- the command line -----------------------------------------------------------------------------------------------


def main(app: typer.Typer, argv: Sequence[str] | None, name: str | None = None) -> None:
    """The command line of a Beam program: its answer on stdout, its log on stderr."""
    if not structlog.is_configured():
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    ours, unread = part(sys.argv[1:] if argv is None else argv)
    app(args=ours, prog_name=name, obj=unread)


def beam_args(context: typer.Context) -> list[str]:
    """Beam's options of a program begun by `main`, for `options`. Raises UnknownOption."""
    own = [name for one in context.command.params for name in one.opts if name.startswith("--")]
    _refuse_unknown(context.args, own)
    return [*context.args, APART, *context.obj] if context.obj else [*context.args]


def options(beam_args: Sequence[str]) -> PipelineOptions:
    """Beam's options as they were given; where they name no runner, the one in this process.

    Raises UnknownOption for one before a `--` that Beam does not know.
    """
    known, unread = part(beam_args)
    _refuse_unknown(known)
    given = [*known, *unread]
    named = any(arg.split("=")[0] == "--runner" for arg in given)
    return PipelineOptions(given if named else [f"--runner={LOCAL_RUNNER}", *given])


def _refuse_unknown(given: Sequence[str], own: Sequence[str] = ()) -> None:
    known = PipelineOptions([]).get_all_options()
    unknown = PipelineOptions([*given]).get_all_options(retain_unknown_options=True).keys() - known.keys()
    for before, word in zip(["", *given], given, strict=False):
        is_value = not word.startswith("-") and before.startswith("--") and "=" not in before
        if _name(word) in unknown or not (word.startswith("-") or is_value):
            raise UnknownOption(_refusal(word.partition("=")[0], [*own, *(f"--{name}" for name in known)]))


def _name(option: str) -> str:
    return option.partition("=")[0].lstrip("-").replace("-", "_")


def _refusal(word: str, known: Sequence[str]) -> str:
    spelled = {_name(name): name for name in known}
    near = difflib.get_close_matches(_name(word), spelled, n=1)
    cure = f"say {spelled[near[0]]}" if near else "see --help"
    return (
        f"{word} is known neither to this program nor to Beam: {cure}, or if only the runner knows it, put it behind --"
    )


# --- the runner -----------------------------------------------------------------------------------------------------


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
    """Whether the pipeline runs on this machine, without a runner elsewhere."""
    return bool(chosen.view_as(StandardOptions).runner == LOCAL_RUNNER)


def in_one_process(chosen: PipelineOptions) -> bool:
    """Whether the pipeline runs in this process, and in no other."""
    return is_local(chosen) and chosen.view_as(DirectOptions).direct_running_mode != "multi_processing"


def stream(chosen: PipelineOptions) -> PipelineOptions:
    """The options, for a pipeline whose source does not end."""
    chosen.view_as(StandardOptions).streaming = True
    return chosen


def wait(pipeline: Any) -> Any:
    """Run the pipeline to its end; returns its result. Raises a CourierError as a transform raised it.

    The runner of this process does all its work at once; how far another one is, is logged.
    """
    try:
        with quiet():
            result = pipeline.run()
    except CourierError as error:  # Beam adds the transform's name to what a user is to read
        raise type(error)(str(error).partition(" [while running")[0]) from None
    with beam_progress.report(result):
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
