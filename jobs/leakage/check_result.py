"""What a check for leaks found, and whether that proves the road clean: plain values."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One law, held against rows. A control is a canary that must be seen: a silent one proves nothing and fails too.

    rows: how many were looked at.  broken: how many of them break the law.  example: one that does.  note: a figure
    that the law does not forbid.  must_see: whether the law says nothing where no row was looked at.
    """

    check: str
    law: str
    rows: int
    broken: int
    example: str | None = None
    note: str | None = None
    must_see: bool = False

    @property
    def holds(self) -> bool:
        """Whether the law stands."""
        return self.broken == 0 and not (self.must_see and self.rows == 0)


def verdict(findings: Iterable[Finding]) -> str | None:
    """One sentence that names the checks that failed; None where every law stands."""
    failed = [one for one in findings if not one.holds]
    if not failed:
        return None
    first = failed[0]
    told = f"{first.broken:,} of {first.rows:,} rows, {first.example or 'no example'}"
    said = told if first.rows else "no row to see"
    others = f"; and {', '.join(one.check for one in failed[1:])}" if failed[1:] else ""
    return f"the law of {first.check} is broken: {first.law} ({said}){others}"
