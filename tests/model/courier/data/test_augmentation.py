"""Augmented crops of an image: what is drawn stays in its ranges, and each change is the one it is called."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.courier.data import augmentation
from model.courier.data.augmentation import augment, blur, crop, draw_boxes, draw_crops, recolour

untimed = settings(deadline=None, max_examples=25)  # a busy machine is no failure


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 6, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=seeded(1))


def ones(images: Tensor) -> Tensor:
    return torch.ones(len(images))


def test_a_crop_keeps_shape_and_range_and_the_seed_decides_it() -> None:
    images = noise()
    before = torch.random.get_rng_state()
    augmented = augment(images, seeded())
    assert augmented.shape == images.shape
    assert augmented.dtype == images.dtype
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    torch.testing.assert_close(augmented, augment(images, seeded()), atol=0, rtol=0)
    assert (augmented != augment(images, seeded(2))).any()
    assert (torch.random.get_rng_state() == before).all()  # the training's own draws are left alone
    assert torch.equal(images, noise())


def test_crops_of_pixels_come_crop_by_crop_each_drawn_anew() -> None:
    pixels = (noise(3) * 255).permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()
    drawn, generator = draw_crops(pixels, 2, seeded()), seeded()
    assert (drawn.shape, drawn.dtype) == ((6, 16, 16, 3), pixels.dtype)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    for augmented in (drawn[:3], drawn[3:]):
        expected = augment(images, generator).permute(0, 2, 3, 1) * 255
        assert (torch.from_numpy(augmented) - expected).abs().max() <= 0.5 + 1e-4
    assert (drawn[:3] != drawn[3:]).any()


def test_each_image_is_drawn_by_itself() -> None:
    one = noise(1)
    many = augment(one.expand(20, -1, -1, -1), seeded())
    assert len({tuple(augmented.flatten().tolist()) for augmented in many}) == 20


@untimed
@given(st.integers(0, 10_000))
def test_a_crop_stays_in_the_image_and_its_area_and_ratio_in_their_ranges(seed: int) -> None:
    centre, half = draw_boxes(50, seeded(seed))
    assert (centre.abs() + half <= 1 + 1e-6).all()
    area, ratio = half.prod(1), half[:, 0] / half[:, 1]
    whole = (half < 1).all(1)  # a side cut off at the image's edge changes both
    assert (area[whole] >= augmentation.AREA[0] - 1e-6).all()
    assert (area <= augmentation.AREA[1] + 1e-6).all()
    assert (ratio >= augmentation.RATIO[0] - 1e-6).all()
    assert (ratio <= augmentation.RATIO[1] + 1e-6).all()


def test_the_whole_image_is_itself_and_mirrored_its_mirror_image() -> None:
    images = noise(2)
    whole = torch.zeros(2, 2), torch.ones(2, 2)
    augmented = crop(images, *whole, mirrored=torch.tensor([False, True]))
    torch.testing.assert_close(augmented[0], images[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(augmented[1], images[1].flip(2), atol=1e-5, rtol=0)


def test_a_crop_shows_its_part_alone() -> None:
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 1.0  # the right half is white
    half = torch.tensor([[0.4, 0.4]])
    straight = torch.tensor([False])
    assert crop(images, torch.tensor([[-0.6, 0.0]]), half, mirrored=straight).max() == 0
    assert crop(images, torch.tensor([[0.6, 0.0]]), half, mirrored=straight).min() == pytest.approx(1)
    lower = images.transpose(2, 3)
    assert crop(lower, torch.tensor([[0.0, -0.6]]), half, mirrored=straight).max() == 0


def test_colours_change_as_they_are_called() -> None:
    images = noise() * 0.5 + 0.2
    same, none = ones(images), torch.zeros(len(images))
    torch.testing.assert_close(recolour(images, same, same, same, none), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(recolour(images, same * 0.5, same, same, none), images * 0.5, atol=1e-5, rtol=0)
    flat = recolour(images, same, none, same, none)  # no contrast: the mean grey everywhere
    assert flat.flatten(1).std(1).max() < 1e-5
    grey = recolour(images, same, same, none, none)
    torch.testing.assert_close(grey[:, :1].expand_as(grey), grey, atol=1e-5, rtol=0)


def test_a_third_of_a_turn_of_the_hue_makes_red_green() -> None:
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 4, 4)
    one = torch.ones(1)
    turned = recolour(red, one, one, one, one * 2 * torch.pi / 3)
    torch.testing.assert_close(turned[0, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-4, rtol=0)


def test_a_wider_blur_is_smoother_and_keeps_the_brightness() -> None:
    images = noise(2, 64)
    sharp, soft = blur(images, torch.tensor([0.1, 0.1])), blur(images, torch.tensor([8.0, 8.0]))
    torch.testing.assert_close(sharp, images, atol=1e-4, rtol=0)
    assert soft.std() < 0.5 * images.std()
    assert soft.mean().item() == pytest.approx(images.mean().item(), abs=0.01)


@pytest.mark.parametrize("name", ["MIRRORED", "RECOLOURED", "GREY", "BLURRED"])
def test_no_image_is_changed_where_the_share_is_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(20, 64)
    for share in ("MIRRORED", "RECOLOURED", "GREY", "BLURRED"):
        monkeypatch.setattr(augmentation, share, 0.0)
    monkeypatch.setattr(augmentation, "AREA", (1.0, 1.0))
    monkeypatch.setattr(augmentation, "RATIO", (1.0, 1.0))
    torch.testing.assert_close(augment(images, seeded()), images, atol=1e-5, rtol=0)
    monkeypatch.setattr(augmentation, name, 1.0)
    monkeypatch.setattr(augmentation, "SIGMA", (1.0, 2.0))
    assert ((augment(images, seeded()) - images).abs().flatten(1).amax(1) > 1e-3).all()
