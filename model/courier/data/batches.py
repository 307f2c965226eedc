"""Page views as arrays of image numbers, and the rows, each distinct image once, that a training step sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from feature_repo.contract import PAGE_VIEW_SIZE, PRETRAIN_HISTORY
from model.artifact import Manifest
from model.errors import CourierError

PADDING = -1
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PageViews:
    """Training rows in time order; every number names an image of `image_ids`, -1 is padding.

    categories: (images,) int64, the category of each image (of its first item by id), as a number.
    page: (R, 5) int32.  clicked: (R, 5) bool, False where padded.  history: (R, H) int32, newest first, padded last.
    titles: of each image (of its first item by id), "" where it has none; empty where nobody will ask for them.
    users: (R,) int64, whose page view it is, as a number; empty where nobody will ask.
    """

    image_ids: tuple[str, ...]
    categories: npt.NDArray[np.int64]
    page: Ints
    clicked: npt.NDArray[np.bool_]
    history: Ints
    titles: tuple[str, ...] = ()
    users: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.page)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step on one process.

    images: (U,) int64, the distinct images of these rows, as numbers of PageViews.image_ids, ascending.
    page: (R, 5), history: (R, H) int64 into `images`; 0 where padded, which the masks hide.
    shown, clicked: (R, 5), remembered: (R, H) bool.
    page_image: (R, 5), history_image: (R, H) int64, numbers of PageViews.image_ids, -1 padded.
    page_category: (R, 5), history_category: (R, H) int64, what PageViews.categories says of them; padded: any number.
    """

    images: npt.NDArray[np.int64]
    page: npt.NDArray[np.int64]
    shown: npt.NDArray[np.bool_]
    clicked: npt.NDArray[np.bool_]
    history: npt.NDArray[np.int64]
    remembered: npt.NDArray[np.bool_]
    page_image: npt.NDArray[np.int64]
    history_image: npt.NDArray[np.int64]
    page_category: npt.NDArray[np.int64]
    history_category: npt.NDArray[np.int64]


def check_history(history: int, sequences: Manifest) -> None:
    """Raises CourierError where the page views of this sequences artifact don't hold so many clicks."""
    held = int(sequences.config.get("pretrain_history", PRETRAIN_HISTORY))
    if not 1 <= history <= held:
        raise CourierError(
            f"history is {history} and the page views hold each user's last {held} clicks: "
            f"give 1 to {held}, or make the sequences with a longer pretrain_history"
        )


def read_page_views(sequences: Path, images: Path, *, history: int = PRETRAIN_HISTORY) -> PageViews:
    """The training period's page views with a usable image, as numbers, and so many clicks of each history.

    An item without a usable image is dropped; a row without any is left out. Rows without a click are kept: the click
    loss learns from them. Raises CourierError if no row is left.
    """
    item_image, image_category, image_title = _usable_items(images / "items.parquet")
    table = pq.read_table(
        sequences / "page_views",
        columns=["request_id", "request_time", "user_id", "item_ids", "labels", "history_item_ids"],
        filters=[("period", "==", "train")],
    ).sort_by([("request_time", "ascending"), ("request_id", "ascending")])
    return index_page_views(
        table["item_ids"].to_pylist(),
        table["labels"].to_pylist(),
        table["history_item_ids"].to_pylist(),
        item_image,
        image_category,
        image_title,
        users=table["user_id"].to_pylist(),
        history=history,
    )


def index_page_views(
    pages: Sequence[Sequence[str]],
    labels: Sequence[Sequence[int]],
    histories: Sequence[Sequence[str]],
    item_image: Mapping[str, str],
    image_category: Mapping[str, str],
    image_title: Mapping[str, str] | None = None,
    *,
    users: Sequence[str] = (),
    history: int = PRETRAIN_HISTORY,
) -> PageViews:
    """Page views of item ids, in time order, as padded arrays of image numbers; see read_page_views."""
    used = {item for rows in (pages, histories) for row in rows for item in row if item in item_image}
    image_ids = tuple(sorted({item_image[item] for item in used}))
    number = {image: index for index, image in enumerate(image_ids)}
    item_number = {item: number[item_image[item]] for item in used}

    usable = [any(item in item_number for item in page) for page in pages]
    if not any(usable):
        raise CourierError(
            "no page view of the training period shows an item with a usable image: check the images stage"
        )
    kept_users = [user for user, keep in zip(users, usable, strict=False) if keep]
    width = max(PAGE_VIEW_SIZE, *map(len, pages))
    page, clicked, clicks_before = [], [], []
    for keep, items, marks, clicks in zip(usable, pages, labels, histories, strict=True):
        if keep:
            seen = [
                (item_number[item], bool(mark)) for item, mark in zip(items, marks, strict=True) if item in item_number
            ]
            page.append(_padded([image for image, _ in seen], width))
            clicked.append(_padded([mark for _, mark in seen], width, False))
            clicks_before.append(_padded([item_number[item] for item in clicks if item in item_number], history))
    return PageViews(
        image_ids=image_ids,
        categories=np.unique([image_category[image] for image in image_ids], return_inverse=True)[1].astype(np.int64),
        page=np.array(page, np.int32),
        clicked=np.array(clicked, np.bool_),
        history=np.array(clicks_before, np.int32),
        titles=tuple(image_title[image] for image in image_ids) if image_title else (),
        users=np.unique(kept_users, return_inverse=True)[1].astype(np.int64),
    )


def rows_of_step(rows: int, batch_rows: int, step: int, seed: int) -> npt.NDArray[np.int64]:
    """Which rows the global batch of `step` holds: (batch_rows,), the next ones of an endless run of shuffled epochs.

    A pure function of its arguments: a run can go on at any step. A batch may span two epochs.
    """
    places = np.arange(step * batch_rows, (step + 1) * batch_rows)
    epochs = places // rows
    return np.concatenate(
        [_epoch(rows, int(epoch), seed)[places[epochs == epoch] % rows] for epoch in np.unique(epochs)]
    )


def take_batch(views: PageViews, rows: npt.NDArray[np.int64]) -> Batch:
    """The batch of these rows, each distinct image named once."""
    page, history = views.page[rows].astype(np.int64), views.history[rows].astype(np.int64)
    distinct, place = np.unique(np.concatenate([page, history], axis=1), return_inverse=True)
    place = place.reshape(len(rows), -1)
    if distinct[0] == PADDING:
        distinct, place = distinct[1:], np.maximum(place - 1, 0)
    return Batch(
        images=distinct,
        page=place[:, : page.shape[1]],
        shown=page != PADDING,
        clicked=views.clicked[rows],
        history=place[:, page.shape[1] :],
        remembered=history != PADDING,
        page_image=page,
        history_image=history,
        page_category=views.categories[page],
        history_category=views.categories[history],
    )


def _usable_items(path: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Item -> image of the items with a usable one; image -> category, and title ("" if unknown), of its first item."""
    columns = ["item_id", "image_id", "category", "title", "status"]
    rows = pq.read_table(path, columns=columns, filters=[("status", "==", "ok")]).sort_by("item_id").to_pylist()
    return (
        {row["item_id"]: row["image_id"] for row in rows},
        {row["image_id"]: row["category"] or "" for row in reversed(rows)},
        {row["image_id"]: row["title"] or "" for row in reversed(rows)},
    )


def _padded(values: Sequence[Any], length: int, padding: Any = PADDING) -> list[Any]:
    return [*values[:length], *[padding] * (length - len(values))]


@lru_cache(maxsize=2)
def _epoch(rows: int, epoch: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(rows)
