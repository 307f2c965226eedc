"""Cluster IDs: of which codebook clusters the target is, and which of the clicks are of the same."""

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contract import ITEM_KEY, MAX_CODEBOOKS
from model.cluster_id import unpacked
from model.ctr.inputs.columns import Ints, flat_list, whole
from model.ctr.inputs.encoded import RECENT, Encoded, matches
from model.ctr.inputs.image_input import Codes, ImageInput, ImageNumbers, TrainingRows
from model.ctr.inputs.item_vectors import ItemVectors
from model.ctr.inputs.rows import HISTORY, HISTORY_CLUSTERS, along_history
from model.ctr.inputs.state import UNKNOWN, Learned

COLUMN: Final = "cluster_id"  # of a row
CLUSTER_FEATURES: Final = (*(f"cluster_matches_{last}" for last in RECENT), "cluster_share", "cluster_recency_rank")


def codebook_sizes(training: TrainingRows) -> Learned:
    """sizes: one more than the largest code of each codebook; of the first, and of others that have any code but 0."""
    columns = (training.table.column(COLUMN), flat_list(training.table.column(HISTORY_CLUSTERS)))
    seen = whole(pa.concat_arrays([pc.unique(column).cast(pa.int64()) for column in columns]))
    found = [1 + int(unpacked(seen, place).max(initial=-1)) for place in range(MAX_CODEBOOKS)]
    while len(found) > 1 and found[-1] <= 1:
        found.pop()
    return {"sizes": np.array(found, np.int32)}


def sizes(learned: Learned) -> tuple[int, ...]:
    """How many clusters each codebook has, as far as the training rows show."""
    return tuple(learned["sizes"].tolist())


def numbers(rows: Encoded, learned: Learned, _: ItemVectors | None) -> ImageNumbers:
    """For each codebook, matches as for categories, and how many clicks ago the newest match was."""
    places = range(len(learned["sizes"]))
    names = tuple(name for place in places for name in cluster_names(place))
    return ImageNumbers(names, [column for place in places for column in _cluster_columns(rows, place)])


def cluster_names(codebook: int) -> tuple[str, ...]:
    """The names of the match columns of a codebook, 0 being the first, whose names carry no number."""
    prefix = f"codebook_{codebook}_" if codebook else ""
    return tuple(prefix + name for name in CLUSTER_FEATURES)


def cluster_codes(cluster: Ints, learned: Learned) -> list[Ints]:
    """For each codebook the codes 1..size of cluster IDs (any shape); 0 for -1 and for one not seen in training."""
    codes = [unpacked(cluster, place) for place in range(len(learned["sizes"]))]
    return [
        np.where((code >= 0) & (code < size), code + 1, UNKNOWN).astype(np.int32)
        for code, size in zip(codes, sizes(learned), strict=True)
    ]


def with_cluster_ids(rows: pa.Table, clusters: pa.Table) -> pa.Table:
    """The rows with other cluster IDs, the target's and the history's; -1 for an item without one.

    clusters: item_id, cluster_id; each item once.
    """
    item_ids = clusters.column(ITEM_KEY).cast(pa.string())
    codes = clusters.column(COLUMN).cast(pa.int32())
    found = pc.index_in(rows.column(ITEM_KEY), value_set=item_ids.combine_chunks())
    target = codes.take(found).fill_null(pa.scalar(-1, pa.int32()))
    history = along_history(rows.column(HISTORY).combine_chunks(), item_ids, codes, default=-1)
    replaced = {COLUMN: target, HISTORY_CLUSTERS: history}
    return pa.table({name: replaced.get(name, rows.column(name)) for name in rows.column_names})


def _cluster_columns(rows: Encoded, codebook: int) -> list[NDArray[Any]]:
    """Matches as for categories, and how many clicks ago the newest match was; NaN if there is none, or no cluster."""
    same = unpacked(rows.history_cluster, codebook) == unpacked(rows.cluster, codebook)[:, None]
    same &= (rows.cluster >= 0)[:, None] & rows.filled
    rank = np.where(same.any(axis=1), same.argmax(axis=1), np.nan)
    columns = [*matches(same, rows.length), rank]
    return [np.where(rows.cluster >= 0, column, np.nan) for column in columns]


CLUSTER_ID: Final = ImageInput(
    name="cluster_id",
    title="cluster ID",
    row_columns=(COLUMN, HISTORY_CLUSTERS),
    learn=codebook_sizes,
    numbers=numbers,
    codes=Codes(
        names=tuple(f"cluster_{place}" if place else "cluster" for place in range(MAX_CODEBOOKS)),
        sizes=sizes,
        of_targets=lambda rows, which, learned: cluster_codes(rows.cluster[which], learned),
        of_clicks=lambda rows, which, learned: cluster_codes(rows.history_cluster[which], learned),
    ),
)
