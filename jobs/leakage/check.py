"""One check for leaks: what it claims, the SQL that finds violations, its result, and the verdict on many."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import duckdb

REQUEST: Final = "'request ' || request_id || ' of ' || user_id || ' at ' || request_time"  # SQL: which row it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What must be true of every row of `rows`.

    rows: SQL, a table.  violations: SQL, a query that selects, as `example`, a sentence on each row that violates it.
    note: SQL for one text, or nothing.  must_see: as in CheckResult.
    """

    name: str
    claim: str
    rows: str
    violations: str
    note: str | None = None
    must_see: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What a check found. A positive control, of what must be seen, proves nothing where it saw no row, and fails too.

    rows: how many were looked at.  violations: how many of them violate the claim.  example: one that does.  note: a
    figure that the claim does not forbid.  must_see: whether the check fails where no row was looked at.
    """

    name: str
    claim: str
    rows: int
    violations: int
    example: str | None = None
    note: str | None = None
    must_see: bool = False

    @property
    def passed(self) -> bool:
        """Whether the claim is true of the rows, and of some row where one must be seen."""
        return self.violations == 0 and not (self.must_see and self.rows == 0)


def run_check(connection: "duckdb.DuckDBPyConnection", check: Check) -> CheckResult:
    """Hold one claim against its rows."""
    # All is fetched: a result that is not read to its end keeps the connection from other work.
    [(rows,)] = connection.execute(f"SELECT count(*) FROM {check.rows}").fetchall()
    counted = f"SELECT count(*), min(example)[:240] FROM ({check.violations})"
    [(violations, example)] = connection.execute(counted).fetchall()
    notes = connection.execute(check.note).fetchall() if check.note else [(None,)]
    return CheckResult(
        name=check.name,
        claim=check.claim,
        rows=rows,
        violations=violations,
        example=example,
        note=notes[0][0],
        must_see=check.must_see,
    )


def verdict(results: Iterable[CheckResult]) -> str | None:
    """One sentence that names the checks that failed; None where every one passed."""
    failed = [one for one in results if not one.passed]
    if not failed:
        return None
    first = failed[0]
    counted = f"violated by {first.violations:,} of {first.rows:,} rows, {first.example or 'no example'}"
    others = f"; and {', '.join(one.name for one in failed[1:])}" if failed[1:] else ""
    return f"check {first.name} failed: {first.claim} ({counted if first.rows else 'no row to see it in'}){others}"
