# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""Inference of the mode ``reference`` on given boxes: models with random weights, 5 classes, 3 images of 3 sizes."""

import math

import pytest
from helpers import REPOSITORY

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from detcurate.config.declaration import load_config
from detcurate.d2 import registration  # noqa: F401  registers the small backbone
from detcurate.d2.infer.posteriors import predict_posteriors
from detcurate.d2.infer.posteriors.softmax import propose
from detcurate.d2.infer.reference import reference_predictions
from detcurate.errors import EnsembleError, PredictionError

CONFIGS = REPOSITORY / "configs"
C = 5
AGNOSTIC = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
KINDS = {"faster": [], "agnostic": AGNOSTIC, "cascade": [*AGNOSTIC, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"]}
SIZES = ((64, 96), (48, 80), (80, 56))


def build(kind, seed=0, *overrides: str):
    torch.manual_seed(seed)
    settings = ["MODEL.ROI_HEADS.NUM_CLASSES", str(C), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    model = build_model(load_config(CONFIGS / "Base-CPU-Tiny.yaml", [*settings, *KINDS[kind], *overrides])).eval()
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        for stage in [predictor] if isinstance(predictor, FastRCNNOutputLayers) else predictor:
            stage.cls_score.weight.mul_(60)
            stage.bbox_pred.weight.mul_(300)
    return model


def inputs(seed=0, scale=1.0):
    """Three images, the originals of which are ``scale`` times as wide and half as high as that."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(0, 255, (3, h, w), generator=generator).float(),
            "height": round(h * scale / (2 if scale != 1 else 1)),
            "width": round(w * scale),
            "image_id": 70 + number,
        }
        for number, (h, w) in enumerate(SIZES)
    ]


def predict(model, batch, boxes, **given: object):
    with torch.inference_mode():
        return reference_predictions(model, batch, boxes, **given)


def own_proposals(model, batch):
    with torch.inference_mode():
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        proposals = propose(model, batch, images, features)
    return [one.proposal_boxes.tensor for one in proposals], images, features


def random_boxes(seed=0, counts=(4, 0, 7)):
    rng = np.random.default_rng(seed)
    boxes = []
    for count, (height, width) in zip(counts, SIZES, strict=True):
        corner = rng.uniform(0, 0.6, (count, 2)) * (width, height)
        boxes.append(np.hstack((corner, corner + rng.uniform(5, 20, (count, 2)))))
    return boxes


# Oracle


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_own_proposals_give_the_models_own_rows(kind, seed):
    """All of Detectron2's detections at threshold 0 are among the predictions: rows, and boxes of the best class."""
    model, batch = build(kind, seed, "TEST.DETECTIONS_PER_IMAGE", "-1"), inputs(seed)
    proposals, images, features = own_proposals(model, batch)
    predicted = predict(model, batch, [boxes.numpy() for boxes in proposals])
    with torch.inference_mode():
        detections = predict_posteriors(model, batch, C, images=images, features=features)
    for prediction, boxes, found in zip(predicted, proposals, detections, strict=True):
        assert prediction.class_probs.shape == (len(boxes), C + 1)
        assert prediction.boxes.shape == (len(boxes), 4)
        rows = found.class_probs.numpy()
        assert len(rows) > 10
        known = {row.tobytes() for row in prediction.class_probs}
        assert all(row.tobytes() in known for row in rows)
        best = (found.class_probs[:, :-1].argmax(dim=1) == found.pred_classes).numpy()
        placed = {
            (row.tobytes(), box.tobytes()) for row, box in zip(prediction.class_probs, prediction.boxes, strict=True)
        }
        own = found.pred_boxes.tensor.numpy()
        assert best.sum() > 3
        assert all((row.tobytes(), box.tobytes()) in placed for row, box in zip(rows[best], own[best], strict=True))


@pytest.mark.parametrize("kind", ["faster", "agnostic"])
def test_rows_and_boxes_equal_the_heads_methods(kind):
    model, batch = build(kind, 5), inputs(5)
    proposals, _, features = own_proposals(model, batch)
    heads = model.roi_heads
    with torch.inference_mode():
        pooled = heads.box_pooler([features[name] for name in heads.box_in_features], [wrap(one) for one in proposals])
        predictions = heads.box_predictor(heads.box_head(pooled))
        instances = [holder(one, size) for one, size in zip(proposals, SIZES, strict=True)]
        rows = heads.box_predictor.predict_probs(predictions, instances)
        refined = heads.box_predictor.predict_boxes(predictions, instances)
    predicted = predict(model, batch, [boxes.numpy() for boxes in proposals])
    for prediction, row, box, (height, width) in zip(predicted, rows, refined, SIZES, strict=True):
        np.testing.assert_array_equal(prediction.class_probs, row.numpy())
        per_class = box.numpy().reshape(len(row), -1, 4)
        best = prediction.class_probs[:, :-1].argmax(axis=1) if kind == "faster" else np.zeros(len(row), int)
        expected = np.clip(per_class[np.arange(len(row)), best], 0, [width, height, width, height])
        np.testing.assert_allclose(prediction.boxes, expected, atol=1e-4)
        assert (np.abs(prediction.boxes - prediction.boxes.clip(0)) == 0).all()


def wrap(boxes):
    from detectron2.structures import Boxes

    return Boxes(boxes)


def holder(boxes, size):
    from detectron2.structures import Instances

    return Instances(size, proposal_boxes=wrap(boxes))


# Properties


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_scaled_to_the_input_and_back(kind):
    model = build(kind, 2)
    boxes = random_boxes(2)
    scaled = [one * np.tile([4, 2], 2) for one in boxes]
    expected = predict(model, inputs(2), boxes)
    found = predict(model, inputs(2, scale=4), scaled)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.class_probs, other.class_probs, atol=1e-5)
        np.testing.assert_allclose(one.boxes, other.boxes * np.tile([4, 2], 2), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_sum_to_1_and_boxes_are_inside_the_image(kind):
    predicted = predict(build(kind, 1), inputs(1), random_boxes(1))
    assert [len(prediction) for prediction in predicted] == [4, 0, 7]
    for prediction, (height, width) in zip(predicted, SIZES, strict=True):
        assert prediction.class_probs.dtype == prediction.boxes.dtype == np.float32
        assert prediction.class_probs.shape == (len(prediction), C + 1)
        np.testing.assert_allclose(prediction.class_probs.sum(axis=1), 1, atol=1e-5)
        assert (prediction.boxes >= 0).all() and (prediction.boxes <= [width, height, width, height]).all()


def test_boxes_are_clipped_to_the_image():
    model = build("faster", 3)
    beyond = [np.array([[-20.0, 5.0, 500.0, 40.0]]), np.zeros((0, 4)), np.array([[10.0, 10.0, 30.0, 999.0]])]
    inside = [np.array([[0.0, 5.0, 96.0, 40.0]]), np.zeros((0, 4)), np.array([[10.0, 10.0, 30.0, 80.0]])]
    for one, other in zip(predict(model, inputs(3), beyond), predict(model, inputs(3), inside), strict=True):
        np.testing.assert_array_equal(one.class_probs, other.class_probs)
        np.testing.assert_array_equal(one.boxes, other.boxes)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_boxes_give_zero_rows(kind):
    predicted = predict(build(kind), inputs(), [np.zeros((0, 4))] * 3)
    assert [(one.class_probs.shape, one.boxes.shape) for one in predicted] == [((0, C + 1), (0, 4))] * 3


def test_rows_do_not_depend_on_the_other_boxes():
    model, boxes = build("cascade", 4), random_boxes(4)
    whole = predict(model, inputs(4), boxes)
    turned = predict(model, inputs(4), [one[::-1].copy() for one in boxes])
    for one, other in zip(turned, whole, strict=True):
        np.testing.assert_allclose(one.class_probs[::-1], other.class_probs, atol=1e-6)
        np.testing.assert_allclose(one.boxes[::-1], other.boxes, atol=1e-3)


def test_given_images_and_features_are_used():
    model, batch, boxes = build("cascade", 6), inputs(6), random_boxes(6)
    with torch.inference_mode():
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
    expected = predict(model, batch, boxes)
    blind = {name: torch.zeros_like(feature) for name, feature in features.items()}
    for one, other in zip(predict(model, batch, boxes, images=images, features=features), expected, strict=True):
        np.testing.assert_array_equal(one.class_probs, other.class_probs)
    assert not np.array_equal(predict(model, batch, boxes, features=blind)[2].class_probs, expected[2].class_probs)


# Messages


def test_reference_predictions_name_invalid_boxes():
    model, boxes = build("faster"), random_boxes()
    with pytest.raises(PredictionError, match=r"boxes.*got 2 for 3 images"):
        predict(model, inputs(), boxes[:2])
    cases = (
        (np.zeros((2, 5)), r"boxes.*got float64 of shape \(2, 5\)"),
        (np.array([[0, 0, 4, 4]]), r"boxes.*got int64 of shape \(1, 4\), image_id 71"),
        (np.array([[0, 0, math.nan, 4]]), "boxes.*finite"),
        (
            np.array([[0.0, 0.0, 4.0, 4.0], [90.0, 1.0, 95.0, 9.0]]),
            r"boxes.*80x48.*got \[90.0, .*\], row 1, image_id 71",
        ),
        (np.array([[9.0, 1.0, 5.0, 9.0]]), r"boxes.*x1 < x2 and y1 < y2"),
    )
    for broken, message in cases:
        with pytest.raises(PredictionError, match=message):
            predict(model, inputs(), [boxes[0], broken, boxes[2]])
    with pytest.raises(PredictionError, match="training mode"):
        predict(model.train(), inputs(), boxes)


def test_nan_names_the_image():
    model, batch = build("cascade"), inputs()
    batch[2]["image"][:] = math.nan
    with pytest.raises(PredictionError, match=r"class logits.*image_id 72"):
        predict(model, batch, random_boxes())


def test_sigmoid_box_head_is_rejected():
    with pytest.raises(EnsembleError, match=r"CURATE.PREDICT.MODE.*reference.*got Generalized"):
        predict(build("faster", 0, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True"), inputs(), random_boxes())
