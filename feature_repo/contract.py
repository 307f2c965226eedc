"""The names that offline and online agree on: keys, raw tables, features with their kinds and widths, services.

Standard library only, so that every room may import it.
"""

from dataclasses import dataclass
from typing import Final

USER_KEY: Final = "user_id"
ITEM_KEY: Final = "item_id"
SPACE_KEY: Final = "space_id"
EVENT_TIME: Final = "event_timestamp"  # Feast's valid-from column: aware UTC, microseconds

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
)
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
    """One feature: name, kind (`str`, `int`, `float`, `bytes`, `list[str]`, `list[int]`), and width if a vector."""

    name: str
    kind: str
    width: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """A Feast feature view: the columns that key it and the features it holds."""

    name: str
    keys: tuple[str, ...]
    features: tuple[Feature, ...]


def _statistics(prefix: str) -> tuple[Feature, ...]:
    """Impressions, clicks and smoothed CTR in each window."""
    kinds = {"impressions": "int", "clicks": "int", "ctr": "float"}
    return tuple(Feature(f"{prefix}_{what}_{days}d", kind) for days in WINDOWS_DAYS for what, kind in kinds.items())


USER_HISTORY: Final = View(
    "user_history",
    (USER_KEY,),
    (
        Feature("history_item_ids", "list[str]", CTR_HISTORY),  # newest first
        Feature("history_clicked_at", "list[int]", CTR_HISTORY),  # microseconds since 1970, same order
    ),
)
USER_STATISTICS: Final = View(
    "user_statistics",
    (USER_KEY,),
    _statistics("user"),
)
ITEM_PROFILE: Final = View(
    "item_profile",
    (ITEM_KEY,),
    (
        Feature("category", "str"),
        Feature("price", "float"),  # NaN where unknown
        Feature("created_at", "int"),  # microseconds since 1970; -1 where unknown
    ),
)
ITEM_STATISTICS: Final = View(
    "item_statistics",
    (ITEM_KEY,),
    _statistics("item"),
)
# IDs and vectors lie in separate views: an online read fetches a whole view, and a vector costs 30 times an ID.
ITEM_CLUSTER: Final = View("item_cluster", (ITEM_KEY, SPACE_KEY), (Feature("cluster_id", "int"),))
ITEM_EMBEDDING: Final = View(
    "item_embedding",
    (ITEM_KEY, SPACE_KEY),
    (Feature("image_embedding", "bytes", EMBEDDING_DIM),),  # float32, little endian, unit length
)
VIEWS: Final = (USER_HISTORY, USER_STATISTICS, ITEM_PROFILE, ITEM_STATISTICS, ITEM_CLUSTER, ITEM_EMBEDDING)
PUSH_SOURCES: Final = {USER_HISTORY.name: "user_history_push"}  # views that a stream updates between two batch loads

# In the workspace: the digest of the features artifact that the online store holds; absent while one is loaded.
LOADED_MARK: Final = "feast/loaded"

# A service is what one lookup asks for. User and item are looked up apart: a joint call repeats the history per item.
SERVICES: Final = {
    "ranking_user": (USER_HISTORY, USER_STATISTICS),
    "ranking_item": (ITEM_PROFILE, ITEM_STATISTICS),
    "item_cluster_ids": (ITEM_CLUSTER,),
    "item_embeddings": (ITEM_EMBEDDING,),
}
