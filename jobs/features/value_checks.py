"""Check the values of a view's rows before anybody reads them: those outside a range, and how many are not known."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import duckdb
import pyarrow as pa

from feature_repo.contract import EVENT_TIME, Feature, View
from jobs.rules.events import EPOCH
from model.errors import CourierError

BYTES_A_NUMBER: Final = 4  # of a packed vector: float32


class ValuesRefused(CourierError):
    """Rows of a feature view that the contract does not allow; the message says which, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSummary:
    """What was seen of a view's rows.

    newest: the last moment at which a row of it becomes valid; None where it has no row.
    null_shares: by feature, in how many of the rows its value is not known, 0 to 1.
    """

    rows: int
    newest: datetime | None
    null_shares: dict[str, float]


class TableChecker:
    """Checks rows in memory. Opening DuckDB costs more than a few rows, so it is kept open; threads may share it."""

    def __init__(self) -> None:
        self._database = duckdb.connect()
        self._database.execute("SET GLOBAL TimeZone = 'UTC'")  # in which the message tells a row's moment

    def check(self, view: View, rows: pa.Table, *, cure: str) -> ViewSummary:
        """As `check_rows`. rows: the view's keys, `event_timestamp` and features."""
        with closing(self._database.cursor()) as connection:
            connection.register("given", rows)
            return check_rows(connection, view, "given", cure=cure)


def check_rows(connection: duckdb.DuckDBPyConnection, view: View, rows: str, *, cure: str | None = None) -> ViewSummary:
    """Hold every value of a view's rows against the contract, in one pass.

    rows: SQL, a table.  cure: what to do where they are refused; None: run the view's stage again.

    A value is not known where it is null, NaN, empty, or what the feature has for unknown; a list also where one of its
    members is null. Raises ValuesRefused where a known one lies outside the feature's range or is of another width, or
    more are not known than may be.
    """
    counts = [f"count(*), epoch_us(max({EVENT_TIME}))"]
    for feature in view.features:
        unknown, outside = _unknown(feature), _outside(feature)
        for wrong in (unknown, f"NOT ({unknown}) AND ({outside})"):
            counts.append(f"count(*) FILTER ({wrong}), min({_example(view, feature)}) FILTER ({wrong})")
    [number, newest, *found] = connection.execute(f"SELECT {', '.join(counts)} FROM {rows}").fetchall()[0]
    per_feature = {feature: found[4 * place : 4 * place + 4] for place, feature in enumerate(view.features)}
    refusals = [said for feature, one in per_feature.items() for said in _refusals(view, feature, number, *one)]
    if refusals:
        others = f" (and {len(refusals) - 1} more of this view)" if refusals[1:] else ""
        again = f"mend what {view.owner} reads or makes of it, then say `courier run --from {view.stage}`"
        raise ValuesRefused(f"{refusals[0]}{others}: {cure or again}")
    return ViewSummary(
        rows=number,
        newest=None if newest is None else EPOCH + timedelta(microseconds=newest),
        null_shares={feature.name: one[0] / number if number else 0.0 for feature, one in per_feature.items()},
    )


def _refusals(
    view: View, feature: Feature, rows: int, unknown: int, unknown_example: str, outside: int, outside_example: str
) -> Iterator[str]:
    name = f"{view.name}.{feature.name}"
    if outside:
        yield f"{name} is not {_range(feature)} in {outside:,} of {rows:,} rows, as in {outside_example}"
    if unknown > feature.nulls * rows:
        yield (
            f"{name} has no value in {unknown:,} of {rows:,} rows, and may have none in {feature.nulls:.0%}, "
            f"as in {unknown_example}"
        )


def _range(feature: Feature) -> str:
    least, most = (f"{bound:g}" if bound is not None else None for bound in (feature.least, feature.most))
    within = f"from {least} to {most}" if least and most else f"at least {least}" if least else "a finite number"
    if feature.kind == "bytes":
        return f"{feature.width} numbers of {BYTES_A_NUMBER} bytes"
    if feature.kind.startswith("list"):
        return f"a list of at most {feature.width}" + (f", {within}" if least or most else "")
    return within


def _unknown(feature: Feature) -> str:
    """SQL: whether a row's value is not known; never null."""
    name = feature.name
    more = {
        "str": f"{name} = ''",
        "float": f"isnan({name})",
        "bytes": f"octet_length({name}) = 0",
        "list[str]": f"len({name}) = 0 OR list_count({name}) < len({name})",
        "list[int]": f"len({name}) = 0 OR list_count({name}) < len({name})",
    }.get(feature.kind, "FALSE")
    stated = f" OR {name} = {feature.unknown}" if feature.unknown is not None else ""
    return f"{name} IS NULL OR {more}{stated}"


def _outside(feature: Feature) -> str:
    """SQL: whether a known value is not what the contract allows."""
    name = feature.name
    if feature.kind == "bytes":
        return f"octet_length({name}) <> {feature.width * BYTES_A_NUMBER}"
    is_list = feature.kind.startswith("list")
    smallest, largest = (f"list_min({name})", f"list_max({name})") if is_list else (name, name)
    wrong = [f"len({name}) > {feature.width}"] if is_list else []
    wrong += [f"{smallest} < {feature.least}"] if feature.least is not None else []
    wrong += [f"{largest} > {feature.most}"] if feature.most is not None else []
    wrong += [f"isinf({name})"] if feature.kind == "float" else []
    return " OR ".join(wrong) or "FALSE"


def _example(view: View, feature: Feature) -> str:
    """SQL: a row by its keys and its moment, with the value in question."""
    keys = ", ' ', ".join(f"'{key} ', {key}" for key in view.keys)
    value = f"octet_length({feature.name}) || ' bytes'" if feature.kind == "bytes" else f"{feature.name}::TEXT"
    return f"left(concat({keys}, ' of ', {EVENT_TIME}, ': ', coalesce({value}, 'null')), 160)"
