"""THE row -> model input: how one row of the CTR table becomes numbers, in training and in serving alike.

What a model sees of a row is said here and nowhere else. The fitted state (vocabularies, priors, medians, principal
components) comes from training rows only, see model.ctr.inputs.fit. Nothing here but `labels` reads the label.

Position: training reads it as it was observed, so that the model can tell "shown at the top" from "attractive". A
prediction, in evaluation and in serving, puts every row at position 0 ("as if shown at the top", see
`ModelInput.at_top`), because nobody knows the position at ranking time.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.contract import CTR_HISTORY, EMBEDDING_DIM, ITEM_KEY, WINDOWS_DAYS
from model.artifact import ArtifactMismatch
from model.cluster_id import unpacked
from model.ctr.inputs.columns import (
    Bools,
    Ints,
    Places,
    dictionary,
    flat_list,
    lengths_of,
    lookup,
    microseconds,
    numbers,
    parallel,
    position_of,
    strings,
    whole,
)
from model.ctr.inputs.rows import HISTORY, HISTORY_CATEGORIES, HISTORY_CLUSTERS
from model.errors import CourierError

Floats = NDArray[np.float32]

UNKNOWN: Final = 0  # the code of an ID or category that training did not see often enough
RECENT: Final = (5, 10, CTR_HISTORY)
HISTOGRAM_BINS: Final = 10
TOP: Final = 3
CHUNK_ROWS: Final = 1024  # (1024, 50, 256) float32 is 52 MB: the most that is ever gathered of the vectors
MICROSECONDS_A_DAY: Final = 86_400e6
FORMAT: Final = 3

STATISTICS: Final = tuple(f"{who}_{{}}_{days}d" for who in ("item", "user") for days in WINDOWS_DAYS)
BASE_FEATURES: Final = (
    *(name.format("ctr") for name in STATISTICS),
    *(f"log_{name.format(what)}" for name in STATISTICS for what in ("impressions", "clicks")),
    "log_price",
    "log_price_to_category_median",
    "log_item_age_days",
    "history_length",
    "log_days_since_click",
    *(f"category_matches_{last}" for last in RECENT),
    "category_share",
    "clicked_before",
)
CLUSTER_FEATURES: Final = (*(f"cluster_matches_{last}" for last in RECENT), "cluster_share", "cluster_recency_rank")
SIMILARITY_FEATURES: Final = (
    "similarity_mean",
    "similarity_max",
    f"similarity_top_{TOP}_mean",
    *(f"similarity_newest_{last}_mean" for last in RECENT[:-1]),
    *(f"similarity_bin_{i}" for i in range(HISTOGRAM_BINS)),
)
IMAGE_FEATURES: Final = {
    "none": (),
    "vector": (),
    "simscore": SIMILARITY_FEATURES,
    "cluster_id": CLUSTER_FEATURES,
}


def needs_vectors(images: str) -> bool:
    """Whether a model with these image inputs must be given ItemVectors to predict."""
    return images in ("vector", "simscore")


class ItemVectors:
    """The image vectors of items: which row of one shared matrix belongs to which item."""

    def __init__(self, item_ids: Sequence[str] | pa.Array, matrix: Floats, rows: Ints | None = None) -> None:
        """item_ids: (I,), distinct; matrix: (M, 256) float32 unit rows; rows: (I,) row of each item, else 0, 1, 2 ...

        Raises ValueError where the shapes do not fit.
        """
        rows = np.arange(len(item_ids), dtype=np.int32) if rows is None else np.asarray(rows, dtype=np.int32)
        if matrix.ndim != 2 or matrix.shape[1] != EMBEDDING_DIM or len(rows) != len(item_ids):
            raise ValueError(
                f"{len(item_ids)} items, {len(rows)} rows, vectors {matrix.shape}: an item needs one of {EMBEDDING_DIM}"
            )
        self.item_ids = pa.array(item_ids, type=pa.string())
        self.matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        self._rows = np.append(rows, -1).astype(np.int32)  # the last answers "not found", whose index is -1

    @classmethod
    def load(cls, embed: Path) -> "ItemVectors":
        """From a finished embed artifact: vectors.npy and items.parquet (item_id, row)."""
        items = pq.read_table(embed / "items.parquet", columns=[ITEM_KEY, "row"])
        item_ids = items.column(ITEM_KEY).combine_chunks()
        return cls(item_ids, np.load(embed / "vectors.npy"), items.column("row").to_numpy())

    def rows_of(self, item_ids: pa.Array) -> Ints:
        """The matrix row of each item: (n,) int32, -1 where the item has no vector."""
        found = pc.index_in(item_ids, value_set=self.item_ids).fill_null(-1)
        rows: Ints = self._rows[found.to_numpy(zero_copy_only=False)]
        return rows


# --- the fitted state -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsState:
    """What the inputs learned from the training rows.

    items, categories: vocabularies; code 0 is unknown, code i + 1 is entry i.  clusters: each codebook's size as seen.
    median_price: (categories + 1,) float32, entry 0 for an unknown category.
    bin_edges: (HISTOGRAM_BINS - 1,) cosines that cut the training similarities into equal parts.
    mean (256,), components (K, 256): principal axes of the vectors of the training items.
    """

    items: tuple[str, ...]
    categories: tuple[str, ...]
    clusters: tuple[int, ...]
    median_price: Floats
    bin_edges: Floats
    mean: Floats
    components: Floats

    def save(self, folder: Path) -> None:
        """Write inputs.json and inputs.npz into `folder`."""
        text = {
            "format": FORMAT,
            "items": self.items,
            "categories": self.categories,
            "clusters": self.clusters,
        }
        (folder / "inputs.json").write_text(json.dumps(text, indent=1))
        arrays = {name: getattr(self, name) for name in ("median_price", "bin_edges", "mean", "components")}
        np.savez(folder / "inputs.npz", **arrays)

    @classmethod
    def load(cls, folder: Path) -> "InputsState":
        """Read what `save` wrote. Raises ArtifactMismatch if it is of another format."""
        text: dict[str, Any] = json.loads((folder / "inputs.json").read_text())
        if text.pop("format") != FORMAT:
            raise ArtifactMismatch(f"{folder / 'inputs.json'} is of another format: train the CTR models again")
        with np.load(folder / "inputs.npz", allow_pickle=False) as arrays:
            text |= {name: arrays[name] for name in arrays.files}
        return cls(**text | {name: tuple(text[name]) for name in ("items", "categories", "clusters")})


# --- encoding -------------------------------------------------------------------------------------------------------


def labels(table: pa.Table) -> Floats:
    """Whether each row was clicked: (B,) float32 of 0/1."""
    clicked: Floats = table.column("clicked").to_numpy().astype(np.float32)
    return clicked


@dataclass(frozen=True)
class Encoded:
    """Rows as arrays, before any image input is chosen; H = 50 places of history, newest first.

    item, category: (B,) int32 codes, 0 unknown.  cluster: (B,) int32 ID, -1 unknown.  position: (B,) int32, 0 the top.
    base: (B, len(BASE_FEATURES)) float32, NaN where unknown.  length: (B,) clicks in the history.
    history_item, history_category: (B, H) codes.  history_cluster: (B, H), -1 unknown.
    history_age: (B, H) float32, log(1 + days since the click).  Places at and after `length` hold 0 (clusters: -1).
    target_row, history_row: (B,), (B, H) rows of the vectors' matrix, -1 without a vector.
    """

    item: Ints
    category: Ints
    cluster: Ints
    position: Ints
    base: Floats
    length: Ints
    history_item: Ints
    history_category: Ints
    history_cluster: Ints
    history_age: Floats
    target_row: Ints
    history_row: Ints

    def __len__(self) -> int:
        return len(self.item)

    @cached_property
    def filled(self) -> Bools:
        """(B, H): which places hold a click."""
        places: Bools = np.arange(CTR_HISTORY) < self.length[:, None]
        return places

    def similarity(self, vectors: ItemVectors) -> Floats:
        """The cosine of the target with each click: (B, H) float32, NaN where either has no vector."""
        out = np.full(self.history_row.shape, np.nan, dtype=np.float32)
        known = (self.target_row >= 0) & (self.history_row >= 0).any(axis=1)
        for part in np.array_split(np.flatnonzero(known), max(1, -(-int(known.sum()) // CHUNK_ROWS))):
            # one (H, 256) x (256, 1) product a row: a row's cosines never depend on its neighbours in the batch
            history, target = vectors.matrix[self.history_row[part]], vectors.matrix[self.target_row[part]]
            out[part] = np.matmul(history, target[:, :, None])[..., 0]
        out[self.history_row < 0] = np.nan
        return out


@dataclass(frozen=True)
class ModelInput:
    """Everything a CTR model reads of some rows, for one kind of image input.

    names: of the columns of `dense` (B, F) float32, NaN where unknown.
    similarity: (B, H) float32, NaN where unknown; only for simscore.
    matrix: the vectors; only for vector and simscore.
    """

    images: str
    rows: Encoded
    names: tuple[str, ...]
    dense: Floats
    similarity: Floats | None
    matrix: Floats | None

    def __len__(self) -> int:
        return len(self.rows)

    def at_top(self) -> "ModelInput":
        """The same rows as if each had been shown at position 0: the form in which every prediction is made."""
        return replace(self, rows=replace(self.rows, position=np.zeros_like(self.rows.position)))


def encode(table: pa.Table, state: InputsState, vectors: ItemVectors | None) -> Encoded:
    """Rows as arrays.

    table: the form of model.ctr.inputs.rows; position may be absent (0), label and `cold` are not read.

    Raises CourierError, with the row, where a list that belongs to the history is not as long as it.
    """
    target = dictionary(strings(table, ITEM_KEY), flat_list(table.column(HISTORY)))
    lengths = lengths_of(table.column(HISTORY))
    place = Places(lengths)
    category = dictionary(strings(table, "category"), parallel(table, HISTORY_CATEGORIES, lengths))
    item_code, category_code = lookup(target.values, state.items), lookup(category.values, state.categories)
    vector_row = vectors.rows_of(target.values) if vectors is not None else np.full(len(item_code), -1, dtype=np.int32)
    requested = microseconds(table.column("request_time"))
    clicked_at = place.pad(parallel(table, "history_clicked_at", lengths).to_numpy(zero_copy_only=False), 0)
    days = np.maximum(requested[:, None] - clicked_at, 0) / MICROSECONDS_A_DAY
    known_category = lookup(category.values, ("",)) == UNKNOWN  # "" says that the category is unknown
    same_category = place.pad(category.second, -1) == category.first[:, None]
    same_category &= known_category[category.first][:, None]
    encoded = Encoded(
        item=item_code[target.first],
        category=category_code[category.first],
        cluster=numbers(table, "cluster_id").astype(np.int32),
        position=position_of(table),
        base=np.zeros((table.num_rows, len(BASE_FEATURES)), dtype=np.float32),
        length=place.length,
        history_item=place.pad(item_code[target.second], UNKNOWN),
        history_category=place.pad(category_code[category.second], UNKNOWN),
        history_cluster=place.pad(whole(parallel(table, HISTORY_CLUSTERS, lengths)), -1),
        history_age=np.log1p(days).astype(np.float32),
        target_row=vector_row[target.first],
        history_row=place.pad(vector_row[target.second], -1),
    )
    clicked_before = (place.pad(target.second, -1) == target.first[:, None]).any(axis=1)
    columns = (
        *_statistics(table),
        *_prices(table, encoded.category, state),
        _item_age(table, requested),
        encoded.length.astype(np.float32),
        np.where(encoded.length > 0, encoded.history_age[:, 0], np.nan),
        *_matches(same_category, encoded.length),
        clicked_before,
    )
    encoded.history_age[~encoded.filled] = 0
    for i, column in enumerate(columns):
        encoded.base[:, i] = column
    return encoded


def with_images(rows: Encoded, state: InputsState, vectors: ItemVectors | None, images: str) -> ModelInput:
    """The rows together with one kind of image input: none, vector, simscore or cluster_id.

    Raises CourierError if the kind is unknown, ValueError if it needs vectors and there are none.
    """
    if images not in IMAGE_FEATURES:
        raise CourierError(f"no image input '{images}': there are {', '.join(IMAGE_FEATURES)}")
    if needs_vectors(images) and vectors is None:
        raise ValueError(f"image input '{images}' needs the items' vectors, and none were given")
    similarity = rows.similarity(vectors) if images == "simscore" and vectors is not None else None
    columns: list[NDArray[Any]] = []
    names = IMAGE_FEATURES[images]
    if images == "cluster_id":
        columns = [column for place in range(len(state.clusters)) for column in _cluster_columns(rows, place)]
        names = tuple(name for place in range(len(state.clusters)) for name in cluster_names(place))
    if similarity is not None:
        columns = _similarity_columns(similarity, rows.filled, state.bin_edges)
    dense = np.column_stack([rows.base, *columns]).astype(np.float32) if columns else rows.base
    matrix = vectors.matrix if vectors is not None and needs_vectors(images) else None
    return ModelInput(images, rows, (*BASE_FEATURES, *names), dense, similarity, matrix)


def cluster_names(codebook: int) -> tuple[str, ...]:
    """The names of the match columns of a codebook, 0 being the first, whose names carry no number."""
    prefix = f"codebook_{codebook}_" if codebook else ""
    return tuple(prefix + name for name in CLUSTER_FEATURES)


def cluster_codes(cluster: Ints, state: InputsState) -> list[Ints]:
    """For each codebook the codes 1..size of cluster IDs (any shape); 0 for -1 and for one not seen in training."""
    codes = [unpacked(cluster, place) for place in range(len(state.clusters))]
    return [
        np.where((code >= 0) & (code < size), code + 1, UNKNOWN).astype(np.int32)
        for code, size in zip(codes, state.clusters, strict=True)
    ]


def component_columns(given: ModelInput, state: InputsState) -> tuple[tuple[str, ...], Floats]:
    """Names and (B, 2 K) principal components of the target's vector and of the history's mean vector; NaN without."""
    if given.matrix is None:
        raise ValueError("principal components need the items' vectors, and none were given")
    count = len(state.components)
    projected = np.vstack([(given.matrix - state.mean) @ state.components.T, np.zeros((1, count), dtype=np.float32)])
    target = projected[given.rows.target_row]  # row -1 is the row of zeros at the end
    target[given.rows.target_row < 0] = np.nan
    total = np.zeros_like(target)
    for place in given.rows.history_row.T:
        total += projected[place]
    known = (given.rows.history_row >= 0).sum(axis=1)
    history = np.where(known[:, None] > 0, total / np.maximum(known, 1)[:, None], np.nan)
    names = tuple(f"{what}_component_{i}" for what in ("target", "history") for i in range(count))
    return names, np.hstack([target, history]).astype(np.float32)


# --- columns --------------------------------------------------------------------------------------------------------


def _statistics(table: pa.Table) -> list[NDArray[Any]]:
    """Smoothed CTRs, then log counts, in the order of BASE_FEATURES."""
    shown = [np.maximum(numbers(table, name.format("impressions")), 0) for name in STATISTICS]
    clicked = [np.maximum(numbers(table, name.format("clicks")), 0) for name in STATISTICS]
    smoothed = [numbers(table, name.format("ctr")) for name in STATISTICS]
    return smoothed + [np.log1p(count) for pair in zip(shown, clicked, strict=True) for count in pair]


def _prices(table: pa.Table, category: Ints, state: InputsState) -> list[NDArray[Any]]:
    price = numbers(table, "price")
    logged = np.log1p(np.where(price >= 0, price, np.nan))
    return [logged, logged - np.log1p(state.median_price[category])]


def _item_age(table: pa.Table, requested: NDArray[np.int64]) -> NDArray[np.float64]:
    """log(1 + days) from the item's creation to the request; NaN where the creation is unknown (-1)."""
    created = numbers(table, "created_at")
    days = np.maximum(requested - created, 0) / MICROSECONDS_A_DAY
    return np.where(created >= 0, np.log1p(days), np.nan)


def _matches(same: Bools, length: Ints) -> list[NDArray[Any]]:
    """How many of the newest 5, 10 and 50 clicks match, and the share of all that do (0 without a click)."""
    counts = [same[:, :last].sum(axis=1) for last in RECENT]
    return [*counts, counts[-1] / np.maximum(length, 1)]


def _cluster_columns(rows: Encoded, codebook: int) -> list[NDArray[Any]]:
    """Matches as for categories, and how many clicks ago the newest match was; NaN if there is none, or no cluster."""
    same = unpacked(rows.history_cluster, codebook) == unpacked(rows.cluster, codebook)[:, None]
    same &= (rows.cluster >= 0)[:, None] & rows.filled
    rank = np.where(same.any(axis=1), same.argmax(axis=1), np.nan)
    columns = [*_matches(same, rows.length), rank]
    return [np.where(rows.cluster >= 0, column, np.nan) for column in columns]


def _similarity_columns(similarity: Floats, filled: Bools, edges: Floats) -> list[NDArray[Any]]:
    """Mean, maximum, mean of the top 3, of the newest 5 and 10, and the histogram of the cosines as shares of them.

    The histogram follows SimTier (Sheng et al. 2024, https://arxiv.org/abs/2407.19467); ours is cut at the training
    quantiles, because cosines of one encoder crowd in a narrow range.
    """
    known = filled & ~np.isnan(similarity)
    count = known.sum(axis=1)
    top = -np.sort(np.where(known, -similarity, np.inf), axis=1)[:, :TOP]
    top_mean = np.where(np.isfinite(top), top, 0).sum(axis=1) / np.clip(count, 1, TOP)
    means = [_mean_of(similarity, known, last) for last in RECENT]
    bins = np.searchsorted(edges, np.where(known, similarity, 0), side="right")
    shares = [((bins == i) & known).sum(axis=1) / np.maximum(count, 1) for i in range(HISTOGRAM_BINS)]
    columns = [means[-1], top[:, 0], top_mean, *means[:-1], *shares]
    return [np.where(count > 0, column, np.nan) for column in columns]


def _mean_of(values: Floats, known: Bools, last: int) -> NDArray[Any]:
    """The mean of the known values among the newest `last`; NaN where none is known."""
    count = known[:, :last].sum(axis=1)
    total = np.where(known, values, 0)[:, :last].sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
