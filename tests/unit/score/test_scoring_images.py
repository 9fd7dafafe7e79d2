import math

import numpy as np
import pytest

from detcurate.errors import ConfigError, PredictionError, SelectionError
from detcurate.score.aggregate import AGGREGATIONS, WEIGHTED
from detcurate.score.measures import LABEL_MEASURES, MEASURES, SINGLE_MEMBER_MEASURES
from detcurate.score.scoring import (
    WITHOUT_OBJECTS,
    combine_images,
    image_components,
    score_box_correlation,
    score_images,
    score_labelled_objects,
    score_objects,
)
from detcurate.structures import Detections, ImageScores, Labels, ObjectScores

ALL = tuple(MEASURES)


def scene(seed=0, num_images=9, num_members=4, per_image=6, num_classes=2):
    """Objects apart from each other, each seen by most members with some noise; ids 10, 20, …, and 30 is empty."""
    rng = np.random.default_rng(seed)
    image, item, member = (a.ravel() for a in np.indices((num_images, per_image, num_members)))
    seen = (rng.random(len(image)) < 0.8) & (image != 2) & (item <= image % per_image)
    image, item, member = image[seen], item[seen], member[seen]
    corner = np.stack((item * 60.0, image * 5.0), axis=1) + rng.normal(0, 2, (len(item), 2))
    class_probs = rng.dirichlet(np.ones(num_classes + 1), len(item)).astype(np.float32)
    return Detections(
        image_ids=image * 10 + 10,
        member=member.astype(np.int32),
        boxes=np.concatenate((corner, corner + 40), axis=1).astype(np.float32),
        scores=class_probs[:, :-1].max(axis=1),
        class_index=class_probs[:, :-1].argmax(axis=1).astype(np.int32),
        class_probs=class_probs,
    )


POOL = np.arange(10, 91, 10)


def same_objects(first, second):
    names = ("image_ids", "boxes", "num_fired", "class_index", "confidence")
    return all(getattr(first, name).tobytes() == getattr(second, name).tobytes() for name in names) and all(
        first.measures[name].tobytes() == second.measures[name].tobytes() for name in first.measures
    )


# Arithmetic


def test_score_one_object_by_hand():
    # Members 0 and 2 of five see it, as class 1 and as class 2; the others predict background.
    detections = Detections(
        image_ids=np.array([7, 7]),
        member=np.array([0, 2]),
        boxes=np.array([[0.0, 0.0, 8.0, 10.0], [0.0, 0.0, 12.0, 10.0]], np.float32),
        scores=np.array([0.9, 0.8], np.float32),
        class_index=np.array([1, 2]),
        class_probs=np.array([[0, 1, 0, 0], [0, 0.25, 0.75, 0]], np.float32),
    )
    objects = score_objects(detections, num_members=5, measures=ALL)
    assert objects.image_ids.tolist() == [7]
    assert objects.boxes.tolist() == [[0, 0, 10, 10]]
    assert objects.num_fired.tolist() == [2]
    assert objects.class_index.tolist() == [1]
    assert objects.confidence == pytest.approx([0.25])
    assert objects.votes.tolist() == [[1, -1, 2, -1, -1]]
    assert objects.annotation_ids.tolist() == [-1]
    consensus = -(0.25 * math.log(0.25) + 0.15 * math.log(0.15) + 0.6 * math.log(0.6))
    own = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / 5
    assert {name: values.tolist() for name, values in objects.measures.items()} == {
        "mutual_information": pytest.approx([consensus - own]),
        "entropy": pytest.approx([consensus]),
        "expected_entropy": pytest.approx([own]),
        "variation_ratio": pytest.approx([0.4]),
        "vote_entropy": pytest.approx([-(0.4 * math.log(0.2) + 0.6 * math.log(0.6))]),
        "margin": pytest.approx([1 - (0.6 - 0.25)]),
        "iou_dispersion": pytest.approx([1 - (0.8 + 10 / 12) / 2]),
        "box_std": pytest.approx([math.sqrt((0.1**2 + (math.log(1.5) / 2) ** 2) / 4)]),
        "existence_entropy": pytest.approx([-(0.4 * math.log(0.4) + 0.6 * math.log(0.6))]),
    }


def objects_of(image_ids, values, *, name="entropy", class_index=None, **label_errors: list):
    g = len(image_ids)
    return ObjectScores(
        image_ids=np.asarray(image_ids, np.int64),
        boxes=np.zeros((g, 4), np.float32),
        num_fired=np.ones(g, np.int64),
        class_index=np.zeros(g, np.int32) if class_index is None else np.asarray(class_index, np.int32),
        confidence=np.full(g, 0.5),
        votes=np.zeros((g, 3), np.int16),
        annotation_ids=np.full(g, -1),
        measures={key: np.asarray(column, np.float64) for key, column in {name: values, **label_errors}.items()},
    )


def test_score_images_by_hand():
    objects = objects_of([30, 10, 30, 40, 30], [0.2, 0.9, 0.4, 0.5, 0.3])
    scores = score_images(objects, np.array([10, 20, 30, 40]), aggregation="max", weights={"entropy": 2.0})
    assert scores.components["entropy"].tolist() == [0.9, 0.0, 0.4, 0.5]
    assert scores.components["num_objects"].tolist() == [1, 0, 3, 1]
    assert scores.components["num_objects"].dtype == np.int64
    assert scores.image_score == pytest.approx([1, 0, 1 / 3, 2 / 3])


# Oracle


@pytest.mark.parametrize("seed", range(3))
def test_correlation_equals_closed_form_without_ties(seed):
    """Spearman 1904: 1 - 6 Σ d² / (n (n² - 1)) over the differences of the ranks."""
    rng = np.random.default_rng(seed)
    counts = rng.permutation(31)
    score = rng.uniform(0, 1, 31) + 0.05 * counts
    squares = ((np.argsort(np.argsort(score)) - counts) ** 2).sum()
    scores = ImageScores(np.arange(31), score, {"num_objects": counts})
    assert score_box_correlation(scores) == pytest.approx(1 - 6 * squares / (31 * (31**2 - 1)))


def test_correlation_with_ties_is_pearson_of_average_ranks():
    counts, score = np.array([0, 0, 1, 2]), np.array([0.1, 0.4, 0.4, 0.9])  # ranks 1.5 1.5 3 4 and 1 2.5 2.5 4
    expected = np.corrcoef([1.5, 1.5, 3, 4], [1, 2.5, 2.5, 4])[0, 1]
    assert score_box_correlation(ImageScores(np.arange(4), score, {"num_objects": counts})) == pytest.approx(expected)


# Properties


def test_joined_shards_equal_whole_pool():
    detections = scene()
    parts = [
        score_objects(detections.take(detections.image_ids // 40 == shard), num_members=4, measures=ALL)
        for shard in range(3)
    ]
    assert same_objects(ObjectScores.concatenate(parts), score_objects(detections, num_members=4, measures=ALL))


def test_result_ignores_order_of_rows():
    detections = scene(1)
    shuffled = detections.take(np.random.default_rng(0).permutation(len(detections)))
    first, second = (score_objects(rows, num_members=4, measures=ALL) for rows in (detections, shuffled))
    assert same_objects(first, second)


@pytest.mark.parametrize("name", ALL)
def test_equal_members_have_no_disagreement(name):
    detections = scene(2)
    one = detections.take(detections.member == 0)
    columns = {column: getattr(one, column) for column in Detections.__annotations__}
    members = [Detections(**{**columns, "member": np.full(len(one), e, np.int32)}) for e in range(4)]
    objects = score_objects(Detections.concatenate(members), num_members=4, measures=ALL)
    assert len(objects) == len(one)
    if name in SINGLE_MEMBER_MEASURES:  # these hold the doubt that the members share
        assert objects.measures[name] == pytest.approx(
            score_objects(one, num_members=1, measures=[name]).measures[name]
        )
    else:
        assert objects.measures[name] == pytest.approx(np.zeros(len(one)), abs=1e-12)


BOX, MOVED = [0, 0, 40, 40], [4, 3, 44, 43]
RIGHT, OTHER, DOUBT = [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25]
AGREE = [(BOX, RIGHT)] * 4

# What four members say of an object of class 0 on an easy image and on a hard one; None is a miss.
DIRECTIONS = {
    "mutual_information": (AGREE, [(BOX, RIGHT), (BOX, OTHER)] * 2),
    "entropy": (AGREE, [(BOX, DOUBT)] * 4),
    "expected_entropy": (AGREE, [(BOX, DOUBT)] * 4),
    "variation_ratio": (AGREE, [(BOX, RIGHT)] * 3 + [(BOX, OTHER)]),
    "vote_entropy": (AGREE, [(BOX, RIGHT)] * 3 + [None]),
    "margin": (AGREE, [(BOX, DOUBT)] * 4),
    "iou_dispersion": (AGREE, [(BOX, RIGHT), (MOVED, RIGHT)] * 2),
    "box_std": (AGREE, [(BOX, RIGHT), (MOVED, RIGHT)] * 2),
    "existence_entropy": (AGREE, [(BOX, RIGHT)] * 2 + [None] * 2),
    "error_count": ([(BOX, DOUBT)] * 4, [(BOX, RIGHT)] * 2 + [(BOX, OTHER), None]),
    "el2n": (AGREE, [(BOX, DOUBT)] * 4),
    "forgetting": ([None, (BOX, RIGHT)] * 2, [(BOX, RIGHT), None] * 2),  # runs of members 0 and 1, and of 2 and 3
    "low_confidence": (AGREE, [(BOX, RIGHT)] * 3 + [None]),
    "variability": ([(BOX, OTHER)] * 4, [(BOX, RIGHT), (BOX, OTHER)] * 2),
    "prediction_variance": ([(MOVED, OTHER)] * 4, [(BOX, RIGHT), (MOVED, RIGHT)] * 2),
}


def two_images(easy, hard):
    """Image 10 with agreeing predictions, image 20 with differing ones, and the same label on both."""
    rows = [
        (image_id, member, *prediction)
        for image_id, predictions in ((10, easy), (20, hard))
        for member, prediction in enumerate(predictions)
        if prediction is not None
    ]
    image_ids, member, boxes, class_probs = (np.array(column) for column in zip(*rows, strict=True))
    detections = Detections(
        image_ids=image_ids,
        member=member,
        boxes=boxes.astype(np.float64),
        scores=class_probs[:, :-1].max(axis=1),
        class_index=class_probs[:, :-1].argmax(axis=1),
        class_probs=class_probs,
    )
    labels = Labels(
        np.array([10, 20]), np.array([5, 6]), np.array([BOX] * 2) * 1.0, np.zeros(2, int), np.zeros(2, bool)
    )
    return detections, labels


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", [*MEASURES, *LABEL_MEASURES])
def test_difficult_image_scores_higher(name, aggregation):
    """The direction of every measure: one that is added wants a line in ``DIRECTIONS``."""
    detections, labels = two_images(*DIRECTIONS[name])
    objects, labelled = score_labelled_objects(
        detections, labels, num_members=4, measures=[name], trajectories=[(0, 1), (2, 3)]
    )
    assert len(objects) == len(labelled) == 2
    scores = score_images(
        objects,
        np.array([10, 20]),
        labels=labelled,
        weights={name: 1.0},
        aggregation=aggregation,
        class_weights=np.ones(2) if aggregation in WEIGHTED else None,
        normalization="none",
    )
    assert scores.image_score[1] > scores.image_score[0] + 1e-3


# Labels, weights, and images without objects


def labelled_pool():
    """Clusters on images 10 and 30, labels on 10 and 20, and 40 without either."""
    clusters = objects_of([10, 30, 10], [0.2, 0.6, 0.4], class_index=[1, 0, 1], missing_label=[0.1, 0.5, 0.9])
    labels = objects_of(
        [20, 10, 10, 20], [0.3, 0.8, 0.1, 0.5], name="el2n", class_index=[0, 2, 2, 0], wrong_class=[0, 0.7, 0.1, 0.2]
    )
    return clusters, labels


def test_components_with_labels_by_hand():
    clusters, labels = labelled_pool()
    components = image_components(np.array([10, 20, 30, 40]), clusters, labels, aggregation="mean")
    assert {name: column.tolist() for name, column in components.items()} == {
        "entropy": pytest.approx([0.3, 0, 0.6, 0]),
        "missing_label": [0.9, 0, 0.5, 0],
        "num_objects": [2, 0, 1, 0],
        "el2n": pytest.approx([0.45, 0.4, 0, 0]),
        "wrong_class": [0.7, 0.2, 0, 0],
        "num_labels": [2, 2, 0, 0],
    }
    alone = image_components(np.array([10, 20, 30, 40]), clusters, aggregation="mean")
    assert list(alone) == ["entropy", "missing_label", "num_objects"]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_label_error_of_image_is_maximum_over_objects(aggregation):
    clusters, labels = labelled_pool()
    class_weights = np.array([5.0, 0.1, 3.0]) if aggregation in WEIGHTED else None
    components = image_components(
        np.array([10, 20, 30, 40]), clusters, labels, aggregation=aggregation, k=2, class_weights=class_weights
    )
    assert components["missing_label"].tolist() == [0.9, 0, 0.5, 0]
    assert components["wrong_class"].tolist() == [0.7, 0.2, 0, 0]


def test_class_weights_apply_to_objects_and_labels():
    clusters, labels = labelled_pool()
    options = {"aggregation": "class_weighted_sum", "class_weights": np.array([5.0, 0.5, 3.0])}
    components = image_components(np.array([10, 20, 30, 40]), clusters, labels, **options)
    assert components["entropy"] == pytest.approx([0.6 * 0.5, 0, 0.6 * 5, 0])
    assert components["el2n"] == pytest.approx([0.9 * 3, 0.8 * 5, 0, 0])


def test_class_weights_are_ignored_by_other_aggregations():
    clusters, labels = labelled_pool()
    expected = image_components(np.array([10, 20, 30, 40]), clusters, labels, aggregation="sum")
    got = image_components(
        np.array([10, 20, 30, 40]), clusters, labels, aggregation="sum", class_weights=np.array([5.0, 0.5, 3.0])
    )
    assert {name: column.tolist() for name, column in got.items()} == {
        name: column.tolist() for name, column in expected.items()
    }


POLICIES = {"zero": 0.0, "lowest": 0.2, "median": 0.5, "highest": 0.9}


@pytest.mark.parametrize("policy", WITHOUT_OBJECTS)
def test_without_objects_sets_score_of_empty_images(policy):
    objects = objects_of([10, 30, 50], [0.9, 0.2, 0.5])
    scores = score_images(
        objects, np.arange(10, 61, 10), weights={"entropy": 2.0}, normalization="none", without_objects=policy
    )
    empty = POLICIES[policy]
    assert scores.image_score == pytest.approx([0.9, empty, 0.2, empty, 0.5, empty])
    assert scores.components["entropy"].tolist() == [0.9, 0, 0.2, 0, 0.5, 0]  # the table keeps what was measured


@pytest.mark.parametrize("policy", WITHOUT_OBJECTS)
def test_without_objects_on_pool_of_empty_images(policy):
    scores = score_images(objects_of([], []), np.array([3, 7]), weights={"entropy": 1.0}, without_objects=policy)
    assert scores.image_score.tolist() == [0.5, 0.5]


def test_image_with_labels_keeps_score_of_label_measures():
    clusters, labels = labelled_pool()
    pool = np.array([10, 20, 30, 40])
    components = image_components(pool, clusters, labels, aggregation="max")

    def scored(**weights: float):
        return combine_images(
            pool, components, weights=weights, normalization="none", without_objects="highest"
        ).image_score.tolist()

    assert scored(el2n=1.0) == [0.8, 0.5, 0.0, 0.8]  # 20 was missed by all, and that is what el2n is about
    assert scored(entropy=1.0) == [0.4, 0.6, 0.6, 0.6]
    assert scored(entropy=1.0, el2n=0.0) == [0.4, 0.6, 0.6, 0.6]  # without a weight it does not count
    assert scored(entropy=1.0, el2n=1.0) == pytest.approx([0.6, 0.25, 0.3, 0.6])


def test_unknown_without_objects_raises_with_known_names():
    with pytest.raises(ConfigError, match="CURATE.SCORE.WITHOUT_OBJECTS .*zero, lowest, .*got 'mean'"):
        score_images(objects_of([10], [0.1]), np.array([10]), weights={"entropy": 1.0}, without_objects="mean")


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_image_without_objects_scores_lowest(aggregation):
    objects = score_objects(scene(), num_members=4, measures=ALL)
    class_weights = np.ones(5) if aggregation in WEIGHTED else None
    weights = {"mutual_information": 1.0}
    scores = score_images(objects, POOL, aggregation=aggregation, weights=weights, class_weights=class_weights)
    assert scores.components["num_objects"][2] == 0
    assert all(column[2] == 0 for column in scores.components.values())
    assert scores.image_score.argmin() == 2


def test_image_scores_ignore_order_of_objects():
    objects = score_objects(scene(3), num_members=4, measures=["entropy"])
    shuffle = np.random.default_rng(4).permutation(len(objects))
    shuffled = ObjectScores(
        **{
            name: getattr(objects, name)[shuffle]
            for name in ObjectScores.__annotations__
            if name != "measures" and not name.startswith("consensus_")
        },
        measures={"entropy": objects.measures["entropy"][shuffle]},
    )
    expected, got = (score_images(rows, POOL, weights={"entropy": 1.0}) for rows in (objects, shuffled))
    np.testing.assert_allclose(got.image_score, expected.image_score, rtol=1e-12)


def test_pool_of_empty_images_scores_0():
    objects = score_objects(Detections.empty(5), num_members=3, measures=ALL)
    assert len(objects) == 0
    scores = score_images(objects, np.array([4, 6]), weights={"entropy": 1.0})
    assert scores.image_score.tolist() == [0.5, 0.5]
    assert scores.components["num_objects"].tolist() == [0, 0]
    assert len(score_images(objects, np.zeros(0, np.int64), weights={"entropy": 1.0})) == 0


def test_correlation_shows_crowd_bias_of_sum():
    objects = score_objects(scene(5, num_images=24), num_members=4, measures=["entropy"])
    pool = np.arange(10, 241, 10)
    correlation = {
        name: score_box_correlation(score_images(objects, pool, aggregation=name, weights={"entropy": 1.0}))
        for name in ("sum", "mean")
    }
    assert correlation["sum"] > 0.9
    assert correlation["sum"] > correlation["mean"]


@pytest.mark.parametrize("length", [0, 1, 4])
def test_undefined_correlation_is_0(length):
    counts = {"num_objects": np.arange(length)}
    assert score_box_correlation(ImageScores(np.arange(length), np.full(length, 0.3), counts)) == 0.0


def test_correlation_of_equal_and_opposite_orders():
    counts = np.array([5, 0, 2])
    for sign in (1, -1):
        scores = ImageScores(np.arange(3), sign * counts * 0.1, {"num_objects": counts})
        assert score_box_correlation(scores) == pytest.approx(sign)


# Messages


def test_unknown_measure_raises_with_known_names():
    with pytest.raises(ConfigError, match="CURATE.SCORE.MEASURES .*mutual_information, .*got 'doubt'"):
        score_objects(Detections.empty(2), num_members=1, measures=["entropy", "doubt"])
    with pytest.raises(ConfigError, match="CURATE.SCORE.MEASURES .*got none"):
        score_objects(Detections.empty(2), num_members=1, measures=[])


@pytest.mark.parametrize("name", ALL)
def test_one_member_allows_single_member_measures_only(name):
    detections = scene(6, num_members=1)
    if name in SINGLE_MEMBER_MEASURES:
        assert (score_objects(detections, num_members=1, measures=[name]).measures[name] > 0).all()
        return
    message = f"CURATE.SCORE.MEASURES: .*entropy, expected_entropy, .*got {name}"
    with pytest.raises(ConfigError, match=message):
        score_objects(detections, num_members=1, measures=["entropy", name])
    assert score_objects(detections, num_members=2, measures=["entropy", name]).measures[name].shape


def test_sigmoids_are_scored_as_sigmoids():
    class_probs = np.array([[0.7, 0.6, 0.3], [0.1, 0.4, 0.6]])
    detections = Detections(
        image_ids=np.array([7, 7]),
        member=np.array([0, 2]),
        boxes=np.array([[0.0, 0.0, 8.0, 10.0], [0.0, 0.0, 12.0, 10.0]]),
        scores=np.array([0.7, 0.4]),
        class_index=np.array([0, 1]),
        class_probs=class_probs,
        posterior_form="sigmoid",
    )
    objects = score_objects(detections, num_members=5, measures=["entropy"])
    assert objects.class_index.tolist() == [1]
    assert objects.confidence == pytest.approx([0.2])
    assert objects.measures["entropy"] == pytest.approx([-(0.2 * math.log(0.2) + 0.8 * math.log(0.8))])


def test_object_outside_pool_raises():
    with pytest.raises(PredictionError, match="objects .*2 images .*image_id 25"):
        score_images(objects_of([10, 25], [0.1, 0.2]), np.array([10, 30]), weights={"entropy": 1.0})
    with pytest.raises(PredictionError, match="image_id 99"):
        score_images(objects_of([10, 99], [0.1, 0.2]), np.array([10, 20]), weights={"entropy": 1.0})


def test_weight_of_absent_measure_raises():
    with pytest.raises(ConfigError, match="weights .*entropy, num_objects.*got 'box_std'"):
        score_images(objects_of([10], [0.1]), np.array([10]), weights={"box_std": 1.0})


def test_image_ids_out_of_order_raise():
    with pytest.raises(SelectionError, match="image_ids.*10 after 20"):
        score_images(objects_of([20], [0.1]), np.array([20, 10]), weights={"entropy": 1.0})
