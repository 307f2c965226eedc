"""Where crops come from: seed, rank and step decide them, and features computed once are those of such crops."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from model.courier.config import CourierConfig
from model.courier.data import crops
from model.courier.data.augmentation import draw_crops
from model.courier.data.crops import FeatureCrops, PixelCrops, generator, version_batches
from model.courier.data.normalise import normalise
from model.courier.network.encoder import Encoder, build_encoder, feature_batches
from model.space import Preprocessing

SIZE, IMAGES = 16, 9
PLAIN = Preprocessing(size=SIZE)
PIXELS = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3)).astype(np.uint8)
SOME = np.array([1, 4, 7])


def encoder(trainable: str = "all") -> Encoder:
    torch.manual_seed(0)
    config = CourierConfig(
        backbone="small", backbone_weights="random", trainable=trainable, frozen_parts=2, image_size=SIZE, width=8
    )
    return build_encoder(config).eval()


def pixel_crops(*, seed: int = 0, rank: int = 0, trainable: str = "all") -> PixelCrops:
    return PixelCrops(PIXELS, PLAIN, encoder(trainable).below, crops=2, seed=seed, rank=rank)


def test_a_step_draws_its_own_crops_and_the_same_when_it_is_made_again() -> None:
    source = pixel_crops()
    again = source.fetch(SOME, 5)
    assert torch.equal(again, source.fetch(SOME, 5))
    assert (again.numpy() == draw_crops(PIXELS[SOME], 2, generator(0, 0, 5))).all()
    for other in (source.fetch(SOME, 6), pixel_crops(seed=1).fetch(SOME, 5), pixel_crops(rank=1).fetch(SOME, 5)):
        assert not torch.equal(again, other)


@pytest.mark.parametrize("trainable", ["all", "upper"])
def test_what_is_drawn_passes_the_frozen_parts_and_then_is_encoded(trainable: str) -> None:
    source, whole = pixel_crops(trainable=trainable), encoder(trainable)
    raw = source.fetch(SOME, 0)
    torch.testing.assert_close(whole.above(source.prepare(raw)), whole(normalise(raw.numpy(), PLAIN)))


def test_of_the_versions_of_an_image_a_step_takes_different_ones() -> None:
    standard = torch.arange(4 * IMAGES).reshape(4, IMAGES, 1)  # version times 9 plus image
    source = FeatureCrops(standard, crops=2, seed=0, rank=0)
    taken = set()
    for step in range(50):
        first, second = source.prepare(source.fetch(SOME, step))[:, 0].chunk(2)
        assert (first % IMAGES).tolist() == (second % IMAGES).tolist() == SOME.tolist()
        assert (first != second).all()
        taken |= {int(one) // IMAGES for one in first}
    assert taken == {0, 1, 2, 3}
    assert torch.equal(source.fetch(SOME, 3), source.fetch(SOME, 3))


def test_features_computed_once_are_those_of_drawn_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "DRAWN", 4)  # the last part is shorter
    plain = encoder("head")
    plain.standardise_by(torch.cat(list(feature_batches(plain, PIXELS, PLAIN))))

    def features(some: np.ndarray) -> Iterator[torch.Tensor]:
        return map(plain.standard, feature_batches(plain, some, PLAIN))

    found = torch.cat(list(version_batches(features, PIXELS, 3))).reshape(crops.VERSIONS, IMAGES, -1)
    assert found.shape == (crops.VERSIONS, IMAGES, plain.components)
    drawn = generator(3)
    first = np.concatenate([draw_crops(PIXELS[start : start + 4], 1, drawn) for start in (0, 4, 8)])
    expected = plain.standard(torch.cat(list(feature_batches(plain, first, PLAIN))))
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3
