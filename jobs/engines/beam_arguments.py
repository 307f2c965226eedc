"""Where Beam's options stand on a command line; without Beam, so that a verb with nothing to do need not load it."""

from collections.abc import Sequence
from typing import Final

APART: Final = "--"


def part(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--`, and what stands behind it."""
    at = argv.index(APART) if APART in argv else len(argv)
    return [*argv[:at]], [*argv[at + 1 :]]
