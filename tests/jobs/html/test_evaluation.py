"""The evaluation's page and table: self-contained, honest about its intervals, the same bytes each time."""

import json
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import EvaluateConfig
from jobs.evaluation import evaluate
from jobs.html.evaluation import headline, render, table_lines
from model import artifact
from model.ctr.config import CtrConfig


def _part(gain, n=100):
    known = gain is not None
    interval = {"ci_low": gain - 0.01, "ci_high": gain + 0.01, "p_value": 0.001} if known else {}
    return {"auc": 0.6, "auc_gain": gain, "ci_low": None, "ci_high": None, "p_value": None, "n": n} | interval


def _row(model, images, gain):
    bins = [{"predicted": p, "observed": p * 0.9, "rows": 10} for p in (0.1, 0.2, 0.4)]
    figures = {"gauc": 0.61, "ndcg": 0.7, "logloss": 0.4, "cold": _part(gain, 20), "warm": _part(gain, 80)}
    encoder = None if images == "none" else "courier-lite0"
    return {"model": model, "images": images, "encoder": encoder, **_part(gain), **figures, "calibration": bins}


@pytest.fixture
def evaluation():
    gains = {"none": None, "vector": -0.002, "simscore": 0.015, "cluster_id": 0.0231}
    return {
        "schema": 1,
        "dataset": {
            "name": "a shop <b>",
            "description": "Drawn.",
            "sampled_negatives": False,
            "splits": {
                "start": "2024-03-01",
                "valid_start": "2024-03-17",
                "test_start": "2024-03-19",
                "end": "2024-03-21",
            },
            "rows": {"train": {"rows": 1000, "clicks": 200}, "test": {"rows": 100, "clicks": 20}},
        },
        "rows": [_row(model, images, gain) for model in ("lightgbm", "neural") for images, gain in gains.items()],
        "averages": {"gauc": {"users": 7, "of": 9, "rows": 80}, "ndcg": {"page_views": 1500, "of": 2000}},
        "oracle": {"auc": 0.8, "gauc": 0.8, "ndcg": 0.9, "logloss": 0.3, "n": 100, "cold": {"auc": 0.8, "n": 20}},
    }


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.ids, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.sources += [named[name] for name in ("src", "href", "xlink:href") if name in named]
        self.ids += [named["id"]] if "id" in named else []
        self.open += [tag] if tag not in ("meta", "link", "br") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_loads_nothing_from_elsewhere_and_is_well_formed(evaluation):
    tags = _Tags()
    page = render(evaluation)
    tags.feed(page)
    assert not tags.open
    assert all(source.startswith("#") for source in tags.sources)
    assert len(tags.ids) == len(set(tags.ids))
    assert page.count('<svg role="img" aria-label="') == 3
    assert "a shop &lt;b&gt;" in page


def test_the_page_says_over_how_many_users_and_page_views_a_figure_is_a_mean(evaluation):
    words = " ".join(render(evaluation).split())
    assert "a mean over the 7 of 9 users with clicked and unclicked rows" in words
    assert "within each of the 1,500 page views, of 2,000, that have a click" in words


def test_the_same_evaluation_gives_the_same_bytes(evaluation):
    assert render(evaluation) == render(evaluation)


def test_the_headline_tells_the_gain_of_cluster_ids_with_its_interval(evaluation):
    told = headline(evaluation)
    assert "LightGBM by +2.31 points (95 % CI +1.31 to +3.31, p = 0.001)" in told
    assert "not told apart" not in told


def test_a_gain_that_may_be_none_is_called_so(evaluation):
    for row in evaluation["rows"]:
        row["p_value"] = 0.4
    assert "p = 0.400, not told apart from zero" in headline(evaluation)


def test_sampled_negatives_are_told(evaluation):
    assert "Negatives are sampled" not in render(evaluation)
    evaluation["dataset"]["sampled_negatives"] = True
    assert "Negatives are sampled" in render(evaluation)


def test_what_is_undefined_is_a_dash_and_no_crash(evaluation):
    for row in evaluation["rows"]:
        row |= dict.fromkeys(("auc", "gauc", "auc_gain", "ci_low", "ci_high", "p_value"))
        row["cold"] = row["warm"] = _part(None, 0)
        row["calibration"] = []
    evaluation["oracle"] = None
    assert "by an amount that these rows cannot tell" in headline(evaluation)
    assert table_lines(evaluation)[3][3:5] == ("-", "-")
    assert "<svg" in render(evaluation)


def test_the_terminal_table_says_that_gains_are_points(evaluation, capsys):
    evaluate.print_table(evaluation)
    told = capsys.readouterr().out
    assert "points (AUC x 100)" in told
    assert "+2.31" in told
    assert "oracle" in told


def _stages(folder):
    """Finished artifacts of 200 test rows, scored by LightGBM with and without cluster IDs."""
    rng = np.random.default_rng(0)
    clicked = rng.integers(0, 2, 200)
    table = {
        "request_id": [f"r{n // 5}" for n in range(200)],
        "item_id": [f"i{n}" for n in range(200)],
        "user_id": [f"u{n // 10}" for n in range(200)],
        "clicked": pa.array(clicked, pa.int8()),
        "cold": rng.random(200) < 0.2,
        "lightgbm/none": pa.array(rng.random(200), pa.float32()),
        "lightgbm/cluster_id": pa.array(rng.random(200) * 0.5 + 0.4 * clicked, pa.float32()),
    }
    table |= {f"lightgbm/{images}@shown": table[f"lightgbm/{images}"] for images in ("none", "cluster_id")}
    for kind in ("rows", "embed", "sequences"):
        with artifact.write(folder / kind, kind=kind, inputs={}, config={}) as draft:
            draft.facts |= {"splits": {"start": "2024-01-01"}}
            for period in ("train", "valid", "test") if kind == "rows" else ():
                pq.write_table(pa.table({"clicked": table["clicked"]}), draft.path / f"{period}.parquet")
    digests = {kind: artifact.digest(folder / kind) for kind in ("rows", "embed")}
    config = CtrConfig(models=("lightgbm",), images=("none", "cluster_id"))
    with artifact.write(folder / "ctr", kind="ctr", inputs=digests, config=asdict(config)) as draft:
        pq.write_table(pa.table(table), draft.path / "predictions.parquet")
        draft.facts |= {"space_id": "s1", "encoder": "courier-test"}
    (folder / "raw").mkdir()
    return {kind: folder / kind for kind in ("ctr", "rows", "embed", "sequences", "raw")}, pa.table(table)


def _evaluate(stages, folder):
    config = EvaluateConfig(bootstrap=50)
    return evaluate.build(**stages, raw_digest="d", out=folder / "evaluate", config=config)


def test_an_evaluation_lies_in_its_artifact(tmp_path, capsys):
    stages, table = _stages(tmp_path)
    truth = table.select(["request_id", "item_id"]).append_column("p_click", table["lightgbm/cluster_id"])
    pq.write_table(truth, stages["raw"] / "truth.parquet")
    (stages["raw"] / "SOURCE.json").write_text('{"name": "toy", "sampled_negatives": true}', "utf-8")
    _evaluate(stages, tmp_path)
    found = json.loads((tmp_path / "evaluate" / "evaluation.json").read_text("utf-8"))
    assert found["schema"] == 1
    assert [(row["images"], row["encoder"]) for row in found["rows"]] == [
        ("none", None),
        ("cluster_id", "courier-test"),
    ]
    assert found["oracle"]["auc"] == pytest.approx(found["rows"][1]["auc"])
    assert found["dataset"]["sampled_negatives"] is True
    assert found["dataset"]["rows"]["test"] == {"rows": 200, "clicks": sum(table["clicked"].to_pylist())}
    assert "Negatives are sampled" in (tmp_path / "evaluate" / "evaluation.html").read_text("utf-8")
    assert "CTR models on toy" in capsys.readouterr().out


def test_without_truth_there_is_no_oracle_and_the_folder_names_the_data(tmp_path):
    stages, _ = _stages(tmp_path)
    _evaluate(stages, tmp_path)
    found = json.loads((tmp_path / "evaluate" / "evaluation.json").read_text("utf-8"))
    assert found["oracle"] is None
    assert found["dataset"]["name"] == "raw"


def test_models_trained_on_other_rows_are_refused(tmp_path):
    stages, _ = _stages(tmp_path)
    with artifact.write(stages["rows"], kind="rows", inputs={}, config={}):
        pass
    with pytest.raises(artifact.ArtifactMismatch, match="train them again"):
        _evaluate(stages, tmp_path)
