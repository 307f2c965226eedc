"""The whole road on a tiny shop, killed in the middle of its stages; then the answers it gives."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from jobs.pipeline import NAMES
from model import artifact

ROOT = Path(__file__).resolve().parents[2]
COURIER = [sys.executable, str(ROOT / "courier.py")]
PAD, THUMB = 14, 160  # pixels of a contact sheet
FIRST = THUMB + PAD + 3 * PAD  # where its results begin
LIMIT = 240  # seconds for any one command here
pytestmark = pytest.mark.timeout(900)


def courier(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COURIER, *argv], cwd=cwd, capture_output=True, text=True, timeout=LIMIT)


def answer(*argv: str, cwd: Path) -> dict:
    done = courier(*argv, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Runs the front door, and SIGKILLs it a second after the given stage began to write aside, or just before that stage's
# manifest would be written, whichever comes first: in the middle of the long stages, at the worst moment of the short.
KILLER = """
import os, signal, sys, threading
from contextlib import contextmanager
import courier
from model import artifact

stage = sys.argv.pop(1)
write, list_files = artifact.write, artifact._files

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def list_files_or_die(folder):
    return die() if folder.parent.name == stage else list_files(folder)

@contextmanager
def write_or_die(out, *, kind, **rest):
    if kind == stage:
        threading.Timer(1.0, die).start()
    with write(out, kind=kind, **rest) as draft:
        yield draft

artifact.write, artifact._files = write_or_die, list_files_or_die
courier.main()
"""


def run_and_kill_in(stage: str, argv: Sequence[str], cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, stage, *argv], cwd=cwd, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == -signal.SIGKILL, f"the run was not killed in {stage}: {done.stderr[-2000:]}"


def whole(cwd: Path, stage: str) -> list[Path]:
    return [path.parent for path in (cwd / "ws" / stage).glob(f"*/{artifact.MANIFEST}")]


RUN = ("run", "raw", "--workspace", "ws", "--preset", "tiny")
# These leave something beside their artifact: examined images, checkpoints, rows in the online store, a release.
WITH_TRACES = ("images", "pretrain", "materialize", "release")


def road(cwd: Path, killed_in: Sequence[str]) -> Path:
    """A tiny shop in `raw` and the road over it in `ws`, killed once in each of these stages, then completed."""
    world = courier("world", "raw", "--items", "200", "--users", "80", "--requests", "1500", cwd=cwd)
    assert world.returncode == 0, world.stderr
    for stage in killed_in:
        run_and_kill_in(stage, RUN, cwd)
        assert whole(cwd, stage) == [], f"{stage} was killed, and yet an artifact is there"
    done = courier(*RUN, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


def is_complete(cwd: Path) -> bool:
    """Whether one whole artifact of each stage is there, and nothing that was left half done."""
    for stage in NAMES:
        (folder,) = whole(cwd, stage)
        artifact.read(folder, kind=stage)
    return not list((cwd / "ws").glob(f"*/.*{artifact.PARTIAL}"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return road(tmp_path_factory.mktemp("shop"), WITH_TRACES)


def test_a_road_killed_in_each_stage_that_leaves_traces_completes(shop: Path) -> None:
    assert is_complete(shop)


@pytest.mark.slow
def test_a_road_killed_in_every_stage_completes(tmp_path: Path) -> None:
    assert is_complete(road(tmp_path, NAMES))


def test_a_second_run_skips_every_stage_and_starts_no_engine(shop: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COURIER[1:], *RUN], cwd=shop, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    skipped = {line.split()[0] for line in done.stderr.splitlines() if "skipped: up to date" in line}
    assert skipped == set(NAMES)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "jobs.pipeline" in imported
    assert imported.isdisjoint({"torch", "pyspark", "apache_beam", "lightgbm"})


def test_status_tells_that_every_stage_is_fresh_and_what_is_current(shop: Path) -> None:
    status = answer("status", "--workspace", "ws", cwd=shop)
    assert [row["stage"] for row in status["stages"]] == list(NAMES)
    assert {row["state"] for row in status["stages"]} == {"fresh"}
    assert status["release"]


def test_every_stage_speaks_of_one_space(shop: Path) -> None:
    spaces = {
        artifact.read(folder, kind=stage).facts["space_id"]
        for stage in ("pretrain", "embed", "cluster", "features", "index", "rows", "ctr", "release")
        for folder in whole(shop, stage)
    }
    assert len(spaces) == 1


def test_the_evaluation_compares_every_model_with_and_without_images(shop: Path) -> None:
    evaluation = json.loads((shop / "ws" / "reports" / "evaluation.json").read_text("utf-8"))
    rows = {(row["model"], row["images"]): row for row in evaluation["rows"]}
    (ctr,) = whole(shop, "ctr")
    predictions = pq.read_table(ctr / "predictions.parquet").to_pandas()
    for model in ("lightgbm", "neural"):
        for images in ("none", "vector", "simscore", "cluster_id"):
            by_scikit_learn = roc_auc_score(predictions["clicked"], predictions[f"{model}/{images}"])
            assert rows[model, images]["auc"] == pytest.approx(by_scikit_learn, abs=1e-9)
    assert evaluation["oracle"]["auc"] > max(row["auc"] for row in evaluation["rows"])
    assert "<svg" in (shop / "ws" / "reports" / "evaluation.html").read_text("utf-8")


def test_no_encoder_row_lies_after_the_training_period(shop: Path) -> None:
    (sequences,), (pretrain,) = whole(shop, "sequences"), whole(shop, "pretrain")
    splits = artifact.read(sequences, kind="sequences").facts["splits"]
    assert artifact.read(pretrain, kind="pretrain").facts["trained_until"] <= splits["valid_start"]


def test_a_search_by_item_finds_its_twin_first(shop: Path) -> None:
    (images,) = whole(shop, "images")
    items = pq.read_table(images / "items.parquet")
    twin = items.filter(pc.is_valid(items["duplicate_of"])).to_pylist()[0]
    found = answer("search", "--workspace", "ws", "--item", twin["item_id"], "-k", "5", cwd=shop)
    assert found["degraded"] is None
    assert found["release"]
    best = found["results"][0]
    same = items.filter(pc.equal(items["image_id"], twin["image_id"]))["item_id"].to_pylist()
    assert best["item_id"] in same
    assert best["score"] == pytest.approx(1.0, abs=1e-5)
    assert twin["item_id"] not in [result["item_id"] for result in found["results"]]


def test_a_search_by_image_file_finds_the_item_that_shows_it(shop: Path) -> None:
    (images,) = whole(shop, "images")
    items = pq.read_table(images / "items.parquet")
    item = items.filter(pc.equal(items["status"], "ok")).to_pylist()[7]
    found = answer("search", "--workspace", "ws", "--image", str(shop / "raw" / item["image_uri"]), "-k", "3", cwd=shop)
    same = items.filter(pc.equal(items["image_id"], item["image_id"]))["item_id"].to_pylist()
    assert found["results"][0]["item_id"] in same
    assert found["results"][0]["score"] == pytest.approx(1.0, abs=1e-4)


def test_a_contact_sheet_shows_the_picture_that_was_asked_with_and_each_result(shop: Path) -> None:
    (images,) = whole(shop, "images")
    items = pq.read_table(images / "items.parquet")
    asked = shop / "raw" / items.filter(pc.equal(items["status"], "ok"))["image_uri"][7].as_py()
    done = courier("search", "--workspace", "ws", "--image", str(asked), "-k", "2", "--sheet", "sheet.png", cwd=shop)
    assert done.returncode == 0, done.stderr
    sheet, query = Image.open(shop / "sheet.png"), Image.open(asked).convert("RGB")
    assert query.width == query.height
    square = [sheet.crop((x, PAD, x + THUMB, PAD + THUMB)) for x in (PAD, FIRST, FIRST + THUMB + PAD)]
    assert square[0].tobytes() == query.resize((THUMB, THUMB), Image.Resampling.LANCZOS).tobytes()
    near, far = (np.abs(np.asarray(square[0], float) - np.asarray(result, float)).mean() for result in square[1:])
    assert near < far  # the first result is the picture itself, as it is stored: smaller


def test_rank_reads_the_online_store_and_answers_in_order(shop: Path) -> None:
    (sequences,) = whole(shop, "sequences")
    page = pq.read_table(sequences / "page_views").slice(1000, 1).to_pylist()[0]
    items = [word for item_id in page["item_ids"] for word in ("--items", item_id)]
    ranked = answer("rank", "--workspace", "ws", "--user", page["user_id"], *items, cwd=shop)
    assert ranked["degraded"] is None
    assert sorted(result["item_id"] for result in ranked["results"]) == sorted(page["item_ids"])
    scores = [result["score"] for result in ranked["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)


def test_an_unknown_user_and_an_unknown_item_are_answered(shop: Path) -> None:
    (index,) = whole(shop, "index")
    item = pq.read_table(index / "items.parquet")["item_id"][0].as_py()
    items = ("--items", item, "--items", "no-such-item")
    ranked = answer("rank", "--workspace", "ws", "--user", "nobody", *items, cwd=shop)
    assert "nobody" in ranked["degraded"]
    assert {result["item_id"]: result["known"] for result in ranked["results"]} == {item: True, "no-such-item": False}


@pytest.mark.parametrize(
    "argv",
    [
        ("search", "--workspace", "ws", "--item", "no-such-item"),
        ("search", "--workspace", "ws", "--image", "run.log"),
        ("search", "--workspace", "ws", "--image", "no-such-file.png"),
        ("rank", "--workspace", "no-such-workspace", "--user", "u", "--items", "i"),
    ],
)
def test_a_question_that_has_no_answer_is_told_in_one_sentence(shop: Path, argv: tuple[str, ...]) -> None:
    done = courier(*argv, cwd=shop)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().startswith("courier: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_k_larger_than_the_catalogue_gives_the_catalogue(shop: Path) -> None:
    (index,) = whole(shop, "index")
    ids = pq.read_table(index / "items.parquet")["item_id"].to_pylist()
    found = answer("search", "--workspace", "ws", "--item", ids[0], "-k", "100000", cwd=shop)
    assert len(found["results"]) == len(ids) - 1


def materialize(shop: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Feast's own command in its repo, over the shop's workspace."""
    (features,) = whole(shop, "features")
    facts = artifact.read(features, kind="features").facts
    command = [Path(sys.executable).with_name("feast"), "materialize", *options, facts["start"], facts["as_of"]]
    env = {**os.environ, "COURIER_WORKSPACE": str(shop / "ws")}
    return subprocess.run(command, cwd=ROOT / "feature_repo", env=env, capture_output=True, text=True)


def test_the_plain_feast_command_loads_a_view_of_the_workspace(shop: Path) -> None:
    loaded = materialize(shop, "--views", "item_cluster")
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.slow
def test_the_plain_feast_command_loads_every_view(shop: Path) -> None:
    loaded = materialize(shop)
    assert loaded.returncode == 0, loaded.stderr


def test_a_deleted_stage_is_rebuilt_and_as_its_content_is_the_same_nothing_else_is(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop, tmp_path, dirs_exist_ok=True)
    (folder,) = whole(tmp_path, "index")
    (folder / artifact.MANIFEST).unlink()
    done = courier(*RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    built = {line.split()[0] for line in done.stderr.splitlines() if " built in " in line}
    assert built == {"index"}
