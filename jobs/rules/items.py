"""Which item rows are accepted, what becomes of an item's image, and which items show the same picture.

Plain Python: Beam and Spark translate it natively, and tests hold them to it.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final, TypeVar

from feature_repo import contract
from jobs.rules import events

T = TypeVar("T")

# Why a row of the items table is rejected, in the order in which the reasons are looked for.
BAD_ROW: Final = events.BAD_ROW
BAD_ENCODING: Final = events.BAD_ENCODING
NULL_ITEM_ID: Final = "null_item_id"  # absent, empty or only white space
DUPLICATE_ITEM_ID: Final = "duplicate_item_id"  # another acceptable row describes the same item at the same updated_at
SUPERSEDED: Final = "superseded"  # another row of the item has a later updated_at: this is its history, and no fault
REJECTIONS: Final = (BAD_ROW, BAD_ENCODING, NULL_ITEM_ID, DUPLICATE_ITEM_ID, SUPERSEDED)
# Why an optional value is lost, and not the item that has it.
BAD_PRICE: Final = "bad_price"  # not a number, negative, or more than a float of 32 bits holds
BAD_CREATED_AT: Final = "bad_created_at"  # no ISO 8601 moment, one without its offset from UTC, or not of our time
BAD_UPDATED_AT: Final = "bad_updated_at"  # as of created_at
LOST: Final = (BAD_PRICE, BAD_CREATED_AT, BAD_UPDATED_AT)

# What became of an accepted item's image.
OK: Final = "ok"
MISSING: Final = "missing"
BROKEN: Final = "broken"
PLACEHOLDER: Final = "placeholder"
REFUSED: Final = "refused"
SHARED_BY_MANY: Final = "shared_by_many"  # the reason of a placeholder: jobs.rules.placeholders
BLANK: Final = "blank"  # that of a picture of one colour
STATUSES: Final = (OK, MISSING, BROKEN, PLACEHOLDER, REFUSED)

# The status that each reason leads to. The codes of model.courier.data.images appear as they stand there.
STATUS_OF: Final = {
    "": OK,
    "no_reference": MISSING,
    "not_found": MISSING,
    "unreadable": MISSING,  # it is there, but the disk or the store would not give it
    "access_denied": MISSING,
    "timed_out": MISSING,
    "host_down": MISSING,  # it had given no answer many times in a row, and was not asked
    "host_unavailable": MISSING,  # no address, no connection, or no whole answer
    "server_error": MISSING,  # HTTP status 500 and above
    "rate_limited": MISSING,  # HTTP status 429
    "http_error": MISSING,  # any other HTTP status
    "certificate_refused": MISSING,
    "empty": BROKEN,
    "not_an_image": BROKEN,
    "truncated": BROKEN,
    "unsupported": BROKEN,
    "format_not_read": REFUSED,
    "too_large": REFUSED,
    "too_many_pixels": REFUSED,
    "too_long": REFUSED,
    "too_small": REFUSED,
    "inline_data": REFUSED,
    "several_references": REFUSED,
    "white_space": REFUSED,
    "backslashes": REFUSED,
    "encoded": REFUSED,
    "query_after_name": REFUSED,
    "scheme_missing": REFUSED,
    "absolute_path": REFUSED,
    "other_machine": REFUSED,
    "impossible_name": REFUSED,
    "outside_folder": REFUSED,
    "not_a_file": REFUSED,
    "scheme_not_allowed": REFUSED,
    "no_credentials": REFUSED,  # of an object store
    "scheme_unavailable": REFUSED,  # allowed, but fsspec's driver for it is not installed
    "host_not_allowed": REFUSED,
    "redirect_not_allowed": REFUSED,
    "too_many_redirects": REFUSED,
    "private_address": REFUSED,
    "credentials_in_url": REFUSED,
    "bad_url": REFUSED,
    BLANK: PLACEHOLDER,
    SHARED_BY_MANY: PLACEHOLDER,
}
# What each of them means, and how it is mended, for whoever reads a report or a log.
SENTENCES: Final = {
    "no_reference": "The item names no image, or has a word for none.",
    "not_found": "There is nothing behind the reference; letter case counts.",
    "unreadable": "It is there, but the disk or the store would not give it.",
    "access_denied": "The server or the store does not give it to us.",
    "timed_out": "It did not come in time.",
    "host_down": "The host had given no answer many times in a row and was not asked.",
    "host_unavailable": "The host has no address, took no connection or gave no whole answer.",
    "server_error": "The server had an error of its own.",
    "rate_limited": "The server asked for fewer requests, longer than we wait.",
    "http_error": "The server answered with a status that is neither the picture nor a known refusal.",
    "certificate_refused": "The host's certificate is not valid.",
    "empty": "The file holds not one byte.",
    "not_an_image": "The file is no image in a known format.",
    "truncated": "The image's data is cut short or damaged.",
    "unsupported": "The image's colours cannot be turned into RGB.",
    "format_not_read": "The image has a format that is not read: save it as JPEG, PNG, GIF, WebP, AVIF, BMP or TIFF.",
    "too_large": "The file is larger than allowed.",
    "too_many_pixels": "The image has more pixels than allowed, and was not decoded.",
    "too_long": "A side of the image is longer than allowed, and it was not decoded.",
    "too_small": "A side of the image is shorter than allowed.",
    "inline_data": "The cell holds a picture's data, or a browser's own name for it: save it to a file and name that.",
    "several_references": "The cell holds several references, a list or an object: write one, of the main picture.",
    "white_space": "White space, quotes or what nobody sees stand around or in the name: take them out.",
    "backslashes": "The path has backslashes: write slashes.",
    "encoded": "The path is encoded as in a URL (%20) or a page (&amp;), the file's name is not: write it as it is.",
    "query_after_name": "A query as in a URL (?v=1) follows the name: write the path without it.",
    "scheme_missing": "The address lacks its scheme, or has it misspelt: write https://HOST/PATH (or s3://, gs://).",
    "absolute_path": "The path begins with a slash, out of the items table's folder: write it from there, without.",
    "other_machine": "The path is another machine's: copy the pictures beside the items table, name them from there.",
    "impossible_name": "No file can have such a name: too long, a zero byte, or letters that this locale cannot write.",
    "outside_folder": "The path leaves the folder of the items table: copy the pictures into it.",
    "not_a_file": "The path leads to a folder, a pipe or a device: name a file.",
    "scheme_not_allowed": "Only paths and file://, s3://, gs:// and https:// are followed, and never http://.",
    "no_credentials": "The object store wants credentials and has none: set them as its driver wants, and run again.",
    "scheme_unavailable": "The driver for this object store is not installed.",
    "host_not_allowed": "The host is not on the list of allowed hosts: allow it with --allow-host.",
    "redirect_not_allowed": "The server sends us to a host that is not on the list.",
    "too_many_redirects": "The server sends us on and on.",
    "private_address": "The host's address lies inside a private network.",
    "credentials_in_url": "The reference holds a user name or a password.",
    "bad_url": "The reference is no URL: write https://HOST/PATH, or SCHEME://BUCKET/NAME.",
    BLANK: "The picture is of one colour, and tells nothing about the item.",
    SHARED_BY_MANY: "Many items with nothing in common show this picture, far more than show most others.",
}
# The reasons that lie in the world and not in the reference or its bytes: the same reference may succeed tomorrow, or
# after a driver was installed. "not_found" is one of them, for a picture is often uploaded after its item is listed.
RETRYABLE: Final = frozenset(
    {reason for reason, status in STATUS_OF.items() if status == MISSING and reason != "no_reference"}
    | {"scheme_unavailable"}
)
# Those that tell nothing of a picture that was there before: it is kept as it was, and counted as stale. That it is not
# found is an answer; that we may not ask is none, although asking again as we are is vain.
OUTAGES: Final = (RETRYABLE - {"not_found"}) | {"no_credentials"}

PRECEDENCE: Final = ("image_uri", "category", "title", "price", "created_at")

NUMBER: Final = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
NO_PRICE: Final = ("nan", "null", "none", "n/a", "-")  # in lower case: words for a price that is not known
LARGEST_PRICE: Final = contract.LARGEST_PRICE


@dataclass(frozen=True, kw_only=True)
class Item:
    """An accepted row of the items table; created_at and updated_at are aware UTC."""

    item_id: str
    image_uri: str | None = None
    category: str | None = None
    title: str | None = None
    price: float | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


# --- rows of the items table ----------------------------------------------------------------------------------------


def reject_reason(row: Mapping[str, Any]) -> str | None:
    """Why this row is unusable by itself, or None; duplicates are for whoever sees the whole table."""
    if found := events.damage(row):
        return found
    if text(row.get("item_id")) is None:
        return NULL_ITEM_ID
    return None


def lost_values(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Which optional values of this row cannot be read, of LOST: the item stands without them."""
    readings = {
        BAD_PRICE: (price, "price"),
        BAD_CREATED_AT: (moment, "created_at"),
        BAD_UPDATED_AT: (moment, "updated_at"),
    }
    return tuple(reason for reason, (read, name) in readings.items() if not _is_readable(read, row.get(name)))


def item(row: Mapping[str, Any]) -> Item:
    """The item that an acceptable row describes. Raises ValueError for a row that `reject_reason` names."""
    if reason := reject_reason(row):
        raise ValueError(f"item row {dict(row)} is unusable: {reason}")
    return described(row)


def described(row: Mapping[str, Any]) -> Item:
    """As `item`, of a row that `reject_reason` was asked about already."""
    return Item(
        item_id=str(row["item_id"]),
        image_uri=text(row.get("image_uri")),
        category=text(row.get("category")),
        title=text(row.get("title")),
        price=_or_none(price, row.get("price")),
        created_at=_or_none(moment, row.get("created_at")),
        updated_at=_or_none(moment, row.get("updated_at")),
    )


def _is_readable(read: Callable[[object], Any], value: object) -> bool:
    try:
        read(value)
    except ValueError:
        return False
    return True


def _or_none(read: Callable[[object], T], value: object) -> T | None:
    return read(value) if _is_readable(read, value) else None


def precedence(described: Item) -> tuple[tuple[bool, Any], ...]:
    """The order among acceptable rows of one item, of which the smallest is kept: the last by updated_at.

    Of those with one updated_at it goes by PRECEDENCE; what is absent comes last. No engine keeps the order of a
    table's rows, so it cannot be the first one.
    """
    at = described.updated_at
    values = (getattr(described, name) for name in PRECEDENCE)
    return ((at is None, None if at is None else -events.micros(at)), *((value is None, value) for value in values))


def why_not_kept(described: Item, before: Item) -> str:
    """Why an acceptable row of an item is not kept. before: the row that stands before it by `precedence`."""
    return DUPLICATE_ITEM_ID if described.updated_at == before.updated_at else SUPERSEDED


def accept(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Item], list[tuple[Mapping[str, Any], str]]]:
    """The accepted items and the (row, reason) of the others, both in the order of the table.

    Of several acceptable rows with one item_id the smallest by `precedence` is kept.
    """
    judged = [(row, reject_reason(row)) for row in rows]
    items = {number: item(row) for number, (row, reason) in enumerate(judged) if reason is None}
    reasons = {number: reason for number, (_, reason) in enumerate(judged) if reason is not None}
    ordered = sorted(items, key=lambda number: (items[number].item_id, precedence(items[number]), number))
    for before, number in pairwise(ordered):
        if items[before].item_id == items[number].item_id:
            reasons[number] = why_not_kept(items[number], items[before])
    rejected = [(judged[number][0], reasons[number]) for number in sorted(reasons)]
    return [one for number, one in items.items() if number not in reasons], rejected


def text(value: object) -> str | None:
    """A value as text; None where it is absent, NaN, empty or only white space."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    written = str(value)
    return written if written.strip(events.WHITE_SPACE) else None


def price(value: object) -> float | None:
    """A price >= 0, or None where unknown. Raises ValueError for anything else."""
    number = _number(value)
    if number is None or math.isnan(number):
        return None
    if not 0 <= number <= LARGEST_PRICE:
        raise ValueError(f"{value!r} is not a price")
    return number


def _number(value: object) -> float | None:
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    written = text(value)
    if written is None:
        return None
    written = written.strip(events.WHITE_SPACE)
    if written.lower() in NO_PRICE:
        return math.nan
    if not re.fullmatch(NUMBER, written, re.ASCII):
        raise ValueError(f"{value!r} is not a number")
    return float(written)


def moment(value: object) -> datetime | None:
    """A moment in UTC as events.moment reads it, or None where unknown. Raises ValueError."""
    return None if events.is_absent(value) else events.moment(value)


# --- images ---------------------------------------------------------------------------------------------------------


def find_duplicates(items: Sequence[tuple[str, str]]) -> dict[str, str]:
    """item_id -> the smallest item_id with the same image_id, for every item but that one.

    items: (item_id, image_id).
    """
    first: dict[str, str] = {}
    for item_id, image_id in sorted(items):
        first.setdefault(image_id, item_id)
    return {item_id: first[image_id] for item_id, image_id in items if first[image_id] != item_id}
