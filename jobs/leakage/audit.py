"""Hold a workspace's artifacts, whole tables, against what was known at each moment: recounted in SQL.

Nothing here calls the code that made the artifacts, and all is compared exactly. Histories are gathered anew from the
clicks, statistics counted anew from impressions and clicks, profiles joined anew as of the request.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feature_repo.contract import PERIODS, VIEWS
from jobs.config import SequencesConfig
from jobs.features.offline import connect, read_parquet
from jobs.leakage.check import Check, CheckResult, run_check
from jobs.leakage.event_checks import conversion_checks, label_checks, period_checks, rejected_checks
from jobs.leakage.history_checks import gather_histories, history_checks
from jobs.leakage.item_checks import codebook_check, item_checks, trained_until_check
from jobs.leakage.statistics_checks import statistics_checks
from jobs.raw.profile_history import remembered
from model import artifact

if TYPE_CHECKING:
    import duckdb

AUDITED: Final = ("sequences", "images", "pretrain", "embed", "codebook", "cluster", "features", "rows")
TRAINED: Final = ("pretrain", "codebook")  # a release pins them: they may be of fewer days than the other stages
# The tables of sequences that no other stage reads.
ASIDE: Final = {
    "conversions": "user_id TEXT, item_id TEXT, event_time TIMESTAMPTZ, event_type TEXT, request_id TEXT",
    "rejected": '"table" TEXT, "row" TEXT, reason TEXT',
}


def audit(stages: Mapping[str, Path], workspace: Path | None = None) -> Iterator[CheckResult]:
    """Every check of the artifacts, one result each. stages: the folder of each stage in AUDITED.

    workspace: whose ingests remember what they saw of items; without one nothing is known to have been seen.
    Raises ArtifactMissing or ArtifactMismatch where a folder does not hold its stage.
    """
    manifests = {name: artifact.read(stages[name], kind=name) for name in AUDITED}
    config = SequencesConfig(**manifests["sequences"].config)
    splits = {name: str(at) for name, at in manifests["sequences"].facts["splits"].items()}
    with closing(connect()) as connection:
        open_tables(connection, stages)
        connection.execute(f"CREATE VIEW item_states AS {remembered(workspace)}")
        gather_histories(connection, max(config.ctr_history, config.pretrain_history))
        checks = (
            *period_checks(splits),
            *label_checks(),
            *conversion_checks(),
            *rejected_checks(manifests["sequences"].facts.get("events_rejected", {})),
            *history_checks(config),
            *statistics_checks(),
            *item_checks(str(manifests["features"].facts["codebook_id"]), str(manifests["features"].facts["as_of"])),
            *(trained_until_check(name, str(manifests[name].facts["trained_until"]), splits) for name in TRAINED),
            *_of_these_vectors(manifests["codebook"], artifact.identity(manifests["embed"])),
        )
        for check in checks:
            yield run_check(connection, check)


def _of_these_vectors(codebook: artifact.Manifest, embed: str) -> Iterator[Check]:
    """The check of what a codebook was fitted on; none of one that a release pins, which knows other items."""
    if codebook.inputs.get("embed", embed) == embed:
        yield codebook_check(int(codebook.facts["fitted_on"]), str(codebook.facts["trained_until"]))


def open_tables(connection: "duckdb.DuckDBPyConnection", stages: Mapping[str, Path]) -> None:
    """A view of each table: of sequences, of features (under the contract's names), `items`, `embedded`, and `rows`."""
    sources = {name: stages["sequences"] / name for name in ("impressions", "clicks", "page_views")}
    for name, columns in ASIDE.items():
        if any((stages["sequences"] / name).glob("*.parquet")):
            sources[name] = stages["sequences"] / name
        else:  # of a table without rows there is no file
            connection.execute(f"CREATE TABLE {name} ({columns})")
    sources |= {view.name: stages["features"] / view.name for view in VIEWS}
    sources |= {"items": stages["images"] / "items.parquet", "embedded": stages["embed"] / "items.parquet"}
    sources = {name: path for name, path in sources.items() if path.exists()}
    for name, path in sources.items():
        connection.execute(f"CREATE VIEW {name} AS FROM {read_parquet(path)}")
    connection.execute(f"CREATE VIEW rows AS {read_rows(stages['rows'])}")


def read_rows(folder: Path) -> str:
    """SQL: the rows of a rows artifact, each with the `period` whose file it stands in."""
    parts = (f"SELECT *, '{name}' AS period FROM {read_parquet(folder / f'{name}.parquet')}" for name in PERIODS)
    return " UNION ALL ".join(parts)
