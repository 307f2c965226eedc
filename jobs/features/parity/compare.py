"""Compare what serving used with what the offline tables say of the same moment, value by value.

The law: the online store holds, of each entity, the newest row that was valid at the load's `as_of`, and a training
row the newest at the request's moment. So the two are equal, to the last bit (NaN is NaN), for every request at or
after `as_of` of the load that the store held, as long as the tables are those that were loaded. Where they are not,
jobs.features.parity.causes says why. Vectors are not compared: a release fixes them, and verifies its own.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contract import ITEM_CLUSTER, ITEM_KEY, ITEM_PROFILE, SERVICES, USER_KEY, View
from jobs.features.offline import connect
from jobs.features.parity.causes import PUSHED, CauseFinder, Cell, loads_of
from jobs.features.parity.logged import RequestLogFiles
from jobs.features.parity.offline_values import open_offline
from model import artifact
from model.ctr.inputs.request_log import (
    CANDIDATE_FEATURES,
    REQUEST_FEATURES,
    logged_candidates,
    logged_requests,
)
from model.ctr.inputs.rows import HISTORY, HISTORY_CATEGORIES, HISTORY_CLUSTERS

CLICKED_AT: Final = "history_clicked_at"
# What is looked up for each click of a history: the view and the feature that it is of.
ALONG_HISTORY: Final = {HISTORY_CLUSTERS: (ITEM_CLUSTER, "cluster_id"), HISTORY_CATEGORIES: (ITEM_PROFILE, "category")}
VIEW_OF: Final[Mapping[str, View]] = {
    **{feature.name: view for views in SERVICES.values() for view in views for feature in view.features},
    **{name: view for name, (view, _) in ALONG_HISTORY.items()},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One value that differs. item_id: None of a user's feature.  size: of numbers |online - offline|, else 1."""

    request_id: str
    user_id: str
    item_id: str | None
    moment: datetime
    online: Any
    offline: Any
    cause: str
    size: float


@dataclass(slots=True)
class FeatureParity:
    """One feature: how many values were compared, how many differ, from which causes, and the worst of them."""

    feature: str
    view: str
    values: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    worst: Difference | None = None

    @property
    def differences(self) -> int:
        """How many values differ."""
        return self.causes.total()

    @property
    def faults(self) -> int:
        """How many of them the stream's clicks do not explain."""
        return self.differences - self.causes[PUSHED]


@dataclass(slots=True)
class ParityReport:
    """What was compared with what, and what was found.

    features: the folder of the tables.  first, last: moments of requests.  skipped: files of another form.
    """

    features: Path
    space_id: str
    codebook_id: str
    requests: int = 0
    candidates: int = 0
    first: datetime | None = None
    last: datetime | None = None
    releases: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    by_feature: dict[str, FeatureParity] = field(
        default_factory=lambda: {
            name: FeatureParity(name, VIEW_OF[name].name) for name in (*REQUEST_FEATURES, *CANDIDATE_FEATURES)
        }
    )

    @property
    def values(self) -> int:
        """How many values were compared."""
        return sum(one.values for one in self.by_feature.values())

    @property
    def faulty(self) -> list[FeatureParity]:
        """The features that differ without the stream's clicks explaining it, those with the most values first."""
        return sorted((one for one in self.by_feature.values() if one.faults), key=lambda one: -one.faults)


def compare(workspace: Path, log: RequestLogFiles) -> ParityReport:
    """Every logged value against the offline one.

    Raises LogUnusable, ArtifactMissing, ArtifactMismatch.
    """
    offline = open_offline(workspace)
    finder = CauseFinder(
        offline.features, artifact.digest(offline.features), offline.codebook_id, loads_of(workspace), offline.ttl
    )
    report = ParityReport(offline.features, offline.space_id, offline.codebook_id)
    for batch in log.batches(offline.features):
        requests, candidates = logged_requests(batch), logged_candidates(batch)
        _count(report, requests, candidates)
        _compare(report, finder, _Side(requests, None, requests, offline.of_requests(requests)))
        of_each = requests.take(candidates.column("request"))
        _compare(report, finder, _Side(of_each, candidates, candidates, offline.of_candidates(requests, candidates)))
    report.skipped = log.skipped
    return report


def _count(report: ParityReport, requests: pa.Table, candidates: pa.Table) -> None:
    report.requests += requests.num_rows
    report.candidates += candidates.num_rows
    report.releases.update(requests.column("release_id").to_pylist())
    moments = pc.min_max(requests.column("request_time")).as_py()
    report.first = min(filter(None, (report.first, moments["min"])))
    report.last = max(filter(None, (report.last, moments["max"])))


@dataclass(frozen=True, slots=True)
class _Side:
    """Values to compare, row by row. requests: each row's request.  candidates: None where rows are of users."""

    requests: pa.Table
    candidates: pa.Table | None
    online: pa.Table
    offline: pa.Table


def _compare(report: ParityReport, finder: CauseFinder, side: _Side) -> None:
    differing = dict(_differing(side.online, side.offline))
    cause_of_history: dict[int, str] = {}
    for name, places in differing.items():
        found = report.by_feature[name]
        found.values += side.offline.num_rows
        if not places:
            continue
        rows = side.requests.take(pa.array(places, pa.int64())).to_pylist()
        items = [None] * len(places)
        if side.candidates is not None:
            items = side.candidates.column(ITEM_KEY).take(pa.array(places, pa.int64())).to_pylist()
        values = zip(_taken(side.online, name, places), _taken(side.offline, name, places), strict=True)
        cells = [
            _cell(name, row, item, online, offline, _histories(side, name, place))
            for place, row, item, (online, offline) in zip(places, rows, items, values, strict=True)
        ]
        causes = finder.causes(cells)
        for place, row, item, cell, cause in zip(places, rows, items, cells, causes, strict=True):
            if name in (HISTORY, CLICKED_AT):
                cause_of_history[place] = cause
            elif name in ALONG_HISTORY:
                cause = cause_of_history.get(place, cause)
            _add(found, row, item, cell, cause)


def _differing(online: pa.Table, offline: pa.Table) -> Iterator[tuple[str, list[int]]]:
    # Feature -> the rows at which it differs; the histories themselves before what follows from them.
    with closing(connect()) as connection:
        connection.register("online", online.append_column("place", pa.array(range(online.num_rows), pa.int64())))
        connection.register("offline", offline)
        for name in offline.column_names:
            query = f"""
                SELECT place FROM online POSITIONAL JOIN offline
                WHERE online.{name} IS DISTINCT FROM offline.{name} ORDER BY place
            """
            yield name, [place for (place,) in connection.execute(query).fetchall()]


def _taken(table: pa.Table, name: str, places: Sequence[int]) -> list[Any]:
    values: list[Any] = table.column(name).take(pa.array(places, pa.int64())).to_pylist()
    return values


def _histories(side: _Side, name: str, place: int) -> Any:
    if name not in (HISTORY, CLICKED_AT):
        return None
    return tuple(
        tuple(zip(table.column(HISTORY)[place].as_py(), table.column(CLICKED_AT)[place].as_py(), strict=True))
        for table in (side.online, side.offline)
    )


def _cell(name: str, row: Mapping[str, Any], item: str | None, online: Any, offline: Any, histories: Any) -> Cell:
    view, feature, entity = VIEW_OF[name], name, item if item is not None else row[USER_KEY]
    if name in ALONG_HISTORY:
        # The first click that differs stands for all; where the histories do, there is another cause than it.
        pairs = list(zip(row[HISTORY], online, offline, strict=False))
        entity, online, offline = next((pair for pair in pairs if pair[1] != pair[2]), ("", None, None))
        feature = ALONG_HISTORY[name][1]
    return Cell(
        view=view,
        feature=feature,
        entity=entity,
        codebook_id=row["codebook_id"],
        moment=row["request_time"],
        logged_at=row["logged_at"],
        online=online,
        offline=offline,
        histories=histories,
    )


def _add(found: FeatureParity, row: Mapping[str, Any], item: str | None, cell: Cell, cause: str) -> None:
    found.causes[cause] += 1
    size = _size(cell.online, cell.offline)
    # A fault is worse than what the stream explains, whatever its size.
    if found.worst is None or (cause != PUSHED, size) > (found.worst.cause != PUSHED, found.worst.size):
        found.worst = Difference(
            request_id=row["request_id"],
            user_id=row[USER_KEY],
            item_id=item if item is not None or found.feature not in ALONG_HISTORY else cell.entity,
            moment=cell.moment,
            online=cell.online,
            offline=cell.offline,
            cause=cause,
            size=size,
        )


def _size(online: Any, offline: Any) -> float:
    if isinstance(online, int | float) and isinstance(offline, int | float):
        size = abs(online - offline)
        return size if size == size else float("inf")  # one of them is not known
    return 1.0
