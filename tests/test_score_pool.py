import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from detcurate.errors import ConfigError, PredictionError, SelectionError
from detcurate.score.aggregate import AGGREGATIONS, WEIGHTED
from detcurate.score.measures import MEASURES, SINGLE_MEMBER_MEASURES
from detcurate.score.objects import score_objects
from detcurate.score.pool import score_box_correlation, score_images
from detcurate.structures import Detections, ImageScores, ObjectScores

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


def test_one_object_by_hand():
    # Members 0 and 2 of five see it, as class 1 and as class 2; the others answer background.
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


def objects_of(image_ids, values):
    g = len(image_ids)
    return ObjectScores(
        image_ids=np.asarray(image_ids, np.int64),
        boxes=np.zeros((g, 4), np.float32),
        num_fired=np.ones(g, np.int64),
        class_index=np.zeros(g, np.int32),
        confidence=np.full(g, 0.5),
        votes=np.zeros((g, 3), np.int16),
        annotation_ids=np.full(g, -1),
        measures={"entropy": np.asarray(values, np.float64)},
    )


def test_images_by_hand():
    objects = objects_of([30, 10, 30, 40, 30], [0.2, 0.9, 0.4, 0.5, 0.3])
    scores = score_images(objects, np.array([10, 20, 30, 40]), aggregation="max", weights={"entropy": 2.0})
    assert scores.components["entropy"].tolist() == [0.9, 0.0, 0.4, 0.5]
    assert scores.components["num_objects"].tolist() == [1, 0, 3, 1]
    assert scores.components["num_objects"].dtype == np.int64
    assert scores.image_score == pytest.approx([1, 0, 1 / 3, 2 / 3])


# Oracle


@pytest.mark.parametrize("seed", range(3))
def test_correlation_against_scipy(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 6, 31)
    scores = ImageScores(np.arange(31), np.round(rng.uniform(0, 1, 31) + 0.1 * counts, 1), {"num_objects": counts})
    assert score_box_correlation(scores) == pytest.approx(spearmanr(scores.image_score, counts).statistic)


# Properties


def test_shards_joined_are_the_whole_pool():
    detections = scene()
    parts = [
        score_objects(detections.take(detections.image_ids // 40 == shard), num_members=4, measures=ALL)
        for shard in range(3)
    ]
    assert same_objects(ObjectScores.concatenate(parts), score_objects(detections, num_members=4, measures=ALL))


def test_the_order_of_rows_does_not_matter():
    detections = scene(1)
    shuffled = detections.take(np.random.default_rng(0).permutation(len(detections)))
    first, second = (score_objects(rows, num_members=4, measures=ALL) for rows in (detections, shuffled))
    assert same_objects(first, second)


@pytest.mark.parametrize("name", ALL)
def test_members_that_say_the_same_disagree_on_nothing(name):
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


@pytest.mark.parametrize("name", ["mutual_information", "iou_dispersion", "box_std", "existence_entropy"])
def test_an_image_on_which_the_members_differ_scores_higher(name):
    """The direction of every measure of disagreement: an image of noise against an image of copies."""
    box = np.array([0.0, 0.0, 40.0, 40.0])
    boxes = np.concatenate((np.tile(box, (4, 1)), [box, box + 4, box - 3]))
    class_probs = np.array([[0.8, 0.1, 0.1]] * 4 + [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]])
    detections = Detections(
        image_ids=np.array([1] * 4 + [2] * 3),
        member=np.array([0, 1, 2, 3, 0, 1, 2]),
        boxes=boxes,
        scores=np.linspace(0.9, 0.5, 7),
        class_index=np.zeros(7, np.int32),
        class_probs=class_probs,
    )
    objects = score_objects(detections, num_members=4, measures=[name])
    assert len(objects) == 2
    scores = score_images(objects, np.array([1, 2]), weights={name: 1.0}, normalization="none")
    assert scores.image_score[1] > scores.image_score[0] + 1e-3


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_image_without_objects_scores_lowest(aggregation):
    objects = score_objects(scene(), num_members=4, measures=ALL)
    class_weights = np.ones(5) if aggregation in WEIGHTED else None
    weights = {"mutual_information": 1.0}
    scores = score_images(objects, POOL, aggregation=aggregation, weights=weights, class_weights=class_weights)
    assert scores.components["num_objects"][2] == 0
    assert all(column[2] == 0 for column in scores.components.values())
    assert scores.image_score.argmin() == 2


def test_the_order_of_objects_does_not_matter_to_images():
    objects = score_objects(scene(3), num_members=4, measures=["entropy"])
    shuffle = np.random.default_rng(4).permutation(len(objects))
    shuffled = ObjectScores(
        **{name: getattr(objects, name)[shuffle] for name in ObjectScores.__annotations__ if name != "measures"},
        measures={"entropy": objects.measures["entropy"][shuffle]},
    )
    expected, got = (score_images(rows, POOL, weights={"entropy": 1.0}) for rows in (objects, shuffled))
    np.testing.assert_allclose(got.image_score, expected.image_score, rtol=1e-12)


def test_a_pool_of_empty_images():
    objects = score_objects(Detections.empty(5), num_members=3, measures=ALL)
    assert len(objects) == 0
    scores = score_images(objects, np.array([4, 6]), weights={"entropy": 1.0})
    assert scores.image_score.tolist() == [0.5, 0.5]
    assert scores.components["num_objects"].tolist() == [0, 0]
    assert len(score_images(objects, np.zeros(0, np.int64), weights={"entropy": 1.0})) == 0


def test_correlation_shows_which_aggregation_buys_crowds():
    objects = score_objects(scene(5, num_images=24), num_members=4, measures=["entropy"])
    pool = np.arange(10, 241, 10)
    correlation = {
        name: score_box_correlation(score_images(objects, pool, aggregation=name, weights={"entropy": 1.0}))
        for name in ("sum", "mean")
    }
    assert correlation["sum"] > 0.9
    assert correlation["sum"] > correlation["mean"]


@pytest.mark.parametrize("length", [0, 1, 4])
def test_correlation_is_0_where_it_is_undefined(length):
    counts = {"num_objects": np.arange(length)}
    assert score_box_correlation(ImageScores(np.arange(length), np.full(length, 0.3), counts)) == 0.0


def test_correlation_of_equal_orders_is_1_and_of_opposite_ones_minus_1():
    counts = np.array([5, 0, 2])
    for sign in (1, -1):
        scores = ImageScores(np.arange(3), sign * counts * 0.1, {"num_objects": counts})
        assert score_box_correlation(scores) == pytest.approx(sign)


# Messages


def test_an_unknown_measure_is_answered_with_the_names():
    with pytest.raises(ConfigError, match="measures must be one or more of mutual_information, .*, got 'doubt'"):
        score_objects(Detections.empty(2), num_members=1, measures=["entropy", "doubt"])
    with pytest.raises(ConfigError, match="measures must be one or more of mutual_information, .*, got none"):
        score_objects(Detections.empty(2), num_members=1, measures=[])


@pytest.mark.parametrize("name", ALL)
def test_an_ensemble_of_one_has_doubt_and_no_disagreement(name):
    detections = scene(6, num_members=1)
    if name in SINGLE_MEMBER_MEASURES:
        assert (score_objects(detections, num_members=1, measures=[name]).measures[name] > 0).all()
        return
    message = f"measures of an ensemble of one member must be among entropy, expected_entropy, .*, got {name}; members"
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


def test_an_object_outside_the_pool_is_named():
    with pytest.raises(PredictionError, match="objects must lie on the pool's 2 images, got image_id 25; score the"):
        score_images(objects_of([10, 25], [0.1, 0.2]), np.array([10, 30]), weights={"entropy": 1.0})
    with pytest.raises(PredictionError, match="got image_id 99"):
        score_images(objects_of([10, 99], [0.1, 0.2]), np.array([10, 20]), weights={"entropy": 1.0})


def test_a_weight_on_a_measure_that_was_not_computed_is_named():
    with pytest.raises(ConfigError, match="weights must name components among entropy, num_objects, got 'box_std'"):
        score_images(objects_of([10], [0.1]), np.array([10]), weights={"box_std": 1.0})


def test_image_ids_out_of_order_are_refused():
    with pytest.raises(SelectionError, match="image_ids must be ascending and unique, got 10 after 20"):
        score_images(objects_of([20], [0.1]), np.array([20, 10]), weights={"entropy": 1.0})
