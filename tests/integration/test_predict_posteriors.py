# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""Inference that keeps the posterior gives exactly Detectron2's own boxes, scores and classes, and a row to each.

Real models with random weights, 4 classes, batches of 3 images of 3 sizes.
"""

import logging
import math

import pytest
from helpers import REPOSITORY

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from detcurate.config.declaration import load_config
from detcurate.d2 import registration  # noqa: F401  registers the small backbone
from detcurate.d2.infer import posteriors as posterior
from detcurate.d2.infer.posteriors import posterior_form, predict_posteriors, require_finite
from detcurate.errors import PredictionError

CONFIGS = REPOSITORY / "configs"
C = 4
FASTER_RCNN = ["MODEL.ROI_HEADS.NUM_CLASSES", str(C), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05"]
CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
RETINANET = [
    "MODEL.RETINANET.NUM_CLASSES", str(C), "MODEL.RETINANET.SCORE_THRESH_TEST", "0.005", "MODEL.WEIGHTS", "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "4",
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.DEVICE", "cpu",
]  # fmt: skip


def build(name, seed, overrides):
    torch.manual_seed(seed)
    model = build_model(load_config(CONFIGS / name, overrides)).eval()
    with torch.no_grad():  # an untrained head is near uniform: spread its outputs
        predictor = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
        if predictor is None and hasattr(model, "head"):
            spread_dense(model)
        for stage in [predictor] if isinstance(predictor, FastRCNNOutputLayers) else predictor or ():
            stage.cls_score.weight.mul_(60)
            stage.bbox_pred.weight.mul_(300)
    return model


@torch.no_grad()
def spread_dense(model):
    """Give an untrained dense head logits that spread around -1, and boxes that are moved, whatever its features."""
    model.eval()
    features = model.backbone(model.preprocess_image(inputs(99)).tensor)
    outputs = model.head([features[name] for name in model.head_in_features])
    layers = (model.head.cls_score, model.head.bbox_pred, getattr(model.head, "ctrness", None))
    for layer, levels, mean, std in zip(layers, outputs, (-1.0, 0.0, 1.0), (1.5, 0.5, 2.0), strict=False):
        values = torch.cat([level.flatten() for level in levels])
        scale = std / values.std()
        layer.weight.mul_(scale)
        layer.bias.copy_((layer.bias - values.mean()) * scale + mean)


def faster_rcnn(seed=0, *overrides: str):
    return build("Base-CPU-Tiny.yaml", seed, [*FASTER_RCNN, *overrides])


def cascade_rcnn(seed=0, *overrides: str):
    return faster_rcnn(seed, *CASCADE, *overrides)


def retinanet(seed=0, *overrides: str):
    return build("Base-retinanet_R_50_FPN.yaml", seed, [*RETINANET, *overrides])


def fcos(seed=0, **settings: float):
    """An FCOS, which Detectron2 builds from code and not from a config."""
    torch.manual_seed(seed)
    backbone = build_backbone(load_config(CONFIGS / "Base-CPU-Tiny.yaml", []))
    levels = ("p3", "p4", "p5")
    shapes = backbone.output_shape()
    head = FCOSHead(input_shape=[shapes[name] for name in levels], num_classes=C, conv_dims=[32, 32])
    model = FCOS(
        backbone=backbone, head=head, head_in_features=levels, num_classes=C,
        pixel_mean=[103.5, 116.3, 123.7], pixel_std=[58.0, 58.0, 58.0], **{"test_score_thresh": 0.1, **settings},
    )  # fmt: skip
    spread_dense(model)
    return model.eval()


class OtherRetinaNet(RetinaNet):
    """A RetinaNet with an inference of its own, which detcurate cannot follow."""

    def forward_inference(self, images, features, predictions):
        return super().forward_inference(images, features, predictions)


DETECTORS = {"faster": faster_rcnn, "cascade": cascade_rcnn, "retinanet": retinanet, "fcos": fcos}


def inputs(seed=0):
    """Three images of three sizes, each to be given back at another size than it has."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((64, 96, 128, 192), (48, 80, 24, 40), (80, 56, 81, 57))
    return [
        {
            "image": torch.randint(0, 255, (3, h, w), generator=generator).float(),
            "height": height,
            "width": width,
            "image_id": 70 + number,
        }
        for number, (h, w, height, width) in enumerate(sizes)
    ]


def own(model, batch):
    """Return the output of Detectron2's own inference."""
    with torch.inference_mode():
        return [output["instances"] for output in model(batch)]


def ours(model, batch):
    with torch.inference_mode():
        return predict_posteriors(model, batch, C)


def assert_same_detections(found, expected):
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert one.image_size == other.image_size
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.pred_classes, other.pred_classes)


def assert_posterior(instances, *, atol=1e-6):
    probs = instances.class_probs
    assert probs.shape == (len(instances), C + 1)
    assert probs.dtype == torch.float32
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(len(instances)), atol=atol, rtol=0)
    rows = torch.arange(len(instances))
    assert torch.equal(probs[rows, instances.pred_classes], instances.scores)


def assert_sigmoids(instances):
    probs = instances.class_probs
    assert probs.shape == (len(instances), C + 1)
    assert ((probs >= 0) & (probs <= 1)).all()
    assert torch.equal(probs[:, -1], 1 - probs[:, :-1].amax(dim=1))
    assert torch.equal(probs[torch.arange(len(instances)), instances.pred_classes], instances.scores)


ASSERT_ROWS = {"softmax": assert_posterior, "sigmoid": assert_sigmoids}


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("seed", range(5))
def test_detections_equal_detectron2s(name, seed):
    model = DETECTORS[name](seed)
    batch = inputs(seed)
    found = ours(model, batch)
    assert_same_detections(found, own(model, batch))
    assert min(len(instances) for instances in found) >= 3
    assert sum(len(instances) for instances in found) >= 15
    for instances in found:
        ASSERT_ROWS[posterior_form(model)](instances)


@pytest.mark.parametrize("name", [*DETECTORS, "other"])
def test_half_precision_detections_equal_detectron2s_with_float32_rows(name):
    model, batch = DETECTORS.get(name, retinanet)(1), inputs(1)
    if name == "other":
        model.__class__ = OtherRetinaNet
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(model, batch)
        assert_same_detections(found, own(model, batch))
    assert sum(len(instances) for instances in found) >= 10
    for instances in found:
        probs = instances.class_probs
        assert probs.dtype == torch.float32
        own_column = probs[torch.arange(len(instances)), instances.pred_classes]
        torch.testing.assert_close(own_column, instances.scores.float(), atol=1e-2, rtol=0)
        if posterior_form(model) == "sigmoid":
            assert torch.equal(probs[:, -1], 1 - probs[:, :-1].amax(dim=1))
        else:
            torch.testing.assert_close(probs.sum(dim=1), torch.ones(len(instances)), atol=1e-6, rtol=0)


def test_posterior_form_of_each_detector():
    forms = {name: posterior_form(build_one()) for name, build_one in DETECTORS.items()}
    assert forms == {"faster": "softmax", "cascade": "softmax", "retinanet": "sigmoid", "fcos": "sigmoid"}


@pytest.mark.parametrize("name", DETECTORS)
def test_given_images_and_features_are_used_and_not_changed(name):
    model, batch = DETECTORS[name](3), inputs(3)
    with torch.inference_mode():
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        before = {level: feature.clone() for level, feature in features.items()}
        pixels = images.tensor.clone()
        expected = predict_posteriors(model, batch, C)
        for given in ({"images": images}, {"images": images, "features": features}, {"features": features}):
            found = predict_posteriors(model, batch, C, **given)
            assert_same_detections(found, expected)
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one.class_probs, other.class_probs)
        zeros = {level: torch.zeros_like(feature) for level, feature in features.items()}
        blind = predict_posteriors(model, batch, C, images=images, features=zeros)
    assert torch.equal(images.tensor, pixels)
    assert all(torch.equal(features[level], before[level]) for level in before)
    assert any(
        len(one) != len(other) or not torch.equal(one.scores, other.scores)
        for one, other in zip(blind, expected, strict=True)
    )


@pytest.mark.parametrize("name", DETECTORS)
def test_predict_posteriors_rejects_training_mode(name):
    with pytest.raises(PredictionError, match="training mode"):
        predict_posteriors(DETECTORS[name]().train(), inputs(), C)


def test_row_of_a_proposal_with_several_classes_is_its_softmax():
    """So the greatest foreground value of a row is not always that of the detection's own class."""
    model = faster_rcnn()
    runners_up, repeated = 0, 0
    for instances in ours(model, inputs()):
        best = instances.class_probs[:, :-1].argmax(dim=1)
        runners_up += int((best != instances.pred_classes).sum())
        repeated += len(instances) - len(torch.unique(instances.class_probs, dim=0))
    assert runners_up > 0
    assert repeated > 0


def test_rows_equal_a_softmax_by_hand():
    """Every row is one of the softmax rows of the proposals of its own image."""
    model, batch = faster_rcnn(), inputs()
    with torch.inference_mode():
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        heads = model.roi_heads
        pooled = heads.box_pooler([features[n] for n in heads.box_in_features], [p.proposal_boxes for p in proposals])
        logits, _ = heads.box_predictor(heads.box_head(pooled))
    start = 0
    for instances, boxes in zip(ours(model, batch), proposals, strict=True):
        rows = torch.softmax(logits[start : start + len(boxes)], dim=1)
        start += len(boxes)
        distances = (instances.class_probs[:, None] - rows[None]).abs().amax(dim=2)
        assert distances.amin(dim=1).max() < 1e-6


@pytest.mark.parametrize(
    "overrides",
    [
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
        ("TEST.DETECTIONS_PER_IMAGE", "3"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.1"),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0"),  # nothing is seen
    ],
)
def test_two_stage_test_settings_match_detectron2(overrides):
    model = faster_rcnn(1, *overrides)
    found = ours(model, inputs())
    assert_same_detections(found, own(model, inputs()))
    for instances in found:
        assert_posterior(instances)
    if overrides[0] == "TEST.DETECTIONS_PER_IMAGE":
        assert [len(instances) for instances in found] == [3, 3, 3]
    if overrides[1] == "1.0":
        assert sum(len(instances) for instances in found) == 0


def test_cascade_averages_the_rows_of_its_stages():
    model, batch = cascade_rcnn(2), inputs(2)
    assert len(model.roi_heads.box_predictor) == 3
    seen = []
    hooks = [one.register_forward_hook(lambda m, i, output: seen.append(output[0])) for one in
             model.roi_heads.box_predictor]  # fmt: skip
    found = ours(model, batch)
    for hook in hooks:
        hook.remove()
    mean = sum(torch.softmax(logits, dim=1) for logits in seen) / 3
    for instances in found:
        distances = (instances.class_probs[:, None] - mean[None]).abs().amax(dim=2)
        assert distances.amin(dim=1).max() < 1e-6
        last_only = (instances.class_probs[:, None] - torch.softmax(seen[2], dim=1)[None]).abs().amax(dim=2)
        assert last_only.amin(dim=1).max() > 1e-3


DENSE_SETTINGS = {
    "low threshold": (("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"), {"test_score_thresh": 0.0}),
    "few candidates": (("MODEL.RETINANET.TOPK_CANDIDATES_TEST", "7"), {"test_topk_candidates": 7}),
    "few detections": (("TEST.DETECTIONS_PER_IMAGE", "3"), {"max_detections_per_image": 3}),
    "hard suppression": (("MODEL.RETINANET.NMS_THRESH_TEST", "0.1"), {"test_nms_thresh": 0.1}),
    "nothing is seen": (("MODEL.RETINANET.SCORE_THRESH_TEST", "1.0"), {"test_score_thresh": 1.0}),
}


@pytest.mark.parametrize("setting", DENSE_SETTINGS)
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_dense_test_settings_match_detectron2(name, setting):
    overrides, settings = DENSE_SETTINGS[setting]
    model = retinanet(1, *overrides) if name == "retinanet" else fcos(1, **settings)
    batch = inputs(1)
    found = ours(model, batch)
    assert_same_detections(found, own(model, batch))
    for instances in found:
        assert_sigmoids(instances)
    counts = [len(instances) for instances in found]
    if setting == "nothing is seen":
        assert counts == [0, 0, 0]
    else:
        assert max(counts) >= 1
    if setting == "few detections":  # fewer than 3 where one lay in the padding, and is dropped after the count
        assert max(counts) <= 3


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_dense_row_equals_the_anchors_sigmoids(name):
    """Every row is the sigmoids at one anchor of its own image; those of FCOS are weighted by its centerness."""
    model, batch = DETECTORS[name](4), inputs(4)
    with torch.inference_mode():
        features = model.backbone(model.preprocess_image(batch).tensor)
        outputs = model.head([features[level] for level in model.head_in_features])
    found = ours(model, batch)
    for index, instances in enumerate(found):
        rows = []
        for level in range(len(outputs[0])):
            logits = outputs[0][level][index]
            rows.append(logits.reshape(-1, C, *logits.shape[1:]).sigmoid().transpose(0, 1).reshape(C, -1).T)
            if name == "fcos":
                centerness = outputs[2][level][index].sigmoid().reshape(-1, 1)
                rows[-1] = (rows[-1] * centerness).sqrt()
        distances = (instances.class_probs[:, None, :-1] - torch.cat(rows)[None]).abs().amax(dim=2)
        assert distances.amin(dim=1).max() < 1e-6


def test_dense_anchor_gives_several_classes():
    best = torch.cat([one.class_probs[:, :-1].argmax(dim=1) != one.pred_classes for one in ours(retinanet(), inputs())])
    assert best.any()


# NaN and infinity


def break_weights(model, where, value):
    with torch.no_grad():
        dict(model.named_parameters())[where].view(-1)[0] = value


BROKEN = [
    ("faster", "proposal_generator.rpn_head.objectness_logits.bias", math.nan, "objectness logits"),
    ("faster", "proposal_generator.rpn_head.anchor_deltas.bias", math.inf, "proposal deltas"),
    ("faster", "roi_heads.box_predictor.cls_score.bias", -math.inf, "class logits"),
    ("faster", "roi_heads.box_predictor.bbox_pred.bias", math.nan, "boxes"),
    ("faster", "backbone.fpn_output3.bias", math.nan, "objectness logits"),
    ("cascade", "roi_heads.box_predictor.0.bbox_pred.bias", math.nan, "boxes"),
    ("cascade", "roi_heads.box_predictor.1.cls_score.bias", math.inf, "class logits"),
    ("retinanet", "head.cls_score.bias", math.nan, "class logits"),
    ("retinanet", "head.bbox_pred.bias", math.inf, "box deltas"),
    ("fcos", "head.ctrness.bias", math.nan, "centerness logits"),
]


@pytest.mark.parametrize(("name", "where", "value", "output"), BROKEN)
def test_nan_and_infinity_name_the_output_and_the_image(name, where, value, output):
    """Detectron2 itself drops such rows, or stops at an assertion."""
    model = DETECTORS[name]()
    break_weights(model, where, value)
    with pytest.raises(PredictionError, match=rf"{output}.*got \d+ NaN or infinite values of \d+, image_id 70"):
        ours(model, inputs())


@pytest.mark.parametrize("name", DETECTORS)
def test_nan_names_its_own_image_of_the_batch(name):
    """With batch normalisation in evaluation mode an image is computed by itself, whatever else is in the batch."""
    batch = inputs()
    batch[1]["image"][:] = math.nan
    with pytest.raises(PredictionError, match=r"not finite.*image_id 71"):
        ours(DETECTORS[name](), batch)


def test_nan_box_that_detectron2_drops_is_an_error(monkeypatch):
    predict = FastRCNNOutputLayers.predict_boxes

    def with_a_hole(self, predictions, proposals):
        boxes = [one.clone() for one in predict(self, predictions, proposals)]
        boxes[2][1, 1] = math.inf
        return boxes

    monkeypatch.setattr(FastRCNNOutputLayers, "predict_boxes", with_a_hole)
    model = faster_rcnn()
    assert len(own(model, inputs())) == 3
    with pytest.raises(PredictionError, match=r"boxes.*got 1 NaN.*image_id 72"):
        ours(model, inputs())


def test_require_finite_by_hand():
    samples = [{"image_id": 8}, {}]
    fine, hole = torch.zeros(2, 3), torch.tensor([1.0, math.nan, -math.inf])
    require_finite({"scores": [fine, fine[0]], "boxes": torch.zeros(2, 0, 4)}, samples)
    require_finite({"scores": []}, [])
    require_finite({}, samples)
    with pytest.raises(PredictionError, match=r"boxes.*got 2 NaN.* of 3, image_id 8"):
        require_finite({"scores": [fine, fine], "boxes": [hole, fine]}, samples)
    with pytest.raises(PredictionError, match=r"boxes.*got 1 NaN.* of 2, image 1 of the batch"):
        require_finite({"boxes": torch.tensor([[0.0, 0.0], [0.0, math.inf]])}, samples)


@pytest.fixture
def logged_warnings(monkeypatch):
    """Collect what the package's logger says, whoever has taken the logger before."""
    messages = []
    monkeypatch.setattr(posterior, "_warned", set())
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("detcurate")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_unknown_detector_uses_top_scores_and_warns_once(logged_warnings):
    for seed in (0, 1):
        model = retinanet(seed)
        model.__class__ = OtherRetinaNet
        assert posterior_form(model) == "softmax"
        found = ours(model, inputs(seed))
        assert_same_detections(found, own(model, inputs(seed)))
        assert sum(len(instances) for instances in found) > 10
        for instances in found:
            assert_posterior(instances)
            others = instances.class_probs.clone()
            others[torch.arange(len(instances)), instances.pred_classes] = 0
            assert not others[:, :-1].any()
            assert torch.equal(instances.class_probs[:, -1], 1 - instances.scores)
    (warning,) = logged_warnings
    assert "OtherRetinaNet" in warning


def test_faster_rcnn_with_sigmoids_uses_top_scores(logged_warnings):
    model = faster_rcnn(0, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True")
    found = ours(model, inputs())
    assert_same_detections(found, own(model, inputs()))
    for instances in found:
        assert_posterior(instances)
    assert len(logged_warnings) == 1
    logged_warnings.clear()
    ours(faster_rcnn(), inputs())
    assert logged_warnings == []
