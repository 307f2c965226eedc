"""The service over HTTP: what it answers, and what it refuses in one sentence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model.courier.data.images import pixel_hash
from model.releases import Release
from model.vector_index import VectorIndex
from serving.app import BodyLimit, create_app
from serving.ranker import Ranker
from serving.routes import World
from serving.settings import SettingsRefused, read_settings
from serving.visual_search import CatalogueItem, VisualSearch

NOW = datetime(2024, 6, 1, tzinfo=UTC)
LIMIT = 50_000
RELEASE = Release(release_id="r1", created_at=NOW, space_id="s1", ctr_model="lightgbm/none", artifacts={}, metrics={})


class LeftRight:
    """An encoder that only sees how bright the two halves are."""

    def embed(self, image: Image.Image) -> npt.NDArray[np.float32]:
        halves = np.asarray(image.convert("L"), np.float32)
        middle = halves.shape[1] // 2
        vector = np.array([halves[:, :middle].mean(), halves[:, middle:].mean()], np.float32)
        return vector / np.linalg.norm(vector)


@dataclass
class Rows:
    """What a feature source answers."""

    table: pa.Table
    known_user: bool
    known_items: list[bool]
    vectors: None = None


@dataclass
class FakeFeatures:
    """Knows user u1 and the items left, middle and right; notes the moment it was asked for."""

    fails: bool = False
    as_of: datetime | None = None

    def ranking_rows(self, user_id: str, item_ids: Sequence[str], *_: str, as_of: datetime, vectors: bool) -> Rows:
        del vectors
        self.as_of = as_of
        if self.fails:
            raise TimeoutError
        known = [item in ("left", "middle", "right") for item in item_ids]
        return Rows(pa.table({"item_id": list(item_ids)}), user_id == "u1", known)


class LongNamesFirst:
    """A model that likes long item ids."""

    images = "none"

    def predict(self, table: pa.Table, vectors: object = None) -> npt.NDArray[np.float32]:
        del vectors
        return np.array([len(item) / 10 for item in table["item_id"].to_pylist()], np.float32)


def halves(left: int, right: int) -> Image.Image:
    pixels = np.full((16, 16), left, np.uint8)
    pixels[:, 8:] = right
    return Image.fromarray(pixels).convert("RGB")


PICTURES = {"left": halves(200, 10), "middle": halves(100, 100), "right": halves(10, 200)}


def png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def features() -> FakeFeatures:
    return FakeFeatures()


@pytest.fixture
def client(features: FakeFeatures) -> Iterator[TestClient]:
    encoder = LeftRight()
    vectors = np.stack([encoder.embed(picture) for picture in PICTURES.values()])
    items = {
        item: CatalogueItem(f"the {item} one", "half", f"{item}.png", pixel_hash(picture), None, "ok")
        for item, picture in PICTURES.items()
    }
    items["gone"] = CatalogueItem(None, None, None, None, None, "missing")
    search = VisualSearch(VectorIndex.build(vectors, list(PICTURES)), items, encoder)
    world = World(RELEASE, search, Ranker(features, LongNamesFirst(), "s1", "c1"), LIMIT, lambda: NOW)
    with TestClient(create_app(world)) as client:
        yield client


def found(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["item_id"] for one in answer.json()["results"]]


# --- search ----------------------------------------------------------------------------------------------------------


def test_an_upload_finds_what_looks_like_it(client: TestClient) -> None:
    answer = client.post("/search", files={"image": ("x.png", png(PICTURES["left"]))}, data={"k": "2"})
    assert found(answer) == ["left", "middle"]
    body = answer.json()
    assert (body["release"], body["degraded"]) == ("r1", None)
    assert body["results"][0] == {
        "item_id": "left",
        "score": 1.0,
        "title": "the left one",
        "category": "half",
        "image_uri": "left.png",
        "same_image": True,
        "duplicate_of": None,
    }


def test_an_item_finds_others_and_not_itself(client: TestClient) -> None:
    assert found(client.post("/search", data={"item_id": "right"})) == ["middle", "left"]


@pytest.mark.parametrize("k", ["3", "1000", "1" + "0" * 30])
def test_k_beyond_the_catalogue_gives_all_there_is(client: TestClient, k: str) -> None:
    answer = client.post("/search", files={"image": png(PICTURES["left"])}, data={"k": k})
    assert found(answer) == ["left", "middle", "right"]


@pytest.mark.parametrize(
    ("form", "status", "sentence"),
    [
        ({"data": {"item_id": "nobody"}}, 404, "no item 'nobody' in the catalogue"),
        ({"data": {"item_id": "gone"}}, 422, "item 'gone' has no usable image (missing)"),
        ({"files": {"image": b"hello"}}, 422, "the file is not an image in a known format"),
        ({"files": {"image": b""}}, 422, "the file is empty"),
        ({"files": {"image": png(halves(1, 2))[:60]}}, 422, "the image's data is cut short or damaged"),
        ({"data": {"item_id": "left", "k": "0"}}, 422, "k: Input should be greater than or equal to 1"),
        ({"data": {"item_id": "left", "k": "-3"}}, 422, "k: Input should be greater than or equal to 1"),
        ({"data": {"item_id": "left", "k": "many"}}, 422, "k: Input should be a valid integer"),
        ({"data": {"image": "not a file"}}, 422, "image: "),
        ({}, 422, "send an image or an item_id, one of the two"),
        ({"data": {"item_id": "left"}, "files": {"image": b"x"}}, 422, "one of the two"),
    ],
)
def test_a_bad_search_is_refused_in_one_sentence(
    client: TestClient, form: dict[str, Any], status: int, sentence: str
) -> None:
    answer = client.post("/search", **form)
    assert answer.status_code == status
    assert list(answer.json()) == ["detail"]
    assert sentence in answer.json()["detail"]


def test_an_oversized_upload_is_refused_whether_or_not_it_tells_its_length(client: TestClient) -> None:
    large = client.post("/search", files={"image": bytes(LIMIT + 100_000)})
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + bytes(LIMIT + 100_000)
    chunks = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    silent = client.post("/search", content=chunks, headers={"content-type": "multipart/form-data; boundary=x"})
    for answer in (large, silent):
        assert answer.status_code == 413
        assert "larger than" in answer.json()["detail"]
    assert client.get("/healthz").status_code == 200


# --- rank ------------------------------------------------------------------------------------------------------------


def test_a_ranking_is_answered_in_the_same_form(client: TestClient, features: FakeFeatures) -> None:
    answer = client.post("/rank", json={"user_id": "u1", "item_ids": ["left", "middle", "new"]})
    assert answer.json() == {
        "results": [
            {"item_id": "middle", "score": 0.6, "known": True},
            {"item_id": "left", "score": 0.4, "known": True},
            {"item_id": "new", "score": 0.3, "known": False},
        ],
        "release": "r1",
        "degraded": "1 of 3 items unknown: scored on default values",
    }
    assert features.as_of == NOW


def test_a_request_may_name_its_moment(client: TestClient, features: FakeFeatures) -> None:
    asked = {"user_id": "u1", "item_ids": ["left"], "as_of": "2024-01-01T00:00:00Z"}
    assert client.post("/rank", json=asked).status_code == 200
    assert features.as_of == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("odd", ["", "x" * 513, "y" * 40_000, "a\nb", "a,b", " lead", "\0", "NaN"])
def test_an_odd_id_costs_itself_and_not_the_request(client: TestClient, odd: str) -> None:
    answer = client.post("/rank", json={"user_id": "u1", "item_ids": [odd, "left"]})
    assert sorted(found(answer)) == sorted([odd, "left"])
    assert {one["item_id"]: one["known"] for one in answer.json()["results"]} == {odd: False, "left": True}
    assert answer.json()["degraded"] == "1 of 2 items unknown: scored on default values"
    lost = client.post("/search", data={"item_id": odd})
    assert lost.status_code in (404, 422)  # an empty field is none
    assert list(lost.json()) == ["detail"]


def test_a_user_id_of_any_length_is_asked_for(client: TestClient) -> None:
    assert found(client.post("/rank", json={"user_id": "x" * 3_000, "item_ids": ["left"]})) == ["left"]


def test_an_unknown_user_gets_an_answer_that_says_so(client: TestClient) -> None:
    answer = client.post("/rank", json={"user_id": "nobody", "item_ids": ["left", "middle"]})
    assert found(answer) == ["middle", "left"]
    assert "'nobody' is unknown" in answer.json()["degraded"]


def test_a_failing_store_gets_the_order_given_and_says_so(client: TestClient, features: FakeFeatures) -> None:
    features.fails = True
    answer = client.post("/rank", json={"user_id": "u1", "item_ids": ["left", "middle"]})
    assert found(answer) == ["left", "middle"]
    assert "feature store does not answer" in answer.json()["degraded"]


@pytest.mark.parametrize(
    "asked",
    [
        {"json": {"user_id": "u1"}},
        {"json": {"user_id": "u1", "item_ids": []}},
        {"json": {"user_id": "", "item_ids": ["a"]}},
        {"json": {"user_id": "u1", "item_ids": ["a"] * 1_001}},
        {"json": {"user_id": "u1", "item_ids": "a"}},
        {"json": {"user_id": "u1", "item_ids": ["a"], "as_of": "2024-01-01T00:00:00"}},
        {"json": {"user_id": "u1", "item_ids": ["a"], "k": 3}},
        {"json": ["u1"]},
        {"content": b"{", "headers": {"content-type": "application/json"}},
        {"content": b"\xff\xfe", "headers": {"content-type": "application/json"}},
    ],
)
def test_a_bad_ranking_request_is_refused_in_one_sentence(client: TestClient, asked: dict[str, Any]) -> None:
    answer = client.post("/rank", **asked)
    assert answer.status_code in (400, 422)
    assert isinstance(answer.json()["detail"], str)
    assert "Traceback" not in answer.text


# --- the rest --------------------------------------------------------------------------------------------------------


def test_the_process_says_that_it_lives_and_what_it_serves(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert (ready["status"], ready["release"], ready["items"]) == ("ready", "r1", 3)


def test_the_openapi_page_shows_an_example_of_every_answer(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    for name in ("SearchAnswer", "RankAnswer", "RankRequest"):
        assert schema["components"]["schemas"][name]["example"]
    assert set(schema["paths"]) == {"/search", "/rank", "/healthz", "/readyz"}


def test_only_http_is_counted() -> None:
    seen: list[str] = []

    async def app(scope: Any, *_: Any) -> None:
        seen.append(scope["type"])

    import asyncio

    asyncio.run(BodyLimit(app, 1)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_settings_come_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURIER_WORKSPACE", "/somewhere")
    monkeypatch.setenv("COURIER_PORT", "1234")
    assert read_settings(port=None).workspace == Path("/somewhere")
    assert read_settings(port=5).port == 5
    assert read_settings().port == 1234
    monkeypatch.setenv("COURIER_PORT", "eighty")
    with pytest.raises(SettingsRefused, match="COURIER_PORT='eighty'"):
        read_settings()
