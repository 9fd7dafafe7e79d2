# ruff: noqa: E402  Detectron2 may be absent, and is asked for first
"""Inference that keeps the posterior gives exactly Detectron2's own boxes, scores and classes, and a row to each."""

import logging
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from detcurate.d2 import (
    backbones,  # noqa: F401  registers the small backbone
    posterior,
)
from detcurate.d2.config import load_config
from detcurate.d2.posterior import predict_posteriors

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
C = 4
FASTER_RCNN = ["MODEL.ROI_HEADS.NUM_CLASSES", str(C), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05"]
RETINANET = [
    "MODEL.RETINANET.NUM_CLASSES", str(C), "MODEL.RETINANET.SCORE_THRESH_TEST", "0.005", "MODEL.WEIGHTS", "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "4",
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.DEVICE", "cpu",
]  # fmt: skip


def build(name, seed, overrides):
    torch.manual_seed(seed)
    model = build_model(load_config(CONFIGS / name, overrides)).eval()
    with torch.no_grad():  # an untrained head is near uniform: spread its answers
        predictor = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
        if predictor is not None:
            predictor.cls_score.weight.mul_(60)
            predictor.bbox_pred.weight.mul_(300)
    return model


def faster_rcnn(seed=0, *overrides: str):
    return build("Base-CPU-Tiny.yaml", seed, [*FASTER_RCNN, *overrides])


def inputs(seed=0):
    """Three images of three sizes, each to be given back at another size than it has."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((64, 96, 128, 192), (48, 80, 24, 40), (80, 56, 81, 57))
    return [
        {"image": torch.randint(0, 255, (3, h, w), generator=generator).float(), "height": height, "width": width}
        for h, w, height, width in sizes
    ]


def own(model, batch):
    """Return what Detectron2 itself answers."""
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


@pytest.mark.parametrize("seed", range(5))
def test_faster_rcnn_detections_are_detectron2s_own(seed):
    model = faster_rcnn(seed)
    batch = inputs(seed)
    found = ours(model, batch)
    assert_same_detections(found, own(model, batch))
    assert min(len(instances) for instances in found) >= 5
    for instances in found:
        assert_posterior(instances)


def test_a_proposal_may_give_several_classes_and_the_row_is_its_whole_softmax():
    """So the greatest foreground value of a row is not always that of the detection's own class."""
    model = faster_rcnn()
    runners_up, repeated = 0, 0
    for instances in ours(model, inputs()):
        best = instances.class_probs[:, :-1].argmax(dim=1)
        runners_up += int((best != instances.pred_classes).sum())
        repeated += len(instances) - len(torch.unique(instances.class_probs, dim=0))
    assert runners_up > 0
    assert repeated > 0


def test_rows_are_those_of_a_softmax_computed_by_hand():
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
def test_the_test_settings_mean_what_they_mean_in_detectron2(overrides):
    model = faster_rcnn(1, *overrides)
    found = ours(model, inputs())
    assert_same_detections(found, own(model, inputs()))
    for instances in found:
        assert_posterior(instances)
    if overrides[0] == "TEST.DETECTIONS_PER_IMAGE":
        assert [len(instances) for instances in found] == [3, 3, 3]
    if overrides[1] == "1.0":
        assert sum(len(instances) for instances in found) == 0


def test_rows_that_are_not_finite_are_left_out_before_they_are_counted(monkeypatch):
    """Detectron2 drops them first, so that its indices are into the rest."""
    model, batch = faster_rcnn(), inputs()
    predict = FastRCNNOutputLayers.predict_boxes

    def with_holes(self, predictions, proposals):
        boxes = [one.clone() for one in predict(self, predictions, proposals)]
        for one in boxes:
            one[::3, 1] = float("nan")
        return boxes

    monkeypatch.setattr(FastRCNNOutputLayers, "predict_boxes", with_holes)
    found = ours(model, batch)
    assert_same_detections(found, own(model, batch))
    for instances in found:
        assert len(instances) > 0
        assert_posterior(instances)


@pytest.fixture
def warnings_said(monkeypatch):
    """Collect what the package's logger says, whoever has taken the logger before."""
    messages = []
    monkeypatch.setattr(posterior, "_told", set())
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("detcurate")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_of_a_retinanet_the_top_score_is_used_and_this_is_said_once(warnings_said):
    for seed in (0, 1):
        model = build("Base-retinanet_R_50_FPN.yaml", seed, RETINANET)
        found = ours(model, inputs(seed))
        assert_same_detections(found, own(model, inputs(seed)))
        assert sum(len(instances) for instances in found) > 10
        for instances in found:
            assert_posterior(instances)
            others = instances.class_probs.clone()
            others[torch.arange(len(instances)), instances.pred_classes] = 0
            assert not others[:, :-1].any()
            assert torch.equal(instances.class_probs[:, -1], 1 - instances.scores)
    assert warnings_said == ["the posterior of a RetinaNet is not known to detcurate: only its top score is used"]


def test_a_faster_rcnn_with_sigmoids_is_answered_by_its_top_score(warnings_said):
    model = faster_rcnn(0, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True")
    found = ours(model, inputs())
    assert_same_detections(found, own(model, inputs()))
    for instances in found:
        assert_posterior(instances)
    assert len(warnings_said) == 1
    warnings_said.clear()
    ours(faster_rcnn(), inputs())
    assert warnings_said == []
