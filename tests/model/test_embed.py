"""Embedding a catalogue: each distinct image once, rows that items find again."""

from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from model import artifact
from model.courier import embed
from model.courier.config import CourierConfig
from model.courier.encoder import build_encoder, embed_images, load_encoder, save_encoder
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
    items = ITEMS | {"status": ["broken"] * 5}
    with pytest.raises(ValueError, match="lists no usable image"):
        embed.build(pretrain=pretrain, images=images_artifact(tmp_path / "images", items), out=tmp_path / "embed")
