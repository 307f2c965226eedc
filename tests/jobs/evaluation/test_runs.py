"""Runs of a comparison on a tiny shop: each step once, a failure alone, and the scores that the road itself gives."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from feature_repo.contract import PERIODS
from jobs.config import CodebookConfig
from jobs.evaluation.compare import runs
from jobs.evaluation.compare.compare import _summed, gather
from jobs.evaluation.compare.figures import compare
from jobs.evaluation.compare.runs import Bench, Entrant, Failure, ensure, read_measured, read_scores, run_all
from jobs.html import comparison
from jobs.settings import resolve
from jobs.workspace import Workspace
from model import artifact
from model.courier.config import CourierConfig, CourierMethodConfig
from model.courier.training.checkpoint import Checkpoint, State
from model.ctr import train
from model.ctr.config import BoostedConfig, CtrConfig
from model.ctr.inputs.cluster_id import with_cluster_ids
from model.ctr.inputs.rows import ROW_COLUMNS, ROW_DEFAULTS
from model.errors import CourierError

SIZE, ITEMS, USERS, PAGES = 16, 40, 12, 260
START = datetime(2024, 3, 1, tzinfo=UTC)
MOMENT = pa.timestamp("us", tz="UTC")
PRETRAIN = CourierConfig(
    backbone="small",
    backbone_weights="random",
    image_size=SIZE,
    batch_rows=16,
    steps=3,
    warmup_steps=1,
    courier=CourierMethodConfig(heads=2),
)
TREES = BoostedConfig(trees=8, leaves=4, min_rows_in_leaf=20)
CTR = CtrConfig(models=("lightgbm",), boosted=TREES, vector_components=4)
ENTRANTS = [
    Entrant("courier", {"method": "courier"}),
    Entrant("broken", {"courier.negatives": "nobody"}),
    Entrant("random", {"method": "random"}),
]


def at(number):
    return START + timedelta(hours=number)


def period_of(number):
    return "train" if number < PAGES * 0.7 else "valid" if number < PAGES * 0.85 else "test"


def drawn_pages():
    """Page views of four items; a user clicks what has the colour they like."""
    rng = np.random.default_rng(0)
    history = {user: [] for user in range(USERS)}
    for number in range(PAGES):
        user = int(rng.integers(USERS))
        # the last five items are shown in the test period alone
        shown = rng.choice(ITEMS - 5 * (period_of(number) != "test"), 4, replace=False)
        clicked = (shown % 4 == user % 4) | (rng.random(4) < 0.15)
        yield number, user, [f"i{n:02}" for n in shown], clicked, list(history[user])
        history[user][:0] = [(f"i{n:02}", at(number)) for n, click in zip(shown, clicked, strict=True) if click]


def png(item):
    rng = np.random.default_rng(item)
    stream = BytesIO()
    pixels = rng.integers(0, 90, (SIZE, SIZE, 3)) + 160 * np.eye(4, 3)[item % 4]
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(folder, kind, tables, facts=None, config=None):
    with artifact.write(folder, kind=kind, inputs={}, config=config or {}) as draft:
        for name, table in tables.items():
            (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, draft.path / name)
        draft.facts |= facts or {}
    return folder


def images_of(folder):
    ids = [f"i{n:02}" for n in range(ITEMS)]
    images = [f"p{n:02}" for n in range(ITEMS)]
    items = {"item_id": ids, "image_id": images, "category": ["shirt"] * ITEMS, "title": ids, "status": ["ok"] * ITEMS}
    shard = pa.table({"image_id": images, "image": [png(n) for n in range(ITEMS)]})
    tables = {"items.parquet": pa.table(items), "shards/images-00000-of-00001.parquet": shard}
    return write(folder, "images", tables, config={"size": SIZE})


def sequences_of(folder, pages):
    page_views, shown, clicks = [], [], []
    for number, user, items, clicked, history in pages:
        page_views.append(
            {
                "request_id": f"r{number:03}",
                "user_id": f"u{user}",
                "request_time": at(number),
                "item_ids": items,
                "labels": [int(click) for click in clicked],
                "history_item_ids": [item for item, _ in history[:5]],
                "period": period_of(number),
            }
        )
        shown += [{"item_id": item, "request_time": at(number)} for item in items]
        clicks += [{"item_id": i, "event_time": at(number)} for i, click in zip(items, clicked, strict=True) if click]
    splits = {"start": at(0), "valid_start": at(PAGES * 0.7), "test_start": at(PAGES * 0.85), "end": at(PAGES)}
    tables = {
        "page_views/part-0.parquet": pa.Table.from_pylist(page_views),
        "impressions/part-0.parquet": pa.Table.from_pylist(shown),
        "clicks/part-0.parquet": pa.Table.from_pylist(clicks),
    }
    facts = {"splits": {name: moment.isoformat() for name, moment in splits.items()}}
    return write(folder, "sequences", tables, facts, config={"pretrain_history": 5})


def rows_of(folder, pages):
    rows = {period: [] for period in PERIODS}
    for number, user, items, clicked, history in pages:
        for place, (item, click) in enumerate(zip(items, clicked, strict=True)):
            rows[period_of(number)].append(
                ROW_DEFAULTS
                | {
                    "request_id": f"r{number:03}",
                    "user_id": f"u{user}",
                    "item_id": item,
                    "request_time": at(number),
                    "position": place,
                    "clicked": int(click),
                    "history_item_ids": [item for item, _ in history],
                    "history_clicked_at": [int(moment.timestamp() * 1e6) for _, moment in history],
                    "history_cluster_ids": [7] * len(history),  # of an encoder that is not compared
                    "history_categories": ["shirt"] * len(history),
                    "cluster_id": 7,
                    "cold": int(item[1:]) >= ITEMS - 5,
                }
            )
    schema = pa.schema(list(ROW_COLUMNS.items()))
    return write(
        folder, "rows", {f"{p}.parquet": pa.Table.from_pylist(rows[p], schema) for p in PERIODS}, {"space_id": "other"}
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    pages = list(drawn_pages())
    (folder / "raw").mkdir()
    colours = {"item_id": [f"i{n:02}" for n in range(ITEMS)], "colour": [str(n % 4) for n in range(ITEMS)]}
    pq.write_table(pa.table(colours), folder / "raw" / "truth_items.parquet")
    return Bench(
        folder=folder / "compare",
        sequences=sequences_of(folder / "sequences", pages),
        images=images_of(folder / "images"),
        rows=rows_of(folder / "rows", pages),
        raw=folder / "raw",
        pretrain=PRETRAIN,
        base={},
        codebook=CodebookConfig(clusters=4, iterations=5),
        ctr=CTR,
    )


@pytest.fixture(scope="module")
def failures(bench):
    return run_all(bench, ENTRANTS, [0])


def manifests(bench):
    return {path: path.read_bytes() for path in sorted(bench.folder.glob(f"*/*/{artifact.MANIFEST}"))}


def test_a_run_that_fails_is_told_and_takes_no_other_with_it(bench, failures):
    assert [(one.label, one.seed) for one in failures] == [("broken", 0)]
    assert "nobody" in failures[0].error
    for label in ("courier", "random"):
        for step in runs.STEPS:
            artifact.read(bench.run_folder(label, 0) / step, kind=step)


def test_what_stands_is_not_built_again(bench, failures):
    before = manifests(bench)
    assert len(before) == 2 * len(runs.STEPS) + 2
    assert run_all(bench, ENTRANTS, [0]) == failures
    assert manifests(bench) == before


@pytest.mark.usefixtures("failures")
def test_another_setting_builds_what_depends_on_it_and_nothing_else(bench):
    before = manifests(bench)
    others = replace(bench, ctr=replace(CTR, boosted=replace(TREES, trees=4)))
    runs.run(others, ENTRANTS[2], 0)
    changed = [path.parent.name for path, old in before.items() if path.read_bytes() != old]
    assert changed == ["scores"]
    runs.run(bench, ENTRANTS[2], 0)


@pytest.mark.usefixtures("failures")
def test_a_variants_own_codebook_builds_clusters_and_what_depends_on_them(bench):
    before = manifests(bench)
    runs.run(bench, replace(ENTRANTS[2], codebook={"clusters": 3}), 0)
    changed = [path.parent.name for path, old in before.items() if path.read_bytes() != old]
    assert sorted(changed) == ["cluster", "codebook", "scores"]
    facts = artifact.read(bench.run_folder("random", 0) / "cluster", kind="cluster").facts
    assert facts["codebooks"] == [3]
    runs.run(bench, ENTRANTS[2], 0)


@pytest.mark.usefixtures("failures")
def test_the_scores_are_those_of_the_road_with_this_encoders_cluster_ids(bench, tmp_path):
    run = bench.run_folder("courier", 0)
    clusters = pq.read_table(run / "cluster" / "items.parquet")
    space = artifact.read(run / "embed", kind="embed").facts["space_id"]
    tables = {f"{period}.parquet": with_cluster_ids(table, clusters) for period, table in bench.tables.items()}
    assert set(tables["test.parquet"]["cluster_id"].to_pylist()) <= {0, 1, 2, 3}
    rows = write(tmp_path / "rows", "rows", tables, {"space_id": space})
    train.build(rows=rows, embed=run / "embed", codebook=run / "codebook", out=tmp_path / "ctr", config=CTR)
    road = pq.read_table(tmp_path / "ctr" / "predictions.parquet")
    ours = read_scores(run / "scores") | read_scores(bench.run_folder("none", 0) / "scores")
    assert set(ours) == {f"lightgbm/{images}" for images in ("none", "vector", "simscore", "cluster_id")}
    for name, scores in ours.items():
        np.testing.assert_array_equal(scores, road[name].to_numpy(), err_msg=name)


@pytest.mark.usefixtures("failures")
def test_the_probe_is_kept_click_by_click(bench):
    folder = bench.run_folder("random", 0)
    measured = read_measured(folder / "probe")
    asked = runs.ask(bench, folder / "embed")
    assert set(measured) == {"popular", "category", "page"}
    assert len(measured["popular"]["mrr"]) == len(asked.clicks) > 20
    again = runs.probe.measure(asked, folder / "embed")
    np.testing.assert_array_equal(measured["page"]["auc"], again["page"]["auc"])


@pytest.mark.usefixtures("failures")
def test_finished_runs_are_gathered_into_one_comparison(bench):
    results = gather(bench, [("courier", 0), ("random", 0)], bootstrap=40, seed=0)
    assert [one.label for one in results] == ["none", "true_style", "courier", "random"]
    found = compare(results, reference="courier", bootstrap=40, seed=0)
    assert [one["label"] for one in found["methods"]] == ["courier", "random"]
    assert found["methods"][1]["steps"] == 0
    assert [one["baseline"] for one in found["against"]] == ["random"]
    assert found["true_style"]["lightgbm/true_style/all"]["value"] > 0.02  # who likes a colour clicks it
    assert found["methods"][0]["gains"]["lightgbm/simscore/all"]["share"]["value"] is not None
    json.dumps(found, allow_nan=False)
    titles = [sheet.title for sheet in comparison.sheets(found | {"asked": {"period": "valid", "match": None}})]
    against = "courier against the others, with LightGBM"
    assert [title for title in titles if title.startswith(against)] == [
        against,
        f"{against}, on items clicked before",
        f"{against}, on new items",
    ]
    assert len(titles) == 9


@pytest.mark.usefixtures("failures")
def test_an_unfinished_run_of_other_settings_gives_way(bench):
    run, before = bench.run_folder("courier", 0), manifests(bench)
    left = run / "pretrain.checkpoint"
    Checkpoint(left, "of other settings", 1).write(State({"weight": torch.zeros(1)}, {}))
    shutil.rmtree(run / "pretrain")
    runs.run(bench, ENTRANTS[0], 0)
    assert not left.exists()
    assert manifests(bench).keys() == before.keys()


# --- one step --------------------------------------------------------------------------------------------------------


def step(out, inputs, config, count):
    def build(path):
        count.append(path)
        digests = {name: artifact.digest(one) for name, one in inputs.items()}
        with artifact.write(path, kind=path.name, inputs=digests, config=config) as draft:
            (draft.path / "x").write_text("something", "utf-8")

    ensure(out, inputs, config, build)


def test_a_step_is_built_once_for_the_same_inputs_and_config(tmp_path):
    one, other = (write(tmp_path / name, "embed", {}, facts={"vectors": name}) for name in "ab")
    out, built = tmp_path / "scores", []
    step(out, {"embed": one}, {"seed": 0, "wide": (1, 2)}, built)
    step(out, {"embed": one}, {"seed": 0, "wide": (1, 2)}, built)
    assert len(built) == 1
    step(out, {"embed": one}, {"seed": 1, "wide": (1, 2)}, built)
    assert len(built) == 2
    step(out, {"embed": other}, {"seed": 1, "wide": (1, 2)}, built)
    assert len(built) == 3
    (out / "x").write_text("cut", "utf-8")  # damaged
    step(out, {"embed": other}, {"seed": 1, "wide": (1, 2)}, built)
    assert len(built) == 4


@pytest.mark.usefixtures("failures")
def test_what_an_earlier_run_left_is_not_told_where_a_later_one_failed(bench):
    workspace = Workspace(folder=bench.folder.parent, raw=bench.raw, settings=resolve([]))
    failed = [Failure("random", 0, "Collapsed: at last")]
    found = _summed(bench, workspace, [ENTRANTS[0], ENTRANTS[2]], failed, range(1), 30)
    assert [one["label"] for one in found["methods"]] == ["courier"]
    assert found["failures"] == [{"label": "random", "seed": 0, "error": "Collapsed: at last"}]
    assert found["settings"]["random"] == {"method": "random"}
    reports = bench.folder.parent / "reports"
    assert json.loads((reports / "comparison.json").read_text("utf-8")) == found
    assert "random, seed 0: Collapsed: at last" in (reports / "comparison.html").read_text("utf-8")
    with pytest.raises(CourierError, match="every run failed; random, seed 0: Collapsed"):
        _summed(bench, workspace, [ENTRANTS[2]], failed, range(1), 30)
