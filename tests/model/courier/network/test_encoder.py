"""The encoder: its backbones, its features, and what saving and loading keep and refuse."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import artifact
from model.courier.config import CourierConfig
from model.courier.data.normalise import normalise
from model.courier.network.backbones import build_backbone, warm_start
from model.courier.network.encoder import (
    Encoder,
    LoadedEncoder,
    build_encoder,
    embed_images,
    load_encoder,
    save_encoder,
)
from model.errors import CourierError
from model.space import Preprocessing, space_id

SIZE = 32
SMALL = CourierConfig(backbone="small", backbone_weights="random", image_size=SIZE)
PREPROCESSING = Preprocessing(size=SIZE)


def pictures(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def seeded(config: CourierConfig = SMALL) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(config).eval()


def written(out: Path, encoder: Encoder, config: CourierConfig = SMALL) -> Path:
    with artifact.write(out, kind="pretrain", inputs={}, config=asdict(config)) as draft:
        draft.facts |= save_encoder(encoder, draft.path, PREPROCESSING) | {"encoder": "courier-small"}
    return out


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        ("lite0", 48, (32, 16, 24, 40, 80, 112, 192, 320, 1280)),
        ("small", 32, (32, 64, 128, 256)),
        ("swin_t", 224, (96, 192, 384, 768, 768)),
    ],
)
def test_every_backbone_gives_the_maps_it_promises(name: str, size: int, channels: tuple[int, ...]) -> None:
    backbone = build_backbone(name, size).eval()
    with torch.inference_mode():
        maps = backbone.stages(torch.zeros(2, 3, size, size))
    assert backbone.channels == channels
    assert tuple(one.shape[:2] for one in maps) == tuple((2, c) for c in channels)


@pytest.mark.parametrize("trainable", ["head", "all"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_vectors_have_unit_length_and_do_not_depend_on_the_rest_of_the_batch(trainable: str, head: str) -> None:
    encoder = seeded(replace(SMALL, trainable=trainable, head=head)).train()
    encoder.dropout.eval()
    images = normalise(pictures(4), PREPROCESSING)
    vectors = encoder(images)
    assert vectors.shape == (4, 256)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(encoder(images[2:3]), vectors[2:3], atol=1e-5, rtol=1e-4)


def test_lite0s_imagenet_weights_fit_and_its_vectors_ignore_the_batch_while_training() -> None:
    backbone = build_backbone("lite0", 48)
    warm_start(backbone, "imagenet")
    backbone.train()
    images = normalise(pictures(3, 48), Preprocessing(size=48))
    with torch.no_grad():
        together, alone = backbone.stages(images)[-1], backbone.stages(images[:1])[-1]
    assert float(together.mean()) > 0.05  # random weights give next to nothing here
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-3)


def test_statistics_are_mean_and_deviation_of_every_map_and_the_products_of_narrow_ones() -> None:
    encoder = seeded()
    images = normalise(pictures(2), PREPROCESSING)
    expected = []
    for one in encoder.backbone.stages(images):
        expected += [one.mean((2, 3)), one.var((2, 3), correction=0).sqrt()]
        if one.shape[1] <= 80:
            pairs = [(i, j) for i in range(one.shape[1]) for j in range(i, one.shape[1])]
            expected.append(torch.stack([(one[:, i] * one[:, j]).mean((1, 2)) for i, j in pairs], dim=1))
    torch.testing.assert_close(encoder.features(images), torch.cat(expected, dim=1), atol=1e-5, rtol=1e-4)


def test_the_whole_is_project_after_features() -> None:
    encoder, images = seeded(), normalise(pictures(2), PREPROCESSING)
    torch.testing.assert_close(encoder(images), encoder.project(encoder.features(images)))


def test_a_feature_that_varies_by_rounding_alone_is_not_blown_up() -> None:
    encoder = seeded()
    features = torch.randn(50, encoder.feature_width)
    features[:, 0] = torch.nextafter(torch.full((50,), 1000.0), torch.linspace(0, 2000, 50))  # an ulp up or down
    assert 0 < float(features[:, 0].std()) < 1e-4
    encoder.standardise_by(features)
    assert float(encoder.feature_scale[0]) == 1


def test_standardised_features_have_mean_zero_and_deviation_one_and_a_constant_one_stays_finite() -> None:
    encoder = seeded()
    features = torch.randn(50, encoder.feature_width) * 3 + 2
    features[:, 0] = 7.0
    encoder.standardise_by(features)
    encoder.components = 0
    standard = encoder.standard(features)
    torch.testing.assert_close(standard.mean(0), torch.zeros(encoder.feature_width), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard[:, 1:].std(0, correction=0), torch.ones(encoder.feature_width - 1))
    assert (standard[:, 0] == 0).all()


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_the_components_are_uncorrelated_and_their_spread_is_the_principal_ones_to_the_power_left(
    whitening: float,
) -> None:
    encoder = seeded(replace(SMALL, feature_components=6))
    mixed = torch.randn(200, 6) @ torch.randn(6, encoder.feature_width) + 1e-3 * torch.randn(200, encoder.feature_width)
    encoder.standardise_by(mixed, whitening)
    plain = (mixed - encoder.feature_mean) / encoder.feature_scale
    principal = torch.linalg.svdvals(plain)[:6] ** (1 - whitening)
    found = encoder.standard(mixed)
    spread = found.square().mean(0).sqrt()
    torch.testing.assert_close(spread / spread[0], principal / principal[0], atol=1e-3, rtol=1e-3)
    assert float(found.square().mean()) == pytest.approx(1, abs=1e-3)
    off = found.T @ found / len(found) - torch.diag(spread**2)
    torch.testing.assert_close(off, torch.zeros(6, 6), atol=1e-3, rtol=0)


def test_fewer_images_than_components_leave_the_rest_at_zero() -> None:
    encoder = seeded()
    encoder.standardise_by(torch.randn(10, encoder.feature_width), 0.5)
    found = encoder.standard(torch.randn(3, encoder.feature_width))
    assert torch.isfinite(found).all()
    assert (found[:, 9:] == 0).all()


@pytest.mark.parametrize(("images", "rank"), [(10, 9), (40, 5), (40, 30), (300, 12)])
@pytest.mark.parametrize("loud", [1.0, 1e-2])
def test_as_many_components_as_the_features_rank_differ_from_zero(images: int, rank: int, loud: float) -> None:
    encoder = seeded()
    spread = torch.linspace(1.0, loud, rank)
    features = (torch.randn(images, rank) * spread) @ torch.randn(rank, encoder.feature_width) + 3.0
    encoder.standardise_by(features, 0.5)
    plain = ((features - encoder.feature_mean) / encoder.feature_scale).numpy()
    assert np.linalg.matrix_rank(plain) == rank
    assert int((encoder.feature_basis != 0).any(0).sum()) == rank


def test_a_saved_encoder_loads_into_the_same_vectors_and_space(tmp_path: Path) -> None:
    encoder = seeded()
    encoder.standardise_by(torch.randn(20, encoder.feature_width))
    loaded = load_encoder(written(tmp_path / "pretrain", encoder))
    weights = artifact.sha256_file(tmp_path / "pretrain" / "weights.safetensors")
    assert (loaded.space_id, loaded.name) == (space_id(weights, PREPROCESSING), "courier-small")
    before = LoadedEncoder(encoder, PREPROCESSING, "", "")
    np.testing.assert_array_equal(embed_images(loaded, pictures(5)), embed_images(before, pictures(5)))


def test_weights_that_are_not_the_manifests_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "pretrain", seeded()) / "weights.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    with pytest.raises(artifact.ArtifactMismatch, match="rebuild the pretrain artifact"):
        load_encoder(tmp_path / "pretrain")


def test_embedding_does_not_depend_on_the_size_of_its_batches() -> None:
    loaded = LoadedEncoder(seeded(), PREPROCESSING, "", "")
    whole, parts = embed_images(loaded, pictures(7), batch=7), embed_images(loaded, pictures(7), batch=3)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    assert embed_images(loaded, pictures(0)).shape == (0, 256)


def test_pixels_are_shifted_and_scaled_as_the_preprocessing_says() -> None:
    picture = np.full((1, SIZE, SIZE, 3), 255, np.uint8)
    assert normalise(picture, PREPROCESSING).unique().tolist() == [1.0]
    assert normalise(picture, PREPROCESSING).shape == (1, 3, SIZE, SIZE)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the encoder takes \(32, 32, 3\) uint8"):
        normalise(pictures(1, 48), PREPROCESSING)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"backbone": "vgg"}, "unknown backbone 'vgg'"),
        ({"trainable": "some"}, "unknown trainable part 'some'"),
        ({"head": "deep"}, "unknown head 'deep'"),
    ],
)
def test_an_unknown_choice_is_refused(wrong: dict[str, str], says: str) -> None:
    with pytest.raises(CourierError, match=says):
        build_encoder(replace(SMALL, **wrong))


def test_an_encoder_whose_config_is_of_another_version_is_refused_with_the_cure(tmp_path: Path) -> None:
    out = written(tmp_path / "out", seeded())
    manifest = json.loads((out / artifact.MANIFEST).read_text("utf-8"))
    manifest["config"] |= {"heads": 4}  # where it once stood
    (out / artifact.MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(artifact.ArtifactMismatch, match=r"did you mean courier.heads.*: rebuild the pretrain artifact"):
        load_encoder(out)


def test_swin_refuses_images_smaller_than_its_last_window() -> None:
    with pytest.raises(CourierError, match="at least 224 pixels"):
        build_backbone("swin_t", 96)


def test_weights_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CourierError, match="small takes random"):
        warm_start(build_backbone("small", SIZE), "imagenet")
    with pytest.raises(CourierError, match="no Swin-T weights"):
        warm_start(build_backbone("swin_t", 224), str(tmp_path / "nowhere"))


def test_loading_an_encoder_imports_no_training_code() -> None:
    forbidden = ("model.courier.training", "model.courier.losses")
    code = f"import sys, model.courier.network.encoder; print([m for m in sys.modules if m.startswith({forbidden})])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [name for name in eval(found) if name.startswith("model.")] == []
