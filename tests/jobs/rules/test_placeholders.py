"""A placeholder is shown by far more items than other pictures, of many categories, with nothing in common."""

import random

import pytest

from jobs.rules.placeholders import Common, Shown, agree, common_to, find_placeholders, is_extraordinary

NAMES = ["Oak table", "Silk scarf", "Tin kettle", "Wool socks", "Glass vase", "Steel lamp"]


def of_picture(image_id, count, *, titles=NAMES, categories="abc", prices=()):
    """So many items of one picture, whose titles, categories and prices come in turns."""
    return [
        Shown(
            f"{image_id}-{n:03d}",
            image_id,
            categories[n % len(categories)],
            titles[n % len(titles)],
            prices[n % len(prices)] if prices else 1.0 + n,
        )
        for n in range(count)
    ]


def found(*pictures, min_items=5, min_categories=3):
    return find_placeholders([item for picture in pictures for item in picture], min_items, min_categories)


SINGLES = [of_picture(f"s{n}", 1) for n in range(20)]


def test_a_placeholder_is_shared_by_enough_items_of_enough_categories():
    shared = [Shown("a", "x", "shoe"), Shown("b", "x", "hat"), Shown("c", "x", "hat")]
    assert find_placeholders(shared, min_items=3, min_categories=2) == {"x"}
    assert find_placeholders(shared, min_items=4, min_categories=2) == set()
    assert find_placeholders(shared, min_items=3, min_categories=3) == set()


def test_an_unknown_category_counts_for_none():
    shared = [Shown("a", "x", "shoe"), Shown("b", "x", None), Shown("c", "x", None)]
    assert find_placeholders(shared, min_items=3, min_categories=2) == set()


@pytest.mark.parametrize("count", [6, 300])
def test_a_picture_of_many_unrelated_items_is_one_however_many_pictures_there_are(count):
    assert found(*SINGLES, of_picture("none", count)) == {"none"}
    assert found(of_picture("none", count)) == {"none"}


def test_up_to_three_pictures_alike_are_found():
    three = [of_picture(f"none{n}", 30 + n) for n in range(3)]
    assert found(*SINGLES, *three) == {"none0", "none1", "none2"}


def test_where_many_pictures_are_shared_by_five_none_of_them_is_one():
    variants = [of_picture(f"v{n}", 5) for n in range(4)]
    assert found(*SINGLES, *variants) == set()
    assert found(*SINGLES, *variants[:3]) == {"v0", "v1", "v2"}


def test_among_variants_a_picture_of_more_than_twice_as_many_items_is_found():
    variants = [of_picture(f"v{n}", 5) for n in range(40)]
    assert found(*variants, of_picture("none", 10)) == set()
    assert found(*variants, of_picture("none", 11)) == {"none"}


def test_of_a_large_catalogue_one_picture_in_a_hundred_may_be_alike():
    times = [50] * 5 + [1] * 495
    assert is_extraordinary(50, times)
    assert not is_extraordinary(50, [50] * 6 + [1] * 494)
    assert not is_extraordinary(50, [25] * 5 + [1] * 494 + [50])
    assert is_extraordinary(51, [25] * 5 + [1] * 494 + [51])


@pytest.mark.parametrize(
    "titles",
    [
        ["Linen shirt red S", "Linen shirt blue M", "Linen shirt green L"],
        ["Shirt, red", "SHIRT blue", "shirt (green)"],
        ["Linen shirt red S", "Linen shirt blue M", "Linen shirt green L", None],
    ],
)
def test_variants_whose_titles_agree_are_none_whatever_their_categories(titles):
    assert found(*SINGLES, of_picture("v", 12, titles=titles)) == set()


def test_variants_of_one_price_are_none():
    assert found(*SINGLES, of_picture("v", 12, prices=[9.5, 9.5, 9.5, 12.0])) == set()
    assert found(*SINGLES, of_picture("v", 12, prices=[9.5, 9.5, 12.0, 13.0])) == {"v"}


@pytest.mark.parametrize(
    ("titles", "prices", "common", "expected"),
    [
        (["a b", "a c", "a d"], [None] * 3, Common(), True),  # a, in three of three: 3 of 6 words
        (["a b c", "a d e", "a f g"], [None] * 3, Common(), False),  # 3 of 9
        (["a b", "a c", "a d"], [None] * 3, Common(words=frozenset("a")), False),
        (["a", "a", "b", "c"], [None] * 4, Common(), False),  # two of four are not more than half
        (["a", "a", None, None], [None] * 4, Common(), False),
        ([None] * 3, [2.0, 2.0, 3.0], Common(), True),
        ([None] * 3, [2.0, 2.0, 3.0], Common(price=2.0), False),
        ([None] * 4, [2.0, 2.0, None, None], Common(), False),
        ([None] * 3, [None] * 3, Common(), False),
        ([""] * 3, [None] * 3, Common(), False),
    ],
)
def test_items_agree_by_one_price_or_by_half_of_their_titles_words(titles, prices, common, expected):
    assert agree(titles, prices, common) is expected


def test_what_the_whole_catalogue_has_in_common_tells_nothing():
    assert common_to(["Acme mug", "Acme lamp", None], [0.0, 0.0, 5.0]) == Common(frozenset(["acme"]), 0.0)
    assert common_to(["Acme mug", "lamp"], [0.0, 5.0]) == Common()
    titles = [f"Acme {name.split()[1]}" for name in NAMES]
    shop = [of_picture(f"s{n}", 1, titles=[f"Acme {n}"], prices=[0.0]) for n in range(40)]
    assert found(*shop, of_picture("none", 12, titles=titles, prices=[0.0])) == {"none"}


def test_the_order_of_the_items_changes_nothing():
    items = [
        item for picture in (*SINGLES, of_picture("none", 9), of_picture("v", 9, prices=[1.5])) for item in picture
    ]
    random.Random(0).shuffle(items)
    assert find_placeholders(items, 5, 3) == {"none"}
