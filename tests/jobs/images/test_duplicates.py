"""Pictures and who shows them, in columns: held to the plain rules of jobs.rules.items."""

import random

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import ImagesConfig
from jobs.images.duplicates import placeholders, settle, uses
from jobs.images.examine import EXAMINED
from jobs.rules.items import MISSING, OK, find_duplicates
from jobs.rules.placeholders import Shown, find_placeholders

ITEMS = st.lists(
    st.tuples(
        st.text("aäb\U0001f600", min_size=1, max_size=3),
        st.sampled_from(["x", "x", "x", "x", "y", "y", "z", "u", "v", "w", None]),
        st.sampled_from(["shoe", "hat", "häkeln", None]),
        st.sampled_from("pqr"),
        st.sampled_from(["red shirt", "red mug", "a blue shirt", "Ä", "", None]),
        st.sampled_from([1.0, 2.0, 2.5, None]),
    ),
    max_size=16,
    unique_by=lambda item: item[0],
)


def examined(items):
    """(item_id, image_id, category, reference, title, price) as a table; without an image_id nothing was there."""
    rows = [
        {
            "item_id": item_id,
            "category": category,
            "title": title,
            "price": price,
            "image_uri": reference,
            "uri": f"/raw/{reference}",
            "image_id": image_id,
            "status": OK if image_id else MISSING,
            "reason": "" if image_id else "not_found",
        }
        for item_id, image_id, category, reference, title, price in items
    ]
    return pa.Table.from_pylist(rows, EXAMINED)


def shown_in(items):
    """Those of them that show a picture, as the plain rules take them."""
    return [Shown(item[0], item[1], item[2], item[4], item[5]) for item in items if item[1] is not None]


@given(ITEMS, st.integers(1, 3), st.integers(0, 2), st.integers(0, 2**32))
def test_items_settle_as_the_plain_rules_have_it_in_any_order(items, min_items, min_categories, seed):
    duplicates = find_duplicates([(item.item_id, item.image_id) for item in shown_in(items)])
    shared = find_placeholders(shown_in(items), min_items, min_categories)
    random.Random(seed).shuffle(items)
    config = ImagesConfig(placeholder_items=min_items, placeholder_categories=min_categories)
    settled = settle(examined(items), config).to_pylist()
    assert [row["item_id"] for row in settled] == sorted(item[0] for item in items)
    was = {item[0]: item[1] for item in items}
    for row in settled:
        image_id, got = was[row["item_id"]], (row["status"], row["reason"], row["image_id"], row["duplicate_of"])
        if image_id is None:
            assert got == ("missing", "not_found", None, None)
        elif image_id in shared:
            assert got == ("placeholder", "shared_by_many", None, None)
        else:
            assert got == ("ok", "", image_id, duplicates.get(row["item_id"]))


@given(ITEMS, st.integers(1, 3), st.integers(0, 2))
def test_the_uses_of_a_picture_are_those_of_the_items_that_show_it(items, min_items, min_categories):
    config = ImagesConfig(placeholder_items=min_items, placeholder_categories=min_categories)
    shown = [item for item in items if item[1] is not None]
    shared = find_placeholders(shown_in(items), min_items, min_categories)
    assert placeholders(examined(items), config) == sorted(shared)
    used = uses(examined(items), shared).to_pylist()
    assert sorted(row["image_id"] for row in used) == sorted({item[1] for item in shown})
    for row in used:
        mine = [item for item in shown if item[1] == row["image_id"]]
        assert (row["items"], row["first_item_id"]) == (len(mine), min(item[0] for item in mine))
        assert sorted(row["categories"]) == sorted({item[2] for item in mine} - {None})
        reference = min(item[3] for item in mine)
        assert (row["image_uri"], row["uri"]) == (reference, f"/raw/{reference}")
        assert row["is_placeholder"] == (row["image_id"] in shared)


def test_a_catalogue_of_many_pictures_has_the_placeholders_of_the_plain_rules():
    rng = random.Random(0)
    words = ["red", "blue", "shirt", "mug", "lamp", "hat", "old", "new", "silk", "oak", "tin", "big", "small", "thin"]
    items = []
    for picture in range(450):  # of which four may be alike
        for _ in range(40 if picture < 3 else 9 if picture < 12 else rng.randrange(1, 5)):
            title = " ".join(rng.sample(words, 3)) if picture else "red old mug"
            item_id, category, price = f"i{len(items):04d}", rng.choice("abcd"), rng.choice([1.0, 2.0, 3.0])
            items.append((item_id, f"p{picture}", category, item_id, title, price))
    shared = find_placeholders(shown_in(items), 5, 3)
    assert shared == {"p1", "p2"}  # all items of p0 have one title; nine items are nothing among nine such pictures
    assert placeholders(examined(items), ImagesConfig()) == sorted(shared)
