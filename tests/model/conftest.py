"""Small generated shops: as CTR rows, where users prefer clusters of images, and as what pre-training reads."""

from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from feature_repo.contract import CTR_HISTORY, EMBEDDING_DIM, WINDOWS_DAYS
from model import artifact
from model.ctr.inputs.item_vectors import ItemVectors
from model.ctr.inputs.rows import ROW_COLUMNS

START = datetime(2024, 3, 1, tzinfo=UTC)
CLUSTERS, CATEGORIES, PAGE = 12, 4, 5
SQUARES, SIDE = 24, 16  # images of pre-training, pixels


@dataclass(frozen=True)
class Shop:
    """Rows of the three periods in time order, and the vectors of their items."""

    train: pa.Table
    valid: pa.Table
    test: pa.Table
    vectors: ItemVectors


class _Generator:
    def __init__(self, users: int, items: int, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.item_ids = [f"i{n:05d}" for n in range(items)]
        self.cluster = rng.integers(0, CLUSTERS, items)
        self.category = rng.integers(0, CATEGORIES, items)
        self.quality = rng.normal(0, 0.4, items)
        self.price = np.where(rng.random(items) < 0.1, np.nan, rng.lognormal(3, 0.5, items))
        # the last tenth of the items is new in the test period
        self.born = np.where(np.arange(items) < items * 0.9, -10.0, 0.9)
        self.liked = np.array([rng.choice(CLUSTERS, 2, replace=False) for _ in range(users)])
        self.likes_category = rng.integers(0, CATEGORIES, users)
        self.history = defaultdict(lambda: deque(maxlen=CTR_HISTORY))
        self.counts = defaultdict(int)

    def page(self, request: int, of: int, days: int) -> list[dict]:
        """The rows of one page view."""
        rng, share = self.rng, request / of
        user = int(rng.integers(len(self.liked)))
        at = START + timedelta(days=days * share)
        shown = rng.choice(np.flatnonzero(self.born <= share), PAGE, replace=False)
        preferred = np.isin(self.cluster[shown], self.liked[user]) * 2.4 + (
            self.category[shown] == self.likes_category[user]
        )
        logit = preferred + self.quality[shown] - 0.3 * np.arange(PAGE) - 2.4
        clicked = rng.random(PAGE) < 1 / (1 + np.exp(-logit))
        rows = [self._row(request, user, at, int(i), place, bool(clicked[place])) for place, i in enumerate(shown)]
        for i, click in zip(shown, clicked, strict=True):
            for key in (("user", user), ("item", int(i))):
                self.counts[*key, "impressions"] += 1
                self.counts[*key, "clicks"] += int(click)
            if click:
                self.history[user].appendleft((int(i), at))
        return rows

    def _row(self, request: int, user: int, at: datetime, item: int, place: int, clicked: bool) -> dict:
        history = self.history[user]
        row = {
            "request_id": f"r{request:07d}",
            "user_id": f"u{user:05d}",
            "item_id": self.item_ids[item],
            "request_time": at,
            "position": place,
            "clicked": int(clicked),
            "history_item_ids": [self.item_ids[i] for i, _ in history],
            "history_clicked_at": [int(t.timestamp() * 1e6) for _, t in history],
            "category": f"c{self.category[item]}",
            "price": float(self.price[item]),
            "created_at": int((START + timedelta(days=float(self.born[item]))).timestamp() * 1e6),
            "cluster_id": int(self.cluster[item]),
            "history_cluster_ids": [int(self.cluster[i]) for i, _ in history],
            "history_categories": [f"c{self.category[i]}" for i, _ in history],
            "cold": bool(self.born[item] > 0),
        }
        for who, key in (("user", user), ("item", item)):
            for what in ("impressions", "clicks"):
                row |= {f"{who}_{what}_{window}d": self.counts[who, key, what] for window in WINDOWS_DAYS}
            shown, clicked = (self.counts[who, key, what] for what in ("impressions", "clicks"))
            row |= {f"{who}_ctr_{window}d": (clicked + 1) / (shown + 20) for window in WINDOWS_DAYS}
        return row

    def vectors(self) -> ItemVectors:
        centres = self.rng.normal(size=(CLUSTERS, EMBEDDING_DIM))
        found = centres[self.cluster] + self.rng.normal(size=(len(self.item_ids), EMBEDDING_DIM))
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return ItemVectors(self.item_ids, found.astype(np.float32))


def make_shop(*, users: int = 150, items: int = 300, requests: int = 2400, days: int = 20, seed: int = 0) -> Shop:
    """Page views of five items; 80 % of them train, then 10 % valid, then 10 % test."""
    generator = _Generator(users, items, seed)
    rows = [row for request in range(requests) for row in generator.page(request, requests, days)]
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(ROW_COLUMNS.items())))
    first, second = int(requests * 0.8) * PAGE, int(requests * 0.9) * PAGE
    parts = table.slice(0, first), table.slice(first, second - first), table.slice(second)
    return Shop(*parts, generator.vectors())


@pytest.fixture(scope="session")
def shop() -> Shop:
    return make_shop()


# --- pre-training ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pretrain_inputs(tmp_path: Path) -> dict[str, Path]:
    """A sequences and an images artifact in which each user clicks one of two colours."""
    rng = np.random.default_rng(0)
    ids = [f"p{n:02d}" for n in range(SQUARES)]
    pngs = []
    for n in range(SQUARES):
        stream = BytesIO()
        colour = (np.array([200, 60, 60]) if n % 2 else np.array([60, 60, 200])) + rng.integers(-50, 50, 3)
        noise = rng.integers(-40, 40, (SIDE, SIDE, 3))
        Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(stream, "PNG")
        pngs.append(stream.getvalue())
    with artifact.write(tmp_path / "images", kind="images", inputs={}, config={"size": SIDE}) as draft:
        (draft.path / "shards").mkdir()
        pq.write_table(
            pa.table({"image_id": ids, "image": pngs}), draft.path / "shards" / "images-00000-of-00001.parquet"
        )
        items = {
            "item_id": [f"i{n:02d}" for n in range(SQUARES)],
            "image_id": ids,
            "category": ["lamp"] * SQUARES,
            "title": [f"{'Red' if n % 2 else 'Blue'} Lamp {n // 4}" for n in range(SQUARES)],
            "status": ["ok"] * SQUARES,
        }
        pq.write_table(pa.table(items), draft.path / "items.parquet")
    preferred = rng.integers(0, 2, 200)
    pages = [rng.permutation(SQUARES)[:5] for _ in preferred]
    history = [[f"i{n:02d}" for n in rng.permutation(SQUARES // 2)[:4] * 2 + one] for one in preferred]
    with artifact.write(tmp_path / "sequences", kind="sequences", inputs={}, config={}) as draft:
        draft.facts["splits"] = {
            "start": "2025-01-01T00:00:00+00:00",
            "valid_start": "2025-01-20T00:00:00+00:00",
        }
        (draft.path / "page_views").mkdir()
        table = pa.table(
            {
                "request_id": [f"r{n:03d}" for n in range(len(preferred))],
                "user_id": [f"u{one}{n % 20}" for n, one in enumerate(preferred)],
                "request_time": pa.array(range(len(preferred)), pa.timestamp("us", "UTC")),
                "period": ["train"] * 150 + ["valid"] * 50,
                "item_ids": [[f"i{n:02d}" for n in page] for page in pages],
                "labels": [[int(n % 2 == one) for n in page] for page, one in zip(pages, preferred, strict=True)],
                "history_item_ids": history,
            }
        )
        pq.write_table(table, draft.path / "page_views" / "part-0.parquet")
    return {"sequences": tmp_path / "sequences", "images": tmp_path / "images"}
