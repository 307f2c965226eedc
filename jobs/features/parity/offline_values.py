"""What the offline tables say of logged requests as of their moments: by the joins that training rows are made by."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_repo.contract import CODEBOOK_KEY, EVENT_TIME, ITEM_KEY, ITEM_PROFILE, USER_KEY
from jobs.features.training_rows import categories_in, clusters_in, features_as_of
from model import artifact
from model.artifact import ArtifactMissing
from model.ctr.inputs.request_log import CANDIDATE_FEATURES, REQUEST_FEATURES
from model.ctr.inputs.rows import filled, with_history_facts

if TYPE_CHECKING:
    from feast import FeatureStore


@dataclass(frozen=True, slots=True)
class OfflineValues:
    """A workspace's feature store, and the features artifact that its sources lead to."""

    store: "FeatureStore"
    features: Path
    space_id: str
    codebook_id: str
    clusters: pa.Table
    categories: pa.Table

    def of_requests(self, requests: pa.Table) -> pa.Table:
        """REQUEST_FEATURES of each request, in their order. requests: user_id, request_time."""
        asked = pa.table({USER_KEY: requests.column(USER_KEY), EVENT_TIME: requests.column("request_time")})
        joined = features_as_of(self.store, asked.to_pandas(), ("ranking_user",)).to_arrow()
        joined = joined.append_column("request_time", joined.column(EVENT_TIME))
        return _filled(with_history_facts(joined, self.clusters, self.categories), REQUEST_FEATURES)

    def of_candidates(self, requests: pa.Table, candidates: pa.Table) -> pa.Table:
        """CANDIDATE_FEATURES of each candidate, in their order. candidates: item_id, and `request`, its place there."""
        moments = requests.column("request_time").take(candidates.column("request"))
        codebooks = pa.array([self.codebook_id] * candidates.num_rows, pa.string())
        asked = pa.table({ITEM_KEY: candidates.column(ITEM_KEY), CODEBOOK_KEY: codebooks, EVENT_TIME: moments})
        services = ("ranking_item", "item_cluster_ids")
        return _filled(features_as_of(self.store, asked.to_pandas(), services).to_arrow(), CANDIDATE_FEATURES)

    def ttl(self, view: str) -> timedelta:
        """A view's ttl, as the registry has it; zero where there is none."""
        return self.store.get_feature_view(view).ttl or timedelta(0)


def open_offline(workspace: Path) -> OfflineValues:
    """The offline tables that the workspace's feature store reads. Raises ArtifactMissing, ArtifactMismatch."""
    from feature_repo.definitions import open_store, source_path  # Feast's import costs seconds

    if not source_path(workspace, ITEM_PROFILE).is_dir():
        raise ArtifactMissing(f"{workspace} has no loaded feature store: run `courier materialize`")
    store = open_store(workspace)
    features = Path(store.get_feature_view(ITEM_PROFILE.name).batch_source.path).parent.resolve()
    facts = artifact.read(features, kind="features").facts
    space_id, codebook_id = str(facts["space_id"]), str(facts["codebook_id"])
    clusters = clusters_in(features, codebook_id)
    return OfflineValues(store, features, space_id, codebook_id, clusters, categories_in(features))


def _filled(joined: pa.Table, names: tuple[str, ...]) -> pa.Table:
    return pa.table({name: filled(joined.column(name), name) for name in names})
