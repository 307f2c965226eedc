"""Why a value that serving used is not the offline one of the same moment: the probable cause of each difference."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from feature_repo.contract import CODEBOOK_KEY, CTR_HISTORY, EVENT_TIME, View
from jobs.features.offline import connect, read_parquet
from jobs.rules.online_histories import Click, merge
from model import artifact
from model.ctr.inputs.rows import ROW_DEFAULTS

PUSHED: Final = "pushed"
RELEASE: Final = "release"
TTL: Final = "ttl"
EARLY: Final = "early"
LATE: Final = "late"
UNKNOWN: Final = "unknown"
CAUSES: Final[Mapping[str, str]] = {
    PUSHED: "the stream had pushed clicks that the offline tables have not taken in yet; no fault",
    RELEASE: "the request was answered by another codebook than the one whose tables these are",
    TTL: "the row is older than its view's ttl, and only one side had let it expire",
    EARLY: "the store held a row that became valid after the moment that was asked for",
    LATE: "the store held what was known when it was loaded, and the tables have learnt of more since",
    UNKNOWN: "the value is neither the tables' nor what was loaded from them",
}


@dataclass(frozen=True, slots=True)
class Load:
    """One load of the online store. folder: its features artifact; None where it is gone."""

    ended: datetime
    as_of: datetime
    features: str
    folder: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A value that differs.

    entity: the key of its row in the view, without the codebook.  moment: as of which it was asked for.  logged_at:
    when, by the clock.  histories: of a user's history, what serving had and what the tables say: clicks, newest first.
    """

    view: View
    feature: str
    entity: str
    codebook_id: str
    moment: datetime
    logged_at: datetime
    online: Any
    offline: Any
    histories: tuple[Sequence[Click], Sequence[Click]] | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    valid_from: datetime
    values: Mapping[str, Any]


def loads_of(workspace: Path) -> list[Load]:
    """Every load that is known, in the order in which they ended."""
    folders = {artifact.digest(folder): folder for folder in _finished(workspace / "features")}
    loads = []
    for manifest in map(artifact.read_manifest, _finished(workspace / "materialize")):
        ended, as_of = (datetime.fromisoformat(text) for text in (manifest.created_at, manifest.facts["as_of"]))
        digest = manifest.facts["features"]
        loads.append(Load(ended, as_of, digest, folders.get(digest)))
    return sorted(loads, key=lambda load: load.ended)


@dataclass(frozen=True, slots=True)
class CauseFinder:
    """Judges differences by what was loaded when, and by the tables that are compared.

    features: the artifact that is compared.  ttl: a view's name -> its ttl; zero is none.
    """

    features: Path
    digest: str
    codebook_id: str
    loads: Sequence[Load]
    ttl: Callable[[str], timedelta]

    def causes(self, cells: Sequence[Cell]) -> list[str]:
        """The cause of each."""
        places = [self._load_at(cell.logged_at) for cell in cells]
        asked: dict[tuple[int, str], tuple[View, set[str]]] = {}
        for cell, place in zip(cells, places, strict=True):
            asked.setdefault((place, cell.view.name), (cell.view, set()))[1].add(cell.entity)
        held = {
            (place, name): self._loaded(self.loads[place], view, entities) if place >= 0 else {}
            for (place, name), (view, entities) in asked.items()
        }
        return [
            self._cause(cell, place, held[place, cell.view.name].get(cell.entity))
            for cell, place in zip(cells, places, strict=True)
        ]

    def _cause(self, cell: Cell, place: int, held: _Held | None) -> str:
        if CODEBOOK_KEY in cell.view.keys and cell.codebook_id != self.codebook_id:
            return RELEASE
        default = ROW_DEFAULTS[cell.feature]
        as_loaded = place >= 0 and same(cell.online, held.values[cell.feature] if held else default)
        if held and as_loaded and held.valid_from > cell.moment:
            return EARLY
        if held and self._is_expired(cell, held) and same(cell.online, default) != same(cell.offline, default):
            return TTL
        has_newer_tables = place >= 0 and self.loads[place].features != self.digest
        if cell.histories is not None:
            online, offline = cell.histories
            if _has_all(online, offline):
                return PUSHED
            as_loaded = as_loaded or _has_all(offline, online)  # the stream lags by what the tables know
        return LATE if as_loaded and has_newer_tables else UNKNOWN

    def _is_expired(self, cell: Cell, held: _Held) -> bool:
        ttl = self.ttl(cell.view.name)
        return bool(ttl) and held.valid_from + ttl < max(cell.moment, cell.logged_at)

    def _load_at(self, moment: datetime) -> int:
        # The place of the load that the store held then; -1 before the first.
        return sum(load.ended <= moment for load in self.loads) - 1

    def _loaded(self, load: Load, view: View, entities: Iterable[str]) -> dict[str, _Held]:
        # Where the artifact that was loaded is gone, what the compared one says of that moment is nearest to it.
        source = read_parquet((load.folder or self.features) / view.name)
        key, names = view.keys[0], [feature.name for feature in view.features]
        codebook = "AND $codebook IS NOT NULL"
        if CODEBOOK_KEY in view.keys:
            codebook = f"AND {CODEBOOK_KEY} = $codebook"
        query = f"""
            SELECT {key}, {EVENT_TIME}, {", ".join(names)} FROM {source} SEMI JOIN asked USING ({key})
            WHERE {EVENT_TIME} <= $as_of {codebook}
            QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {EVENT_TIME} DESC) = 1
        """
        with closing(connect()) as connection:
            connection.register("asked", pa.table({key: pa.array(sorted(entities), pa.string())}))
            found = connection.sql(query, params={"as_of": load.as_of, "codebook": self.codebook_id}).to_arrow_table()
        return {
            row[key]: _Held(row[EVENT_TIME].astimezone(UTC), {name: _known(row[name], name) for name in names})
            for row in found.to_pylist()
        }


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, where NaN is NaN."""
    return bool(one == other or (one != one and other != other))


def _known(value: Any, feature: str) -> Any:
    return ROW_DEFAULTS[feature] if value is None else value


def _has_all(one: Sequence[Click], other: Sequence[Click]) -> bool:
    # Whether one history knows every click that the other knows, as far as it goes.
    return merge(one, other, CTR_HISTORY) == tuple(one)


def _finished(folder: Path) -> list[Path]:
    return [manifest.parent for manifest in folder.glob(f"*/{artifact.MANIFEST}")]
