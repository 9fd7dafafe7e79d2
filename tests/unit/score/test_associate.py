import numpy as np
import pytest
from helpers.plain_scoring import associate_slowly
from scipy.optimize import linear_sum_assignment

from detcurate.coco.dataset import read_coco
from detcurate.errors import ConfigError, PredictionError
from detcurate.score.associate import ASSOCIATIONS, associate
from detcurate.score.kernels.association import assign
from detcurate.structures import Detections
from detcurate.structures.boxes import box_iou
from detcurate.synthetic import SyntheticConfig, write_dataset

METHODS = tuple(ASSOCIATIONS)


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


def test_associate_scene_by_hand():
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


def test_second_detection_of_a_member_on_an_object_is_dropped():
    scene = detections_of(
        [1] * 3, [0, 0, 1], [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10]], [0.9, 0.8, 0.7], class_index=[0, 2, 0]
    )
    clusters = associate(scene, num_members=2)
    assert clusters.votes.tolist() == [[0, 2]]
    assert clusters.boxes.tolist() == [[0, 0, 10, 10]]  # the absorbed box has no part in the mean


def test_second_detection_of_a_member_elsewhere_is_another_object():
    scene = detections_of([1] * 2, [0, 0], [[0, 0, 10, 10], [0, 8, 10, 18]], [0.9, 0.8])
    assert associate(scene, num_members=3).votes.tolist() == [[0, -1, -1], [1, -1, -1]]


def test_iou_equal_to_threshold_joins():
    scene = detections_of([1] * 2, [0, 1], [[0, 0, 10, 10], [0, 0, 10, 5]], [0.9, 0.8])  # an IoU of exactly 0.5
    assert len(associate(scene, num_members=2, iou_threshold=0.5)) == 1
    assert len(associate(scene, num_members=2, iou_threshold=0.51)) == 2


def test_sequential_compares_with_running_mean_box():
    # Heights 10 and 7 give a mean of 8.5; a height of 4.5 has IoU 0.45 with the first box, 0.53 with the mean.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 4.5]]
    assert len(associate(detections_of([1] * 3, [0, 1, 2], boxes, [0.9, 0.8, 0.7]), num_members=3)) == 1
    assert len(associate(detections_of([1] * 3, [0, 1, 2], boxes, [0.9, 0.7, 0.8]), num_members=3)) == 2


def test_equal_boxes_on_two_images_are_two_objects():
    scene = detections_of([1, 2], [0, 1], [[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8])
    assert associate(scene, num_members=2).votes.tolist() == [[0, -1], [-1, 1]]


@pytest.mark.parametrize("method", METHODS)
def test_per_class_keeps_classes_apart(method):
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [0, 0, 10, 10]]
    scene = detections_of([1] * 4, [0, 0, 1, 2], boxes, [0.9, 0.8, 0.7, 0.6], class_index=[0, 2, 2, 0])
    together = associate(scene, num_members=3, method=method)
    assert together.votes.tolist() == [[0, 2, 3]]  # the second box of member 0 is absorbed
    apart = associate(scene, num_members=3, method=method, per_class=True)
    assert sorted(apart.votes.tolist()) == [[0, -1, 3], [1, 2, -1]]


@pytest.mark.parametrize("method", METHODS)
def test_per_class_has_clusters_of_one_class(method):
    scene = crowd(7)
    clusters = associate(scene, num_members=5, method=method, per_class=True)
    assert clusters.num_fired.max() > 1
    for votes in clusters.votes:
        assert len(set(scene.class_index[votes[votes >= 0]].tolist())) == 1


def test_sequential_per_class_is_each_class_by_itself():
    """Not so optimal: which member comes first is decided by its best detection of any class."""
    scene = crowd(7)
    apart = associate(scene, num_members=5, iou_threshold=0.4, per_class=True)
    expected = []
    for kind in range(3):
        rows = np.flatnonzero(scene.class_index == kind)
        alone = associate(scene.take(rows), num_members=5, iou_threshold=0.4)
        expected += np.where(alone.votes >= 0, rows[alone.votes], -1).tolist()
    assert sorted(apart.votes.tolist()) == sorted(expected)


def test_optimal_resolves_conflict_that_sequential_does_not():
    # Member 0 sees two objects; of member 1 the better box overlaps both, and more the one that its other box needs.
    boxes = [[0, 0, 10, 10], [0, 5, 10, 15], [0, 2, 10, 12], [0, -2, 10, 8]]
    scene = detections_of([1] * 4, [0, 0, 1, 1], boxes, [0.99, 0.98, 0.9, 0.8])
    clusters = associate(scene, num_members=2, iou_threshold=0.5, method="optimal")
    assert sorted(clusters.votes.tolist()) == [[0, 3], [1, 2]]
    greedy = associate(scene, num_members=2, iou_threshold=0.5)
    assert sorted(greedy.votes.tolist()) == [[0, 2], [1, -1]]


def test_optimal_drops_duplicates_of_a_member():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [30, 0, 40, 10], [0, 0, 10, 10]]
    scene = detections_of([1] * 4, [0, 0, 0, 1], boxes, [0.9, 0.8, 0.7, 0.6])
    assert associate(scene, num_members=2, method="optimal").votes.tolist() == [[0, 3], [2, -1]]


# Crowded scenes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(5))
def test_neighbouring_objects_stay_separate(method, seed):
    """An IoU of 0.45 between them, six members with boxes that differ by a pixel or two."""
    step = 100 * (1 - 0.45) / (1 + 0.45)
    cars = np.array([[50, 50, 150, 100], [50 + step, 50, 150 + step, 100]])
    rng = np.random.default_rng(seed)
    boxes = (cars + rng.uniform(-1.5, 1.5, (6, 2, 4))).reshape(-1, 4)
    scene = detections_of([8] * 12, np.repeat(np.arange(6), 2), boxes, rng.uniform(0.3, 1, 12))
    clusters = associate(scene, num_members=6, iou_threshold=0.5, method=method)
    assert sorted(clusters.votes.tolist()) == [list(range(0, 12, 2)), list(range(1, 12, 2))]


@pytest.mark.parametrize("method", METHODS)
def test_scattered_boxes_of_one_object_stay_one(method):
    """Widths of 74 to 135 % about the middle one: those at the ends have an IoU of 0.55 with each other."""
    widths = np.array([100, 74, 135, 80, 125, 90, 110]) * 1.0
    boxes = np.column_stack((np.zeros(7), np.zeros(7), widths, np.full(7, 40.0)))
    assert box_iou(boxes, boxes).min() == pytest.approx(0.55, abs=0.005)
    for seed in range(10):
        scores = np.random.default_rng(seed).permutation(7) / 10 + 0.3
        clusters = associate(detections_of([8] * 7, range(7), boxes, scores), num_members=7, method=method)
        assert clusters.num_fired.tolist() == [7]


# Measured on rendered scenes with known objects


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The images and boxes of 60 scenes, 8.6 boxes on each that has any."""
    folder = tmp_path_factory.mktemp("rendered")
    write_dataset(folder, SyntheticConfig.clean(num_images=60, width=256, height=160, seed=3))
    dataset = read_coco(folder / "train.json")
    return dataset.image_index, dataset.boxes


def laid_over_each_other(image_index, boxes, depth=6):
    """The objects of 6 scenes in one, but for those that cover half of another one: 32 boxes an image."""
    crowded = image_index // depth
    kept = []
    for row, image in enumerate(crowded):
        here = [other for other in kept if crowded[other] == image]
        if not here or box_iou(boxes[row], boxes[here]).max() < 0.5:
            kept.append(row)
    return crowded[kept], boxes[kept]


def seen_by_members(image_index, boxes, jitter, num_members=8, dropped=0.2, seed=0):
    """Each member's boxes of the objects, moved and stretched by a share of their size, and the object of each."""
    rng = np.random.default_rng(seed)
    objects, member = np.nonzero(rng.random((len(boxes), num_members)) >= dropped)
    sides = boxes[objects, 2:] - boxes[objects, :2]
    middle = (boxes[objects, 2:] + boxes[objects, :2]) / 2 + rng.normal(0, jitter, sides.shape) * sides
    half = sides * np.exp(rng.normal(0, jitter, sides.shape)) / 2
    seen = np.concatenate((middle - half, middle + half), axis=1)
    return detections_of(image_index[objects], member, seen, rng.uniform(0.05, 1, len(objects))), objects


def pairwise(clusters, objects):
    """Precision and recall of the pairs of detections in one cluster against those of one object."""
    cluster_of = np.full(len(objects), -1)
    g, e = np.nonzero(clusters.votes >= 0)
    cluster_of[clusters.votes[g, e]] = g

    def num_pairs(groups):
        _, counts = np.unique(groups, axis=-1, return_counts=True)
        return (counts * (counts - 1) // 2).sum()

    kept = cluster_of >= 0
    both = num_pairs(np.stack((cluster_of[kept], objects[kept])))
    return both / num_pairs(cluster_of[kept]), both / num_pairs(objects)


# Scenes and jitter, and the least precision and recall of sequential and of optimal: the lowest of 5 seeds, less 0.01.
MEASURED = {
    ("rendered", 0.02): ((0.99, 0.99), (0.99, 0.99)),
    ("rendered", 0.05): ((0.99, 0.988), (0.99, 0.988)),
    ("rendered", 0.1): ((0.987, 0.819), (0.989, 0.824)),
    ("rendered", 0.2): ((0.974, 0.249), (0.971, 0.247)),
    ("crowded", 0.02): ((0.972, 0.955), (0.985, 0.964)),
    ("crowded", 0.05): ((0.969, 0.949), (0.982, 0.941)),
    ("crowded", 0.1): ((0.948, 0.756), (0.963, 0.765)),
    ("crowded", 0.2): ((0.812, 0.228), (0.84, 0.225)),
}


@pytest.mark.parametrize(("scenes", "jitter"), MEASURED)
@pytest.mark.parametrize("method", METHODS)
def test_objects_of_rendered_scenes_are_found(rendered, scenes, jitter, method):
    objects = rendered if scenes == "rendered" else laid_over_each_other(*rendered)
    scene, object_of = seen_by_members(*objects, jitter)
    precision, recall = pairwise(associate(scene, num_members=8, method=method), object_of)
    least_precision, least_recall = MEASURED[scenes, jitter][METHODS.index(method)]
    assert precision >= least_precision
    assert recall >= least_recall


def test_optimal_merges_fewer_objects_of_crowded_scenes(rendered):
    scene, object_of = seen_by_members(*laid_over_each_other(*rendered), jitter=0.05)
    greedy, optimal = (pairwise(associate(scene, num_members=8, method=method), object_of)[0] for method in METHODS)
    assert optimal > greedy + 0.003


# Oracles


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_sequential_equals_definition_in_plain_python(seed, iou_threshold, coarse):
    scene = crowd(seed, coarse=coarse)
    clusters = associate(scene, num_members=5, iou_threshold=iou_threshold)
    image_ids, votes, boxes = associate_slowly(scene, 5, iou_threshold)
    assert clusters.image_ids.tolist() == image_ids
    assert clusters.votes.tolist() == votes
    np.testing.assert_allclose(clusters.boxes, boxes, rtol=1e-6)


def test_optimal_equals_hungarian_assignment_of_distant_objects():
    rng = np.random.default_rng(0)
    objects = np.array([[100 * x, 90 * y, 100 * x + 60, 90 * y + 50] for x in range(4) for y in range(3)], float)
    jitter = rng.normal(0, 2, (2, len(objects), 4))
    boxes = (objects + jitter)[np.arange(2)[:, None], np.stack([rng.permutation(len(objects)) for _ in range(2)])]
    scene = detections_of(np.full(24, 6), np.repeat([0, 1], 12), boxes.reshape(-1, 4), rng.uniform(0.1, 1, 24))
    first, second = linear_sum_assignment(box_iou(boxes[0], boxes[1]), maximize=True)
    votes = associate(scene, num_members=2).votes
    assert sorted(votes.tolist()) == sorted([a, 12 + b] for a, b in zip(first.tolist(), second.tolist(), strict=True))


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0), (1, 1), (3, 7), (7, 3), (5, 5), (12, 9)])
@pytest.mark.parametrize("zeros", [0.0, 0.4, 0.9, 1.0])
def test_assign_equals_scipy(shape, zeros):
    """Compared as sums, of all but the zeros: equal sums can have several assignments."""
    rng = np.random.default_rng([*shape, int(10 * zeros)])
    for coarse in (False, True):
        values = rng.random(shape) * (rng.random(shape) >= zeros)
        values = np.ceil(values * 3) / 3 if coarse else values
        assigned = assign(values)
        rows = np.flatnonzero(assigned >= 0)
        assert assigned.dtype == np.int64 and assigned.shape == (shape[0],)
        assert len(set(assigned[rows].tolist())) == len(rows)
        assert (values[rows, assigned[rows]] > 0).all()
        first, second = linear_sum_assignment(values, maximize=True)
        assert values[rows, assigned[rows]].sum() == pytest.approx(values[first, second].sum(), abs=1e-12)
        if not coarse:
            kept = values[first, second] > 0
            assert rows.tolist() == first[kept].tolist() and assigned[rows].tolist() == second[kept].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_optimal_of_two_members_equals_scipy(seed):
    """The first member opens a cluster a box, the other is assigned to them: to the greatest sum of IoUs."""
    scene = crowd(seed, num_images=1, num_members=2, per_member=6)
    own = [np.flatnonzero(scene.member == e) for e in (0, 1)]
    apart = [rows[(np.tril(box_iou(scene.boxes[rows], scene.boxes[rows]), -1) < 0.3).all(axis=1)] for rows in own]
    scene = scene.take(np.concatenate(apart))  # without what a better box of the same member would absorb
    own = [np.flatnonzero(scene.member == e) for e in (0, 1)]
    own = [rows[(box_iou(scene.boxes[rows], scene.boxes[rows]) < 0.3).sum(axis=1) == len(rows) - 1] for rows in own]
    scene = scene.take(np.concatenate(own))
    votes = associate(scene, num_members=2, iou_threshold=0.3, method="optimal").votes
    overlaps = box_iou(scene.boxes[scene.member == 0], scene.boxes[scene.member == 1])
    overlaps = np.where(overlaps >= 0.3, overlaps, 0.0)
    first, second = linear_sum_assignment(overlaps, maximize=True)
    pairs = votes[(votes >= 0).all(axis=1)] - [0, len(overlaps)]
    assert overlaps[pairs[:, 0], pairs[:, 1]].sum() == pytest.approx(overlaps[first, second].sum())


# Properties


@pytest.mark.parametrize("method", METHODS)
def test_identical_members_give_one_cluster_per_object(method):
    boxes = np.array([[0, 0, 10, 10], [30.3, 0, 47.7, 10.1]], np.float32)
    scene = detections_of([9] * 6, [0, 0, 1, 1, 2, 2], np.tile(boxes, (3, 1)), [0.9, 0.8] * 3)
    clusters = associate(scene, num_members=3, iou_threshold=1.0, method=method)
    assert clusters.num_fired.tolist() == [3, 3]
    assert clusters.boxes.tolist() == boxes.tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("coarse", [False, True])
def test_result_ignores_order_of_rows(coarse, per_class, method):
    scene = crowd(11, coarse=coarse)
    options = {"num_members": 5, "per_class": per_class, "method": method}
    expected = associate(scene, **options)
    shuffle = np.random.default_rng(1).permutation(len(scene))
    shuffled = associate(scene.take(shuffle), **options)
    assert shuffled.image_ids.tolist() == expected.image_ids.tolist()
    assert shuffled.boxes.tobytes() == expected.boxes.tobytes()
    rows = np.where(shuffled.votes >= 0, shuffle[shuffled.votes], -1)
    if not coarse:
        assert rows.tolist() == expected.votes.tolist()
    assert objects_as_content(shuffled, scene.take(shuffle)) == objects_as_content(expected, scene)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_associate_ignores_numbering_of_members(seed, coarse, per_class, method):
    scene = crowd(seed, coarse=coarse)
    numbers = np.random.default_rng(seed).permutation(5)
    columns = {name: getattr(scene, name) for name in Detections.__annotations__}
    renumbered = Detections(**{**columns, "member": numbers[scene.member].astype(np.int32)})
    options = {"num_members": 5, "per_class": per_class, "method": method}
    expected, got = associate(scene, **options), associate(renumbered, **options)
    assert got.boxes.tobytes() == expected.boxes.tobytes()
    assert got.votes[:, numbers].tolist() == expected.votes.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_images_are_associated_independently(method):
    scene = crowd(2)
    rows = np.flatnonzero(scene.image_ids == 13)
    alone, among = (associate(part, num_members=5, method=method) for part in (scene.take(rows), scene))
    here = among.image_ids == 13
    assert np.where(alone.votes >= 0, rows[alone.votes], -1).tolist() == among.votes[here].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_no_detections_give_no_clusters(method):
    clusters = associate(Detections.empty(3), num_members=7, method=method)
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


def test_member_beyond_ensemble_raises():
    scene = detections_of([12], [5], [[0, 0, 1, 1]], [0.5])
    with pytest.raises(PredictionError, match=r"member .*\[0, 3\).*got 5, image_id 12"):
        associate(scene, num_members=3)


@pytest.mark.parametrize("iou_threshold", [0.0, 1.5, -1.0, float("nan")])
def test_iou_threshold_out_of_range_raises(iou_threshold):
    with pytest.raises(PredictionError, match="iou_threshold .*got"):
        associate(Detections.empty(2), num_members=1, iou_threshold=iou_threshold)


def test_ensemble_without_members_raises():
    with pytest.raises(PredictionError, match="num_members .*got 0"):
        associate(Detections.empty(2), num_members=0)


def test_unknown_association_raises_with_known_names():
    with pytest.raises(ConfigError, match="CURATE.SCORE.ASSOCIATION .*sequential, optimal.*got 'hungarian'"):
        associate(Detections.empty(2), num_members=1, method="hungarian")
