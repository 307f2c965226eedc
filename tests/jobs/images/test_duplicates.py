"""Pictures and who shows them, in columns: held to the plain rules of jobs.rules.items."""

import random

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import ImagesConfig
from jobs.images.duplicates import settle, uses
from jobs.images.examine import EXAMINED
from jobs.rules.items import MISSING, OK, find_duplicates, find_placeholders

ITEMS = st.lists(
    st.tuples(
        st.text("aäb\U0001f600", min_size=1, max_size=3),
        st.sampled_from(["x", "y", "z", None]),
        st.sampled_from(["shoe", "hat", "häkeln", None]),
        st.sampled_from("pqr"),
    ),
    max_size=12,
    unique_by=lambda item: item[0],
)


def examined(items):
    """(item_id, image_id, category, reference) as a table; without an image_id nothing was behind the reference."""
    rows = [
        {
            "item_id": item_id,
            "category": category,
            "image_uri": reference,
            "uri": f"/raw/{reference}",
            "image_id": image_id,
            "status": OK if image_id else MISSING,
            "reason": "" if image_id else "not_found",
        }
        for item_id, image_id, category, reference in items
    ]
    return pa.Table.from_pylist(rows, EXAMINED)


@given(ITEMS, st.integers(1, 3), st.integers(0, 2), st.integers(0, 2**32))
def test_items_settle_as_the_plain_rules_have_it_in_any_order(items, min_items, min_categories, seed):
    shown = [(item_id, image_id, category) for item_id, image_id, category, _ in items if image_id is not None]
    duplicates = find_duplicates([(item_id, image_id) for item_id, image_id, _ in shown])
    placeholders = find_placeholders(shown, min_items, min_categories)
    random.Random(seed).shuffle(items)
    config = ImagesConfig(placeholder_items=min_items, placeholder_categories=min_categories)
    settled = settle(examined(items), config).to_pylist()
    assert [row["item_id"] for row in settled] == sorted(item[0] for item in items)
    was = {item[0]: item[1] for item in items}
    for row in settled:
        image_id, got = was[row["item_id"]], (row["status"], row["reason"], row["image_id"], row["duplicate_of"])
        if image_id is None:
            assert got == ("missing", "not_found", None, None)
        elif image_id in placeholders:
            assert got == ("placeholder", "shared_by_many", None, None)
        else:
            assert got == ("ok", "", image_id, duplicates.get(row["item_id"]))


@given(ITEMS, st.integers(1, 3), st.integers(0, 2))
def test_the_uses_of_a_picture_are_those_of_the_items_that_show_it(items, min_items, min_categories):
    config = ImagesConfig(placeholder_items=min_items, placeholder_categories=min_categories)
    shown = [item for item in items if item[1] is not None]
    placeholders = find_placeholders([item[:3] for item in shown], min_items, min_categories)
    used = uses(examined(items), config).to_pylist()
    assert sorted(row["image_id"] for row in used) == sorted({item[1] for item in shown})
    for row in used:
        mine = [item for item in shown if item[1] == row["image_id"]]
        assert (row["items"], row["first_item_id"]) == (len(mine), min(item[0] for item in mine))
        assert sorted(row["categories"]) == sorted({item[2] for item in mine} - {None})
        reference = min(item[3] for item in mine)
        assert (row["image_uri"], row["uri"]) == (reference, f"/raw/{reference}")
        assert row["is_placeholder"] == (row["image_id"] in placeholders)
