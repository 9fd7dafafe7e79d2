"""The label-error scores of 4 members and 3 classes on a few labels."""

import numpy as np
import pytest
from helpers.label_pools import detections_of, label_error_scores_of, labels_of, random_pool
from helpers.plain_scoring import correction, label_error

from detcurate.score.label_errors import LABEL_ERRORS, corrections
from detcurate.score.scoring import score_labelled_objects

CAR, TRUCK = [0.96, 0.02, 0.01, 0.01], [0.02, 0.96, 0.01, 0.01]
E = 4


def seen(*objects: tuple, members=range(E)):
    """Every member sees each (box, posterior) in the same way."""
    rows = [(e, box, probs) for box, probs in objects for e in members]
    return detections_of(*zip(*rows, strict=True))


def all_of(label_error_score):
    return (
        label_error_score.missing_label.tolist(),
        label_error_score.wrong_class.tolist(),
        label_error_score.inaccurate_box.tolist(),
    )


BOX = [100, 100, 140, 120]

# Arithmetic


def test_right_label_has_score_0():
    label_error_score, *_ = label_error_scores_of(seen((BOX, CAR)), labels_of([BOX]))
    assert all_of(label_error_score) == ([0], [0], [0])
    assert label_error_score.nearest_label.tolist() == [0]


def test_missing_label_by_hand():
    # Nothing labelled; a label that covers a quarter of the object; one that covers half of it.
    far, quarter, half = BOX, [200, 100, 240, 120], [300, 100, 340, 120]
    detections = seen((far, CAR), (quarter, CAR), (half, CAR), members=[0, 1, 3])  # a miss counts: 3/4 of 0.96
    labels = labels_of([[200, 100, 210, 120], [300, 100, 320, 120]])
    label_error_score, clusters, *_ = label_error_scores_of(detections, labels)
    order = np.argsort(clusters.boxes[:, 0])
    assert label_error_score.missing_label[order] == pytest.approx([0.72, 0.72 / 2, 0], rel=1e-6)
    assert label_error_score.nearest_label[order].tolist() == [-1, 0, 1]


def test_wrong_class_by_hand():
    # Three of four say truck, one misses: 0.72 for truck and 0.015 for car.
    label_error_score, *_ = label_error_scores_of(seen((BOX, TRUCK), members=[0, 1, 3]), labels_of([BOX], [0]))
    assert label_error_score.wrong_class == pytest.approx([0.75 * (0.96 - 0.02)], rel=1e-6)
    assert label_error_score.inaccurate_box.tolist() == [0] and label_error_score.missing_label.tolist() == [0]


def test_inaccurate_box_by_hand():
    # The members agree except one with a box half as wide; the label lies 10 px off.
    boxes = [BOX, BOX, BOX, [100, 100, 120, 120]]
    detections = detections_of(range(E), boxes, [CAR] * E)
    labels = labels_of([[110, 100, 150, 120]])
    label_error_score, clusters, *_ = label_error_scores_of(detections, labels)
    assert clusters.boxes.tolist() == [[100, 100, 135, 120]]
    agreement = (3 * 35 / 40 + 20 / 35) / 4
    assert label_error_score.inaccurate_box == pytest.approx([0.96 * (agreement - 25 / 50)], rel=1e-6)


def test_label_errors_of_sigmoids_by_hand():
    detections = detections_of([0, 1, 2], [BOX] * 3, [[0.1, 0.8]] * 3, form="sigmoid")
    label_error_score, *_ = label_error_scores_of(detections, labels_of([BOX], [0]))
    assert label_error_score.wrong_class == pytest.approx([0.75 * 0.7], rel=1e-6)
    label_error_score, *_ = label_error_scores_of(detections, labels_of([[300, 0, 320, 10]], [0]))
    assert label_error_score.missing_label == pytest.approx([0.75 * 0.8], rel=1e-6)


# What ObjectLab gets wrong, and the neighbours


@pytest.mark.parametrize("step", [1, 5, 9])
def test_missing_label_beside_touching_label_is_found(step):
    """ObjectLab leaves out every prediction that overlaps a label, by a pixel too, and has NaN where none is left."""
    parked = [140 - step, 100, 180 - step, 120]
    label_error_score, clusters, *_ = label_error_scores_of(seen((BOX, CAR), (parked, CAR)), labels_of([BOX]))
    assert len(clusters) == 2
    touching = label_error_score.missing_label[clusters.boxes[:, 0].argmax()]
    iou = step / (80 - step)
    assert touching == pytest.approx(0.96 * (1 - iou / 0.5), rel=1e-6) and touching > 0.6
    assert label_error_score.missing_label.min() == 0
    assert label_error_score.wrong_class.tolist() == label_error_score.inaccurate_box.tolist() == [0]


def test_labelled_neighbours_have_score_0():
    neighbour = [116, 100, 156, 120]  # an IoU of 0.43
    label_error_score, clusters, *_ = label_error_scores_of(
        seen((BOX, CAR), (neighbour, TRUCK)), labels_of([BOX, neighbour], [0, 1])
    )
    assert len(clusters) == 2
    assert all_of(label_error_score) == ([0, 0], [0, 0], [0, 0])


def test_unlabelled_neighbour_is_missing_label():
    neighbour = [130, 100, 170, 120]  # an IoU of 1/7
    for first, second in ((BOX, neighbour), (neighbour, BOX)):
        label_error_score, clusters, *_ = label_error_scores_of(seen((first, CAR), (second, CAR)), labels_of([first]))
        is_second = clusters.boxes[:, 0] == second[0]
        assert label_error_score.missing_label[is_second] == pytest.approx([0.96 * (1 - 2 / 7)], rel=1e-6)
        assert label_error_score.missing_label[~is_second].tolist() == [0]
        assert label_error_score.inaccurate_box.tolist() == [0]


def test_inaccurate_box_is_found_nearer_to_a_neighbour():
    """The consensus overlaps the neighbour's label by 0.29, its own by 0.14: no label explains it."""
    neighbour, own, shifted = BOX, [122, 100, 162, 120], [152, 100, 192, 120]
    labels = labels_of([neighbour, shifted])
    label_error_score, *_ = label_error_scores_of(seen((neighbour, CAR), (own, CAR)), labels)
    assert label_error_score.inaccurate_box == pytest.approx([0, 0.96 * (1 - 10 / 70)], rel=1e-6)
    # Once that neighbour is explained by its own label, it speaks for no other.
    labels = labels_of([neighbour, own, [158, 100, 198, 120]])
    label_error_score, *_ = label_error_scores_of(seen((neighbour, CAR), (own, CAR)), labels)
    assert label_error_score.inaccurate_box.tolist() == [0, 0, 0]


def test_small_overlap_is_not_inaccurate_box():
    lonely = [139, 100, 179, 120]
    label_error_score, *_ = label_error_scores_of(seen((BOX, CAR)), labels_of([lonely]))
    assert label_error_score.inaccurate_box.tolist() == [0]
    assert label_error_score.missing_label[0] > 0.9


# Hard objects


def test_difficult_objects_have_low_scores():
    """Missed by all; seen by one of four; seen by all with a class in dispute; with boxes that scatter."""
    missed, seen_once, disputed, scattered = BOX, [200, 0, 240, 20], [300, 0, 340, 20], [400, 0, 440, 40]
    wide = [[400, 0, 440, 40], [380, -12, 440, 40], [400, 0, 455, 55], [390, 5, 430, 50]]
    member = [1, 0, 1, 2, 3, 0, 1, 2, 3]
    detections = detections_of(
        member, [seen_once] + [disputed] * 4 + wide, [CAR] + [CAR, TRUCK, CAR, TRUCK] + [CAR] * 4
    )
    labels = labels_of([missed, seen_once, disputed, scattered])
    label_error_score, *_ = label_error_scores_of(detections, labels)
    assert label_error_score.wrong_class == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert label_error_score.inaccurate_box == pytest.approx([0, 0, 0, 0], abs=0.02)
    assert label_error_score.missing_label == pytest.approx(np.zeros(len(label_error_score.missing_label)), abs=0.03)


def test_object_of_one_member_has_low_missing_label():
    label_error_score, *_ = label_error_scores_of(seen((BOX, CAR), members=[2]), labels_of([[0, 0, 10, 10]]))
    assert label_error_score.missing_label == pytest.approx([0.24], rel=1e-6)


# Crowds


def test_clusters_in_crowd_region_are_not_missing_labels():
    inside, half_out, outside = [100, 100, 110, 110], [195, 100, 205, 110], [196, 150, 206, 160]
    labels = labels_of([[0, 0, 200, 200], [300, 300, 310, 310]], iscrowd=[True, False])
    label_error_score, clusters, *_ = label_error_scores_of(
        seen((inside, CAR), (half_out, CAR), (outside, CAR)), labels
    )
    missing_label = dict(zip(clusters.boxes[:, 0].tolist(), label_error_score.missing_label.tolist(), strict=True))
    assert missing_label == {100: 0, 195: 0, 196: pytest.approx(0.96)}
    assert label_error_score.nearest_label.tolist() == [-1, -1, -1]  # a crowd region is no label
    assert len(label_error_score.wrong_class) == len(label_error_score.inaccurate_box) == 1


def test_label_rows_exclude_crowd_regions():
    other, crowd = [300, 300, 340, 320], [0, 0, 50, 50]
    labels = labels_of([crowd, other, BOX], [2, 0, 0], iscrowd=[True, False, False])
    label_error_score, *_ = label_error_scores_of(seen((BOX, TRUCK)), labels)
    assert label_error_score.nearest_label.tolist() == [1]
    assert label_error_score.wrong_class == pytest.approx([0, 0.94], rel=1e-6)


# Direction


def test_label_errors_grow_with_agreeing_members():
    values = {"missing_label": [], "wrong_class": [], "inaccurate_box": []}
    shifted = [115, 100, 155, 120]
    for count in range(1, E + 1):
        label_error_score, *_ = label_error_scores_of(
            seen((BOX, TRUCK), members=range(count)), labels_of([shifted, [0, 0, 9, 9]])
        )
        values["inaccurate_box"].append(label_error_score.inaccurate_box[0])
        label_error_score, *_ = label_error_scores_of(seen((BOX, TRUCK), members=range(count)), labels_of([BOX]))
        values["wrong_class"].append(label_error_score.wrong_class[0])
        label_error_score, *_ = label_error_scores_of(
            seen((BOX, TRUCK), members=range(count)), labels_of([[0, 0, 9, 9]])
        )
        values["missing_label"].append(label_error_score.missing_label[0])
    for column in values.values():
        assert column[0] > 0 and (np.diff(column) > 0).all()


def test_label_errors_grow_with_distance_of_label():
    shifts = np.array([0, 4, 8, 16, 24, 34])
    found = [label_error_scores_of(seen((BOX, CAR)), labels_of([np.add(BOX, [s, 0, s, 0])]))[0] for s in shifts]
    assert (np.diff([label_error_score.inaccurate_box[0] for label_error_score in found]) > 0).all()
    missing_label = [label_error_score.missing_label[0] for label_error_score in found]
    assert missing_label[:3] == [0, 0, 0] and (np.diff(missing_label[2:]) > 0).all()


# Oracle and bounds on random pools


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("iou_threshold", [0.4, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_definitions_in_plain_python(seed, iou_threshold, form):
    detections, labels = random_pool(seed, form)
    got, clusters, statistics, predictions = label_error_scores_of(
        detections, labels, num_members=5, iou_threshold=iou_threshold, shuffle=seed
    )
    rows = [
        {"image_id": i, "box": box, "confidence": probs[:-1].max(), "agreement": agreement}
        for i, box, probs, agreement in zip(
            clusters.image_ids, clusters.boxes, statistics.mean_probs, statistics.mean_iou, strict=True
        )
    ]
    expected, nearest, own = label_error(rows, labels, predictions.mean_probs, iou_threshold)
    assert got.nearest_label.tolist() == nearest
    assert got.own_cluster.tolist() == own.tolist()
    for name, values in expected.items():
        column = getattr(got, name)
        np.testing.assert_allclose(column, values, rtol=1e-6, atol=1e-6)
        assert (column >= 0).all() and (column <= 1).all() and column.max() > 0.01


def test_no_labels_or_no_detections_give_empty_scores():
    detections, labels = random_pool()
    no_labels = labels.take(np.zeros(0, np.int64))
    label_error_score, _, statistics, _ = label_error_scores_of(detections, no_labels, num_members=5)
    assert label_error_score.missing_label.tolist() == statistics.mean_probs[:, :-1].max(axis=1).tolist()
    assert label_error_score.wrong_class.shape == label_error_score.inaccurate_box.shape == (0,)
    label_error_score, *_ = label_error_scores_of(detections.take(np.zeros(0, np.int64)), labels, num_members=5)
    assert label_error_score.missing_label.shape == (0,)
    assert not label_error_score.wrong_class.any() and not label_error_score.inaccurate_box.any()


def test_wrong_class_of_one_class_is_0():
    detections = detections_of(range(E), [BOX] * E, [[0.3, 0.7]] * E)
    label_error_score, *_ = label_error_scores_of(detections, labels_of([BOX]))
    assert label_error_score.wrong_class.tolist() == [0]


# Consensus and corrections


def scored(detections, labels, num_members=E, missing="background"):
    return score_labelled_objects(detections, labels, num_members=num_members, measures=["entropy"], missing=missing)


def test_consensus_by_hand_is_that_of_the_compared_cluster():
    lonely = [300, 0, 340, 20]
    detections = seen((BOX, TRUCK), members=[0, 1, 3])
    _, labels = scored(detections, labels_of([np.add(BOX, [4, 0, 4, 0]), lonely]))
    assert labels.consensus_boxes.tolist() == [BOX, lonely]  # without a cluster the label's own box
    assert labels.consensus_class.tolist() == [1, -1]
    assert labels.consensus_confidence == pytest.approx([0.72, 0], rel=1e-6)
    assert labels.consensus_votes.tolist() == [3, 0]


@pytest.mark.parametrize("missing", ["background", "ignore"])
def test_consensus_is_of_the_cluster_that_the_score_compares(missing):
    detections, labels = random_pool(5, num_members=5)
    got, clusters, statistics, _ = label_error_scores_of(detections, labels, num_members=5)
    scored_clusters, scored_labels = scored(detections, labels, 5, missing=missing)
    own = got.own_cluster
    assert (own >= 0).sum() > 5
    for row in np.flatnonzero(own >= 0):
        cluster = own[row]
        assert scored_labels.consensus_boxes[row].tolist() == clusters.boxes[cluster].tolist()
        assert scored_labels.consensus_confidence[row] == scored_clusters.confidence[cluster]
        votes = (scored_clusters.votes[cluster] == scored_clusters.class_index[cluster]).sum()
        assert scored_labels.consensus_votes[row] == votes
        assert scored_labels.consensus_class[row] == statistics.mean_probs[cluster, :-1].argmax()


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("seed", range(4))
def test_corrections_equal_the_definitions_in_plain_python(seed, form):
    num_classes = 2 + seed
    detections, labels = random_pool(seed, form, num_members=5, num_classes=num_classes)
    clusters, labelled = scored(detections, labels, 5)
    for objects, kinds in ((clusters, LABEL_ERRORS[:1]), (labelled, LABEL_ERRORS[1:])):
        for kind in kinds:
            got = corrections(objects, np.full(len(objects), LABEL_ERRORS.index(kind)), num_classes=num_classes)
            for row in range(len(objects)):
                if kind == "missing_label" or objects.consensus_class[row] >= 0 or kind == "wrong_class":
                    box, class_index, score, votes = correction(kind, row, objects, num_classes)
                    assert got.boxes[row].tolist() == box.tolist()
                    assert (got.class_index[row], got.num_votes[row]) == (class_index, votes)
                    assert got.score[row] == pytest.approx(score)


def test_corrections_without_a_vote_for_another_class_have_no_class():
    _, labels = scored(seen((BOX, CAR)), labels_of([BOX]))
    got = corrections(labels, np.array([LABEL_ERRORS.index("wrong_class")]), num_classes=3)
    assert (got.class_index.tolist(), got.num_votes.tolist(), got.score.tolist()) == ([-1], [0], [0])
