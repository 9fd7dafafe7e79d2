# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""Embeddings: 3 images of 3 sizes, levels of 5 and 2 channels; and a real backbone."""

import pytest
from helpers import REPOSITORY

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList

from detcurate.config.declaration import load_config
from detcurate.d2 import registration  # noqa: F401  registers the small backbone
from detcurate.d2.infer.cluster import pool_features
from detcurate.errors import ConfigError, PredictionError
from detcurate.predictions.shards import read_embeddings, write_embeddings

CONFIGS = REPOSITORY / "configs"
SIZES = ((32, 48), (16, 48), (20, 17))


def case(seed=0):
    """Features at strides 8 and 16 of a batch padded to 32x48, the padding full of large values."""
    generator = torch.Generator().manual_seed(seed)
    images = ImageList(torch.zeros(3, 3, 32, 48), list(SIZES))
    features = {
        "p3": torch.randn(3, 5, 4, 6, generator=generator),
        "p4": torch.randn(3, 2, 2, 3, generator=generator),
    }
    for maps, stride in zip(features.values(), (8, 16), strict=True):
        for one, (height, width) in zip(maps, SIZES, strict=True):
            one[:, -(-height // stride) :] = 999.0
            one[:, :, -(-width // stride) :] = 999.0
    return features, images


def test_pool_features_by_hand():
    features, images = case()
    p3, p4 = features["p3"], features["p4"]
    expected = [
        torch.cat((p3[0].mean((1, 2)), p4[0].mean((1, 2)))),
        torch.cat((p3[1, :, :2].mean((1, 2)), p4[1, :, :1].mean((1, 2)))),
        torch.cat((p3[2, :, :3, :3].mean((1, 2)), p4[2, :, :2, :2].mean((1, 2)))),
    ]
    found = pool_features(features, images)
    assert (found.dtype, found.shape) == (np.float16, (3, 7))
    np.testing.assert_allclose(found, torch.stack(expected).numpy(), atol=1e-3)
    np.testing.assert_array_equal(pool_features(features, images, level="p3"), found[:, :5])
    np.testing.assert_array_equal(pool_features(features, images, level="p4"), found[:, 5:])


def test_pool_features_normalized_rows_have_length_1():
    features, images = case(1)
    features["p3"][2] = features["p4"][2] = 0.0
    plain, found = (pool_features(features, images, normalize=one).astype(np.float64) for one in (False, True))
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found[:2], (plain / np.maximum(lengths, 1e-9))[:2], atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(found[:2], axis=1), 1, atol=2e-3)
    assert not found[2].any()


def test_pool_features_without_images_gives_no_rows():
    features = {name: maps[:0] for name, maps in case()[0].items()}
    found = pool_features(features, ImageList(torch.zeros(0, 3, 32, 48), []))
    assert (found.dtype, found.shape) == (np.float16, (0, 7))


@torch.inference_mode()
def test_pool_features_of_equal_images_are_equal():
    torch.manual_seed(0)
    model = build_model(load_config(CONFIGS / "Base-CPU-Tiny.yaml", [])).eval()
    pixels = torch.randint(0, 255, (2, 3, 64, 96), generator=torch.Generator().manual_seed(0)).float()
    images = model.preprocess_image([{"image": pixels[index]} for index in (0, 1, 0)])
    features = model.backbone(images.tensor)
    found = pool_features(features, images, normalize=True)
    assert found.shape == (3, 5 * 32)
    np.testing.assert_allclose(found[0], found[2], atol=1e-3)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_embeddings_survive_a_round_trip(tmp_path):
    found = pool_features(*case(2))
    write_embeddings(tmp_path / "x.parquet", np.array([9, 4, 30]), found)
    image_ids, embeddings = read_embeddings(tmp_path / "x.parquet")
    assert image_ids.tolist() == [9, 4, 30]
    np.testing.assert_array_equal(embeddings, found, strict=True)


def test_pool_features_names_unknown_level_and_overflow():
    features, images = case()
    with pytest.raises(ConfigError, match=r"level.*p3, p4.*got 'p9'"):
        pool_features(features, images, level="p9")
    features["p4"][1] = 1e6
    with pytest.raises(PredictionError, match=r"1 of 3 rows.*65504.*image 1 of the batch"):
        pool_features(features, images)
    assert np.isfinite(pool_features(features, images, normalize=True)).all()
    features["p4"][2, 0, 0, 0] = np.nan
    with pytest.raises(PredictionError, match=r"1 of 3 rows.*image 2 of the batch"):
        pool_features(features, images, normalize=True)
