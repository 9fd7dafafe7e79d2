import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from detcurate.boxes import box_iou
from detcurate.errors import PredictionError
from detcurate.score.associate import associate
from detcurate.structures import Detections


def detections_of(image_ids, member, boxes, scores, class_index=None, num_classes=3):
    n = len(image_ids)
    class_index = np.zeros(n, np.int32) if class_index is None else np.asarray(class_index, np.int32)
    class_probs = np.full((n, num_classes + 1), 0.1 / num_classes, np.float32)
    class_probs[np.arange(n), class_index] = 0.9
    return Detections(
        image_ids=np.asarray(image_ids, np.int64),
        member=np.asarray(member, np.int32),
        boxes=np.asarray(boxes, np.float32).reshape(n, 4),
        scores=np.asarray(scores, np.float32),
        class_index=class_index,
        class_probs=class_probs,
    )


def crowd(seed, num_images=4, num_members=5, per_member=7, coarse=False):
    """Crowded scenes on a small canvas; coarse ones have many equal scores, boxes and classes."""
    rng = np.random.default_rng(seed)
    n = num_images * num_members * per_member
    corner, size = rng.uniform(0, 30, (n, 2)), rng.uniform(8, 40, (n, 2))
    scores = rng.uniform(0.05, 1, n)
    if coarse:
        corner, size, scores = corner // 15 * 15, size // 20 * 20 + 20, np.ceil(scores * 3) / 3
    image_ids = rng.permutation(np.repeat(np.arange(num_images) * 10 + 3, num_members * per_member))
    boxes, member = np.concatenate((corner, corner + size), axis=1), rng.integers(0, num_members, n)
    return detections_of(image_ids, member, boxes, scores, rng.integers(0, 3, n))


def associate_slowly(detections, num_members, iou_threshold):
    """The definition, read aloud: lists and loops, one image after the other."""
    clusters = []
    for image_id in np.unique(detections.image_ids):
        here = []
        rows = np.flatnonzero(detections.image_ids == image_id)

        def key(row):
            box, probs = tuple(detections.boxes[row]), tuple(detections.class_probs[row])
            return (-detections.scores[row], box, detections.class_index[row], probs, detections.member[row])

        for row in sorted(rows, key=key):
            overlaps = [box_iou(detections.boxes[row], np.mean(c["boxes"], axis=0))[0, 0] for c in here]
            if not overlaps or max(overlaps) < iou_threshold:
                here.append({"image_id": image_id, "boxes": [], "votes": {}})
                target = here[-1]
            else:
                target = here[int(np.argmax(overlaps))]
                if detections.member[row] in target["votes"]:
                    continue
            target["boxes"].append(detections.boxes[row].astype(np.float64))
            target["votes"][int(detections.member[row])] = row
        clusters += here
    votes = [[c["votes"].get(e, -1) for e in range(num_members)] for c in clusters]
    return [c["image_id"] for c in clusters], votes, [np.mean(c["boxes"], axis=0) for c in clusters]


def objects_as_content(clusters, detections):
    """Each cluster as image, box, and the content of its votes without their member: what scoring can see."""
    return sorted(
        (
            int(image_id),
            tuple(box.tolist()),
            tuple(
                sorted(
                    (*detections.boxes[row].tolist(), *detections.class_probs[row].tolist())
                    for row in votes[votes >= 0]
                )
            ),
        )
        for image_id, box, votes in zip(clusters.image_ids, clusters.boxes, clusters.votes, strict=True)
    )


# Arithmetic


def test_a_hand_made_scene():
    # Image 4: members 0 and 2 agree on one object, member 1 misses it and alone sees another one.
    # Image 2 comes later in the rows, earlier in the clusters.
    scene = detections_of(
        image_ids=[4, 4, 2, 4],
        member=[0, 1, 3, 2],
        boxes=[[0, 0, 10, 10], [40, 40, 50, 60], [5, 5, 9, 9], [0, 0, 10, 6]],
        scores=[0.9, 0.5, 0.3, 0.8],
    )
    clusters = associate(scene, num_members=5, iou_threshold=0.5)
    assert clusters.image_ids.tolist() == [2, 4, 4]
    assert clusters.votes.tolist() == [[-1, -1, -1, 2, -1], [0, -1, 3, -1, -1], [-1, 1, -1, -1, -1]]
    assert clusters.boxes.tolist() == [[5, 5, 9, 9], [0, 0, 10, 8], [40, 40, 50, 60]]
    assert clusters.num_fired.tolist() == [1, 2, 1]
    assert clusters.image_ids.dtype == np.int64 and clusters.votes.dtype == np.int64
    assert clusters.boxes.dtype == np.float32


def test_a_second_class_of_the_same_member_on_the_same_object_is_absorbed():
    scene = detections_of(
        [1] * 3, [0, 0, 1], [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10]], [0.9, 0.8, 0.7], class_index=[0, 2, 0]
    )
    clusters = associate(scene, num_members=2)
    assert clusters.votes.tolist() == [[0, 2]]
    assert clusters.boxes.tolist() == [[0, 0, 10, 10]]  # the absorbed box has no part in the mean


def test_a_second_box_of_the_same_member_elsewhere_is_another_object():
    scene = detections_of([1] * 2, [0, 0], [[0, 0, 10, 10], [0, 8, 10, 18]], [0.9, 0.8])
    assert associate(scene, num_members=3).votes.tolist() == [[0, -1, -1], [1, -1, -1]]


def test_the_threshold_itself_joins():
    scene = detections_of([1] * 2, [0, 1], [[0, 0, 10, 10], [0, 0, 10, 5]], [0.9, 0.8])  # an IoU of exactly 0.5
    assert len(associate(scene, num_members=2, iou_threshold=0.5)) == 1
    assert len(associate(scene, num_members=2, iou_threshold=0.51)) == 2


def test_the_mean_box_runs():
    # Heights 10 and 7 give a mean of 8.5; a height of 4.5 has IoU 0.45 with the first box, 0.53 with the mean.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 4.5]]
    assert len(associate(detections_of([1] * 3, [0, 1, 2], boxes, [0.9, 0.8, 0.7]), num_members=3)) == 1
    assert len(associate(detections_of([1] * 3, [0, 1, 2], boxes, [0.9, 0.7, 0.8]), num_members=3)) == 2


def test_the_same_boxes_on_two_images_are_two_objects():
    scene = detections_of([1, 2], [0, 1], [[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8])
    assert associate(scene, num_members=2).votes.tolist() == [[0, -1], [-1, 1]]


# Oracles


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_against_the_definition_in_plain_python(seed, iou_threshold, coarse):
    scene = crowd(seed, coarse=coarse)
    clusters = associate(scene, num_members=5, iou_threshold=iou_threshold)
    image_ids, votes, boxes = associate_slowly(scene, 5, iou_threshold)
    assert clusters.image_ids.tolist() == image_ids
    assert clusters.votes.tolist() == votes
    np.testing.assert_allclose(clusters.boxes, boxes, rtol=1e-6)


def test_against_the_hungarian_assignment_where_objects_are_apart():
    rng = np.random.default_rng(0)
    objects = np.array([[100 * x, 90 * y, 100 * x + 60, 90 * y + 50] for x in range(4) for y in range(3)], float)
    jitter = rng.normal(0, 2, (2, len(objects), 4))
    boxes = (objects + jitter)[np.arange(2)[:, None], np.stack([rng.permutation(len(objects)) for _ in range(2)])]
    scene = detections_of(np.full(24, 6), np.repeat([0, 1], 12), boxes.reshape(-1, 4), rng.uniform(0.1, 1, 24))
    first, second = linear_sum_assignment(box_iou(boxes[0], boxes[1]), maximize=True)
    votes = associate(scene, num_members=2).votes
    assert sorted(votes.tolist()) == sorted([a, 12 + b] for a, b in zip(first.tolist(), second.tolist(), strict=True))


# Properties


def test_identical_members_give_one_cluster_an_object_without_a_miss():
    boxes = np.array([[0, 0, 10, 10], [30.3, 0, 47.7, 10.1]], np.float32)
    scene = detections_of([9] * 6, [0, 0, 1, 1, 2, 2], np.tile(boxes, (3, 1)), [0.9, 0.8] * 3)
    clusters = associate(scene, num_members=3, iou_threshold=1.0)
    assert clusters.num_fired.tolist() == [3, 3]
    assert clusters.boxes.tolist() == boxes.tolist()


@pytest.mark.parametrize("coarse", [False, True])
def test_the_order_of_rows_does_not_matter(coarse):
    scene = crowd(11, coarse=coarse)
    expected = associate(scene, num_members=5)
    shuffle = np.random.default_rng(1).permutation(len(scene))
    shuffled = associate(scene.take(shuffle), num_members=5)
    assert shuffled.image_ids.tolist() == expected.image_ids.tolist()
    assert shuffled.boxes.tobytes() == expected.boxes.tobytes()
    rows = np.where(shuffled.votes >= 0, shuffle[shuffled.votes], -1)
    if not coarse:
        assert rows.tolist() == expected.votes.tolist()
    assert objects_as_content(shuffled, scene.take(shuffle)) == objects_as_content(expected, scene)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_numbering_of_members_does_not_matter(seed, coarse):
    scene = crowd(seed, coarse=coarse)
    numbers = np.random.default_rng(seed).permutation(5)
    columns = {name: getattr(scene, name) for name in Detections.__annotations__}
    renumbered = Detections(**{**columns, "member": numbers[scene.member].astype(np.int32)})
    expected, got = associate(scene, num_members=5), associate(renumbered, num_members=5)
    assert got.boxes.tobytes() == expected.boxes.tobytes()
    assert got.votes[:, numbers].tolist() == expected.votes.tolist()


def test_an_image_is_associated_the_same_alone_and_among_others():
    scene = crowd(2)
    rows = np.flatnonzero(scene.image_ids == 13)
    alone, among = associate(scene.take(rows), num_members=5), associate(scene, num_members=5)
    here = among.image_ids == 13
    assert np.where(alone.votes >= 0, rows[alone.votes], -1).tolist() == among.votes[here].tolist()


def test_no_detection_gives_no_cluster():
    clusters = associate(Detections.empty(3), num_members=7)
    assert len(clusters) == 0
    assert clusters.votes.shape == (0, 7)
    assert clusters.boxes.shape == (0, 4)


def test_read_only_columns_are_accepted():
    scene = crowd(0)
    for column in vars(scene).values():
        if isinstance(column, np.ndarray):
            column.flags.writeable = False
    assert len(associate(scene, num_members=5)) > 0


# Messages


def test_a_member_beyond_the_ensemble_is_named():
    scene = detections_of([12], [5], [[0, 0, 1, 1]], [0.5])
    with pytest.raises(PredictionError, match=r"member must be in \[0, 3\), got 5 \(image_id 12\); pass the size"):
        associate(scene, num_members=3)


@pytest.mark.parametrize("iou_threshold", [0.0, 1.5, -1.0, float("nan")])
def test_a_threshold_out_of_range_is_named(iou_threshold):
    with pytest.raises(PredictionError, match=r"iou_threshold must be in \(0, 1\], got"):
        associate(Detections.empty(2), num_members=1, iou_threshold=iou_threshold)


def test_an_ensemble_of_none_is_refused():
    with pytest.raises(PredictionError, match="num_members must be at least 1, got 0"):
        associate(Detections.empty(2), num_members=0)
