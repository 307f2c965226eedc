"""A release's items are found by id, exactly, in memory-mapped arrays: the plain twin is a dictionary."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contract import EMBEDDING_DIM
from model import released_items
from model.artifact import ArtifactMismatch
from model.released_items import ReleasedItems, hashes_of, holds, write_lookup, write_without

IDS = st.lists(st.one_of(st.text(max_size=4), st.sampled_from(["", "\0", "a", "a\0", "é", "e\u0301", "x" * 5_000])))


def written(folder, ids, vectors=None):
    rows = np.arange(len(ids))[::-1].copy()
    write_lookup(folder / "lookup", pa.array(ids, pa.string()), np.arange(len(ids), dtype=np.int32) * 7, rows)
    drawn = np.random.default_rng(0).normal(size=(len(ids), EMBEDDING_DIM)).astype(np.float32)
    np.save(folder / "vectors.npy", drawn if vectors is None else vectors)
    return ReleasedItems("s", "c", folder / "lookup", folder / "vectors.npy"), drawn[rows]


@pytest.mark.parametrize("collisions", [False, True])
@settings(max_examples=60)
@given(held=IDS, asked=IDS)
def test_each_item_is_found_at_its_own_place_and_no_other(tmp_path_factory, collisions, held, asked):
    held = list(dict.fromkeys(held))
    with pytest.MonkeyPatch.context() as patched:
        if collisions:
            patched.setattr(released_items, "hashes_of", lambda ids: hashes_of(ids) % np.uint64(3))
        items, vectors = written(tmp_path_factory.mktemp("items"), held)
        places = items.find([*held, *asked])
    assert len(items) == len(held)
    expected = {item: (7 * place, vectors[place].tobytes()) for place, item in enumerate(held)}
    for item, place in zip([*held, *asked], places, strict=True):
        assert (place == -1) == (item not in expected)
        if place != -1:
            found = np.array([place])
            assert (items.cluster_ids(found)[0], items.vectors(found)[0].tobytes()) == expected[item]


def test_an_ids_hash_is_the_same_everywhere():
    assert hashes_of(pa.array(["", "i1", "é"])).tolist() == [
        1760245841805064774,
        7128953470154695378,
        16908809132758853863,
    ]


def test_vectors_of_another_artifact_are_refused(tmp_path):
    with pytest.raises(ArtifactMismatch, match="does not fit"):
        written(tmp_path, ["a", "b"], vectors=np.zeros((1, EMBEDDING_DIM), np.float32))


def test_vectors_of_another_width_are_refused(tmp_path):
    with pytest.raises(ArtifactMismatch, match="build the cluster artifact again"):
        written(tmp_path, ["a"], vectors=np.zeros((1, 2), np.float32))


@given(held=st.lists(st.text(max_size=2), min_size=1, max_size=8, unique=True), data=st.data())
def test_without_an_item_the_others_have_what_they_had_and_rows_without_a_gap(tmp_path_factory, held, data):
    folder, gone = tmp_path_factory.mktemp("items"), data.draw(st.sampled_from(held))
    rows = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(held), max_size=len(held))))
    rows = np.unique(rows, return_inverse=True)[1]  # each vector is somebody's
    vectors = np.random.default_rng(0).normal(size=(rows.max() + 1, EMBEDDING_DIM)).astype(np.float32)
    write_lookup(folder / "lookup", pa.array(held, pa.string()), np.arange(len(held), dtype=np.int32), rows)
    assert holds(folder / "lookup", gone)
    write_without(folder / "lookup", folder / "less", gone)
    assert not holds(folder / "less", gone)
    left = sorted({row for item, row in zip(held, rows, strict=True) if item != gone})
    np.save(folder / "less.npy", vectors[left])  # what is left of the embed artifact's
    items = ReleasedItems("s", "c", folder / "less", folder / "less.npy")
    others = [item for item in held if item != gone]
    places = items.find([*others, gone])
    assert places[-1] == -1
    assert items.cluster_ids(places[:-1]).tolist() == [held.index(item) for item in others]
    assert np.array_equal(items.vectors(places[:-1]), vectors[[rows[held.index(item)] for item in others]])
