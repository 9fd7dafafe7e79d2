import math

import numpy as np
import pytest

from detcurate.errors import PredictionError
from detcurate.score import disagreement as localization
from detcurate.score.associate import associate
from detcurate.score.cluster_statistics import gather_cluster_statistics
from detcurate.structures import Clusters, Detections
from detcurate.structures.boxes import box_iou


def iou_dispersion(detections, clusters):
    return localization.iou_dispersion(gather_cluster_statistics(detections, clusters))


def box_std(detections, clusters):
    return localization.box_std(gather_cluster_statistics(detections, clusters))


def case_of(boxes, votes):
    """Detections with these boxes, and clusters with these votes and their mean boxes."""
    boxes, votes = np.asarray(boxes, np.float32), np.asarray(votes, np.int64)
    n, g = len(boxes), len(votes)
    detections = Detections(
        image_ids=np.full(n, 5, np.int64),
        member=np.zeros(n, np.int32),
        boxes=boxes,
        scores=np.full(n, 0.5, np.float32),
        class_index=np.zeros(n, np.int32),
        class_probs=np.full((n, 2), 0.5, np.float32),
    )
    means = np.array([boxes[row[row >= 0]].astype(np.float64).mean(axis=0) for row in votes]).reshape(g, 4)
    return detections, Clusters(np.full(g, 5, np.int64), means.astype(np.float32), votes)


def random_case(seed=0, g=6, e=5):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 500, (g, 1, 2)), rng.uniform(20, 90, (g, 1, 2))
    corner = corner + rng.normal(0, 3, (g, e, 2))
    boxes = np.concatenate((corner, corner + size * rng.uniform(0.8, 1.2, (g, e, 2))), axis=2).reshape(-1, 4)
    misses = rng.random((g, e)) < 0.3
    misses[:, 1] = False
    return boxes, np.where(misses, -1, np.arange(g * e).reshape(g, e))


# Arithmetic


def test_iou_dispersion_by_hand():
    # Widths 8 and 12 about a mean of 10: IoU 8/10 and 10/12. A miss does not enter.
    detections, clusters = case_of([[0, 0, 8, 10], [0, 0, 12, 10], [3, 3, 9, 9]], [[0, -1, 1], [-1, 2, -1]])
    assert iou_dispersion(detections, clusters) == pytest.approx([1 - (0.8 + 10 / 12) / 2, 0.0])


def test_box_std_by_hand():
    # Centres x 4 and 6, over a mean width of 10: variance (0.1)^2. Widths 8 and 12: variance of their logarithms.
    detections, clusters = case_of([[0, 0, 8, 20], [0, 0, 12, 20], [3, 3, 9, 9]], [[0, -1, 1], [-1, 2, -1]])
    variance = (0.1**2 + 0 + (math.log(12 / 8) / 2) ** 2 + 0) / 4
    assert box_std(detections, clusters) == pytest.approx([math.sqrt(variance), 0.0])


# Oracles


def test_iou_dispersion_equals_loop():
    detections, clusters = case_of(*random_case())
    expected = [
        1 - box_iou(detections.boxes[votes[votes >= 0]], box).mean()
        for votes, box in zip(clusters.votes, clusters.boxes, strict=True)
    ]
    np.testing.assert_allclose(iou_dispersion(detections, clusters), expected, rtol=1e-9, atol=1e-12)


def test_box_std_equals_loop():
    detections, clusters = case_of(*random_case(seed=1))
    expected = []
    for votes in clusters.votes:
        x1, y1, x2, y2 = detections.boxes[votes[votes >= 0]].astype(np.float64).T
        width, height = x2 - x1, y2 - y1
        parameters = [(x1 + x2) / 2 / width.mean(), (y1 + y2) / 2 / height.mean(), np.log(width), np.log(height)]
        expected.append(math.sqrt(np.mean([np.var(parameter) for parameter in parameters])))
    np.testing.assert_allclose(box_std(detections, clusters), expected, rtol=1e-9)


# Properties


@pytest.mark.parametrize("measure", [iou_dispersion, box_std])
def test_identical_boxes_have_no_disagreement(measure):
    detections, clusters = case_of([[0.1, 0.7, 33.3, 9.9]] * 3, [[0, 1, 2, -1]])
    assert measure(detections, clusters) == pytest.approx([0], abs=1e-12)


@pytest.mark.parametrize("measure", [iou_dispersion, box_std])
def test_single_box_has_no_disagreement(measure):
    detections, clusters = case_of([[1e4, 1e4, 1e4 + 0.01, 1e4 + 0.01]], [[-1, 0, -1]])
    assert measure(detections, clusters) == pytest.approx([0], abs=1e-12)


@pytest.mark.parametrize("measure", [iou_dispersion, box_std])
def test_box_measures_grow_with_distance(measure):
    boxes = [[0, 0, 10, 10]] + [[shift, 0, 10 + shift, 10] for shift in (1, 2, 3, 5)]
    detections, clusters = case_of(boxes, [[0, row, -1] for row in range(5)])
    values = measure(detections, clusters)
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize("measure", [iou_dispersion, box_std])
def test_box_measures_ignore_scale_and_order(measure):
    boxes, votes = random_case(seed=2)
    expected = measure(*case_of(boxes, votes))
    np.testing.assert_allclose(measure(*case_of(boxes * 16, votes)), expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(measure(*case_of(boxes, votes[:, ::-1])), expected, rtol=1e-9, atol=1e-12)


def test_iou_dispersion_of_associated_boxes_stays_below_1():
    boxes, _ = random_case(seed=3)
    detections, _ = case_of(boxes, np.zeros((0, 2)))
    members = np.arange(len(boxes), dtype=np.int32) % 5
    columns = {name: getattr(detections, name) for name in Detections.__annotations__}
    detections = Detections(**{**columns, "member": members})
    values = iou_dispersion(detections, associate(detections, num_members=5, iou_threshold=0.01))
    assert values.max() > 0.1 and (values >= 0).all() and (values < 1).all()


def test_boxes_without_overlap_reach_1():
    corners = [[0, 0, 1, 1], [999, 999, 1000, 1000], [0, 999, 1, 1000], [999, 0, 1000, 1]]
    assert iou_dispersion(*case_of(corners, [[0, 1, 2, 3, -1]])).tolist() == [1.0]


@pytest.mark.parametrize("measure", [iou_dispersion, box_std])
def test_no_clusters_give_no_values(measure):
    assert measure(*case_of(np.zeros((0, 4)), np.zeros((0, 3)))).shape == (0,)


# Messages


@pytest.mark.parametrize("measure", [iou_dispersion, box_std])
def test_votes_beyond_detections_raise(measure):
    detections, _ = case_of([[0, 0, 1, 1]], [[0, -1]])
    _, clusters = case_of([[0, 0, 1, 1]] * 4, [[0, 3, -1]])
    with pytest.raises(PredictionError, match="Clusters.votes"):
        measure(detections, clusters)
