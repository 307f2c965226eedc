"""What is read back from an images artifact's shards is what was stored, in the order asked for."""

from dataclasses import asdict
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from jobs.config import ImagesConfig
from model import artifact
from model.courier.data.images import to_png
from model.courier.data.stored_images import from_png, load_images
from model.errors import CourierError


@given(st.integers(1, 24).flatmap(lambda side: hnp.arrays(np.uint8, (side, side, 3))))
def test_a_png_gives_back_every_pixel_and_is_one_to_pillow_too(pixels):
    png = to_png(Image.fromarray(pixels))
    assert (from_png(png, len(pixels)) == pixels).all()
    assert (np.asarray(Image.open(BytesIO(png))) == pixels).all()


def test_a_png_that_is_damaged_or_of_another_size_is_refused():
    png = to_png(Image.effect_noise((16, 16), 90).convert("RGB"))
    flipped = png[:200] + bytes([png[200] ^ 1]) + png[201:]
    for data in (png[:-40], flipped, b"", b"no picture", to_png(Image.new("RGB", (16, 15)))):
        with pytest.raises(ValueError, match=r"decode|Resolution"):
            from_png(data, 16)


def keep(out, pngs):
    """An images artifact of 8-pixel squares in 2 shards, image n in shard n % 2, its id is `n`."""
    with artifact.write(out, kind="images", inputs={}, config=asdict(ImagesConfig(size=8))) as draft:
        (draft.path / "shards").mkdir()
        for shard in range(2):
            ids = [str(n) for n in range(shard, len(pngs), 2)]
            table = pa.table({"image_id": ids, "image": pa.array(pngs[shard::2], pa.binary())})
            pq.write_table(table, draft.path / "shards" / f"images-{shard:05d}-of-00002.parquet")
    return out


def squares():
    """Six PNGs; number n is filled with n."""
    return [to_png(Image.new("RGB", (8, 8), (n, n, n))) for n in range(6)]


@pytest.fixture
def shards(tmp_path):
    return keep(tmp_path / "images", squares())


def test_without_ids_every_image_comes_sorted_by_id(shards):
    ids, pixels = load_images(shards)
    assert ids == list("012345")
    assert pixels.shape == (6, 8, 8, 3)
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_images_come_in_the_order_asked_for_repeats_included(shards):
    ids, pixels = load_images(shards, ["4", "1", "4"])
    assert ids == ["4", "1", "4"]
    assert pixels[:, 7, 7, 2].tolist() == [4, 1, 4]


def test_asking_for_none_gives_none(shards):
    assert load_images(shards, [])[1].shape == (0, 8, 8, 3)


def test_an_image_that_is_not_held_is_named(shards):
    with pytest.raises(CourierError, match="holds no image 9"):
        load_images(shards, ["4", "9"])


def test_a_damaged_image_is_named_with_its_shard_and_the_cure(tmp_path):
    pngs = squares()
    pngs[3] = pngs[3][:-30]
    out = keep(tmp_path / "images", pngs)
    with pytest.raises(CourierError, match=r"images-00001-of-00002.parquet: image 3: .+; build the stage images again"):
        load_images(out)
