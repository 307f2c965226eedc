"""The logic of the catalogue: which rows are accepted, and who shares a picture with whom."""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.rules import items as catalogue
from jobs.rules.items import Item

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

IDS = st.sampled_from(["a", "b", "c", "d"])
PRICES = st.sampled_from([None, 1.5, "2", -1, "cheap", math.nan])
MOMENTS = st.sampled_from([None, NOON, "2024-05-01T12:00:00Z", "2024-05-01T12:00:00"])
UPDATES = st.sampled_from([None, NOON, NOON + timedelta(microseconds=1), "2024-05-01T12:00:00Z", "soon"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {"item_id": st.one_of(IDS, st.none()), "price": PRICES, "created_at": MOMENTS, "updated_at": UPDATES}
    ),
    max_size=12,
)


@pytest.mark.parametrize("item_id", [None, "", "  ", math.nan])
def test_a_row_without_an_item_id_is_rejected(item_id):
    assert catalogue.reject_reason({"item_id": item_id}) == catalogue.NULL_ITEM_ID


@pytest.mark.parametrize(
    "price", [-0.01, "-1", "cheap", "1,50", "1_000", True, math.inf, "inf", 10**400, "1e39", 3.5e38, "1 2", "\u0661"]
)
def test_a_price_that_is_no_amount_is_lost_and_not_its_item(price):
    row = {"item_id": "a", "price": price}
    assert (catalogue.reject_reason(row), catalogue.lost_values(row)) == (None, (catalogue.BAD_PRICE,))
    assert catalogue.item(row) == Item(item_id="a")


@pytest.mark.parametrize(
    ("price", "amount"),
    [
        (None, None),
        ("", None),
        (math.nan, None),
        ("NaN", None),
        ("N/A", None),
        (3.4028234663852886e38, 3.4028234663852886e38),
        (0, 0.0),
        ("12.50", 12.5),
        (Decimal("0.1"), 0.1),
        (" 3 ", 3.0),
    ],
)
def test_an_unknown_price_is_none_and_a_known_one_a_float(price, amount):
    assert catalogue.item({"item_id": "a", "price": price}).price == amount


@pytest.mark.parametrize(
    "moment",
    [
        "yesterday",
        "2024-05-01",
        "2024-05-01T12:00:00",
        datetime(2024, 5, 1),  # noqa: DTZ001
        1714564800,
        "0001-01-01T00:00:00+14:00",
        datetime(9999, 12, 31, tzinfo=UTC),
    ],
)
def test_a_moment_that_is_unreadable_or_has_no_offset_is_lost_and_not_its_item(moment):
    row = {"item_id": "a", "created_at": moment}
    assert (catalogue.reject_reason(row), catalogue.lost_values(row)) == (None, (catalogue.BAD_CREATED_AT,))
    assert catalogue.item(row) == Item(item_id="a")


@pytest.mark.parametrize("moment", [NOON, "2024-05-01T12:00:00Z", "2024-05-01T14:00:00+02:00"])
def test_every_spelling_of_a_moment_becomes_the_same_utc_moment(moment):
    accepted = catalogue.item({"item_id": "a", "created_at": moment}).created_at
    assert (accepted, accepted.tzinfo) == (NOON, UTC)


def test_the_smallest_acceptable_row_of_an_item_is_kept_wherever_it_stands():
    rows = [
        {"item_id": " ", "title": "bad"},
        {"item_id": "a", "title": "first"},
        {"item_id": "a", "title": "second"},
    ]
    items, rejected = catalogue.accept(rows)
    assert items == [Item(item_id="a", title="first")]
    assert rejected == [(rows[0], "null_item_id"), (rows[2], "duplicate_item_id")]


@pytest.mark.parametrize(
    ("kept", "other"),
    [
        ({"image_uri": "a", "title": "z"}, {"image_uri": "b", "title": "a"}),
        ({"image_uri": "a", "category": "z"}, {"image_uri": "a", "category": None}),
        ({"price": 9}, {"price": 10}),
        ({"title": "\uffff"}, {"title": "\U0001f600"}),  # by code point, as UTF-8 sorts, not as UTF-16 does
        ({"created_at": "2024-05-01T13:00:00+02:00"}, {"created_at": NOON}),
        ({"created_at": NOON}, {"created_at": ""}),
    ],
)
def test_of_two_rows_of_an_item_the_smaller_is_kept_by_value_and_an_absent_one_comes_last(kept, other):
    rows = [{"item_id": "a"} | kept, {"item_id": "a"} | other]
    for order in (rows, rows[::-1]):
        items, rejected = catalogue.accept(order)
        assert items == [catalogue.item(rows[0])]
        assert rejected == [(rows[1], "duplicate_item_id")]


def test_rows_of_one_item_and_several_moments_are_its_history_of_which_the_last_is_kept():
    rows = [
        {"item_id": "a", "price": 1, "updated_at": None},
        {"item_id": "a", "price": 4, "updated_at": "2024-05-01T12:00:00.000001Z"},
        {"item_id": "a", "price": 3, "updated_at": NOON},
        {"item_id": "a", "price": 2, "updated_at": "2024-05-01T14:00:00+02:00"},
        {"item_id": "a", "price": 0.5, "updated_at": "soon"},
    ]
    items, rejected = catalogue.accept(rows)
    assert [one.price for one in items] == [4]
    assert [(row["price"], reason) for row, reason in rejected] == [
        (1, "duplicate_item_id"),  # of the row whose moment cannot be read, which is of an unknown one too
        (3, "duplicate_item_id"),
        (2, "superseded"),
        (0.5, "superseded"),
    ]
    assert catalogue.lost_values(rows[-1]) == ("bad_updated_at",)


@given(ROWS, st.randoms(use_true_random=False))
def test_which_row_is_kept_does_not_depend_on_their_order(rows, random):
    shuffled = random.sample(rows, len(rows))
    assert sorted(map(repr, catalogue.accept(rows)[0])) == sorted(map(repr, catalogue.accept(shuffled)[0]))


@given(ROWS)
def test_every_row_is_either_accepted_or_rejected_and_ids_are_unique(rows):
    items, rejected = catalogue.accept(rows)
    assert len(items) + len(rejected) == len(rows)
    assert len({one.item_id for one in items}) == len(items)
    assert {reason for _, reason in rejected} <= set(catalogue.REJECTIONS)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"item_id": "a\0"}, "bad_row"),
        ({"item_id": "a", "title": "b\0"}, "bad_row"),
        ({"item_id": "a", "bad_encoding": True}, "bad_encoding"),
        ({"item_id": "a\0", "bad_encoding": True}, "bad_row"),
        ({"item_id": None, "bad_encoding": True}, "bad_encoding"),
    ],
)
def test_a_damaged_row_is_rejected_before_its_values_are_looked_at(row, reason):
    assert catalogue.reject_reason(row) == reason


def test_an_unacceptable_row_describes_no_item():
    with pytest.raises(ValueError, match="null_item_id"):
        catalogue.item({"item_id": None})


def test_numbers_as_ids_are_text():
    assert catalogue.item({"item_id": 7}).item_id == "7"


# --- pictures -------------------------------------------------------------------------------------------------------


def test_a_duplicate_names_the_smallest_item_that_shows_its_picture():
    assert catalogue.find_duplicates([("b", "x"), ("c", "x"), ("a", "x"), ("d", "y")]) == {"b": "a", "c": "a"}


def test_every_reason_leads_to_a_known_status():
    assert set(catalogue.STATUS_OF.values()) == set(catalogue.STATUSES)
