"""Read what ranking needs from the online store, as rows of the same form as the training rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contract import (
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
    """The online store of one workspace, as the ranker asks it. Lookups raise whatever the store's driver raises."""

    views: OnlineViews

    def ranking_rows(
        self, user_id: str, item_ids: Sequence[str], space_id: str, *, as_of: datetime, vectors: bool
    ) -> RankingRows:
        """The rows of these candidates for this user, from the newest features in the store.

        Two lookups: the user's and the candidates' features; and, where the user has clicked on other items, theirs.
        as_of: aware; the rows' request_time.  space_id: the space of clusters and vectors.
        """
        candidates = list(dict.fromkeys(item_ids))
        user, items, *facts = self._read(
            Asked(SERVICES["ranking_user"], {USER_KEY: [user_id]}),
            Asked(SERVICES["ranking_item"], {ITEM_KEY: candidates}),
            *_in_space(candidates, space_id, vectors=vectors),
        )
        clicked = user.column(HISTORY)[0].as_py() or []
        others = [item for item in dict.fromkeys(clicked) if item not in set(candidates)]
        profiles = items
        if others:
            more, *more_facts = self._read(
                Asked((ITEM_PROFILE,), {ITEM_KEY: others}), *_in_space(others, space_id, vectors=vectors)
            )
            profiles = pa.concat_tables([items.select([ITEM_KEY, "category"]), more.select([ITEM_KEY, "category"])])
            facts = [pa.concat_tables(both) for both in zip(facts, more_facts, strict=True)]
        user = with_history_facts(user, facts[0], profiles)
        known = _known(items, ITEM_FEATURES)
        place = pc.index_in(pa.array(item_ids, pa.string()), value_set=pa.array(candidates, pa.string()))
        return RankingRows(
            table=_rows(user, items.take(place), facts[0].take(place), as_of),
            known_user=_known(user, USER_FEATURES)[0],
            known_items=[known[number] for number in place.to_pylist()],
            vectors=_vectors(facts[1]) if vectors else None,
        )

    def _read(self, *asked: Asked) -> list[pa.Table]:
        return self.views.read(asked, as_of=datetime.now(UTC))


def _in_space(item_ids: Sequence[str], space_id: str, *, vectors: bool) -> list[Asked]:
    keys: Mapping[str, Sequence[str]] = {ITEM_KEY: item_ids, SPACE_KEY: [space_id] * len(item_ids)}
    return [Asked(SERVICES[name], keys) for name in ("item_cluster_ids", "item_embeddings")[: 1 + vectors]]


def _vectors(found: pa.Table) -> ItemVectors:
    held = found.drop_null()
    packed = b"".join(held.column(EMBEDDING).to_pylist())
    matrix = np.frombuffer(packed, dtype="<f4").reshape(-1, EMBEDDING_DIM)
    return ItemVectors(held.column(ITEM_KEY).combine_chunks(), matrix)


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
