"""Read what ranking needs from the online store, as rows of the same form as the training rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contract import (
    CODEBOOK_KEY,
    EMBEDDING_DIM,
    ITEM_EMBEDDING,
    ITEM_KEY,
    ITEM_PROFILE,
    SERVICES,
    SPACE_KEY,
    USER_KEY,
    Feature,
)
from feature_repo.online_views import Asked, OnlineViews
from model.ctr.inputs.item_vectors import ItemVectors
from model.ctr.inputs.rows import (
    CLUSTER_FEATURES,
    HISTORY,
    ITEM_FEATURES,
    ROW_COLUMNS,
    USER_FEATURES,
    fill,
    with_history_facts,
)
from model.released_items import ReleasedItems

EMBEDDING: Final = ITEM_EMBEDDING.features[0].name


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


@dataclass(frozen=True, slots=True)
class RankingFeatures:
    """The features of one workspace, as the ranker asks for them. Lookups raise whatever the store's driver raises.

    released: clusters and vectors that a release fixes; the store is asked for those of other items and spaces.
    """

    views: OnlineViews
    released: ReleasedItems | None = None

    def ranking_rows(
        self, user_id: str, item_ids: Sequence[str], space_id: str, codebook_id: str, *, as_of: datetime, vectors: bool
    ) -> RankingRows:
        """The rows of these candidates for this user, from the newest features in the store.

        Two lookups: the user's and the candidates' features; and, where the user has clicked on other items, theirs.
        as_of: aware; the rows' request_time.  space_id: of the vectors.  codebook_id: of the cluster IDs.
        """
        candidates = list(dict.fromkeys(item_ids))
        of_these = self.released and (self.released.space_id, self.released.codebook_id) == (space_id, codebook_id)
        released = self.released if of_these else None
        of_candidates = _SpaceLookup(candidates, space_id, codebook_id, released, vectors=vectors)
        user, items, *found = self._read(
            Asked(SERVICES["ranking_user"], {USER_KEY: [user_id]}),
            Asked(SERVICES["ranking_item"], {ITEM_KEY: candidates}),
            *of_candidates.asked(),
        )
        facts = [of_candidates.facts(found)]
        profiles = items.select([ITEM_KEY, "category"])
        clicked, among = user.column(HISTORY)[0].as_py() or [], set(candidates)
        others = [item for item in dict.fromkeys(clicked) if item not in among]
        if others:
            of_others = _SpaceLookup(others, space_id, codebook_id, released, vectors=vectors)
            more, *found = self._read(Asked((ITEM_PROFILE,), {ITEM_KEY: others}), *of_others.asked())
            facts.append(of_others.facts(found))
            profiles = pa.concat_tables([profiles, more.select([ITEM_KEY, "category"])])
        clusters = pa.concat_tables([one.clusters for one in facts])
        user = with_history_facts(user, clusters, profiles)
        known = _known(items, ITEM_FEATURES)
        place = pc.index_in(pa.array(item_ids, pa.string()), value_set=pa.array(candidates, pa.string()))
        return RankingRows(
            table=_rows(user, items.take(place), clusters.take(place), as_of),
            known_user=_known(user, USER_FEATURES)[0],
            known_items=[known[number] for number in place.to_pylist()],
            vectors=_vectors(facts) if vectors else None,
        )

    def _read(self, *asked: Asked) -> list[pa.Table]:
        return self.views.read(asked, as_of=datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What holds of items in a space and a codebook. clusters: item_id, cluster_id, in their order.

    with_vector: ids of `matrix`.
    """

    clusters: pa.Table
    with_vector: list[pa.Array]
    matrix: list[npt.NDArray[np.float32]]


class _SpaceLookup:
    """Clusters and vectors of items: the release's own, and of what it does not hold the store's."""

    def __init__(
        self, item_ids: list[str], space_id: str, codebook_id: str, released: ReleasedItems | None, *, vectors: bool
    ) -> None:
        self._ids, self._space_id, self._vectors = pa.array(item_ids, pa.string()), space_id, vectors
        self._codebook_id = codebook_id
        self._released = released
        self._places = released.find(item_ids) if released else np.full(len(item_ids), -1, np.int64)

    def asked(self) -> list[Asked]:
        """What is asked of the store."""
        item_ids = self._ids.filter(pa.array(self._places < 0)).to_pylist()
        of = {"item_cluster_ids": (CODEBOOK_KEY, self._codebook_id), "item_embeddings": (SPACE_KEY, self._space_id)}
        asked = [
            Asked(SERVICES[name], {ITEM_KEY: item_ids, key: [version] * len(item_ids)})
            for name, (key, version) in of.items()
        ]
        return asked[: 1 + self._vectors] if item_ids else []

    def facts(self, found: Sequence[pa.Table]) -> _Facts:
        """The facts of all the items.  found: what the store answered."""
        here = self._places >= 0
        values, valid = np.zeros(len(here), np.int64), here.copy()
        with_vector, matrix = [], []
        if self._released:
            values[here] = self._released.cluster_ids(self._places[here])
            if self._vectors:
                with_vector.append(self._ids.filter(pa.array(here)))
                matrix.append(self._released.vectors(self._places[here]))
        if found:
            stored = found[0].column(CLUSTER_FEATURES[0].name)
            values[~here], valid[~here] = stored.fill_null(-1).to_numpy(), stored.is_valid().to_numpy()
        if found and self._vectors:
            held = found[1].drop_null()
            with_vector.append(held.column(ITEM_KEY).combine_chunks())
            packed = b"".join(held.column(EMBEDDING).to_pylist())
            matrix.append(np.frombuffer(packed, dtype="<f4").reshape(-1, EMBEDDING_DIM))
        clusters = {ITEM_KEY: self._ids, CLUSTER_FEATURES[0].name: pa.array(values, mask=~valid)}
        return _Facts(pa.table(clusters), with_vector, matrix)


def _vectors(facts: Sequence[_Facts]) -> ItemVectors:
    ids = [some for one in facts for some in one.with_vector]
    matrix = [some for one in facts for some in one.matrix]
    if not ids:
        return ItemVectors([], np.zeros((0, EMBEDDING_DIM), np.float32))
    return ItemVectors(pa.concat_arrays(ids), np.concatenate(matrix))


def _rows(user: pa.Table, items: pa.Table, clusters: pa.Table, as_of: datetime) -> pa.Table:
    # user: one row; items, clusters: the candidates.
    repeated = user.take(pa.array(np.zeros(len(items), np.int64)))
    columns = {name: repeated.column(name) for name in user.column_names}
    columns |= {name: items.column(name) for name in items.column_names}
    columns |= {feature.name: clusters.column(feature.name) for feature in CLUSTER_FEATURES}
    columns["request_time"] = pa.repeat(pa.scalar(as_of, ROW_COLUMNS["request_time"]), len(items))
    return fill(pa.table(columns))


def _known(table: pa.Table, features: Sequence[Feature]) -> list[bool]:
    """Whether the store holds any of the features: for each row."""
    held: pa.ChunkedArray = reduce(pc.or_, (table.column(feature.name).is_valid() for feature in features))
    return list(held.to_pylist())
