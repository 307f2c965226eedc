"""The tables of sequences: their columns and the order of their rows, from which each engine derives its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PERIOD: Final = "period"  # train, valid or test: the last column of the tables that are divided by time


@dataclass(frozen=True, slots=True)
class Table:
    """Columns as {name: kind}; what the parts are cut by and how each is sorted, together a total order.

    kind: text | moment | int8 | int32 | int64, or list of one of them. Rows that agree in the order are equal.
    """

    columns: Mapping[str, str]
    by: tuple[str, ...]
    then: tuple[str, ...]
    divided: bool = False  # whether a whole log adds the column PERIOD


TABLES: Final[Mapping[str, Table]] = {
    "impressions": Table(
        {"request_id": "text", "user_id": "text", "item_id": "text", "request_time": "moment"}
        | {"shown_at": "moment", "position": "int32", "clicked": "int8"},
        by=("request_id",),
        then=("request_time", "position", "item_id"),
        divided=True,
    ),
    "page_views": Table(
        {"request_id": "text", "user_id": "text", "request_time": "moment", "item_ids": "list of text"}
        | {"labels": "list of int8", "history_item_ids": "list of text"},
        by=("request_id",),
        then=("request_time",),
        divided=True,
    ),
    "histories": Table(
        {"user_id": "text", "event_timestamp": "moment"}
        | {"history_item_ids": "list of text", "history_clicked_at": "list of int64"},
        by=("user_id",),
        then=("event_timestamp",),
    ),
    "clicks": Table(
        {"user_id": "text", "item_id": "text", "event_time": "moment", "request_id": "text"},
        by=("user_id",),
        then=("event_time", "item_id", "request_id"),
    ),
    "conversions": Table(
        {"user_id": "text", "item_id": "text", "event_time": "moment", "event_type": "text", "request_id": "text"},
        by=("user_id",),
        then=("event_time", "item_id", "event_type", "request_id"),
    ),
    "rejected": Table({"table": "text", "row": "text", "reason": "text"}, by=("row",), then=("reason",)),
}
