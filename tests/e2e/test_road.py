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
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sklearn.metrics import roc_auc_score

from feature_repo.contract import VIEWS
from jobs.pipeline import NAMES
from model import artifact
from serving.app import create_app, load_world
from serving.settings import read_settings

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


# As people type them, or take them from addresses: words for nothing, numbers that are one number, accents that look
# alike, what a shell or a file system would read as more than text.
ODD = ("a/b/c", "../etc/passwd", "a b", " lead", "tail ", "e\u0301", "\u00e9", "x" * 5000, "null", "NaN", "7", "007")
ODD += ("7.0", "1e5", "a,b", 'a"b', "a'b", "a\tb", "a\nb", "a%2Fb", '{"a":1}', "[1]", "\\", "*", ".", "..", "--help")
ODD += ("-k", "${x}", "\U0001f457")


def give_odd_ids(raw: Path) -> None:
    """Let the first items, and the first users, of every table of a raw folder have the ids of ODD."""
    tables = {path: pq.read_table(path) for path in raw.glob("*.parquet")}
    for name in ("item_id", "user_id"):
        with_name = {path: table for path, table in tables.items() if name in table.column_names}
        known = sorted({one for table in with_name.values() for one in table[name].to_pylist()})
        odd = dict(zip(known, ODD, strict=False))
        for path, table in with_name.items():
            place, ids = table.column_names.index(name), table[name].to_pylist()
            renamed = pa.array([odd.get(one, one) for one in ids], table.schema.field(name).type)
            tables[path] = table.set_column(place, table.schema.field(name), renamed)
    for path, table in tables.items():
        pq.write_table(table, path)


def road(cwd: Path, killed_in: Sequence[str]) -> Path:
    """A tiny shop in `raw` and the road over it in `ws`, killed once in each of these stages, then completed."""
    world = courier("world", "raw", "--items", "200", "--users", "80", "--requests", "1500", cwd=cwd)
    assert world.returncode == 0, world.stderr
    give_odd_ids(cwd / "raw")
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


def test_what_the_server_ranks_by_is_what_training_rows_have(shop: Path) -> None:
    told = answer("parity", "ws", "--replay", "1000", cwd=shop)
    assert (told["passed"], told["requests"], told["differences"]) == (True, 1_000, 0)
    assert {one["values"] for one in told["features"]} == {1_000, told["candidates"]}


@pytest.mark.slow
def test_a_road_killed_in_every_stage_completes(tmp_path: Path) -> None:
    assert is_complete(road(tmp_path, NAMES))


def test_a_second_run_skips_every_stage_and_starts_no_engine(shop: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COURIER[1:], *RUN], cwd=shop, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    stood = ("skipped: up to date", "pinned: as in r")
    assert {line.split()[0] for line in done.stderr.splitlines() if any(said in line for said in stood)} == set(NAMES)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "jobs.pipeline" in imported
    assert imported.isdisjoint({"torch", "pyspark", "apache_beam", "lightgbm"})


def test_status_tells_that_every_stage_is_fresh_or_pinned_and_what_is_current(shop: Path) -> None:
    status = answer("status", "--workspace", "ws", cwd=shop)
    assert [row["stage"] for row in status["stages"]] == list(NAMES)
    pinned = {row["stage"]: row["state"] for row in status["stages"] if row["state"] != "fresh"}
    assert pinned == {"pretrain": "pinned", "codebook": "pinned"}
    assert [row["view"] for row in status["views"]] == [view.name for view in VIEWS]
    assert all(row["rows"] and row["newest"] for row in status["views"])
    assert status["release"]


def test_every_stage_speaks_of_one_space(shop: Path) -> None:
    spaces = {
        artifact.read(folder, kind=stage).facts["space_id"]
        for stage in ("pretrain", "embed", "codebook", "cluster", "features", "index", "rows", "ctr", "release")
        for folder in whole(shop, stage)
    }
    assert len(spaces) == 1


def rows_of(folder: Path, name: str) -> int:
    return len(pq.read_table(folder / name))


def test_every_row_that_a_stage_reads_is_in_one_of_its_counts(shop: Path) -> None:
    folder = {stage: whole(shop, stage)[0] for stage in NAMES}
    of = {stage: artifact.read(folder[stage], kind=stage).facts for stage in NAMES}
    sequences, images, pretrain, codebook = (of[name] for name in ("sequences", "images", "pretrain", "codebook"))
    page_views = pq.read_table(folder["sequences"] / "page_views", columns=["period", "item_ids"])
    trained = page_views.filter(pc.equal(page_views["period"], "train"))
    items = sum(map(len, page_views["item_ids"].to_pylist()))
    statuses = [images[status] for status in ("images_ok", "missing", "broken", "placeholder", "refused")]
    accepted = [sequences[name] for name in ("duplicates", "impressions", "shown_again", "clicks", "conversions")]
    sums = {
        "events": (rows_of(shop / "raw", "events.parquet"), sequences["events_read"]),
        "events read": (
            sequences["events_read"],
            sequences["events_accepted"] + sum(sequences["events_rejected"].values()),
        ),
        "events rejected": (sum(sequences["events_rejected"].values()), rows_of(folder["sequences"], "rejected")),
        "events accepted": (sequences["events_accepted"], sum(accepted)),
        "impressions": (sequences["impressions"], rows_of(folder["sequences"], "impressions")),
        "impressions on page views": (sequences["impressions"] - sequences["beyond_page_view_size"], items),
        "clicks": (sequences["clicks"], rows_of(folder["sequences"], "clicks")),
        "conversions": (sequences["conversions"], rows_of(folder["sequences"], "conversions")),
        "page views": (sequences["requests"], len(page_views)),
        "page views by period": (sequences["requests"], sum(sequences["requests_by_period"].values())),
        "page views trained on": (sequences["requests_by_period"]["train"], pretrain["page_views_read"]),
        "page views read": (
            pretrain["page_views_read"],
            pretrain["page_views"] + pretrain["page_views_without_image"],
        ),
        "items trained on": (sum(map(len, trained["item_ids"].to_pylist())), pretrain["page_view_items_read"]),
        "items read": (
            pretrain["page_view_items_read"],
            pretrain["page_view_items"] + pretrain["page_view_items_without_image"],
        ),
        "catalogue": (rows_of(shop / "raw", "items.parquet"), images["items_read"]),
        "catalogue read": (images["items_read"], images["items_accepted"] + sum(images["items_rejected"].values())),
        "catalogue accepted": (images["items_accepted"], sum(statuses)),
        "items embedded": (images["images_ok"], of["embed"]["items"]),
        "images embedded": (images["distinct_images"], of["embed"]["vectors"]),
        "vectors of the codebook": (of["embed"]["vectors"], codebook["vectors"]),
        "vectors fitted": (codebook["vectors"], codebook["fitted_on"] + codebook["not_shown_in_training"]),
        "items of the codebook": (of["embed"]["items"], of["cluster"]["items"]),
        "items clustered": (of["embed"]["items"], rows_of(folder["cluster"], "items.parquet")),
        "items indexed": (of["embed"]["items"], of["index"]["items"]),
        "profiles": (images["items_accepted"], of["features"]["rows"]["item_profile"]),
        "clusters": (of["embed"]["items"], of["features"]["rows"]["item_cluster"]),
        "embeddings": (of["embed"]["items"], of["features"]["rows"]["item_embedding"]),
        "histories": (rows_of(folder["sequences"], "histories"), of["features"]["rows"]["user_history"]),
        "rows": (sequences["impressions"], of["rows"]["impressions_read"]),
        "rows by period": (of["rows"]["impressions_read"], sum(of["rows"]["rows"].values())),
        "rows trained on": (of["rows"]["rows"], of["ctr"]["rows"]),
        "rows predicted": (of["rows"]["rows"]["test"], rows_of(folder["ctr"], "predictions.parquet")),
    }
    assert {what: pair for what, pair in sums.items() if pair[0] != pair[1]} == {}
    assert pretrain["page_view_items_without_image"] > 0  # so that something is left out at all


def test_every_json_of_a_run_is_read_by_who_keeps_to_the_standard(shop: Path) -> None:
    words: list[str] = []
    read = 0
    for path in (shop / "ws").rglob("*.json*"):
        lines = path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
        for line in lines:
            json.loads(line, parse_constant=lambda word, path=path: words.append(f"{path}: {word}"))
        read += 1
    assert words == []
    assert read > 2 * len(NAMES)  # a manifest and a key of each


def test_odd_ids_are_carried_to_every_table_and_name_no_file(shop: Path) -> None:
    folder = {stage: whole(shop, stage)[0] for stage in NAMES}
    raw = {name: pq.read_table(shop / "raw" / f"{name}.parquet") for name in ("events", "items")}
    known, users = ({*raw["items"]["item_id"].to_pylist()}, {*raw["events"]["user_id"].to_pylist()})
    assert {*ODD} < known
    assert {*ODD} < users
    assert {*pq.read_table(folder["images"] / "items.parquet")["item_id"].to_pylist()} == known
    usable = {*pq.read_table(folder["embed"] / "items.parquet")["item_id"].to_pylist()}
    assert len(usable & {*ODD}) > len(ODD) // 2
    for stage in ("cluster", "index"):
        assert {*pq.read_table(folder[stage] / "items.parquet")["item_id"].to_pylist()} == usable
    assert {*pq.read_table(folder["sequences"] / "impressions")["user_id"].to_pylist()} <= users
    joined = pq.read_table(folder["rows"] / "train.parquet", columns=["item_id", "user_id", "cluster_id", "category"])
    odd = joined.filter(pc.is_in(joined["item_id"], value_set=pa.array(sorted(usable & {*ODD}))))
    assert pc.min(odd["cluster_id"]).as_py() >= 0
    assert {*ODD} & {*joined["user_id"].to_pylist()}
    names = {part for path in (shop / "ws").rglob("*") for part in path.relative_to(shop / "ws").parts}
    assert not names & {*ODD}


def test_an_odd_id_finds_itself_in_the_index_the_feature_store_and_the_answers(shop: Path) -> None:
    world = load_world(read_settings(workspace=shop / "ws"))
    items = {one["item_id"]: one for one in pq.read_table(whole(shop, "images")[0] / "items.parquet").to_pylist()}
    usable = [item_id for item_id in ODD if items[item_id]["status"] == "ok"]
    with TestClient(create_app(world)) as client:
        for item_id in usable:
            picture = (shop / "raw" / items[item_id]["image_uri"]).read_bytes()
            by_image = client.post("/search", files={"image": picture}, data={"k": "5"}).json()["results"]
            assert item_id in [one["item_id"] for one in by_image if one["same_image"]]
            by_item = client.post("/search", data={"item_id": item_id, "k": "5"}).json()["results"]
            assert len(by_item) == 5
            assert item_id not in [one["item_id"] for one in by_item]
        for user_id in ODD:
            ranked = client.post("/rank", json={"user_id": user_id, "item_ids": [*ODD, "y" * 600]}).json()
            assert sorted(one["item_id"] for one in ranked["results"]) == sorted([*ODD, "y" * 600])
            assert [one["item_id"] for one in ranked["results"] if not one["known"]] == ["y" * 600]
            assert ranked["degraded"] == f"1 of {len(ODD) + 1} items unknown: scored on default values"


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


def test_added_items_are_found_and_ranked_at_once_and_every_other_row_has_its_reason(
    shop: Path, tmp_path: Path
) -> None:
    shutil.copytree(shop, tmp_path, dirs_exist_ok=True)
    (images,) = whole(tmp_path, "images")
    known = pq.read_table(images / "items.parquet").to_pylist()
    twin = next(row for row in known if row["status"] == "ok" and row["duplicate_of"] is None)
    shutil.copyfile(tmp_path / "raw" / twin["image_uri"], tmp_path / "new.img")
    rows = [
        {"item_id": "new, one", "image_uri": "new.img", "category": "c", "price": "9.50"},
        {"item_id": "lost", "image_uri": "lost.jpg"},
        {"item_id": None, "image_uri": "new.img"},
        {"item_id": twin["item_id"], "image_uri": "new.img"},
    ]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    report = answer("add-items", "new.jsonl", "--workspace", "ws", cwd=tmp_path)
    assert report["added"] == ["new, one"]
    reasons = {"": "null_item_id", twin["item_id"]: "in_release", "lost": "not_found"}
    assert dict(report["left_out"]) == reasons
    client = TestClient(create_app(load_world(read_settings(workspace=tmp_path / "ws"))))
    [found] = client.post("/search", data={"item_id": "new, one", "k": 1}).json()["results"]
    assert (found["score"], found["same_image"]) == (pytest.approx(1.0, abs=1e-5), True)
    body = {"user_id": "nobody", "item_ids": ["new, one", "never heard of"]}
    ranked = {one["item_id"]: one["known"] for one in client.post("/rank", json=body).json()["results"]}
    assert ranked == {"new, one": True, "never heard of": False}
    assert answer("forget", "--item", "new, one", "--workspace", "ws", cwd=tmp_path)["left"] == 0
    after = TestClient(create_app(load_world(read_settings(workspace=tmp_path / "ws"))))
    assert after.post("/search", data={"item_id": "new, one"}).status_code == 404
