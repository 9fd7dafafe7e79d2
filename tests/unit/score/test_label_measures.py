"""What the members say about ground-truth boxes: 5 members of 2 runs, 3 classes, 4 labels, 2 images by hand."""

import math

import numpy as np
import pytest
from helpers.label_pools import RUNS, detections_of, labels_of, random_pool
from helpers.plain_scoring import match_slowly, measure_label

from detcurate.errors import PredictionError
from detcurate.score.label_measures import gather_label_statistics
from detcurate.score.measures import LABEL_MEASURES
from detcurate.structures import Detections


def measured(detections, labels, *, num_members=5, trajectories=RUNS):
    statistics = gather_label_statistics(detections, labels, num_members=num_members, trajectories=trajectories)
    return {name: measure(statistics) for name, measure in LABEL_MEASURES.items()}


# Arithmetic

BOX = [0, 0, 10, 10]


def test_each_measure_by_hand():
    # Members 0 and 3 are right, 1 says class 2, 2 misses, 4 says background; the label is of class 1.
    probs = [[0.1, 0.7, 0.1, 0.1], [0.2, 0.1, 0.6, 0.1], [0, 1, 0, 0], [0.1, 0.3, 0.1, 0.5]]
    boxes = [BOX, [0, 0, 10, 8], BOX, [0, 0, 10, 5]]
    values = measured(detections_of([0, 1, 3, 4], boxes, probs), labels_of([BOX], [1]))
    q, u = [0.7, 0.1, 0, 1, 0.3], [1, 0.8, 0, 1, 0.5]
    distances = [
        math.sqrt(0.3**2 + 3 * 0.1**2),
        math.sqrt(0.2**2 + 0.9**2 + 0.6**2 + 0.1**2),
        math.sqrt(2),
        0,
        math.sqrt(0.1**2 + 0.7**2 + 0.1**2 + 0.5**2),
    ]
    assert {name: value.tolist() for name, value in values.items()} == {
        "error_count": pytest.approx([3 / 5]),
        "el2n": pytest.approx([sum(distances) / 5], rel=1e-6),
        "forgetting": [1.0],  # of run 0 between members 0 and 1; run 1 goes from 4, wrong, to 3, right
        "low_confidence": pytest.approx([1 - sum(q) / 5], rel=1e-6),
        "variability": pytest.approx([np.std(q)], rel=1e-6),
        "prediction_variance": pytest.approx([np.var(q) + np.var(u)], rel=1e-6),
    }


def test_each_measure_of_sigmoids_by_hand():
    # Label of class 0. Member 0 is right, member 1 finds none of the classes the most probable, member 2 misses.
    detections = detections_of([0, 1], [BOX, [0, 0, 10, 8]], [[0.9, 0.6], [0.4, 0.1]], form="sigmoid")
    values = measured(detections, labels_of([BOX]), num_members=3, trajectories=[(0, 1, 2)])
    q, u = [0.9, 0.4, 0], [1, 0.8, 0]
    distances = [math.sqrt(0.1**2 + 0.6**2), math.sqrt(0.6**2 + 0.1**2), 1]
    assert {name: value.tolist() for name, value in values.items()} == {
        "error_count": pytest.approx([2 / 3]),
        "el2n": pytest.approx([sum(distances) / 3], rel=1e-6),
        "forgetting": [1.0],
        "low_confidence": pytest.approx([1 - 1.3 / 3], rel=1e-6),
        "variability": pytest.approx([np.std(q)], rel=1e-6),
        "prediction_variance": pytest.approx([np.var(q) + np.var(u)], rel=1e-6),
    }


@pytest.mark.parametrize(
    ("right", "runs", "events"),
    [
        ([1, 0, 1, 0, 1], [(0, 1, 2, 3, 4)], 2),
        ([1, 0, 1, 0, 1], [(0, 2, 4), (1, 3)], 0),
        ([1, 0, 1, 0, 1], [(1, 3), (4, 2, 0)], 0),
        ([1, 0, 1, 0, 1], [(4, 3), (2, 1)], 2),
        ([1, 1, 0, 0, 0], [(2, 1), (0,)], 0),  # learned, not forgotten
        ([1, 1, 0, 0, 0], [(1, 2), (0, 3, 4)], 2),  # a label that stays wrong is forgotten once
        ([1, 0, 1, 0, 1], [], 0),
    ],
)
def test_forgetting_goes_along_each_run_in_iteration_order(right, runs, events):
    probs = np.where(np.array(right)[:, None], [[1.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0, 0.0]])
    seen = detections_of(range(5), [BOX] * 5, probs)
    assert measured(seen, labels_of([BOX]), trajectories=runs)["forgetting"].tolist() == [events]
    missed = seen.take(np.array(right, bool))  # a miss is as wrong as another class
    assert measured(missed, labels_of([BOX]), trajectories=runs)["forgetting"].tolist() == [events]


def test_label_missed_by_all_members():
    detections = detections_of([0], [[50, 50, 60, 60]], [[1, 0, 0, 0]])
    values = measured(detections, labels_of([BOX, [50, 50, 60, 60]]))
    assert {name: value[0] for name, value in values.items()} == {
        "error_count": 1,
        "el2n": pytest.approx(math.sqrt(2)),
        "forgetting": 0,
        "low_confidence": 1,
        "variability": 0,
        "prediction_variance": 0,
    }
    sigmoids = detections_of([0], [[50, 50, 60, 60]], [[1, 0, 0]], form="sigmoid")
    assert measured(sigmoids, labels_of([BOX]))["el2n"].tolist() == [1.0]


def test_members_certain_of_the_label_give_0():
    for form, row in (("softmax", [0, 0, 1, 0]), ("sigmoid", [0, 0, 1])):
        detections = detections_of(range(5), [BOX] * 5, [row] * 5, form=form)
        for value in measured(detections, labels_of([BOX], [2])).values():
            assert value.tolist() == [0.0]


def test_most_confident_detection_of_a_member_counts():
    boxes = [[0, 0, 10, 9], BOX, [0, 0, 10, 8]]
    detections = detections_of([3, 3, 3], boxes, [[0.8, 0.2], [0.6, 0.4], [0.7, 0.3]], scores=[0.9, 0.6, 0.7])
    statistics = gather_label_statistics(detections, labels_of([BOX]), num_members=4)
    assert statistics.votes.tolist() == [[-1, -1, -1, 0]]
    assert statistics.iou.tolist() == [[0, 0, 0, pytest.approx(0.9)]]
    assert statistics.probability.tolist() == [[0, 0, 0, pytest.approx(0.8)]]


def test_detection_matches_nearest_label_of_any_class():
    labels = labels_of([[0, 0, 10, 10], [3, 0, 13, 10]], [1, 0])
    detections = detections_of([0, 1], [[1, 0, 11, 10], [2, 0, 12, 10]], [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]])
    statistics = gather_label_statistics(detections, labels, num_members=3)
    assert statistics.votes.tolist() == [[0, -1, -1], [-1, 1, -1]]
    assert statistics.is_right.tolist() == [[False] * 3] * 2


def test_iou_equal_to_threshold_matches():
    detections = detections_of([0], [[0, 0, 10, 5]], [[0.9, 0.1]])
    for iou_threshold, vote in ((0.5, 0), (0.51, -1)):
        statistics = gather_label_statistics(detections, labels_of([BOX]), num_members=1, iou_threshold=iou_threshold)
        assert statistics.votes.tolist() == [[vote]]


def test_crowd_regions_are_excluded():
    labels = labels_of([BOX, [0, 0, 20, 20], [30, 30, 40, 40]], [0, 1, 0], iscrowd=[True, False, False])
    detections = detections_of([0, 1], [BOX, [30, 30, 40, 40]], [[1, 0, 0], [1, 0, 0]])
    statistics = gather_label_statistics(detections, labels, num_members=4)
    # The detection on the crowd region has an IoU of 0.25 with the box around it, and matches nothing.
    assert statistics.votes.tolist() == [[-1, -1, -1, -1], [-1, 1, -1, -1]]
    assert statistics.mean_probs == pytest.approx(np.array([[0, 0, 1], [0.25, 0, 0.75]]))


def test_detection_on_another_image_does_not_match():
    labels = labels_of([BOX, BOX], [0, 1], image_ids=[8, 4])
    detections = detections_of([2, 0], [BOX, BOX], [[0.9, 0.05, 0.05], [0.8, 0.1, 0.1]], image_ids=[4, 6])
    statistics = gather_label_statistics(detections, labels, num_members=3)
    assert statistics.votes.tolist() == [[-1, -1, -1], [-1, -1, 0]]


def test_no_labels_and_no_detections_give_no_values():
    detections, labels = random_pool()
    nothing = labels.take(np.zeros(0, np.int64))
    assert all(value.shape == (0,) for value in measured(detections, nothing).values())
    unseen = measured(Detections.empty(3), labels)
    assert (unseen["error_count"] == 1).all() and len(unseen["error_count"]) == (~labels.iscrowd).sum()


# Oracle


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_definitions_in_plain_python(seed, iou_threshold, form):
    detections, labels = random_pool(seed, form)
    statistics = gather_label_statistics(
        detections, labels, num_members=5, iou_threshold=iou_threshold, trajectories=RUNS
    )
    objects = labels.take(~labels.iscrowd)
    votes, overlaps = match_slowly(detections, objects, 5, iou_threshold)
    assert statistics.votes.tolist() == votes.tolist()
    np.testing.assert_allclose(statistics.iou, overlaps, rtol=1e-9)
    assert (votes >= 0).any() and (votes < 0).any()
    for j, y in enumerate(objects.class_index):
        expected, mean = measure_label(detections, y, votes[j], overlaps[j], RUNS)
        np.testing.assert_allclose(statistics.mean_probs[j], mean, rtol=1e-6, atol=1e-7)
        got = {name: measure(statistics)[j] for name, measure in LABEL_MEASURES.items()}
        assert got == pytest.approx(expected, abs=1e-6)


# Properties


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_label_measures_ignore_order_and_numbering(form):
    detections, labels = random_pool(4, form)
    expected = measured(detections, labels)
    rng = np.random.default_rng(1)
    numbers = rng.permutation(5)
    columns = {name: getattr(detections, name) for name in Detections.__annotations__}
    renumbered = Detections(**{**columns, "member": numbers[detections.member].astype(np.int32)})
    shuffled, order = renumbered.take(rng.permutation(len(detections))), rng.permutation(len(labels))
    got = measured(shuffled, labels.take(order), trajectories=[tuple(numbers[list(run)]) for run in RUNS])
    kept = np.cumsum(~labels.iscrowd)[order[~labels.iscrowd[order]]] - 1  # the row that each had before
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values[kept], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_label_measures_stay_in_range(form):
    detections, labels = random_pool(5, form)
    tops = {"el2n": math.sqrt(2 if form == "softmax" else 3), "variability": 0.5, "prediction_variance": 0.5}
    for name, values in measured(detections, labels).items():
        assert np.isfinite(values).all() and (values >= 0).all()
        assert (values <= tops.get(name, 1.0 if name != "forgetting" else 3) + 1e-12).all()


def test_members_split_in_half_reach_maximum_deviation():
    values = measured(
        detections_of([0, 1], [BOX] * 2, [[1, 0, 0]] * 2), labels_of([BOX]), num_members=4, trajectories=()
    )
    assert values["variability"] == pytest.approx([0.5])
    assert values["prediction_variance"] == pytest.approx([0.5])


def test_rows_with_rounded_sum_are_renormalised():
    exact, short = np.array([[0.6, 0.3, 0.1]]), np.array([[0.6, 0.3, 0.1]]) * 0.9995
    values = [measured(detections_of([1], [BOX], rows), labels_of([BOX])) for rows in (exact, short)]
    for name in LABEL_MEASURES:
        np.testing.assert_allclose(values[0][name], values[1][name], rtol=1e-6)


# Messages


def test_member_beyond_ensemble_raises():
    detections, labels = random_pool()
    with pytest.raises(PredictionError, match=r"member .*\[0, 2\).*got [234], image_id \d+"):
        gather_label_statistics(detections, labels, num_members=2)


@pytest.mark.parametrize("iou_threshold", [0.0, 1.5, float("nan")])
def test_iou_threshold_out_of_range_raises(iou_threshold):
    with pytest.raises(PredictionError, match="iou_threshold .*got"):
        gather_label_statistics(Detections.empty(2), labels_of([BOX]), num_members=1, iou_threshold=iou_threshold)


def test_label_of_unknown_class_raises():
    with pytest.raises(PredictionError, match="2 classes .*class_index 4"):
        gather_label_statistics(Detections.empty(2), labels_of([BOX, BOX], [1, 4]), num_members=1)


@pytest.mark.parametrize("members", [(0, 5), (-1, 2)])
def test_trajectory_beyond_ensemble_raises(members):
    with pytest.raises(PredictionError, match=r"trajectories .*\[0, 5\)"):
        gather_label_statistics(Detections.empty(2), labels_of([BOX]), num_members=5, trajectories=[(1, 2), members])
