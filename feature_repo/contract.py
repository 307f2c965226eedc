"""The names that offline and online agree on: keys, raw tables, features with their kinds and widths, services.

Standard library only, so that every room may import it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

USER_KEY: Final = "user_id"
ITEM_KEY: Final = "item_id"
SPACE_KEY: Final = "space_id"
CODEBOOK_KEY: Final = "codebook_id"
EVENT_TIME: Final = "event_timestamp"  # Feast's valid-from column: aware UTC, microseconds

WORKSPACE: Final = "COURIER_WORKSPACE"  # the variable by which feature_store.yaml finds the workspace

EMBEDDING_DIM: Final = 256  # Yang et al. 2025 (COURIER), section 4: Linear 768 -> 256

# --- raw tables -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a raw table: name, kind (`str`, `int`, `float`, `timestamp`), and whether a value may be absent."""

    name: str
    kind: str
    nullable: bool = False


EVENTS: Final = (
    Column("user_id", "str"),
    Column("item_id", "str"),
    Column("event_time", "timestamp"),
    Column("event_type", "str"),
    Column("request_id", "str"),  # the page view; a click names the request it answers
    Column("position", "int", nullable=True),  # 0 is the top; a click may leave it out
)
ITEMS: Final = (
    Column("item_id", "str"),
    Column("image_uri", "str", nullable=True),
    Column("category", "str", nullable=True),
    Column("title", "str", nullable=True),
    Column("price", "float", nullable=True),
    Column("created_at", "timestamp", nullable=True),
    Column("updated_at", "timestamp", nullable=True),  # since when this row holds; several of one item are its history
)
# A moment outside of [EARLIEST, LATEST) stands for none ("9999-12-31") or was counted in another unit.
EARLIEST: Final = datetime(1900, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)
LARGEST_PRICE: Final = 3.4028234663852886e38  # the largest float of 32 bits, in which models compute
EVENT_TYPES: Final = ("impression", "click", "cart", "purchase")

# --- behaviour ------------------------------------------------------------------------------------------------------

PERIODS: Final = ("train", "valid", "test")  # in time order, half open; nothing is fitted on the last
PAGE_VIEW_SIZE: Final = 5  # Yang et al. 2025: up to 5 page-view images a row
PRETRAIN_HISTORY: Final = 5  # ... and the user's last 5 clicked images
CTR_HISTORY: Final = 50
# A cluster ID holds the code of an image in each of up to three codebooks: ten bits each, the first codebook's lowest.
CODE_BITS: Final = 10
MAX_CODEBOOKS: Final = 3  # so that an ID is a positive number of 32 bits
WINDOWS_DAYS: Final = (1, 7, 30)  # statistics cover [midnight - window, midnight)
# A smoothed CTR is that of a Beta prior: as if this much had been seen before.
SMOOTHING_CLICKS: Final = 1.0
SMOOTHING_IMPRESSIONS: Final = 20.0
UNSEEN_CTR: Final = SMOOTHING_CLICKS / SMOOTHING_IMPRESSIONS  # of whoever has no statistics

# --- features -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: name, kind (`str`, `int`, `float`, `bytes`, `list[str]`, `list[int]`), and width if a vector.

    least, most: what a value, or each member of a list, lies between, both included; None where there is no bound.
    unknown: the value that stands for one that is not known, beside null, NaN, and what is empty.
    nulls: the largest share of a view's rows that may hold no known value, 0 to 1.
    """

    name: str
    kind: str
    width: int = 0
    description: str = ""
    least: float | None = None
    most: float | None = None
    unknown: int | None = None
    nulls: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """A Feast feature view: the columns that key it and the features it holds.

    owner: the folder whose code answers for the values.  stage: what to run again where they are wrong.
    ttl: for how long a row holds, online and offline; zero: until the next one comes.
    fixed: whether a release fixes them; else they move from day to day.
    """

    name: str
    keys: tuple[str, ...]
    features: tuple[Feature, ...]
    ttl: timedelta = timedelta(0)
    description: str = ""
    owner: str = ""
    stage: str = ""
    fixed: bool = False

    @property
    def tags(self) -> dict[str, str]:
        """What Feast's lists of views can be filtered by."""
        return {"entity": self.keys[0].removesuffix("_id"), "stage": self.stage, "fixed": str(self.fixed).lower()}


KEYS: Final = {
    USER_KEY: "Who is shown items, and clicks: as the raw events call them.",
    ITEM_KEY: "What is shown: as the raw items call it.",
    SPACE_KEY: "The space of embeddings: which encoder, and which preprocessing of pictures.",
    CODEBOOK_KEY: "The codebooks that cluster IDs are of: their space, and which centres in it.",
}

_FIRST_MICROS: Final = (EARLIEST - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
_LAST_MICROS: Final = (LATEST - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) - 1


def _statistics(who: str) -> tuple[Feature, ...]:
    """Impressions, clicks and smoothed CTR in each window."""
    # A click may follow its impression into a window that the impression is not in, so a CTR may be above 1.
    told = {
        "impressions": ("int", f"How often the {who} was shown{'' if who == 'item' else ' an item'}"),
        "clicks": ("int", f"How often the {who} {'was clicked' if who == 'item' else 'clicked'}"),
        "ctr": ("float", "Clicks by impressions, smoothed by 1 click in 20 impressions,"),
    }
    return tuple(
        Feature(f"{who}_{what}_{days}d", kind, description=f"{said} in the {days} days before midnight, UTC.", least=0)
        for days in WINDOWS_DAYS
        for what, (kind, said) in told.items()
    )


USER_HISTORY: Final = View(
    "user_history",
    (USER_KEY,),
    (
        Feature("history_item_ids", "list[str]", CTR_HISTORY, "The items last clicked, newest first."),
        Feature(
            "history_clicked_at",
            "list[int]",
            CTR_HISTORY,
            "When each of them was clicked, in the same order: microseconds since 1970.",
            least=_FIRST_MICROS,
            most=_LAST_MICROS,
        ),
    ),
    description="What a user clicked last, valid from a microsecond after the newest click.",
    owner="jobs/sequences",
    stage="sequences",
)
USER_STATISTICS: Final = View(
    "user_statistics",
    (USER_KEY,),
    _statistics("user"),
    description="How much a user was shown and clicked: a row at each midnight at which a count changed.",
    owner="jobs/sequences",
    stage="features",
)
ITEM_PROFILE: Final = View(
    "item_profile",
    (ITEM_KEY,),
    (
        Feature("category", "str", description="The item's category; empty where unknown.", nulls=1),
        Feature("price", "float", 0, "The item's price; NaN where unknown.", least=0, most=LARGEST_PRICE, nulls=1),
        Feature(
            "created_at",
            "int",
            description="When the item was created: microseconds since 1970; -1 where unknown.",
            least=_FIRST_MICROS,
            most=_LAST_MICROS,
            unknown=-1,
            nulls=1,
        ),
    ),
    description="What the items table says of an item.",
    owner="jobs/raw",
    stage="images",
)
ITEM_STATISTICS: Final = View(
    "item_statistics",
    (ITEM_KEY,),
    _statistics("item"),
    description="How much an item was shown and clicked: a row at each midnight at which a count changed.",
    owner="jobs/sequences",
    stage="features",
)
# IDs and vectors lie in separate views: an online read fetches a whole view, and a vector costs 30 times an ID.
ITEM_CLUSTER: Final = View(
    "item_cluster",
    (ITEM_KEY, CODEBOOK_KEY),
    (
        Feature(
            "cluster_id",
            "int",
            description="The codes of the item's picture in each codebook, ten bits each.",
            least=0,
            most=2 ** (CODE_BITS * MAX_CODEBOOKS) - 1,
        ),
    ),
    description="Which visual clusters an item's picture belongs to, by one fit of the codebooks.",
    owner="jobs/embeddings",
    stage="cluster",
    fixed=True,
)
ITEM_EMBEDDING: Final = View(
    "item_embedding",
    (ITEM_KEY, SPACE_KEY),
    (
        Feature(
            "image_embedding",
            "bytes",
            EMBEDDING_DIM,
            "The item's picture as a vector of unit length: float32, little endian.",
        ),
    ),
    description="The embedding of an item's picture, in a space.",
    owner="model/courier",
    stage="embed",
    fixed=True,
)
VIEWS: Final = (USER_HISTORY, USER_STATISTICS, ITEM_PROFILE, ITEM_STATISTICS, ITEM_CLUSTER, ITEM_EMBEDDING)
PUSH_SOURCES: Final = {USER_HISTORY.name: "user_history_push"}  # views that a stream updates between two batch loads

# A service is what one lookup asks for. User and item are looked up apart: a joint call repeats the history per item.
SERVICES: Final = {
    "ranking_user": (USER_HISTORY, USER_STATISTICS),
    "ranking_item": (ITEM_PROFILE, ITEM_STATISTICS),
    "item_cluster_ids": (ITEM_CLUSTER,),
    "item_embeddings": (ITEM_EMBEDDING,),
}
SERVICE_DESCRIPTIONS: Final = {
    "ranking_user": "What ranking knows of the user.",
    "ranking_item": "What ranking knows of each candidate, whatever the release.",
    "item_cluster_ids": "The cluster IDs of candidates and of clicked items, by the release's codebooks.",
    "item_embeddings": "The embeddings of candidates and of clicked items, in the release's space.",
}
