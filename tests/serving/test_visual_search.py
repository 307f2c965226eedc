"""What a search finds, on three-dimensional vectors that can be checked by hand, and the sheet and tables it prints."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from recorded_releases import let_answer

from model import artifact
from model.courier.data.images import ImageRefused, pixel_hash, to_png
from model.releases import NoRelease, Release
from model.vector_index import VectorIndex
from serving import contact_sheet, visual_search
from serving.release import open_release
from serving.visual_search import BadQuestion, CatalogueItem, NoUsableImage, UnknownItem, VisualSearch

SIZE = 8
COLOURS = {"red": (250, 10, 10), "rose": (230, 40, 40), "green": (10, 250, 10), "blue": (10, 10, 250)}
# item -> colour of its picture; twin has the very picture of red.
CATALOGUE = {"a-red": "red", "b-rose": "rose", "c-green": "green", "d-blue": "blue", "e-twin": "red"}


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), COLOURS[colour])


def mean_colour(image: Image.Image) -> npt.NDArray[np.float32]:
    mean = np.asarray(image, np.float32).reshape(-1, 3).mean(axis=0)
    return mean / np.linalg.norm(mean)


class MeanColour:
    """An encoder whose vectors are plain to see."""

    def embed(self, image: Image.Image) -> npt.NDArray[np.float32]:
        return mean_colour(image)


def png(colour: str) -> bytes:
    return to_png(picture(colour))


def build_search() -> VisualSearch:
    vectors = np.stack([mean_colour(picture(colour)) for colour in CATALOGUE.values()])
    items = {
        item: CatalogueItem(
            f"a {colour} thing", "thing", f"{item}.png", pixel_hash(picture(colour)), _first(item, colour), "ok"
        )
        for item, colour in CATALOGUE.items()
    }
    items["f-broken"] = CatalogueItem("a broken thing", "thing", "f.png", None, None, "broken")
    return VisualSearch(VectorIndex.build(vectors, list(CATALOGUE)), items, MeanColour())


def _first(item: str, colour: str) -> str | None:
    first = min(other for other, theirs in CATALOGUE.items() if theirs == colour)
    return first if first != item else None


def test_duplicates_come_first_then_look_alikes_and_the_item_itself_is_left_out() -> None:
    hits = build_search().by_item("a-red", 10)
    assert [hit.item_id for hit in hits] == ["e-twin", "b-rose", "c-green", "d-blue"]
    assert [hit.same_image for hit in hits] == [True, False, False, False]
    assert hits[0].score == 1.0


def test_as_many_are_found_as_were_asked_for() -> None:
    search = build_search()
    assert [len(search.by_item("a-red", k)) for k in (1, 2, 4, 5, 1_000)] == [1, 2, 4, 4, 4]
    assert [len(search.by_image(png("red"), k)) for k in (1, 5, 1_000)] == [1, 5, 5]


def test_an_uploaded_picture_finds_the_items_that_have_it() -> None:
    hits = build_search().by_image(png("red"), 3)
    assert [(hit.item_id, hit.same_image) for hit in hits] == [("a-red", True), ("e-twin", True), ("b-rose", False)]


def test_the_same_image_stands_above_one_that_scores_the_same() -> None:
    search = build_search()
    search.index.add(mean_colour(picture("green"))[None], ["0-dark-green"])
    search.items = {**search.items, "0-dark-green": CatalogueItem(None, None, None, "another", None, "ok")}
    hits = search.by_image(png("green"), 2)
    assert [hit.item_id for hit in hits] == ["c-green", "0-dark-green"]
    assert hits[0].score == hits[1].score


def test_an_unknown_item_and_one_without_an_image_are_told_apart() -> None:
    with pytest.raises(UnknownItem, match="no item 'nobody' in the catalogue"):
        build_search().by_item("nobody", 3)
    with pytest.raises(NoUsableImage, match=r"no usable image \(broken\)"):
        build_search().by_item("f-broken", 3)


def test_bytes_that_are_no_image_are_refused() -> None:
    with pytest.raises(ImageRefused, match="not an image"):
        build_search().by_image(b"hello", 3)


def test_an_answer_carries_plain_columns() -> None:
    answer = visual_search.answer_of(build_search().by_item("a-red", 1), "r1").model_dump()
    assert answer == {
        "results": [
            {
                "item_id": "e-twin",
                "score": 1.0,
                "title": "a red thing",
                "category": "thing",
                "image_uri": "e-twin.png",
                "same_image": True,
                "duplicate_of": "a-red",
            }
        ],
        "release": "r1",
        "degraded": None,
    }


# --- the sheet ------------------------------------------------------------------------------------------------------


def test_a_sheet_shows_every_picture_where_it_belongs() -> None:
    colours = ["rose", "green", "blue", "red", "rose", "green"]
    cells = [
        contact_sheet.Cell(picture(colour), n, 0.5, f"i{n}", "a title too long for its place " * 4, None, n == 1)
        for n, colour in enumerate(colours, start=1)
    ]
    sheet = contact_sheet.draw(picture("red"), "item x", cells)
    left = contact_sheet.CELL + 3 * contact_sheet.PAD
    middle = contact_sheet.THUMB // 2
    assert sheet.getpixel((contact_sheet.PAD + middle, contact_sheet.PAD + middle)) == COLOURS["red"]
    for n, colour in enumerate(colours):
        row, column = divmod(n, contact_sheet.COLUMNS)
        x = left + column * contact_sheet.CELL + middle
        y = contact_sheet.PAD + row * (contact_sheet.CELL + contact_sheet.TEXT) + middle
        assert sheet.getpixel((x, y)) == COLOURS[colour]


def test_a_sheet_of_nothing_can_be_drawn() -> None:
    assert contact_sheet.draw(Image.new("RGB", (3, 900)), "x", []).width > contact_sheet.THUMB


# --- the command line, over real artifacts ---------------------------------------------------------------------------


def write_release(workspace: Path) -> Release:
    """Images and index as the jobs write them, and a catalogue that names them."""
    search = build_search()
    with artifact.write(workspace / "images" / "k1", kind="images", inputs={}, config={"size": SIZE}) as draft:
        rows = [{"item_id": item, **_columns(known)} for item, known in search.items.items()]
        pq.write_table(pa.Table.from_pylist(rows), draft.path / "items.parquet")
        (draft.path / "shards").mkdir()
        distinct = sorted({pixel_hash(picture(colour)): png(colour) for colour in COLOURS}.items())
        shard = pa.table({"image_id": [key for key, _ in distinct], "image": [data for _, data in distinct]})
        pq.write_table(shard, draft.path / "shards" / "images-00000-of-00001.parquet")
    with artifact.write(workspace / "index" / "k2", kind="index", inputs={}, config={}) as draft:
        search.index.save(draft.path)
        draft.facts["space_id"] = "s1"
    folders = {"images": workspace / "images" / "k1", "index": workspace / "index" / "k2"}
    named = {
        stage: {"path": path.relative_to(workspace).as_posix(), "digest": artifact.digest(path)}
        for stage, path in folders.items()
    }
    release = Release(
        release_id="r1",
        created_at=datetime(2024, 1, 1, tzinfo=UTC),
        space_id="s1",
        ctr_model="lightgbm/none",
        artifacts=named,
        metrics={},
    )
    return let_answer(workspace, release)


def _columns(item: CatalogueItem) -> dict[str, str | None]:
    names = ("title", "category", "image_uri", "image_id", "duplicate_of", "status")
    return {name: getattr(item, name) for name in names}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ws")
    write_release(folder)
    return folder


def test_a_search_by_item_prints_json_and_draws_a_sheet(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    visual_search.main(["--workspace", str(workspace), "--item", "a-red", "-k", "2", "--json", "--sheet", str(sheet)])
    answer = json.loads(capsys.readouterr().out)
    assert [found["item_id"] for found in answer["results"]] == ["e-twin", "b-rose"]
    assert (answer["release"], answer["degraded"]) == ("r1", None)
    with Image.open(BytesIO(sheet.read_bytes())) as drawn:
        assert drawn.format == "PNG"


def test_without_json_a_table_is_printed(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visual_search.main(["--workspace", str(workspace), "--item", "a-red"])
    printed = capsys.readouterr().out
    assert "e-twin" in printed
    assert "r1" in printed


def test_a_search_by_item_loads_nothing_heavy(workspace: Path) -> None:
    code = (
        "import sys; from serving import visual_search as v;"
        f"v.main(['--workspace', {str(workspace)!r}, '--item', 'a-red', '--json']);"
        "sys.exit(repr([m for m in ('torch', 'feast', 'lightgbm', 'fastapi', 'alembic') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "one of the two"),
        (["--item", "a-red", "--image", "x.png"], "one of the two"),
        (["--image", "/nowhere/x.png"], "cannot be read: No such file"),
        (["--image", "/"], "cannot be read: Is a directory"),
        (["--item", "a-red", "--sheet", "/dev/null/sheet.png"], "the sheet cannot be written"),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_sentence(workspace: Path, options: list[str], sentence: str) -> None:
    with pytest.raises(BadQuestion, match=sentence):
        visual_search.main(["--workspace", str(workspace), *options])


def test_a_workspace_without_a_release_is_told_the_cure(tmp_path: Path) -> None:
    with pytest.raises(NoRelease, match="courier run RAW"):
        visual_search.main(["--workspace", str(tmp_path), "--item", "a"])


def test_an_artifact_that_was_rebuilt_under_the_release_is_refused(tmp_path: Path) -> None:
    write_release(tmp_path)
    with artifact.write(tmp_path / "index" / "k2", kind="index", inputs={}, config={}) as draft:
        (draft.path / "x").write_text("other", "utf-8")
    with pytest.raises(artifact.ArtifactMismatch, match="was rebuilt after r1 named it"):
        open_release(tmp_path)


def test_an_artifact_of_another_space_is_refused(tmp_path: Path) -> None:
    release = write_release(tmp_path)
    moved = Release(
        release_id="r2",
        created_at=release.created_at,
        space_id="s2",
        ctr_model=release.ctr_model,
        artifacts=release.artifacts,
        metrics={},
    )
    let_answer(tmp_path, moved)
    with pytest.raises(artifact.ArtifactMismatch, match="is of space s1, r2 of s2"):
        open_release(tmp_path)
