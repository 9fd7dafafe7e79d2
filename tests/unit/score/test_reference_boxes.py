"""Reference boxes: their choice, and the disagreement of 3 members about 4 of them with 2 classes, by hand."""

import math

import numpy as np
import pytest

from detcurate.errors import ConfigError, PredictionError
from detcurate.score.measures import MEASURES
from detcurate.score.reference_boxes import choose_references, score_references

R, E = 4, 3
IMAGES = np.array([5, 5, 8, 9])
A, B, NONE = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
ROWS = np.array([[A, A, A], [A, B, NONE], [NONE, NONE, NONE], [A, NONE, NONE]], np.float32)
BOXES = np.tile(np.array([10, 10, 30, 40], np.float32), (R, E, 1))


def scored(boxes=BOXES, rows=ROWS, measures=tuple(MEASURES)):
    return score_references(IMAGES[: len(rows)], boxes, rows, measures=measures)


def entropy(*shares: float):
    return -sum(share * math.log(share) for share in shares if share)


# Which boxes


def test_consensus_box_on_label_is_not_added():
    truth = np.array([[0, 0, 10, 10], [40, 0, 60, 20]], np.float32)
    consensus = np.array([[0, 0, 10, 5], [0, 0, 10, 4.9], [41, 0, 60, 20], [70, 70, 80, 80]], np.float32)
    boxes, is_truth = choose_references(truth, consensus, size=(100, 90), iou_threshold=0.5)
    assert boxes.dtype == np.float32
    assert is_truth.tolist() == [True, True, False, False]  # an IoU of exactly the threshold is the same object
    np.testing.assert_array_equal(boxes, np.concatenate((truth, consensus[[1, 3]])))


def test_references_are_clipped_and_outside_ones_dropped():
    truth = np.array([[-5, 5, 300, 20], [100, 0, 120, 10], [0, 90, 5, 95]])
    consensus = np.array([[50.0, 80.0, 60.0, 200.0], [-9.0, -9.0, 0.0, 5.0]])
    boxes, is_truth = choose_references(truth, consensus, size=(100, 90), iou_threshold=0.5)
    assert boxes.tolist() == [[0, 5, 100, 20], [50, 80, 60, 90]]
    assert is_truth.tolist() == [True, False]


@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (0, 3)])
def test_references_without_labels_or_clusters(counts):
    rng = np.random.default_rng(0)
    parts = []
    for count in counts:
        corner = rng.uniform(0, 50, (count, 2))
        parts.append(np.hstack((corner, corner + 5)))
    boxes, is_truth = choose_references(*parts, size=(70, 60), iou_threshold=0.5)
    assert boxes.shape == (sum(counts), 4)
    assert is_truth.tolist() == [True] * counts[0] + [False] * counts[1]


# Measures


def test_classes_and_existence_by_hand():
    objects = scored()
    assert objects.image_ids.tolist() == IMAGES.tolist()
    assert objects.num_fired.tolist() == [3, 2, 0, 1]
    assert objects.class_index[[0, 3]].tolist() == [0, 0]
    np.testing.assert_allclose(objects.confidence, [1, 1 / 3, 0, 1 / 3])
    third = entropy(1 / 3, 2 / 3)
    np.testing.assert_allclose(objects.measures["mutual_information"], [0, math.log(3), 0, third], atol=1e-12)
    np.testing.assert_allclose(objects.measures["existence_entropy"], [0, third, 0, third], atol=1e-12)
    assert list(objects.measures) == list(MEASURES)


def test_box_measures_use_refined_boxes():
    boxes = BOXES.copy()
    boxes[1, :, 2] = [18, 30, 42]  # widths 8, 20 and 32 about a mean of 20
    objects = scored(boxes)
    np.testing.assert_array_equal(objects.boxes, BOXES[:, 0])
    expected = 1 - (8 / 20 + 1 + 20 / 32) / 3
    np.testing.assert_allclose(objects.measures["iou_dispersion"], [0, expected, 0, 0], atol=1e-7)


def test_identical_members_have_no_disagreement():
    rng = np.random.default_rng(1)
    rows = np.repeat(rng.dirichlet(np.ones(3), (R, 1)).astype(np.float32), E, axis=1)
    corner = rng.uniform(0, 900, (R, 1, 2)).astype(np.float32)
    boxes = np.repeat(np.concatenate((corner, corner + np.float32(31.7)), axis=2), E, axis=1)
    objects = scored(boxes, rows)
    for name in ("mutual_information", "iou_dispersion", "box_std", "existence_entropy"):
        np.testing.assert_allclose(objects.measures[name], 0, atol=1e-9)


def test_reference_scores_ignore_order_of_members():
    rng = np.random.default_rng(2)
    rows = rng.dirichlet(np.ones(3), (R, E)).astype(np.float32)
    corner = rng.uniform(0, 90, (R, E, 2)).astype(np.float32)
    boxes = np.concatenate((corner, corner + 9), axis=2)
    one, other = scored(boxes, rows), scored(boxes[:, [2, 0, 1]], rows[:, [2, 0, 1]])
    for name in MEASURES:
        np.testing.assert_allclose(one.measures[name], other.measures[name], rtol=1e-6, atol=1e-9)


def test_box_moved_outside_counts_as_distant_not_missing():
    boxes = BOXES.copy()
    boxes[0, 1] = [0, 0, 0, 0]
    objects = scored(boxes)
    assert np.isfinite([*objects.measures.values()]).all()
    assert objects.num_fired[0] == E
    assert objects.measures["iou_dispersion"][0] > 1 / 3
    np.testing.assert_allclose(objects.boxes[0], (BOXES[0, 0] * 2 + [-0.5, -0.5, 0.5, 0.5]) / 3, rtol=1e-6)


def test_no_references_give_no_objects():
    objects = scored(BOXES[:0], ROWS[:0])
    assert len(objects) == 0
    assert {name: len(column) for name, column in objects.measures.items()} == dict.fromkeys(MEASURES, 0)


def test_invalid_references_raise():
    with pytest.raises(ConfigError, match="CURATE.SCORE.MEASURES: .*entropy, expected_entropy"):
        scored(BOXES[:, :1], ROWS[:, :1], ("mutual_information",))
    assert len(scored(BOXES[:, :1], ROWS[:, :1], ("entropy",))) == R
    with pytest.raises(ConfigError, match="CURATE.SCORE.MEASURES .*nonsense"):
        scored(measures=("nonsense",))
    with pytest.raises(PredictionError, match="posterior"):
        scored(rows=ROWS * np.float32(0.5))
