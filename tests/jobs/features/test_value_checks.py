"""What is refused of a feature view's rows, and what is counted of them."""

import math
from datetime import UTC, datetime, timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.contract import (
    EARLIEST,
    EMBEDDING_DIM,
    ITEM_CLUSTER,
    ITEM_EMBEDDING,
    ITEM_PROFILE,
    ITEM_STATISTICS,
    KEYS,
    SERVICE_DESCRIPTIONS,
    SERVICES,
    USER_HISTORY,
    VIEWS,
    Feature,
    View,
)
from jobs.features.history_store import as_rows
from jobs.features.offline import source_schema
from jobs.features.value_checks import TableChecker, ValuesRefused, check_rows
from jobs.rules.events import micros
from jobs.stages import STAGES
from model.ctr.inputs.rows import ROW_DEFAULTS

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
CURE = "mend it"
CHECKER = TableChecker()


def table(view, *rows):
    """Rows of a view, an hour apart; of each only the features."""
    keyed = [
        {**dict.fromkeys(view.keys, f"k{n}"), "event_timestamp": NOON + timedelta(hours=n), **row}
        for n, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(keyed, schema=source_schema(view))


def profile(**changes):
    return {"category": "shoe", "price": 9.5, "created_at": 5, **changes}


def refusal(view, *rows):
    with pytest.raises(ValuesRefused) as refused:
        CHECKER.check(view, table(view, *rows), cure=CURE)
    return str(refused.value)


def test_what_is_allowed_is_counted():
    rows = [profile(), profile(price=math.nan), profile(price=None, created_at=-1), profile(category="")]
    found = CHECKER.check(ITEM_PROFILE, table(ITEM_PROFILE, *rows), cure=CURE)
    assert found.rows == 4
    assert found.newest == NOON + timedelta(hours=3)
    assert found.null_shares == {"category": 0.25, "price": 0.5, "created_at": 0.25}


def test_a_view_without_rows_has_no_newest_one():
    found = CHECKER.check(ITEM_PROFILE, table(ITEM_PROFILE), cure=CURE)
    assert (found.rows, found.newest, set(found.null_shares.values())) == (0, None, {0.0})


def test_a_value_outside_its_range_is_refused_with_view_feature_rows_an_example_and_the_cure():
    said = refusal(ITEM_PROFILE, profile(), profile(price=-0.5), profile(price=-2.0))
    assert said == (
        "item_profile.price is not from 0 to 3.40282e+38 in 2 of 3 rows, "
        "as in item_id k1 of 2024-03-01 13:00:00+00: -0.5: mend it"
    )


def test_without_another_cure_the_stage_that_makes_the_view_is_named():
    with duckdb.connect() as connection:
        connection.register("rows", table(ITEM_CLUSTER, {"cluster_id": 2**30}))
        with pytest.raises(ValuesRefused, match=r": mend what jobs/embeddings .* `courier run --from cluster`"):
            check_rows(connection, ITEM_CLUSTER, "rows")


def test_a_value_that_must_be_known_is_refused_where_it_is_null():
    counted = {feature.name: 1 for feature in ITEM_STATISTICS.features}
    said = refusal(ITEM_STATISTICS, counted, counted | {"item_clicks_7d": None, "item_ctr_7d": math.nan})
    assert said == (
        "item_statistics.item_clicks_7d has no value in 1 of 2 rows, and may have none in 0%, "
        "as in item_id k1 of 2024-03-01 13:00:00+00: null (and 1 more of this view): mend it"
    )


def test_a_vector_of_another_width_is_refused():
    whole = np.zeros(EMBEDDING_DIM, "<f4").tobytes()
    assert CHECKER.check(ITEM_EMBEDDING, table(ITEM_EMBEDDING, {"image_embedding": whole}), cure=CURE).rows == 1
    said = refusal(ITEM_EMBEDDING, {"image_embedding": whole[:-1]})
    assert "is not 256 numbers of 4 bytes in 1 of 1 rows, as in item_id k0 space_id k0" in said
    assert "1023 bytes" in said


@pytest.mark.parametrize(
    ("items", "moments"),
    [
        (["a"] * 51, [1] * 51),
        (["a"], [micros(EARLIEST) - 1]),
        (["a", None], [1, 2]),
        ([], []),
    ],
)
def test_a_history_that_is_too_long_of_no_moment_or_with_a_hole_is_refused(items, moments):
    assert "user_history" in refusal(USER_HISTORY, {"history_item_ids": items, "history_clicked_at": moments})


def test_a_history_that_is_pushed_is_checked_like_one_that_is_loaded():
    rows = as_rows({"u": tuple(("a", n) for n in range(51, 0, -1))})
    with pytest.raises(ValuesRefused, match=r"history_item_ids is not a list of at most 50 in 1 of 1 rows"):
        CHECKER.check(USER_HISTORY, pa.Table.from_batches([rows]), cure=CURE)


# --- the plain twin -------------------------------------------------------------------------------------------------

ANY = View(
    "any",
    ("item_id",),
    (
        Feature("whole", "int", least=-1, most=2, unknown=-1, nulls=0.5),
        Feature("real", "float", least=0, nulls=0.25),
        Feature("whole_list", "list[int]", 2, least=0, most=3),
    ),
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "whole": st.sampled_from([None, -2, -1, 0, 2, 3]),
            "real": st.sampled_from([None, math.nan, math.inf, -0.5, 0.0, 7.0]),
            "whole_list": st.sampled_from([None, [], [0], [3, 3], [4], [0, None], [1, 2, 3]]),
        }
    )
    | st.just({"whole": 1, "real": 1.0, "whole_list": [1]}),  # a good row, which is rare otherwise
    max_size=6,
)


def is_unknown(feature, value):
    if isinstance(value, list):
        return not value or None in value
    return value is None or value == feature.unknown or (isinstance(value, float) and math.isnan(value))


def is_outside(feature, value):
    members = value if isinstance(value, list) else [value]
    return (
        (isinstance(value, list) and len(value) > feature.width)
        or any(feature.least is not None and one < feature.least for one in members)
        or any(feature.most is not None and one > feature.most for one in members)
        or any(math.isinf(one) for one in members)
    )


@given(rows=ROWS)
def test_rows_are_refused_and_counted_as_one_by_one(rows):
    shares, bad = {}, set()
    for feature in ANY.features:
        values = [row[feature.name] for row in rows]
        unknown = [is_unknown(feature, value) for value in values]
        shares[feature.name] = sum(unknown) / len(rows) if rows else 0.0
        outside = [not no and is_outside(feature, value) for no, value in zip(unknown, values, strict=True)]
        if any(outside) or shares[feature.name] > feature.nulls:
            bad.add(feature.name)
    if bad:
        with pytest.raises(ValuesRefused) as refused:
            CHECKER.check(ANY, table(ANY, *rows), cure=CURE)
        assert str(refused.value).partition(" ")[0].removeprefix("any.") in bad
    else:
        assert CHECKER.check(ANY, table(ANY, *rows), cure=CURE).null_shares == shares


# --- what the contract says of itself -------------------------------------------------------------------------------


def test_every_view_feature_key_and_service_is_described():
    assert all(view.description and view.owner for view in VIEWS)
    assert all(feature.description for view in VIEWS for feature in view.features)
    assert KEYS.keys() == {key for view in VIEWS for key in view.keys}
    assert SERVICE_DESCRIPTIONS.keys() == SERVICES.keys()


def test_every_view_names_a_stage_that_can_be_run_again():
    assert {view.stage for view in VIEWS} <= {stage.name for stage in STAGES}


def test_what_stands_for_an_unknown_value_is_what_a_row_is_filled_with():
    stated = {feature.name: feature.unknown for view in VIEWS for feature in view.features if feature.unknown}
    assert stated == {name: ROW_DEFAULTS[name] for name in stated}
