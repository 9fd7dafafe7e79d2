# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""Dense disagreement: 5 members, 2 images, 3 classes, levels of 12, 6 and 2 anchors; and real RetinaNets and FCOS."""

import math

import pytest
from helpers import REPOSITORY

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import numpy as np
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

from detcurate.config.declaration import load_config
from detcurate.d2 import registration  # noqa: F401  registers the small backbone
from detcurate.d2.infer.dense import DenseAccumulator, anchors_inside, dense_outputs, require_dense
from detcurate.errors import ConfigError, EnsembleError, PredictionError
from detcurate.score.disagreement import binary_entropy

CONFIGS = REPOSITORY / "configs"
N, C, LEVELS = 2, 3, (12, 6, 2)


def member_logits(seed, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, anchors, C, generator=generator) * spread for anchors in LEVELS]


def member_centerness(seed):
    generator = torch.Generator().manual_seed(seed + 1000)
    return [torch.randn(N, anchors, 1, generator=generator) * 2 for anchors in LEVELS]


def accumulated(members, centerness=None):
    accumulator = DenseAccumulator(num_members=len(members))
    for number, logits in enumerate(members):
        accumulator.update(logits, None if centerness is None else centerness[number])
    return accumulator.result()


def stacked(probs):
    """Mean and mutual information of (E, ...) probabilities, all held at once, in float64."""
    mean = probs.mean(axis=0)
    return mean, binary_entropy(mean) - binary_entropy(probs).mean(axis=0)


def assert_maps(maps, probs_per_level):
    assert len(maps.mean_probs) == len(maps.mutual_information) == len(probs_per_level)
    for mean, information, probs in zip(maps.mean_probs, maps.mutual_information, probs_per_level, strict=True):
        expected_mean, expected = stacked(probs)
        assert mean.dtype == information.dtype == torch.float32
        np.testing.assert_allclose(mean.numpy(), expected_mean, atol=1e-6)
        np.testing.assert_allclose(information.numpy(), expected, atol=2e-6)


# Arithmetic


def test_mutual_information_of_two_members_by_hand():
    """Of 4 members one says 0.8 and three say 0: the mean is 0.2, over 4 and not over 1."""
    logits = [[torch.tensor([[[math.log(4.0)]]])], *[[torch.tensor([[[-200.0]]])]] * 3]
    maps = accumulated(logits)
    assert maps.mean_probs[0].item() == pytest.approx(0.2)
    h = {p: -p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.2, 0.8)}
    assert maps.mutual_information[0].item() == pytest.approx(h[0.2] - h[0.8] / 4, rel=1e-5)
    assert maps.image_scores().tolist() == pytest.approx([h[0.2] - h[0.8] / 4], rel=1e-5)


def test_image_scores_by_hand():
    maps = accumulated([member_logits(0), member_logits(1)])
    every = torch.cat([level.reshape(N, -1) for level in maps.mutual_information], dim=1).double().numpy()
    ranked = -np.sort(-every, axis=1)
    np.testing.assert_allclose(maps.image_scores(), every.max(axis=1))
    for k in (1, 4, 7, 60, 1000):
        np.testing.assert_allclose(maps.image_scores(top_k=k), ranked[:, :k].sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(maps.image_sums(), every.sum(axis=1), rtol=1e-12)
    assert maps.image_scores().dtype == np.float64
    inside = [torch.zeros(N, anchors, dtype=torch.bool) for anchors in LEVELS]
    assert maps.image_scores(inside=inside).tolist() == maps.image_sums(inside=inside).tolist() == [0.0, 0.0]
    inside[1][0, 4] = True
    expected = [maps.mutual_information[1][0, 4].max().item(), 0.0]
    np.testing.assert_allclose(maps.image_scores(inside=inside), expected)
    expected = [maps.mutual_information[1][0, 4].double().sum().item(), 0.0]
    np.testing.assert_allclose(maps.image_sums(inside=inside), expected)


# Oracle: all members at once


@pytest.mark.parametrize("seed", range(3))
def test_running_sums_equal_stacked_members(seed):
    members = [member_logits(10 * seed + number) for number in range(5)]
    probs = [torch.stack([one[level].double().sigmoid() for one in members]).numpy() for level in range(3)]
    assert_maps(accumulated(members), probs)


def test_centerness_scales_the_probability():
    members, centerness = [member_logits(e) for e in range(5)], [member_centerness(e) for e in range(5)]
    probs = [
        torch.stack(
            [
                (one[level].double().sigmoid() * other[level].double().sigmoid()).sqrt()
                for one, other in zip(members, centerness, strict=True)
            ]
        ).numpy()
        for level in range(3)
    ]
    assert_maps(accumulated(members, centerness), probs)


# Properties


def test_identical_members_have_no_mutual_information():
    maps = accumulated([member_logits(3)] * 5)
    for mean, information, logits in zip(maps.mean_probs, maps.mutual_information, member_logits(3), strict=True):
        torch.testing.assert_close(mean, logits.sigmoid())
        assert information.max() < 1e-6
    assert maps.image_scores().max() < 1e-6


def test_mutual_information_does_not_depend_on_member_order():
    members = [member_logits(e) for e in range(5)]
    first, second = accumulated(members), accumulated([members[e] for e in (3, 1, 4, 0, 2)])
    for one, other in zip(first.mutual_information, second.mutual_information, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_mutual_information_is_within_0_and_ln_2():
    maps = accumulated([member_logits(e, spread=40.0) for e in range(6)])
    for information in maps.mutual_information:
        assert (information >= 0).all() and (information <= math.log(2) + 1e-6).all()
    ends = [[torch.full((N, 4, C), value)] for value in (-math.inf, math.inf)]
    assert accumulated(ends).image_scores() == pytest.approx(np.full(N, math.log(2)))


def test_update_does_not_change_its_input():
    logits = member_logits(0)
    copies = [level.clone() for level in logits]
    accumulated([logits, member_logits(1)])
    assert all(torch.equal(one, other) for one, other in zip(logits, copies, strict=True))


def test_memory_does_not_grow_with_the_members():
    def kept(accumulator):
        return sum(tensor.numel() for tensor in (*accumulator._probs, *accumulator._entropies))

    accumulator = DenseAccumulator(num_members=40)
    accumulator.update(member_logits(0))
    one = kept(accumulator)
    for e in range(1, 40):
        accumulator.update(member_logits(e))
    assert kept(accumulator) == one == 2 * N * sum(LEVELS) * C


# Real heads


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"image": torch.randint(0, 255, (3, h, w), generator=generator).float(), "image_id": 70 + number}
        for number, (h, w) in enumerate(((64, 96), (48, 80)))
    ]


def retinanet(seed):
    torch.manual_seed(seed)
    overrides = [
        "MODEL.RETINANET.NUM_CLASSES", str(C), "MODEL.WEIGHTS", "", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.FPN.OUT_CHANNELS", "16",
        "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.DEVICE", "cpu",
    ]  # fmt: skip
    return build_model(load_config(CONFIGS / "Base-retinanet_R_50_FPN.yaml", overrides)).eval()


def fcos(seed):
    torch.manual_seed(seed)
    backbone = build_backbone(load_config(CONFIGS / "Base-CPU-Tiny.yaml", []))
    levels = ("p3", "p4", "p5")
    head = FCOSHead(input_shape=[backbone.output_shape()[name] for name in levels], num_classes=C, conv_dims=[32])
    pixels = {"pixel_mean": [103.5, 116.3, 123.7], "pixel_std": [58.0, 58.0, 58.0]}
    return FCOS(backbone=backbone, head=head, head_in_features=levels, num_classes=C, **pixels).eval()


@pytest.mark.parametrize("build", [retinanet, fcos])
@torch.inference_mode()
def test_real_members_equal_their_stacked_scores(build):
    models, batch = [build(seed) for seed in range(4)], inputs()
    accumulator, scores = DenseAccumulator(num_members=4), []
    for model in models:
        features = model.backbone(model.preprocess_image(batch).tensor)
        outputs = dense_outputs(model, features, batch)
        accumulator.update(outputs.logits, outputs.centerness)
        scores.append([torch.stack([outputs.scores(index)[level] for index in range(2)])
                       for level in range(len(outputs.logits))])  # fmt: skip
    maps = accumulator.result()
    probs = [torch.stack([one[level] for one in scores]).double().numpy() for level in range(len(scores[0]))]
    assert_maps(maps, probs)
    assert (maps.image_scores() > 1e-5).all()


@pytest.mark.parametrize("build", [retinanet, fcos])
@torch.inference_mode()
def test_anchors_inside_excludes_the_padding(build):
    model, batch = build(0), inputs()
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    inside = anchors_inside(model, images, features)
    outputs = dense_outputs(model, features, batch)
    anchors = model.anchor_generator([features[name] for name in model.head_in_features])
    for mask, logits, level in zip(inside, outputs.logits, anchors, strict=True):
        assert mask.shape == logits.shape[:2]
        centres = ((level.tensor[:, :2] + level.tensor[:, 2:]) / 2).numpy()
        for index, (height, width) in enumerate(((64, 96), (48, 80))):
            expected = [x < width and y < height for x, y in centres]
            assert mask[index].tolist() == expected
    assert not inside[0][1].all() and inside[0][1].any()


# Messages


def test_accumulator_names_wrong_counts_and_shapes():
    with pytest.raises(ConfigError, match=r"dense.*at least 2.*got 1"):
        DenseAccumulator(num_members=1)
    accumulator = DenseAccumulator(num_members=2)
    accumulator.update(member_logits(0))
    with pytest.raises(PredictionError, match=r"num_members.*2 members.*got 1"):
        accumulator.result()
    with pytest.raises(PredictionError, match=r"logits.*\[\(2, 12, 3\), .* \(got \[\(2, 12, 3\)"):
        accumulator.update(member_logits(1)[:2])
    accumulator.update(member_logits(1))
    with pytest.raises(PredictionError, match=r"num_members.*2 members.*one more"):
        accumulator.update(member_logits(2))
    with pytest.raises(ConfigError, match=r"top_k.*at least 1.*got 0"):
        accumulator.result().image_scores(top_k=0)


def test_require_dense_rejects_a_two_stage_detector():
    model = build_model(load_config(CONFIGS / "Base-CPU-Tiny.yaml", []))
    with pytest.raises(EnsembleError, match=r"CURATE.PREDICT.MODE.*dense.*got GeneralizedRCNN"):
        require_dense(model)
    require_dense(fcos(0))


def test_nan_of_a_member_names_the_image():
    model, batch = retinanet(0), inputs()
    batch[1]["image"][:] = math.nan
    with torch.inference_mode(), pytest.raises(PredictionError, match=r"not finite.*image_id 71"):
        dense_outputs(model, model.backbone(model.preprocess_image(batch).tensor), batch)
