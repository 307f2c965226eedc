"""Row -> model input: every number against a slow reading of the same row, and the laws that serving relies on."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contract import CTR_HISTORY, EMBEDDING_DIM
from model.artifact import ArtifactMismatch
from model.ctr.inputs import inputs
from model.ctr.inputs.cluster_id import CLUSTER_FEATURES, cluster_codes, with_cluster_ids
from model.ctr.inputs.encoded import BASE_FEATURES, encode
from model.ctr.inputs.fit import fit_inputs
from model.ctr.inputs.item_vectors import ItemVectors
from model.ctr.inputs.registry import IMAGE_INPUTS
from model.ctr.inputs.rows import ROW_COLUMNS, fill
from model.ctr.inputs.simscore import HISTOGRAM_BINS, similarity
from model.ctr.inputs.state import UNKNOWN, InputsState
from model.ctr.inputs.vector import component_columns
from model.errors import CourierError

DAY = 86_400_000_000
NOW = 1_700_000_000_000_000


def _vectors(count=6):
    found = np.random.default_rng(0).normal(size=(count, EMBEDDING_DIM)).astype(np.float32)
    return ItemVectors([f"i{n}" for n in range(count)], found / np.linalg.norm(found, axis=1, keepdims=True))


def _row(item="i0", history=(), category="a", price=10.0, created=NOW - 3 * DAY, cluster=0, categories=None, **more):
    """One row in the form of the contract; history: (item, days ago, cluster), newest first."""
    row = {
        "request_id": "r",
        "user_id": "u",
        "item_id": item,
        "request_time": NOW,
        "position": 2,
        "clicked": 0,
        "cold": False,
        "history_item_ids": [h[0] for h in history],
        "history_clicked_at": [int(NOW - h[1] * DAY) for h in history],
        "history_cluster_ids": [h[2] for h in history],
        "history_categories": list(categories) if categories is not None else ["a"] * len(history),
        "category": category,
        "price": price,
        "created_at": created,
        "cluster_id": cluster,
    }
    return row | more


def _table(*rows, schema=ROW_COLUMNS):
    return fill(pa.Table.from_pylist(list(rows), schema=pa.schema(list(schema.items()))))


@pytest.fixture
def state():
    rows = [
        _row(item=f"i{n % 4}", clicked=int(n % 5 == 0), category="ab"[n % 2], price=5.0 + n % 2, cluster=n % 3)
        for n in range(40)
    ]
    return fit_inputs(_table(*rows), _vectors(), 3)


def _state(*clusters):
    """One item and one category are known, and so many clusters of each codebook."""
    return InputsState(
        items=("i0",),
        categories=("a",),
        median_price=np.ones(2, np.float32),
        learned={"none": {}, "cluster_id": {"sizes": np.array(clusters)}},
    )


def _sizes(state):
    return state.learned["cluster_id"]["sizes"].tolist()


def _named(given):
    return [dict(zip(given.names, row, strict=True)) for row in given.dense]


def _read(state, images, *rows, vectors=None):
    return _named(inputs.with_images(encode(_table(*rows), state, vectors), state, vectors, images))


def test_the_numbers_of_a_row_by_hand(state):
    history = [("i1", 1, 0), ("i0", 3, 2), ("i9", 7, 0)]
    row = _row(history=history, categories=["a", "b", "a"], item_impressions_7d=30, item_clicks_7d=6, item_ctr_7d=0.14)
    (given,) = _read(state, "cluster_id", row)
    expected = {
        "item_ctr_7d": 0.14,
        "item_ctr_1d": 1 / 20,
        "log_item_impressions_7d": math.log(31),
        "log_price": math.log(11),
        "log_price_to_category_median": math.log(11 / 6),
        "log_item_age_days": math.log(4),
        "history_length": 3,
        "log_days_since_click": math.log(2),
        "category_matches_5": 2,
        "category_share": 2 / 3,
        "clicked_before": 1,
        "cluster_matches_5": 2,
        "cluster_matches_50": 2,
        "cluster_share": 2 / 3,
        "cluster_recency_rank": 0,
    }
    assert {name: given[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_the_newest_entries_count_first(state):
    history = [("i1", 1, 1)] * 7 + [("i0", 2, 0)] * 5
    (given,) = _read(state, "cluster_id", _row(history=history))
    assert [given[f"cluster_matches_{last}"] for last in (5, 10, 50)] == [0, 3, 5]
    assert given["cluster_recency_rank"] == 7


def test_similarities_by_hand(state):
    vectors = _vectors()
    history = [("i1", 1, 0), ("i2", 2, 0), ("nowhere", 3, 0), ("i3", 4, 0), ("i4", 5, 0), ("i5", 6, 0)]
    (given,) = _read(state, "simscore", _row(history=history), vectors=vectors)
    cosines = [float(vectors.matrix[0] @ vectors.matrix[n]) for n in (1, 2, 3, 4, 5)]
    assert given["similarity_mean"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert given["similarity_max"] == pytest.approx(max(cosines), abs=1e-6)
    assert given["similarity_top_3_mean"] == pytest.approx(np.mean(sorted(cosines)[2:]), abs=1e-6)
    assert given["similarity_newest_5_mean"] == pytest.approx(np.mean(cosines[:4]), abs=1e-6)
    assert sum(given[f"similarity_bin_{i}"] for i in range(HISTOGRAM_BINS)) == pytest.approx(1)


def test_components_are_those_of_the_vector_and_of_the_mean_of_the_history(state):
    vectors = _vectors()
    rows = _table(_row(item="i2", history=[("i1", 1, 0), ("x", 2, 0), ("i3", 3, 0)]), _row(item="x"))
    given = inputs.with_images(encode(rows, state, vectors), state, vectors, "vector")
    names, columns = component_columns(given, state.learned["vector"])
    mean = vectors.matrix[[1, 3]].mean(axis=0)
    components, centre = (state.learned["vector"][name] for name in ("components", "mean"))
    slow = [components @ (v - centre) for v in (vectors.matrix[2], mean)]
    assert names[0] == "target_component_0"
    assert len(names) == 6
    np.testing.assert_allclose(columns[0], np.concatenate(slow), atol=1e-6)
    assert np.isnan(columns[1]).all()


def test_principal_axes_are_orthonormal_and_ordered(state):
    components, mean = (state.learned["vector"][name] for name in ("components", "mean"))
    np.testing.assert_allclose(components @ components.T, np.eye(3), atol=1e-5)
    spread = ((_vectors().matrix[:4] - mean) @ components.T).var(axis=0)
    assert (np.diff(spread) <= 1e-9).all()


@pytest.mark.parametrize("images", IMAGE_INPUTS)
def test_what_is_unknown_is_an_input_too(state, images):
    vectors = _vectors()
    rows = _table(
        _row(item="never", category="never", price=math.nan, created=-1, cluster=-1, history=[("never2", 1, -1)]),
        _row(item="i0", cluster=999, history=[("i1", 1, 999)], categories=["never"]),
        _row(item="i0", category="", history=[("i1", 1, -1)], categories=[""]),
        _row(),
    )
    encoded = encode(rows, state, vectors)
    given = inputs.with_images(encoded, state, vectors, images)
    assert encoded.item[0] == encoded.category[0] == UNKNOWN
    assert given.dense.shape == (4, len(given.names))
    assert given.dense.dtype == np.float32
    first, *_, empty = _named(given)
    assert all(math.isnan(first[name]) for name in ("log_price", "log_item_age_days"))
    assert empty["history_length"] == 0
    assert math.isnan(empty["log_days_since_click"])


def test_two_unknowns_are_not_the_same(state):
    given = _read(
        state,
        "cluster_id",
        _row(item="new1", category="", cluster=-1, history=[("new2", 1, -1)], categories=[""]),
        _row(item="new1", category="odd", cluster=9, history=[("new1", 1, 9)], categories=["odd"]),
    )
    assert given[0]["clicked_before"] == given[0]["category_matches_5"] == 0
    assert math.isnan(given[0]["cluster_matches_5"])
    # an item, a category or a cluster that training never saw is still itself
    assert given[1]["clicked_before"] == given[1]["category_matches_5"] == given[1]["cluster_matches_5"] == 1


def test_a_serving_row_gives_the_input_of_its_training_row(shop):
    state = fit_inputs(shop.train, shop.vectors, 4)
    training = shop.test.slice(0, 50)
    serving = fill(training.drop_columns(["position", "clicked", "cold", "request_id"]))
    few = set(training.column("item_id").to_pylist()) | set(
        training.column("history_item_ids").combine_chunks().flatten().to_pylist()
    )
    some = sorted(few, reverse=True)  # serving looks up only what a request needs, in any order
    looked_up = ItemVectors(some, shop.vectors.matrix[shop.vectors.rows_of(pa.array(some))])
    for images in IMAGE_INPUTS:
        one = inputs.with_images(encode(training, state, shop.vectors), state, shop.vectors, images).at_top()
        two = inputs.with_images(encode(serving, state, looked_up), state, looked_up, images)
        np.testing.assert_array_equal(one.dense, two.dense)
        np.testing.assert_array_equal(one.rows.position, two.rows.position)
        np.testing.assert_array_equal(one.rows.history_item, two.rows.history_item)
        if one.facts is not None:
            np.testing.assert_array_equal(one.facts, two.facts)


def test_an_image_input_reads_no_image_columns_of_a_row_but_its_own(shop):
    state, table = fit_inputs(shop.train, shop.vectors, 4), shop.test.slice(0, 60)
    changed = with_cluster_ids(table, pa.table({"item_id": shop.vectors.item_ids, "cluster_id": [1] * 300}))
    for name, one in IMAGE_INPUTS.items():
        left, right = (inputs.model_input(rows, state, shop.vectors, name) for rows in (table, changed))
        differs = not np.array_equal(left.dense, right.dense, equal_nan=True)
        assert differs == bool({"cluster_id", "history_cluster_ids"} & set(one.row_columns)), name


def test_the_label_and_what_is_cold_do_not_enter(shop):
    state = fit_inputs(shop.train, shop.vectors, 4)
    table = shop.test.slice(0, 40)
    turned = table.set_column(table.column_names.index("clicked"), "clicked", pa.array([1] * 40, pa.int8()))
    turned = turned.set_column(table.column_names.index("cold"), "cold", pa.array([True] * 40))
    for left, right in zip(*(vars(encode(t, state, shop.vectors)).values() for t in (table, turned)), strict=True):
        np.testing.assert_array_equal(left, right)


HISTORIES = st.lists(
    st.tuples(st.sampled_from(["i0", "i1", "i4", "x"]), st.integers(0, 90), st.integers(-1, 3)), max_size=60
)


@settings(max_examples=25, deadline=None)
@given(st.lists(HISTORIES, min_size=1, max_size=4), st.integers(-1, 3))
def test_the_columns_agree_with_a_loop_over_each_history(histories, cluster):
    state = _state(3)
    vectors = _vectors()
    rows = [_row(history=history, cluster=cluster) for history in histories]
    given = _read(state, "cluster_id", *rows)
    similar = similarity(encode(_table(*rows), state, vectors), vectors)
    for history, row, cosines in zip(histories, given, similar, strict=True):
        newest = history[:CTR_HISTORY]
        assert row["history_length"] == len(newest)
        assert row["clicked_before"] == any(item == "i0" for item, *_ in newest)
        for place, (item, *_) in enumerate(newest):
            known = f"{item}" != "x"
            expected = float(vectors.matrix[0] @ vectors.matrix[int(item[1:])]) if known else math.nan
            assert cosines[place] == pytest.approx(expected, abs=1e-6, nan_ok=True)
        assert np.isnan(cosines[len(newest) :]).all()
        if cluster >= 0:
            same = [at for at, (*_, other) in enumerate(newest) if other == cluster]
            assert row["cluster_matches_10"] == sum(at < 10 for at in same)
            assert row["cluster_recency_rank"] == pytest.approx(same[0] if same else math.nan, nan_ok=True)


CODES = st.lists(st.integers(0, 3), min_size=3, max_size=3)


@settings(max_examples=25, deadline=None)
@given(st.lists(CODES | st.none(), max_size=60), CODES | st.none())
def test_every_codebook_matches_as_if_its_codes_were_the_cluster_ids(codes, target):
    state = _state(4, 4, 4)

    def number(three):
        return -1 if three is None else sum(code << 10 * place for place, code in enumerate(three))

    (given,) = _read(state, "cluster_id", _row(history=[("i1", 1, number(c)) for c in codes], cluster=number(target)))
    for place, prefix in enumerate(("", "codebook_1_", "codebook_2_")):
        history = [("i1", 1, -1 if c is None else c[place]) for c in codes]
        plain = _row(history=history, cluster=-1 if target is None else target[place])
        (alone,) = _read(_state(4), "cluster_id", plain)
        for name in CLUSTER_FEATURES:
            assert given[prefix + name] == pytest.approx(alone[name], nan_ok=True)
    assert len(given) == len(BASE_FEATURES) + 3 * len(CLUSTER_FEATURES)
    rows = encode(_table(_row(history=[], cluster=number(target))), state, None)
    found = [int(code[0]) for code in cluster_codes(rows.cluster, state.learned["cluster_id"])]
    assert found == ([0, 0, 0] if target is None else [code + 1 for code in target])


def test_the_codebooks_are_as_many_and_as_large_as_the_training_rows_show():
    rows = [_row(clicked=n % 2, cluster=5 + 1024 * 2, history=[("i1", 1, 1 + 1024 * 6)]) for n in range(4)]
    assert _sizes(fit_inputs(_table(*rows), None, 0)) == [6, 7]
    assert _sizes(fit_inputs(_table(_row(cluster=-1)), None, 0)) == [0]


def test_a_list_that_does_not_match_its_history_is_refused_with_the_row(state):
    good, bad = _row(history=[("i0", 1, 0)]), _row(history=[("i0", 1, 0)], categories=[])
    with pytest.raises(CourierError, match="row 1: history_categories is not as long"):
        encode(_table(good, bad), state, None)


def test_a_null_list_is_an_empty_one(state):
    table = _table(_row(history=[("i0", 1, 0)]), _row())
    for name in ("history_item_ids", "history_clicked_at", "history_cluster_ids", "history_categories"):
        column = pa.array([table.column(name).to_pylist()[0], None], table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
    assert encode(table, state, None).length.tolist() == [1, 0]


def test_vectors_are_refused_where_needed_and_missing(state):
    encoded = encode(_table(_row()), state, None)
    with pytest.raises(ValueError, match="needs the items' vectors"):
        inputs.with_images(encoded, state, None, "simscore")
    with pytest.raises(CourierError, match="no image input 'pixels'"):
        inputs.with_images(encoded, state, None, "pixels")
    with pytest.raises(ValueError, match="an item needs one of 256"):
        ItemVectors(["a"], np.zeros((1, 3), np.float32))


def test_no_usable_image_at_all_is_fine():
    none = ItemVectors([], np.zeros((0, EMBEDDING_DIM), np.float32))
    fitted = fit_inputs(_table(*[_row(clicked=n % 2) for n in range(10)]), none, 4)
    given = inputs.with_images(encode(_table(_row(history=[("i0", 1, 0)])), fitted, none), fitted, none, "simscore")
    assert np.isnan(given.dense[0, len(BASE_FEATURES) :]).all()


def test_a_catalogue_without_a_single_price_is_fine():
    table = _table(*(_row(item=f"i{n}", price=math.nan, category="ab"[n % 2]) for n in range(6)))
    state = fit_inputs(table, _vectors(), 2)
    assert np.isnan(state.median_price).all()
    assert len(encode(table, state, _vectors()).base) == 6


def test_the_state_survives_the_disk(state, tmp_path):
    state.save(tmp_path)
    loaded = InputsState.load(tmp_path)
    rows, vectors = _table(_row(history=[("i1", 1, 0)])), _vectors()
    for images in IMAGE_INPUTS:
        one, two = (inputs.with_images(encode(rows, s, vectors), s, vectors, images) for s in (state, loaded))
        np.testing.assert_array_equal(one.dense, two.dense)
    assert (loaded.items, loaded.categories) == (state.items, state.categories)
    for images in IMAGE_INPUTS:
        state.only(images).save(tmp_path)
        alone = InputsState.load(tmp_path).learned
        assert alone.keys() == {images}
        assert alone[images].keys() == state.learned[images].keys()
        for name, value in alone[images].items():
            np.testing.assert_array_equal(value, state.learned[images][name])
    (tmp_path / "inputs.json").write_text(json.dumps({"format": 99}), "utf-8")
    with pytest.raises(ArtifactMismatch, match="train the CTR models again"):
        InputsState.load(tmp_path)


def test_no_training_rows_is_said_in_a_sentence():
    with pytest.raises(CourierError, match="no training rows"):
        fit_inputs(_table(), None, 4)
