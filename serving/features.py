"""Read what ranking needs from Feast's online store, as rows of the same form as the training rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contract import EMBEDDING_DIM, ITEM_KEY, ITEM_PROFILE, SPACE_KEY, USER_KEY, Feature
from feature_repo.definitions import open_store
from model.ctr.inputs.item_vectors import ItemVectors
from model.ctr.inputs.rows import (
    CLUSTER_FEATURES,
    HISTORY,
    ITEM_FEATURES,
    KIND_TYPES,
    ROW_COLUMNS,
    USER_FEATURES,
    features_of,
    fill,
    with_history_facts,
)

EMBEDDING: Final = features_of("item_embeddings")
CATEGORY: Final = tuple(feature for feature in ITEM_PROFILE.features if feature.name == "category")


@dataclass(frozen=True, slots=True)
class RankingRows:
    """One user's candidates as model input.

    table: one row per candidate, in the order asked for: user_id, item_id, request_time and every feature column of
    model.ctr.inputs.rows.  known_user, known_items: whether the store holds anything about them; what it does not hold
    has the defaults of model.ctr.inputs.rows.  vectors: of the candidates and the clicked items, if asked for.
    """

    table: pa.Table
    known_user: bool
    known_items: list[bool]
    vectors: ItemVectors | None


class FeastFeatures:
    """The online store of one workspace. Lookups raise whatever the store or its driver raises."""

    def __init__(self, workspace: Path) -> None:
        self._store = open_store(workspace)

    def ranking_rows(
        self, user_id: str, item_ids: Sequence[str], space_id: str, *, as_of: datetime, vectors: bool
    ) -> RankingRows:
        """The rows of these candidates for this user, from the newest features in the store.

        as_of: aware; the rows' request_time.  space_id: the space of clusters and vectors.
        """
        user = self._service("ranking_user", USER_FEATURES, {USER_KEY: [user_id]})
        items = self._service("ranking_item", ITEM_FEATURES, {ITEM_KEY: item_ids})
        clicked = list(dict.fromkeys(user.column(HISTORY)[0].as_py() or []))
        met = list(dict.fromkeys([*item_ids, *clicked]))
        in_space = {ITEM_KEY: met, SPACE_KEY: [space_id] * len(met)}
        clusters = self._service("item_cluster_ids", CLUSTER_FEATURES, in_space)
        user = with_history_facts(user, clusters, self._categories(clicked))
        return RankingRows(
            table=_rows(user, items, clusters, as_of),
            known_user=_known(user, USER_FEATURES)[0],
            known_items=_known(items, ITEM_FEATURES),
            vectors=self._vectors(in_space) if vectors else None,
        )

    def _categories(self, item_ids: Sequence[str]) -> pa.Table:
        refs = [f"{ITEM_PROFILE.name}:{feature.name}" for feature in CATEGORY]
        return self._look_up(refs, CATEGORY, {ITEM_KEY: item_ids})

    def _vectors(self, in_space: Mapping[str, Sequence[str]]) -> ItemVectors:
        found = self._service("item_embeddings", EMBEDDING, in_space).drop_null()
        packed = b"".join(found.column(EMBEDDING[0].name).to_pylist())
        matrix = np.frombuffer(packed, dtype="<f4").reshape(-1, EMBEDDING_DIM)
        return ItemVectors(found.column(ITEM_KEY).to_pylist(), matrix)

    def _service(self, name: str, features: Sequence[Feature], keys: Mapping[str, Sequence[str]]) -> pa.Table:
        return self._look_up(self._store.get_feature_service(name, allow_cache=True), features, keys)

    def _look_up(self, asked: Any, features: Sequence[Feature], keys: Mapping[str, Sequence[str]]) -> pa.Table:
        # A row per key, in their order, keys and features; null where the store holds nothing.
        columns: dict[str, Any] = {key: pa.array(values, pa.string()) for key, values in keys.items()}
        rows = len(next(iter(keys.values())))
        found: dict[str, list[Any]] = {feature.name: [] for feature in features}
        if rows:  # Feast cannot look up nothing
            found = self._store.get_online_features(
                asked, {key: list(values) for key, values in keys.items()}
            ).to_dict()
        columns |= {feature.name: pa.array(found[feature.name], KIND_TYPES[feature.kind]) for feature in features}
        return pa.table(columns)


def _rows(user: pa.Table, items: pa.Table, clusters: pa.Table, as_of: datetime) -> pa.Table:
    # user: one row; items: the candidates; clusters: of the candidates and others.
    candidates = items.column(ITEM_KEY).combine_chunks()
    place = pc.index_in(candidates, value_set=clusters.column(ITEM_KEY).combine_chunks())
    repeated = user.take(pa.array([0] * len(items), pa.int64()))
    columns = {name: repeated.column(name) for name in user.column_names}
    columns |= {name: items.column(name) for name in items.column_names}
    columns |= {feature.name: clusters.column(feature.name).take(place) for feature in CLUSTER_FEATURES}
    columns["request_time"] = pa.array([as_of] * len(items), ROW_COLUMNS["request_time"])
    return fill(pa.table(columns))


def _known(table: pa.Table, features: Sequence[Feature]) -> list[bool]:
    """Whether the store holds any of the features: for each row."""
    held = [table.column(feature.name).is_valid().to_pylist() for feature in features]
    return [any(row) for row in zip(*held, strict=True)]
