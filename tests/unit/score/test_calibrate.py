import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from detcurate.errors import PredictionError
from detcurate.score.calibrate import (
    apply_temperatures,
    calibrate,
    detection_outcomes,
    expected_calibration_error,
    fit_temperature,
)
from detcurate.structures import Detections, Labels

BOX = np.array([0.0, 0.0, 10.0, 10.0])


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def detections_of(class_probs, *, member=None, image_ids=None, boxes=None, form="softmax"):
    class_probs = np.asarray(class_probs, np.float32)
    n = len(class_probs)
    return Detections(
        image_ids=np.arange(n) if image_ids is None else np.asarray(image_ids),
        member=np.zeros(n, np.int32) if member is None else np.asarray(member, np.int32),
        boxes=np.tile(BOX, (n, 1)).astype(np.float32) if boxes is None else np.asarray(boxes, np.float32),
        scores=class_probs[:, :-1].max(axis=1),
        class_index=class_probs[:, :-1].argmax(axis=1).astype(np.int32),
        class_probs=class_probs,
        posterior_form=form,
    )


def labels_of(class_index, image_ids=None, iscrowd=None):
    j = len(class_index)
    return Labels(
        image_ids=np.arange(j) if image_ids is None else np.asarray(image_ids),
        annotation_ids=np.arange(j) + 100,
        boxes=np.tile(BOX, (j, 1)),
        class_index=np.asarray(class_index),
        iscrowd=np.zeros(j, np.bool_) if iscrowd is None else np.asarray(iscrowd),
    )


def sigmoids(foreground):
    return np.column_stack((foreground, 1 - foreground.max(axis=1)))


def sample(temperature, seed=0, n=4000, c=3, form="softmax"):
    """Return detections with posteriors that are too certain by a known temperature, and the true outcomes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, c + (form == "softmax")))
    if form == "softmax":
        truth = softmax(logits)
        outcome = (truth.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
        return detections_of(softmax(logits * temperature)), outcome
    outcome = np.where(rng.random(n) < 1 / (1 + np.exp(-logits[:, 0])), 0, c)
    logits[:, 1:] = -8.0  # so that no other class can be there
    return detections_of(sigmoids(1 / (1 + np.exp(-logits * temperature))), form="sigmoid"), outcome


# Arithmetic


def test_temperatures_by_hand():
    detections = detections_of([[0.8, 0.1, 0.1], [0.5, 0.25, 0.25]], member=[0, 1])
    scaled = apply_temperatures(detections, [0.5, 2.0])
    squares, roots = np.array([0.64, 0.01, 0.01]), np.sqrt([0.5, 0.25, 0.25])
    np.testing.assert_allclose(scaled.class_probs, [squares / squares.sum(), roots / roots.sum()], rtol=1e-6)
    assert scaled.scores.tolist() == scaled.class_probs[:, 0].tolist()
    logit = math.log(0.8 / 0.2) / 2
    sigmoid = apply_temperatures(detections_of([[0.8, 0.3, 0.2]], form="sigmoid"), [2.0])
    assert sigmoid.class_probs[0, 0] == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-6)
    assert sigmoid.class_probs[0, 2] == pytest.approx(1 - sigmoid.class_probs[0, 0])


def test_temperature_1_changes_nothing():
    detections, _ = sample(1.0, n=50)
    scaled = apply_temperatures(detections, [1.0])
    np.testing.assert_allclose(scaled.class_probs, detections.class_probs, atol=1e-6)


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.97, 0.51, 0.52, 0.53])
    is_right = np.array([True, False, True, True, True])
    # Bin 14 of 15: 1.92 of confidence for 1 right; bin 7: 1.56 for 3.
    assert expected_calibration_error(confidence, is_right) == pytest.approx((0.92 + 1.44) / 5)
    assert expected_calibration_error(np.zeros(0), np.zeros(0, np.bool_)) == 0.0
    assert expected_calibration_error(np.ones(3), np.ones(3, np.bool_)) == 0.0


def test_outcomes_by_hand():
    # Image 0: a label of class 1 with two detections of one member, the more confident counts; image 1: no label;
    # image 2: a crowd, which is no label.
    detections = detections_of(
        [[0.1, 0.6, 0.3], [0.1, 0.8, 0.1], [0.9, 0.0, 0.1], [0.9, 0.0, 0.1]], image_ids=[0, 0, 1, 2]
    )
    labels = labels_of([1, 0], image_ids=[0, 2], iscrowd=[False, True])
    assert detection_outcomes(detections, labels, num_members=1).tolist() == [2, 1, 2, 2]


# Oracle


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_fit_finds_known_temperature(form, temperature):
    detections, outcome = sample(temperature, form=form)
    assert fit_temperature(detections, outcome) == pytest.approx(temperature, rel=0.1)


def test_fit_equals_scipy():
    detections, outcome = sample(2.0, seed=3, n=300)
    probs = detections.class_probs.astype(np.float64)

    def loss(log_temperature):
        scaled = softmax(np.log(np.clip(probs, 1e-7, 1)) / math.exp(log_temperature))
        return -np.log(scaled[np.arange(len(outcome)), outcome]).sum()

    expected = math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
    assert fit_temperature(detections, outcome) == pytest.approx(expected, rel=1e-4)


# Properties


def test_members_are_calibrated_independently():
    parts = [sample(temperature, seed=number, n=3000) for number, temperature in enumerate((1.0, 4.0))]
    detections = detections_of(
        np.concatenate([part.class_probs for part, _ in parts]),
        member=np.repeat([0, 1], 3000),
        image_ids=np.tile(np.arange(3000), 2),
        boxes=np.concatenate((np.tile(BOX, (3000, 1)), np.tile(BOX + 50, (3000, 1)))),  # objects of its own each
    )
    outcome = np.concatenate([outcome for _, outcome in parts])
    is_object = outcome < 3
    labels = Labels(
        image_ids=detections.image_ids[is_object],
        annotation_ids=np.arange(int(is_object.sum())),
        boxes=detections.boxes[is_object],
        class_index=outcome[is_object],
        iscrowd=np.zeros(int(is_object.sum()), np.bool_),
    )
    found = calibrate(detections, labels, num_members=3)
    assert found.temperatures == pytest.approx([1.0, 4.0, 1.0], rel=0.15)  # the third has no detections
    assert found.error_after[1] < found.error_before[1] / 3
    assert abs(found.error_after[0] - found.error_before[0]) < 0.02
    again = calibrate(detections, labels, num_members=3)
    assert again.temperatures.tolist() == found.temperatures.tolist()


def test_member_without_detections_keeps_temperature_1():
    assert fit_temperature(Detections.empty(4), np.zeros(0, np.int64)) == 1.0
    assert len(apply_temperatures(Detections.empty(4), [2.0])) == 0


# Messages


def test_calibration_of_one_image_raises():
    with pytest.raises(PredictionError, match="CURATE.SCORE.CALIBRATION_IMAGES: .*got 1"):
        calibrate(detections_of([[0.5, 0.5]]), labels_of([0]), num_members=1)
