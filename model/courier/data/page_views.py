"""Read the page views of the training period as arrays of image numbers, a batch of Arrow strings at a time."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import dataset

from feature_repo.contract import PAGE_VIEW_SIZE, PRETRAIN_HISTORY
from model.courier.data.batches import PADDING, Counts, Ints, PageViews
from model.courier.data.usable_items import ITEMS, reasons, usable_items
from model.errors import CourierError

READ_ROWS = 65_536  # page views that are strings at a time
TOLD_LETTERS = 60  # of an id in a sentence
TRAINED = dataset.field("period") == "train"


class NothingToTrainOn(CourierError):
    """No page view of the training period shows an item with a usable image; the message says why."""


def read_page_views(sequences: Path, images: Path, *, history: int = PRETRAIN_HISTORY) -> PageViews:
    """The training period's page views with a usable image, as numbers, and so many clicks of each history.

    An item without a usable image is dropped; a row without any is left out. Rows without a click are kept: the click
    loss learns from them. Raises NothingToTrainOn if no row is left.
    """
    stored = dataset.dataset(sequences / "page_views", partitioning="hive")
    items = usable_items(images, ["item_id", "image_id", "category", "title"])
    try:
        return index_page_views(_training_batches(stored), items, history=history)
    except NothingToTrainOn:
        raise NothingToTrainOn(_why_nothing(stored, images)) from None


def _why_nothing(stored: dataset.Dataset, images: Path) -> str:
    """Why no page view of the training period shows an item with a usable image, with counts and the cure."""
    views = stored.count_rows(filter=TRAINED)
    known = pq.read_table(images / ITEMS, columns=["item_id", "status"])
    if not views:
        return (
            f"none of the {stored.count_rows()} page views lies in the training period: bring events of a longer time"
        )
    usable = pc.sum(pc.equal(known["status"], "ok")).as_py() or 0
    if not usable:
        return f"none of the {len(known)} items has a usable image ({reasons(images)}): see reports/coverage.html"
    shown = pc.unique(pc.list_flatten(stored.to_table(columns=["item_ids"], filter=TRAINED)["item_ids"]))
    shown = shown.cast(pa.string())
    met = shown.filter(pc.is_in(shown, value_set=known["item_id"].combine_chunks()))
    if not len(met):
        events, items = (pc.min(ids).as_py()[:TOLD_LETTERS] for ids in (shown, known["item_id"]))
        return (
            f"none of the {len(shown)} items on the {views} page views of the training period is among the "
            f"{len(known)} of the items table (events say {events!r}, items {items!r}): make both say the same item_id"
        )
    return (
        f"{usable} of {len(known)} items have a usable image, but none of the {len(met)} on the {views} page views of "
        f"the training period has one ({reasons(images, met)}): see reports/coverage.html"
    )


def _training_batches(stored: dataset.Dataset) -> Iterator[pa.RecordBatch]:
    """The rows of the training period, `READ_ROWS` at most at a time."""
    columns = ["request_id", "request_time", "user_id", "item_ids", "labels", "history_item_ids"]
    # By row groups: Arrow's scanner decodes as far ahead of a slower reader as memory goes.
    for fragment in stored.get_fragments(filter=TRAINED):
        for group in fragment.split_by_row_group(filter=TRAINED, schema=stored.schema):
            rows = group.to_table(schema=stored.schema, columns=columns, filter=TRAINED)
            yield from rows.to_batches(max_chunksize=READ_ROWS)


def index_page_views(read: Iterable[pa.RecordBatch], items: pa.Table, *, history: int = PRETRAIN_HISTORY) -> PageViews:
    """Page views of item ids as padded arrays of image numbers, in time order; see read_page_views.

    read: request_id, request_time, user_id, item_ids, labels, history_item_ids, in any order.
    items: item_id, image_id, category, title of the items with a usable image, sorted by item_id.
    Never more than one batch is held as strings, but for the ids of requests and users.
    Raises NothingToTrainOn if no row is left.
    """
    catalogue = _Catalogue.of(items)
    parts, strings = deque[_Part](), []
    for batch in read:
        parts.append(_Part.of(batch, catalogue, history))
        strings.append(batch.select(["request_time", "request_id", "user_id"]).take(pa.array(parts[-1].rows)))
    counts = _summed([part.counts for part in parts])
    if not any(map(len, parts)):
        raise NothingToTrainOn(f"none of {counts.page_views_read} page views shows an item with a usable image")
    keys = pa.Table.from_batches(strings)
    strings.clear()
    place = _places_in_time(keys)
    users = _in_sorted_order(keys["user_id"], place)
    del keys  # the strings make room for the arrays
    shape = len(place), max(part.width for part in parts)
    page, clicked = np.full(shape, PADDING, np.int32), np.zeros(shape, np.bool_)
    clicks_before = np.empty((len(place), history), np.int32)
    used, start = np.zeros(len(catalogue.image_ids), np.bool_), 0
    while parts:
        part = parts.popleft()  # its memory goes back before the next one's is filled
        rows = place[start : start + len(part)]
        start += len(part)
        page[rows, : part.page.shape[1]], clicked[rows, : part.page.shape[1]] = part.page, part.clicked
        clicks_before[rows] = part.history
        used[part.used] = True
    number = np.append(np.cumsum(used, dtype=np.int32) - 1, np.int32(PADDING))  # the last is that of PADDING, -1
    shown = pa.array(np.flatnonzero(used))
    categories = catalogue.categories.take(shown).to_pylist()
    return PageViews(
        image_ids=tuple(catalogue.image_ids.take(shown).to_pylist()),
        categories=np.unique(categories, return_inverse=True)[1].astype(np.int64),
        page=_renumbered(page, number),
        clicked=clicked,
        history=_renumbered(clicks_before, number),
        titles=tuple(catalogue.titles.take(shown).to_pylist()),
        users=users,
        counts=counts,
    )


def _summed(parts: Sequence[Counts]) -> Counts:
    return Counts(**{one.name: sum(getattr(part, one.name) for part in parts) for one in fields(Counts)})


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """The items with a usable image, and the distinct images, sorted by id, with what their first item says of them.

    image: (items,) int32, the place of each item's image among image_ids.
    """

    item_ids: pa.Array
    image: Ints
    image_ids: pa.Array
    categories: pa.Array
    titles: pa.Array

    @classmethod
    def of(cls, items: pa.Table) -> "_Catalogue":
        item_ids, of_item = (items[name].combine_chunks() for name in ("item_id", "image_id"))
        image_ids = pc.unique(of_item)
        image_ids = image_ids.take(pc.array_sort_indices(image_ids))
        image = pc.index_in(of_item, value_set=image_ids).to_numpy(zero_copy_only=False)
        first = pa.array(np.unique(image, return_index=True)[1])
        said = (items[name].combine_chunks().fill_null("").take(first) for name in ("category", "title"))
        return cls(item_ids, np.append(image, PADDING).astype(np.int32), image_ids, *said)

    def images_of(self, item_ids: pa.Array) -> Ints:
        """The image of each item, -1 where it has no usable one."""
        found = pc.index_in(item_ids.cast(pa.string()), value_set=self.item_ids).fill_null(-1)
        images: Ints = self.image[found.to_numpy(zero_copy_only=False)]  # the last entry answers -1
        return images


@dataclass(frozen=True, slots=True)
class _Part:
    """Some page views as numbers of the catalogue's images; rows without a usable image are left out.

    rows: which of the batch's rows these are.
    width: of the longest page, counting items without an image.  used: the images met in any row, ascending.
    counts: of the whole batch.
    """

    rows: npt.NDArray[np.int64]
    page: Ints
    clicked: npt.NDArray[np.bool_]
    history: Ints
    width: int
    used: Ints
    counts: Counts

    def __len__(self) -> int:
        return len(self.page)

    @classmethod
    def of(cls, batch: pa.RecordBatch, catalogue: _Catalogue, history: int) -> "_Part":
        shown, before = _lengths(batch["item_ids"]), _lengths(batch["history_item_ids"])
        wrong = np.flatnonzero(shown != _lengths(batch["labels"]))
        if len(wrong):
            request = batch["request_id"][int(wrong[0])].as_py()
            raise CourierError(f"page view {request} has not one label for each item: make the sequences again")
        listed = [batch[name].flatten().cast(pa.string()) for name in ("item_ids", "history_item_ids")]
        images = catalogue.images_of(pa.concat_arrays(listed))
        pages, clicks = images[: shown.sum()], images[shown.sum() :]
        width = max(PAGE_VIEW_SIZE, int(shown.max(initial=0)))
        page = _padded(pages, pages >= 0, shown, width, PADDING)
        marks = batch["labels"].flatten().to_numpy(zero_copy_only=False) != 0
        kept = page[:, 0] >= 0  # the usable ones come first
        return cls(
            np.flatnonzero(kept),
            page[kept],
            _padded(marks, pages >= 0, shown, width, False)[kept],
            _padded(clicks, clicks >= 0, before, history, PADDING)[kept],
            width,
            np.unique(images[images >= 0]),
            Counts(batch.num_rows, int((~kept).sum()), len(pages), int((pages < 0).sum())),
        )


def _lengths(lists: pa.Array) -> npt.NDArray[np.int64]:
    lengths: npt.NDArray[np.int64] = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def _padded(
    flat: npt.NDArray[Any], keep: npt.NDArray[np.bool_], lengths: npt.NDArray[np.int64], width: int, padding: int
) -> npt.NDArray[Any]:
    """The first `width` entries of each list that are to be kept, one list a row, then padding: (len(lengths), width).

    flat: the entries of all lists, one list after the other.
    """
    row = np.repeat(np.arange(len(lengths)), lengths)[keep]
    count = np.bincount(row, minlength=len(lengths))
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    within = place < width
    out = np.full((len(lengths), width), padding, flat.dtype)
    out[row[within], place[within]] = flat[keep][within]
    return out


def _places_in_time(keys: pa.Table) -> npt.NDArray[np.int64]:
    """Where each row stands when all are sorted by time, then by request: (rows,)."""
    by = [(name, "ascending") for name in ("request_time", "request_id")]
    order = pc.sort_indices(keys, sort_keys=by).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place


def _renumbered(images: Ints, number: Ints) -> Ints:
    """`number` of each entry, in place."""
    for row in range(0, len(images), READ_ROWS):
        images[row : row + READ_ROWS] = number[images[row : row + READ_ROWS]]
    return images


def _in_sorted_order(column: pa.ChunkedArray, place: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of each row's value among the sorted distinct values, at the row's place: (rows,)."""
    encoded = column.dictionary_encode().unify_dictionaries()
    dictionary = encoded.chunk(0).dictionary
    rank = np.empty(len(dictionary), np.int64)
    rank[pc.array_sort_indices(dictionary).to_numpy()] = np.arange(len(rank))
    found, start = np.empty(len(place), np.int64), 0
    for chunk in encoded.chunks:
        found[place[start : start + len(chunk)]] = rank[chunk.indices.to_numpy()]
        start += len(chunk)
    return found
