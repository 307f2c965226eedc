"""Page views as arrays of image numbers, and the rows, each distinct image once, that a training step sees.

What reads them: model.courier.data.page_views.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from feature_repo.contract import PRETRAIN_HISTORY
from model.artifact import Manifest
from model.errors import CourierError

PADDING = -1
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Counts:
    """Page views of the training period that were read, the items on them, and what of both is left out.

    without_image: page views none of whose items, and items that themselves, have no usable image.
    """

    page_views_read: int = 0
    page_views_without_image: int = 0
    page_view_items_read: int = 0
    page_view_items_without_image: int = 0


@dataclass(frozen=True, slots=True)
class PageViews:
    """Training rows in time order; every number names an image of `image_ids`, -1 is padding.

    categories: (images,) int64, the category of each image (of its first item by id), as a number.
    page: (R, 5) int32.  clicked: (R, 5) bool, False where padded.  history: (R, H) int32, newest first, padded last.
    titles: of each image (of its first item by id), "" where it has none; empty where nobody will ask for them.
    users: (R,) int64, whose page view it is, as a number; empty where nobody will ask.
    counts: of what these were read.
    """

    image_ids: tuple[str, ...]
    categories: npt.NDArray[np.int64]
    page: Ints
    clicked: npt.NDArray[np.bool_]
    history: Ints
    titles: tuple[str, ...] = ()
    users: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    counts: Counts = Counts()

    def __len__(self) -> int:
        return len(self.page)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step on one process.

    images: (U,) int64, the distinct images of these rows, as numbers of PageViews.image_ids, ascending.
    page: (R, 5), history: (R, H) int64 into `images`; 0 where padded, which the masks hide.
    shown, clicked: (R, 5), history_mask: (R, H) bool.
    page_image: (R, 5), history_image: (R, H) int64, numbers of PageViews.image_ids, -1 padded.
    page_category: (R, 5), history_category: (R, H) int64, what PageViews.categories says of them; padded: any number.
    """

    images: npt.NDArray[np.int64]
    page: npt.NDArray[np.int64]
    shown: npt.NDArray[np.bool_]
    clicked: npt.NDArray[np.bool_]
    history: npt.NDArray[np.int64]
    history_mask: npt.NDArray[np.bool_]
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


def rows_of_step(rows: int, batch_rows: int, step: int, seed: int) -> npt.NDArray[np.int64]:
    """Which rows the global batch of `step` holds: (batch_rows,), the next ones of an endless run of shuffled epochs.

    A pure function of its arguments: a run can go on at any step. A batch may span two epochs.
    """
    places = np.arange(step * batch_rows, (step + 1) * batch_rows)
    epochs = places // rows
    return np.concatenate(
        [_epoch(rows, int(epoch), seed)[places[epochs == epoch] % rows] for epoch in np.unique(epochs)]
    )


def take_batch(page_views: PageViews, rows: npt.NDArray[np.int64]) -> Batch:
    """The batch of these rows, each distinct image named once."""
    page, history = page_views.page[rows].astype(np.int64), page_views.history[rows].astype(np.int64)
    distinct, place = np.unique(np.concatenate([page, history], axis=1), return_inverse=True)
    place = place.reshape(len(rows), -1)
    if distinct[0] == PADDING:
        distinct, place = distinct[1:], np.maximum(place - 1, 0)
    return Batch(
        images=distinct,
        page=place[:, : page.shape[1]],
        shown=page != PADDING,
        clicked=page_views.clicked[rows],
        history=place[:, page.shape[1] :],
        history_mask=history != PADDING,
        page_image=page,
        history_image=history,
        page_category=page_views.categories[page],
        history_category=page_views.categories[history],
    )


@lru_cache(maxsize=2)
def _epoch(rows: int, epoch: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(rows)
