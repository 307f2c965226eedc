"""Run the pipeline's own stages over the sample and its probes, in a scratch folder."""

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
from jobs.leakage.planted_probes import MICRO, PROBE_ID
from jobs.stages import STAGES
from model import artifact
from model.artifact import Draft

if TYPE_CHECKING:
    import duckdb

SOURCES: Final = ("sequences", "images", "embed", "cluster")  # the stages of the workspace that a run reads
LATE: Final = 1_000_000  # every count in a row that is valid after its probe
EARLY: Final = 11  # ... and in one that is valid before it


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRun:
    """Stages that were run over planted events: their artifacts, and the workspace of their own feature store."""

    workspace: Path
    sequences: Path
    features: Path
    rows: Path


def run_stages(
    connection: "duckdb.DuckDBPyConnection",
    stages: Mapping[str, Path],
    workspace: Path,
    config: SequencesConfig,
    *,
    cut: bool,
) -> ProbeRun:
    """Run sequences, features, materialize and rows over the sample and its probes, by the pipeline's own builds.

    cut: over what lies before the cutoff only, and the items known by then; else the features are back-filled, too.
    """
    raw = write_events(connection, workspace / "raw", cut=cut)
    offered: dict[str, Any] = {"ingest": raw, "raw": raw, "config": config, "workspace": workspace}
    offered |= {"engine": "duckdb", "master": None, "beam_args": ()}  # a few users: no cluster, and no Java
    offered |= restrict_items(connection, stages, workspace, cut=cut)
    for name in ("sequences", "features"):
        offered[name] = _build(name, offered, workspace / name / PROBE_ID)
    if not cut:
        offered["features"] = backfill(connection, offered["features"], workspace / "features" / "backfill")
    for name in ("materialize", "rows"):
        offered[name] = _build(name, offered, workspace / name / PROBE_ID)
    return ProbeRun(workspace=workspace, **{name: offered[name] for name in ("sequences", "features", "rows")})


def write_events(connection: "duckdb.DuckDBPyConnection", raw: Path, *, cut: bool) -> Path:
    """The sample and its probes as a raw folder, which is returned, and as the table `events`. cut: of run_stages."""
    raw.mkdir(parents=True)
    before = "event_time < (SELECT moment FROM cutoff)" if cut else "TRUE"
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


def restrict_items(
    connection: "duckdb.DuckDBPyConnection", stages: Mapping[str, Path], workspace: Path, *, cut: bool
) -> dict[str, Path]:
    """Images, embed and cluster artifacts of the events' items alone, and of the items that will be created."""
    out = {name: workspace / name / PROBE_ID for name in ("images", "embed", "cluster")}
    connection.execute(
        f"""
        CREATE OR REPLACE TABLE catalogue AS
        FROM {read_parquet(stages["images"] / "items.parquet")} SEMI JOIN events USING (item_id)
        UNION ALL BY NAME
        SELECT '{PROBE_ID}-future-' || n AS item_id, '{PROBE_ID}' AS category, moment + INTERVAL 1 DAY AS created_at
        FROM probes WHERE NOT {cut}
        """
    )
    with _restricted("images", stages, out) as draft:
        copy(connection, "FROM catalogue", draft.path / "items.parquet")
    for name in ("embed", "cluster"):
        restricted = f"FROM {read_parquet(stages[name] / 'items.parquet')} SEMI JOIN catalogue USING (item_id)"
        connection.execute(f"CREATE OR REPLACE TABLE {name}_items AS SELECT * {restricted} ORDER BY item_id")
    with _restricted("cluster", stages, out) as draft:
        copy(connection, "FROM cluster_items", draft.path / "items.parquet")
    with _restricted("embed", stages, out) as draft:  # a vector an item, though items may share a picture
        taken = connection.sql('SELECT "row" FROM embed_items ORDER BY item_id').to_arrow_table().column(0)
        vectors = np.load(stages["embed"] / "vectors.npy", mmap_mode="r")
        np.save(draft.path / "vectors.npy", vectors[taken.to_numpy()])
        renumbered = 'SELECT * REPLACE ((row_number() OVER (ORDER BY item_id) - 1)::INTEGER AS "row") FROM embed_items'
        copy(connection, renumbered, draft.path / "items.parquet")
    return out


@contextmanager
def _restricted(name: str, stages: Mapping[str, Path], out: Mapping[str, Path]) -> Iterator[Draft[Path]]:
    facts = artifact.read(stages[name], kind=name).facts
    with artifact.write(out[name], kind=name, inputs={}, config={}) as draft:
        yield draft
        draft.facts = dict(facts)


def copy(connection: "duckdb.DuckDBPyConnection", query: str, path: Path) -> None:
    """Write what a query answers as a parquet file."""
    quoted = str(path).replace("'", "''")
    connection.execute(f"COPY ({query}) TO '{quoted}' (FORMAT parquet)")


# --- back-filled rows -----------------------------------------------------------------------------------------------


def backfill(connection: "duckdb.DuckDBPyConnection", features: Path, out: Path) -> Path:
    """The features artifact again, with rows that were created when everything was over: a back-fill.

    Of each probe, an item's row valid just before the moment, which must be seen, and an item's and a user's rows valid
    just after it, which must not.
    """
    built = artifact.read(features, kind="features")
    item, user = f"'{PROBE_ID}-late-' || n", f"'{PROBE_ID}-user-' || n"
    with artifact.write(out, kind="features", inputs=built.inputs, config=built.config) as draft:
        shutil.copytree(features, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(artifact.MANIFEST))
        for view in (ITEM_PROFILE, ITEM_STATISTICS, ITEM_CLUSTER, USER_HISTORY, USER_STATISTICS):
            codebook = str(built.facts["codebook_id"])
            rows = [_backfilled(view, item if ITEM_KEY in view.keys else user, codebook, f"moment + {MICRO}", LATE)]
            if ITEM_KEY in view.keys:
                rows.append(_backfilled(view, item, codebook, f"moment - {MICRO}", EARLY))
            # The newest knowledge lies first, in a file that sorts before the others: order must not matter.
            copy(connection, " UNION ALL ".join(rows), draft.path / view.name / "part-00000-backfill.parquet")
        draft.facts = {**built.facts, "rows": {view.name: checked_rows(draft.path, view) for view in VIEWS}}
    return out


def _backfilled(view: View, entity: str, codebook_id: str, valid_from: str, mark: int) -> str:
    keys = [f"{entity if place == 0 else repr(codebook_id)} AS {key}" for place, key in enumerate(view.keys)]
    values = [f"{marked(feature, mark)} AS {feature.name}" for feature in view.features]
    return f"SELECT {', '.join((*keys, f'{valid_from} AS {EVENT_TIME}', *values))} FROM probes"


def marked(feature: Feature, mark: int) -> str:
    """SQL: the value of a feature that carries this mark."""
    text = f"'{PROBE_ID}-{mark}'"
    return {
        "int": f"{mark}::BIGINT",
        "float": f"{mark}::DOUBLE",
        "str": text,
        "list[str]": f"[{text}]",
        "list[int]": f"[{mark}::BIGINT]",
    }[feature.kind]
