"""Embedding a catalogue: each distinct image once, rows that items find again."""

from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model import artifact
from model.courier.config import CourierConfig
from model.courier.data.stored_images import load_images, stream_images
from model.courier.inference import embed, onnx_export
from model.courier.inference.onnx_export import ExportedEncoder
from model.courier.network.backbones import warm_start
from model.courier.network.encoder import LoadedEncoder, build_encoder, embed_images, load_encoder, save_encoder
from model.errors import CourierError
from model.space import Preprocessing

SIZE = 16
CONFIG = CourierConfig(backbone="small", backbone_weights="random", image_size=SIZE)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
IDS = ["p3", "p0", "p2", "p1"]  # shards are sorted; the pixels of p0 are PIXELS[1]
ITEMS = {
    "item_id": ["e", "a", "b", "d", "c"],
    "image_id": ["p2", "p0", "p1", "p0", None],
    "category": ["lamp"] * 5,
    "status": ["ok", "ok", "ok", "ok", "broken"],
}


def png(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def images_artifact(out: Path, items: dict[str, list[str | None]]) -> Path:
    with artifact.write(out, kind="images", inputs={}, config={"size": SIZE}) as draft:
        (draft.path / "shards").mkdir()
        order = np.argsort(IDS)
        shard = {"image_id": [IDS[n] for n in order], "image": [png(PIXELS[n]) for n in order]}
        pq.write_table(pa.table(shard), draft.path / "shards" / "images-00000-of-00001.parquet")
        pq.write_table(pa.table(items), draft.path / "items.parquet")
    return out


@pytest.fixture
def pretrain(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    with artifact.write(tmp_path / "pretrain", kind="pretrain", inputs={}, config=asdict(CONFIG)) as draft:
        facts = save_encoder(build_encoder(CONFIG), draft.path, Preprocessing(size=SIZE))
        draft.facts |= facts | {"encoder": "courier-small"}
    return tmp_path / "pretrain"


def test_each_distinct_image_has_one_row_and_its_items_point_to_it(pretrain: Path, tmp_path: Path) -> None:
    out = tmp_path / "embed"
    facts = embed.build(pretrain=pretrain, images=images_artifact(tmp_path / "images", ITEMS), out=out).facts
    vectors = np.load(out / "vectors.npy")
    items = pq.read_table(out / "items.parquet")
    assert (vectors.dtype, vectors.shape) == (np.float32, (3, 256))
    assert items.schema.field("row").type == pa.int32()
    assert items.to_pydict() == {
        "item_id": ["a", "b", "d", "e"],
        "image_id": ["p0", "p1", "p0", "p2"],
        "row": [0, 1, 0, 2],
    }
    assert (facts["vectors"], facts["items"]) == (3, 4)
    assert facts["space_id"] == artifact.read(pretrain, kind="pretrain").facts["space_id"]


def test_a_row_is_what_the_encoder_makes_of_the_items_picture(pretrain: Path, tmp_path: Path) -> None:
    out = tmp_path / "embed"
    embed.build(pretrain=pretrain, images=images_artifact(tmp_path / "images", ITEMS), out=out)
    vectors, alone = np.load(out / "vectors.npy"), embed_images(load_encoder(pretrain), PIXELS)
    for row, image in enumerate(("p0", "p1", "p2")):
        np.testing.assert_allclose(vectors[row], alone[IDS.index(image)], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_catalogue_without_a_usable_image_is_refused(pretrain: Path, tmp_path: Path) -> None:
    items = ITEMS | {"status": ["broken"] * 5, "reason": ["truncated", *["not_an_image"] * 3, "empty"]}
    told = r"none of the 5 items in .* has a usable image \(3 not_an_image, 1 empty, 1 truncated\): see reports"
    with pytest.raises(CourierError, match=told):
        embed.build(pretrain=pretrain, images=images_artifact(tmp_path / "images", items), out=tmp_path / "embed")


def test_a_second_run_embeds_new_images_only_and_gives_what_a_first_would(pretrain: Path, tmp_path: Path) -> None:
    fewer = ITEMS | {"status": ["broken", "ok", "broken", "ok", "broken"]}
    folder = tmp_path / "embed"
    first = embed.build(pretrain=pretrain, images=images_artifact(tmp_path / "few", fewer), out=folder / "1").notes
    images = images_artifact(tmp_path / "images", ITEMS)
    second = embed.build(pretrain=pretrain, images=images, out=folder / "2").notes
    third = embed.build(pretrain=pretrain, images=images, out=folder / "3").notes
    assert [notes["embedded"] for notes in (first, second, third)] == [1, 2, 0]
    embed.build(pretrain=pretrain, images=images, out=tmp_path / "alone" / "1")
    whole, parts = (np.load(path / "vectors.npy") for path in (tmp_path / "alone" / "1", folder / "3"))
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert (np.load(folder / "2" / "vectors.npy") == parts).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 11), unique=True), max_size=5))
def test_a_vector_file_is_the_array_whose_rows_were_put(parts: list[list[int]]) -> None:
    expected = np.zeros((12, 3), np.float32)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "vectors.npy"
        with embed._vector_file(path, 12, 3) as vectors:
            for number, rows in enumerate(parts, start=1):
                part = number + np.arange(3 * len(rows), dtype=np.float32).reshape(len(rows), 3)
                vectors.put(np.array(rows, np.int64), part)
                expected[rows] = part
        found = np.load(path)
    np.testing.assert_array_equal(found, expected)
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)


def test_what_is_kept_is_read_a_part_at_a_time(pretrain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, folder = images_artifact(tmp_path / "images", ITEMS), tmp_path / "embed"
    embed.build(pretrain=pretrain, images=images, out=folder / "1")
    sizes, put = [], embed.VectorFile.put

    def note(self: embed.VectorFile, rows: np.ndarray, vectors: np.ndarray) -> None:
        sizes.append(len(rows))
        put(self, rows, vectors)

    monkeypatch.setattr(embed, "KEPT", 2)
    monkeypatch.setattr(embed.VectorFile, "put", note)
    embed.build(pretrain=pretrain, images=images, out=folder / "2")
    assert sizes == [2, 1]
    assert (folder / "1" / "vectors.npy").read_bytes() == (folder / "2" / "vectors.npy").read_bytes()


def test_vectors_of_another_space_are_not_kept(pretrain: Path, tmp_path: Path) -> None:
    images, folder = images_artifact(tmp_path / "images", ITEMS), tmp_path / "embed"
    embed.build(pretrain=pretrain, images=images, out=folder / "1")
    with artifact.write(tmp_path / "other", kind="pretrain", inputs={}, config=asdict(CONFIG)) as draft:
        mean = Preprocessing(size=SIZE, mean=100.0)
        draft.facts |= save_encoder(load_encoder(pretrain).module, draft.path, mean) | {"encoder": "courier-small"}
    made = embed.build(pretrain=tmp_path / "other", images=images, out=folder / "2")
    assert made.notes["embedded"] == 3
    assert made.facts["space_id"] != artifact.read(pretrain, kind="pretrain").facts["space_id"]


def test_a_part_at_a_time_every_image_comes_once(tmp_path: Path) -> None:
    images = images_artifact(tmp_path / "images", ITEMS)
    wanted = ["p3", "p0", "p2"]
    for batch in (1, 2, 5):
        parts = list(stream_images(images, wanted, batch))
        assert max(len(rows) for rows, _ in parts) <= batch
        found = {row: pixels[n] for rows, pixels in parts for n, row in enumerate(rows)}
        for row, image in enumerate(load_images(images, wanted)[1]):
            np.testing.assert_array_equal(found.pop(row), image)
        assert not found
    with pytest.raises(CourierError, match="holds no image p9"):
        list(stream_images(images, ["p0", "p9"], 2))


@pytest.mark.parametrize(
    ("backbone", "size", "trainable"), [("small", SIZE, "all"), ("lite0", 64, "head"), ("lite0", 64, "all")]
)
def test_the_exported_encoder_gives_the_vectors_of_torch(backbone: str, size: int, trainable: str) -> None:
    torch.manual_seed(1)
    config = CourierConfig(backbone=backbone, image_size=size, trainable=trainable)
    module = build_encoder(config)
    if config.backbone_weights == "imagenet" and backbone == "lite0":
        warm_start(module.backbone, "imagenet")
    loaded = LoadedEncoder(module.eval(), Preprocessing(size=size), "0" * 12, "courier")
    pixels = np.random.default_rng(2).integers(0, 256, (5, size, size, 3), np.uint8)
    exported = ExportedEncoder(loaded)
    for count in (5, 1):
        cosine = (exported.embed(pixels[:count]) * embed_images(loaded, pixels[:count])).sum(1)
        assert cosine.min() > 1 - 1e-6


def test_a_graph_that_gives_other_vectors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = LoadedEncoder(build_encoder(CONFIG).eval(), Preprocessing(size=SIZE), "0" * 12, "courier")
    monkeypatch.setattr(onnx_export, "embed_images", lambda encoder, images: -embed_images(encoder, images))
    with pytest.raises(onnx_export.NotTheSame, match=r"have a cosine of -1\.0"):
        ExportedEncoder(loaded)


def test_many_images_are_embedded_by_the_exported_encoder(
    pretrain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_artifact(tmp_path / "images", ITEMS)
    embed.build(pretrain=pretrain, images=images, out=tmp_path / "torch" / "1")
    monkeypatch.setattr(embed, "FEW", 2)
    embed.build(pretrain=pretrain, images=images, out=tmp_path / "onnx" / "1")
    by_torch, by_onnx = (np.load(tmp_path / road / "1" / "vectors.npy") for road in ("torch", "onnx"))
    assert (by_torch != by_onnx).any()  # another road
    np.testing.assert_allclose(by_onnx, by_torch, atol=1e-5)
