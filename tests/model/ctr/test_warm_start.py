"""A neural model that begins with a released one keeps what means the same, and begins with nothing else."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from feature_repo.contract import PERIODS
from model import artifact, metrics
from model.ctr import train
from model.ctr.config import CtrConfig, NeuralConfig
from model.ctr.inputs import inputs
from model.ctr.inputs.fit import fit_inputs
from model.ctr.models.neural import NeuralModel
from model.ctr.models.warm_start import continue_network
from model.ctr.released import released_networks

SMALL = NeuralConfig(batch_rows=128, epochs=2, id_width=8, hidden=(16,))
CONFIG = CtrConfig(models=("neural",), images=("none", "simscore", "cluster_id"), neural=SMALL, vector_components=4)
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def fit(table, shop, config=SMALL, **options):
    state = fit_inputs(table, shop.vectors, 4)
    given = [inputs.model_input(one, state, shop.vectors, "cluster_id") for one in (table, shop.valid)]
    clicked = (inputs.labels(table), inputs.labels(shop.valid))
    return NeuralModel.fit(*given, clicked, state, config=config, seed=0, **options), given[1], clicked[1]


@pytest.fixture(scope="module")
def before(shop):
    return fit(shop.train.slice(0, 1200), shop)[0]


def test_what_both_know_keeps_its_weights_by_name_and_code_and_what_is_new_does_not(shop, before) -> None:
    state = fit_inputs(shop.train.slice(400), shop.vectors, 4)
    state = replace(state, items=("an item that is new", *state.items[1:]))  # so that all others move by their names
    fresh = fit(shop.train.slice(0, 300), shop, config=replace(SMALL, epochs=1))[0]
    widths = replace(before.widths, items=len(state.items), categories=len(state.categories))
    network = type(fresh.network)(replace(widths, codes=tuple(size + 2 for size in widths.codes)))
    untouched = {name: weights.clone() for name, weights in network.state_dict().items()}
    continue_network(network, state, before)
    old, new = before.network.state_dict(), network.state_dict()
    for name, known, wanted in (
        ("item.weight", before.state.items, state.items),
        ("category.weight", before.state.categories, state.categories),
    ):
        assert torch.equal(new[name][0], old[name][0])
        for row, one in enumerate(wanted, 1):
            expected = old[name][1 + known.index(one)] if one in known else untouched[name][row]
            assert torch.equal(new[name][row], expected)
    assert "an item that is new" in state.items
    for place, size in enumerate(before.widths.codes):
        name = f"codes.{place}.weight"
        assert torch.equal(new[name][: size + 1], old[name])
        assert torch.equal(new[name][size + 1 :], untouched[name][size + 1 :])
    assert torch.equal(new["head.1.weight"], old["head.1.weight"])
    assert torch.equal(new["median"], old["median"])


def test_layers_of_other_widths_begin_anew(shop, before) -> None:
    wider = fit(
        shop.train.slice(0, 300), shop, config=replace(SMALL, epochs=1, id_width=12, hidden=(20,)), start=before
    )
    assert wider[0].network.item.weight.shape[1] == 12


def test_a_start_that_nothing_learned_betters_is_kept(shop, before) -> None:
    harmful = replace(SMALL, learning_rate=10.0, epochs=1)
    model, valid, clicked = fit(shop.train.slice(0, 1200), shop, config=harmful, start=before)
    assert metrics.logloss(clicked, model.score(valid)) == metrics.logloss(clicked, before.score(valid))


def write(folder, kind, **facts):
    with artifact.write(folder, kind=kind, inputs={}, config={}) as draft:
        draft.facts |= facts
    return folder


@pytest.fixture(scope="module")
def stages(shop, tmp_path_factory):
    """Rows, vectors and a codebook c1, and the ctr artifact of them."""
    folder = tmp_path_factory.mktemp("released")
    with artifact.write(folder / "rows", kind="rows", inputs={}, config={}) as draft:
        for period in PERIODS:
            pq.write_table(getattr(shop, period), draft.path / f"{period}.parquet")
        draft.facts["space_id"] = "s1"
    with artifact.write(folder / "embed", kind="embed", inputs={}, config={}) as draft:
        np.save(draft.path / "vectors.npy", shop.vectors.matrix)
        rows = pa.array(range(len(shop.vectors.item_ids)), pa.int32())
        pq.write_table(pa.table({"item_id": shop.vectors.item_ids, "row": rows}), draft.path / "items.parquet")
        draft.facts |= {"space_id": "s1", "encoder": "courier-test"}
    write(folder / "codebook", "codebook", codebook_id="c1", continues=None)
    made = {name: folder / name for name in ("rows", "embed", "codebook")}
    train.build(**made, out=folder / "ctr", config=CONFIG)
    return made | {"ctr": folder / "ctr"}


@pytest.mark.parametrize(
    ("codebook", "space_id", "begun"),
    [
        (("c1", None), "s1", {"none", "simscore", "cluster_id"}),
        (("c2", "c1"), "s1", {"none", "simscore", "cluster_id"}),
        (("c2", "c0"), "s1", {"none", "simscore"}),
        (("c2", "c1"), "s2", {"none", "cluster_id"}),
        (("c2", None), "s2", {"none"}),
    ],
)
def test_an_input_begins_with_the_release_only_where_its_codes_and_vectors_mean_the_same(
    stages, tmp_path, codebook, space_id, begun
) -> None:
    new = write(tmp_path / "codebook", "codebook", codebook_id=codebook[0], continues=codebook[1])
    released = {name: stages[name] for name in ("codebook", "ctr")}
    assert set(released_networks(released, new, space_id=space_id, valid_from=LATER)) == begun


def test_a_release_that_was_trained_on_validation_rows_is_no_start(stages, shop) -> None:
    released = {name: stages[name] for name in ("codebook", "ctr")}
    last = pc.max(shop.train["request_time"]).as_py()
    asked = {"codebook": stages["codebook"], "space_id": "s1"}
    assert released_networks(released, **asked, valid_from=last)
    assert not released_networks(released, **asked, valid_from=last.replace(year=last.year - 1))


def test_a_model_of_an_earlier_revision_or_format_is_no_start(stages, tmp_path) -> None:
    older = {"codebook": stages["codebook"], "ctr": tmp_path / "ctr"}
    asked = {"codebook": stages["codebook"], "space_id": "s1", "valid_from": LATER}
    facts = artifact.read(stages["ctr"], kind="ctr").facts
    for changed in ({"trained_until": None}, {}):
        with artifact.write(older["ctr"], kind="ctr", inputs={}, config={}) as draft:
            shutil.copytree(stages["ctr"] / "neural-none", draft.path / "neural-none")
            inputs_file = draft.path / "neural-none" / "inputs.json"
            inputs_file.write_text(inputs_file.read_text("utf-8").replace('"format": 4', '"format": 3'), "utf-8")
            draft.facts = {**facts, **changed}
        assert released_networks(older, **asked) == {}


def test_the_manifest_says_which_variants_began_with_the_release(stages, shop, tmp_path) -> None:
    first = artifact.read(stages["ctr"], kind="ctr").facts
    assert (first["warm_started"], first["trained_until"]) == (
        [],
        pc.max(shop.train["request_time"]).as_py().isoformat(),
    )
    made = {name: stages[name] for name in ("rows", "embed", "codebook")}
    released = {name: stages[name] for name in ("codebook", "ctr")}
    again = train.build(**made, out=tmp_path / "ctr", config=CONFIG, released=released).facts
    assert again["warm_started"] == ["neural/none", "neural/simscore", "neural/cluster_id"]
    for name, figures in again["validation"].items():
        assert figures["logloss"] <= first["validation"][name]["logloss"] + 1e-9
