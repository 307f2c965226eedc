"""Plant canaries around a sample of real requests, and walk the pipeline's own stages over them in a scratch folder."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from feature_repo.contract import (
    EVENT_TIME,
    EVENTS,
    ITEM_CLUSTER,
    ITEM_KEY,
    ITEM_PROFILE,
    ITEM_STATISTICS,
    USER_HISTORY,
    USER_STATISTICS,
    VIEWS,
    Feature,
    View,
)
from jobs.config import SequencesConfig
from jobs.features.offline import checked_rows, read_parquet
from jobs.stages import STAGES
from model import artifact
from model.artifact import Draft
from model.errors import CourierError

if TYPE_CHECKING:
    import duckdb

CANARY: Final = "courier-canary"
BORROWED: Final = ("sequences", "images", "embed", "cluster")  # what the workspace lends to the scratch road
CLICKS_A_DAY: Final = 6  # that two probes add to one user's day: the bot cap must not swallow them
PAGE_VIEWS: Final = 2_000  # a user of more is no sample
DUSK_PROBES: Final = 25
DAY_FRACTION: Final = 0.8  # of the page views lie before dusk
LATE: Final = 1_000_000  # every count in a row that is valid after its probe
EARLY: Final = 11  # ... and in one that is valid before it
MICRO: Final = "INTERVAL 1 MICROSECOND"


class CanaryTaken(CourierError):
    """The workspace's own data uses the canaries' ids; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """A road walked over planted events: where its artifacts lie, and the workspace of its own feature store."""

    workspace: Path
    sequences: Path
    features: Path
    rows: Path


# --- the sample and the plants --------------------------------------------------------------------------------------


def draw_sample(connection: "duckdb.DuckDBPyConnection", stages: Mapping[str, Path], users: int) -> None:
    """The tables `base` (accepted events of some users, whole), `dusk` (one midnight) and `probes`.

    A probe is a moment of a user: one page view of each user, and, of some users, dusk itself, where a page view is
    planted that repeats the user's latest.
    """
    for name in ("impressions", "clicks"):
        connection.execute(f"CREATE VIEW {name} AS FROM {read_parquet(stages['sequences'] / name)}")
    taken = (
        f"SELECT user_id FROM impressions WHERE starts_with(user_id, '{CANARY}') OR starts_with(item_id, '{CANARY}')"
    )
    if connection.execute(f"{taken} LIMIT 1").fetchall():
        raise CanaryTaken(
            f"{stages['sequences']} holds ids that begin with {CANARY}: check a workspace without canaries"
        )
    connection.execute(
        f"""
        CREATE TABLE sampled AS
        SELECT user_id FROM impressions GROUP BY user_id
        HAVING count(DISTINCT (request_id, request_time)) <= {PAGE_VIEWS} ORDER BY md5(user_id) LIMIT {users};
        CREATE TABLE base AS
        SELECT user_id, item_id, request_time AS event_time, 'impression' AS event_type, request_id, "position"
        FROM impressions SEMI JOIN sampled USING (user_id)
        UNION ALL SELECT user_id, item_id, event_time, 'click', request_id, NULL
        FROM clicks SEMI JOIN sampled USING (user_id);
        CREATE VIEW pages AS SELECT DISTINCT user_id, request_id, event_time AS moment FROM base
        WHERE event_type = 'impression';
        CREATE TABLE dusk AS
        SELECT CASE WHEN min(moment) < late THEN late ELSE date_trunc('day', max(moment)) + INTERVAL 1 DAY END AS moment
        FROM pages, (SELECT date_trunc('day', quantile_disc(moment, {DAY_FRACTION})) AS late FROM pages) GROUP BY late;
        CREATE TABLE probes AS
        WITH latest AS (
            SELECT user_id, max_by(request_id, (pages.moment, request_id)) AS repeated, max(pages.moment) AS repeated_at
            FROM pages, dusk WHERE pages.moment < dusk.moment GROUP BY user_id ORDER BY md5(user_id) LIMIT {DUSK_PROBES}
        )
        SELECT row_number() OVER (ORDER BY at_dusk, md5(user_id)) AS n, * FROM (
            SELECT user_id, request_id, moment, FALSE AS at_dusk, NULL AS repeated, NULL AS repeated_at FROM pages
            QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY md5(request_id), moment) = 1
            UNION ALL
            SELECT user_id, '{CANARY}-dusk-' || user_id, dusk.moment, TRUE, repeated, repeated_at FROM latest, dusk
        )
        """
    )


def plant(connection: "duckdb.DuckDBPyConnection") -> None:
    """The table `planted`: the canaries' events, each with the number of its probe."""
    day = "date_trunc('day', moment)"
    own, other, sleeper = "user_id", "'{c}-user-' || n", "'{c}-sleeper-' || n"
    # Of each: whose, which item, when, what, in which page view (none: one of its own), where on the page.
    plants = [
        (own, "at", "moment", "impression", "request_id", 9999),  # the page view shows one more item ...
        (own, "at", "moment", "click", "request_id", None),  # ... which is clicked in that very moment
        (own, "before", f"moment - {MICRO}", "click", None, None),
        (own, "after", f"moment + {MICRO}", "click", None, None),
        (other, "late", "moment", "impression", "'{c}-moment-' || n", 1),
        (other, "future", "moment + INTERVAL 1 DAY", "impression", None, 0),
    ]
    others = {"yesterday": f"{day} - {MICRO}", "morning": day, "moment": "moment", "later": f"moment + {MICRO}"}
    for name, when in others.items():
        plants.append((other, "at", when, "impression", f"'{{c}}-{name}-' || n", 0))
        if name != "moment":
            plants.append((other, "at", when, "click", f"'{{c}}-{name}-' || n", None))
    night, dawn = "'{c}-night-' || n", "'{c}-dawn-' || n"
    plants += [
        (sleeper, "eve", f"{day} - {MICRO}", "impression", night, 0),  # one page view, open over midnight ...
        (sleeper, "morn", day, "impression", night, 1),
        (sleeper, "morn", f"{day} + {MICRO}", "click", night, None),  # ... with a click of the next day,
        (sleeper, "eve", f"{day} + INTERVAL 1 DAY", "click", night, None),  # ... and one a day too late for a label
        (sleeper, "eve", day, "impression", dawn, 0),  # and what another one, at midnight, may know of all that
        (sleeper, "morn", day, "impression", dawn, 1),
    ]
    rows = [_planted(*one) for one in plants]
    connection.execute(
        f"""
        CREATE TABLE planted AS {" UNION ALL ".join(rows)}
        UNION ALL SELECT n, probes.user_id, item_id, moment, 'impression', probes.request_id, "position"
        FROM probes JOIN base ON base.user_id = probes.user_id AND base.request_id = repeated
            AND base.event_time = repeated_at AND event_type = 'impression'
        """
    )


def _planted(user: str, item: str, when: str, what: str, request: str | None, position: int | None) -> str:
    request = request or f"'{{c}}-{item}-' || n"
    return f"""
        SELECT n, {user} AS user_id, '{{c}}-{item}-' || n AS item_id, {when} AS event_time, '{what}' AS event_type,
            {request} AS request_id, {"NULL" if position is None else position}::INTEGER AS "position" FROM probes
    """.replace("{c}", CANARY)


# --- the road -------------------------------------------------------------------------------------------------------


def walk(
    connection: "duckdb.DuckDBPyConnection",
    stages: Mapping[str, Path],
    workspace: Path,
    config: SequencesConfig,
    *,
    cut: bool,
) -> Walked:
    """Walk sequences, features, materialize and rows over the sample and the plants, with the pipeline's own builds.

    cut: over what lies before dusk only, and the items known by then; else the features are filled in later, too.
    """
    raw = write_events(connection, workspace / "raw", cut=cut)
    offered: dict[str, Any] = {"raw": raw, "raw_digest": CANARY, "config": config, "workspace": workspace}
    offered["master"] = None
    offered |= lend_items(connection, stages, workspace, cut=cut)
    for name in ("sequences", "features"):
        offered[name] = _build(name, offered, workspace / name / CANARY)
    if not cut:
        offered["features"] = fill_in_later(connection, offered["features"], workspace / "features" / "filled-in-later")
    for name in ("materialize", "rows"):
        offered[name] = _build(name, offered, workspace / name / CANARY)
    return Walked(workspace=workspace, **{name: offered[name] for name in ("sequences", "features", "rows")})


def write_events(connection: "duckdb.DuckDBPyConnection", raw: Path, *, cut: bool) -> Path:
    """The sample and the plants as a raw folder, which is returned, and as the table `events`; cut: as in `walk`."""
    raw.mkdir(parents=True)
    before = "event_time < (SELECT moment FROM dusk)" if cut else "TRUE"
    columns = ", ".join(f'"{column.name}"' for column in EVENTS)
    query = f"SELECT {columns} FROM (FROM base UNION ALL BY NAME FROM planted) WHERE {before}"
    connection.execute(f"CREATE OR REPLACE TABLE events AS {query}")
    copy(connection, "FROM events", raw / "events.parquet")
    return raw


def _build(name: str, offered: Mapping[str, Any], out: Path) -> Path:
    [stage] = [stage for stage in STAGES if stage.name == name]
    module, _, function = stage.build.partition(":")
    getattr(import_module(module), function)(**{key: offered[key] for key in (*stage.sources, *stage.options)}, out=out)
    return out


def lend_items(
    connection: "duckdb.DuckDBPyConnection", stages: Mapping[str, Path], workspace: Path, *, cut: bool
) -> dict[str, Path]:
    """Images, embed and cluster artifacts of the events' items alone, and of the items that will be created."""
    out = {name: workspace / name / CANARY for name in ("images", "embed", "cluster")}
    connection.execute(
        f"""
        CREATE OR REPLACE TABLE catalogue AS
        FROM {read_parquet(stages["images"] / "items.parquet")} SEMI JOIN events USING (item_id)
        UNION ALL BY NAME
        SELECT '{CANARY}-future-' || n AS item_id, '{CANARY}' AS category, moment + INTERVAL 1 DAY AS created_at
        FROM probes WHERE NOT {cut}
        """
    )
    with _lent("images", stages, out) as draft:
        copy(connection, "FROM catalogue", draft.path / "items.parquet")
    for name in ("embed", "cluster"):
        lent = f"FROM {read_parquet(stages[name] / 'items.parquet')} SEMI JOIN catalogue USING (item_id)"
        connection.execute(f"CREATE OR REPLACE TABLE {name}_items AS SELECT * {lent} ORDER BY item_id")
    with _lent("cluster", stages, out) as draft:
        copy(connection, "FROM cluster_items", draft.path / "items.parquet")
    with _lent("embed", stages, out) as draft:  # a vector an item, though items may share a picture
        taken = connection.sql('SELECT "row" FROM embed_items ORDER BY item_id').to_arrow_table().column(0)
        vectors = np.load(stages["embed"] / "vectors.npy", mmap_mode="r")
        np.save(draft.path / "vectors.npy", vectors[taken.to_numpy()])
        renumbered = 'SELECT * REPLACE ((row_number() OVER (ORDER BY item_id) - 1)::INTEGER AS "row") FROM embed_items'
        copy(connection, renumbered, draft.path / "items.parquet")
    return out


@contextmanager
def _lent(name: str, stages: Mapping[str, Path], out: Mapping[str, Path]) -> Iterator[Draft[Path]]:
    facts = artifact.read(stages[name], kind=name).facts
    with artifact.write(out[name], kind=name, inputs={}, config={}) as draft:
        yield draft
        draft.facts = dict(facts)


def copy(connection: "duckdb.DuckDBPyConnection", query: str, path: Path) -> None:
    """Write what a query answers as a parquet file."""
    quoted = str(path).replace("'", "''")
    connection.execute(f"COPY ({query}) TO '{quoted}' (FORMAT parquet)")


# --- rows filled in later -------------------------------------------------------------------------------------------


def fill_in_later(connection: "duckdb.DuckDBPyConnection", features: Path, out: Path) -> Path:
    """The features artifact again, with rows that were created when everything was over: a back-fill.

    Of each probe, an item's row valid just before the moment, which must be seen, and an item's and a user's rows valid
    just after it, which must not.
    """
    built = artifact.read(features, kind="features")
    item, user = f"'{CANARY}-late-' || n", f"'{CANARY}-user-' || n"
    with artifact.write(out, kind="features", inputs=built.inputs, config=built.config) as draft:
        shutil.copytree(features, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(artifact.MANIFEST))
        for view in (ITEM_PROFILE, ITEM_STATISTICS, ITEM_CLUSTER, USER_HISTORY, USER_STATISTICS):
            space = str(built.facts["space_id"])
            rows = [_filled_in(view, item if ITEM_KEY in view.keys else user, space, f"moment + {MICRO}", LATE)]
            if ITEM_KEY in view.keys:
                rows.append(_filled_in(view, item, space, f"moment - {MICRO}", EARLY))
            # The newest knowledge lies first, in a file that sorts before the others: order must not matter.
            copy(connection, " UNION ALL ".join(rows), draft.path / view.name / "part-00000-filled-in-later.parquet")
        draft.facts = {**built.facts, "rows": {view.name: checked_rows(draft.path, view) for view in VIEWS}}
    return out


def _filled_in(view: View, entity: str, space_id: str, valid_from: str, mark: int) -> str:
    keys = [f"{entity if place == 0 else repr(space_id)} AS {key}" for place, key in enumerate(view.keys)]
    values = [f"{marked(feature, mark)} AS {feature.name}" for feature in view.features]
    return f"SELECT {', '.join((*keys, f'{valid_from} AS {EVENT_TIME}', *values))} FROM probes"


def marked(feature: Feature, mark: int) -> str:
    """SQL: the value of a feature that carries this mark."""
    text = f"'{CANARY}-{mark}'"
    return {
        "int": f"{mark}::BIGINT",
        "float": f"{mark}::DOUBLE",
        "str": text,
        "list[str]": f"[{text}]",
        "list[int]": f"[{mark}::BIGINT]",
    }[feature.kind]
