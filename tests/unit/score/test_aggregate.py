import numpy as np
import pytest

from detcurate.errors import ConfigError, PredictionError
from detcurate.score import aggregate as module
from detcurate.score.aggregate import AGGREGATIONS, WEIGHTED, class_weights
from detcurate.score.measures import LABEL_MEASURES, MEASURES, describe_measure, describe_measures

# Image 0 holds five objects, image 1 none, image 2 one, image 3 two; the objects come interleaved.
VALUES = np.array([0.1, 0.4, 0.9, 0.2, 0.3, 0.6, 0.8, 0.5])
IMAGE_INDEX = np.array([0, 2, 0, 3, 0, 0, 3, 0])

BY_HAND = {
    "max": [0.9, 0.0, 0.4, 0.8],
    "mean": [2.4 / 5, 0.0, 0.4, 0.5],
    "sum": [2.4, 0.0, 0.4, 1.0],
    "top_k_mean": [(0.9 + 0.6 + 0.5) / 3, 0.0, 0.4, 0.5],
    "sqrt_sum": [2.4 / 5**0.5, 0.0, 0.4, 1.0 / 2**0.5],
    "class_weighted_sum": [2.4, 0.0, 0.4, 1.0],
}

IN_A_LOOP = {
    "max": np.max,
    "mean": np.mean,
    "sum": np.sum,
    "top_k_mean": lambda values: np.mean(np.sort(values)[::-1][:3]),
    "sqrt_sum": lambda values: np.sum(values) / np.sqrt(len(values)),
    "class_weighted_sum": np.sum,
}


def aggregate(values, image_index, num_images, *, aggregation="top_k_mean", k=3, object_weights=None):
    """As the function under test; the weighted aggregations with a weight of 1 an object, unless the test says."""
    if aggregation in WEIGHTED and object_weights is None:
        object_weights = np.ones(len(values))
    return module.aggregate(
        values, image_index, num_images, aggregation=aggregation, k=k, object_weights=object_weights
    )


def random_case(seed=0, g=97, num_images=23):
    rng = np.random.default_rng(seed)
    return np.round(rng.uniform(0, 2, g), 1), rng.integers(0, num_images - 2, g), num_images


# Arithmetic


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregate_by_hand(name):
    scores = aggregate(VALUES, IMAGE_INDEX, 4, aggregation=name)
    assert scores == pytest.approx(BY_HAND[name])
    assert scores.dtype == np.float64


def test_aggregate_defaults_to_mean_of_three_highest():
    assert aggregate(VALUES, IMAGE_INDEX, 4) == pytest.approx(BY_HAND["top_k_mean"])


def test_top_k_mean_uses_k():
    assert aggregate(VALUES, IMAGE_INDEX, 4, k=2) == pytest.approx([0.75, 0.0, 0.4, 0.5])
    assert aggregate(VALUES, IMAGE_INDEX, 4, k=99) == pytest.approx(BY_HAND["mean"])


def test_class_weighted_sum_weighs_rare_classes_more():
    weights = class_weights(np.array([6, 2, 0]))  # 8 boxes, 2 classes seen: 8/12, 8/4, and 8/2 for what is not seen
    assert weights == pytest.approx([2 / 3, 2.0, 4.0])
    class_index = np.array([0, 1, 0, 1, 2, 0, 0, 0])
    scores = aggregate(VALUES, IMAGE_INDEX, 4, aggregation="class_weighted_sum", object_weights=weights[class_index])
    assert scores == pytest.approx([(0.1 + 0.9 + 0.6 + 0.5) * 2 / 3 + 0.3 * 4, 0.0, 0.8, 0.4 + 0.8 * 2 / 3])


@pytest.mark.parametrize("counts", [[5, 3, 9, 1], [7, 0, 2, 0]])
def test_class_weights_are_1_on_average_over_the_boxes(counts):
    counts = np.array(counts)
    assert (class_weights(counts) * counts).sum() / counts.sum() == pytest.approx(1)
    assert (class_weights(np.zeros(3, np.int64)) > 0).all()


# Oracle


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregate_equals_loop_over_images(name):
    values, image_index, num_images = random_case()
    expected = [
        IN_A_LOOP[name](values[image_index == i]) if (image_index == i).any() else 0.0 for i in range(num_images)
    ]
    np.testing.assert_allclose(aggregate(values, image_index, num_images, aggregation=name), expected, rtol=1e-12)


# Properties


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregate_ignores_order_of_objects(name):
    values, image_index, num_images = random_case(seed=1)
    shuffle = np.random.default_rng(2).permutation(len(values))
    np.testing.assert_allclose(
        aggregate(values[shuffle], image_index[shuffle], num_images, aggregation=name),
        aggregate(values, image_index, num_images, aggregation=name),
        rtol=1e-12,
    )


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_higher_value_raises_its_image_only(name):
    before = aggregate(VALUES, IMAGE_INDEX, 4, aggregation=name)
    raised = VALUES.copy()
    raised[2] += 1.0
    after = aggregate(raised, IMAGE_INDEX, 4, aggregation=name)
    assert after[0] > before[0]
    assert after[1:].tolist() == before[1:].tolist()


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_equal_values_give_that_value_except_for_sums(name):
    score = aggregate(np.full(4, 0.7), np.zeros(4, np.int64), 1, aggregation=name)[0]
    assert score == pytest.approx({"sum": 2.8, "class_weighted_sum": 2.8, "sqrt_sum": 1.4}.get(name, 0.7))


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregate_of_no_objects_is_0(name):
    nothing = np.zeros(0), np.zeros(0, np.int64)
    assert aggregate(*nothing, 3, aggregation=name).tolist() == [0.0, 0.0, 0.0]
    assert aggregate(*nothing, 0, aggregation=name).shape == (0,)


def test_sum_favours_crowds_and_mean_does_not():
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 40, 211)
    image_index = np.repeat(np.arange(211), counts)
    noise = rng.uniform(0, 1, len(image_index))
    selected = {}
    for name in AGGREGATIONS:
        order = np.argsort(-aggregate(noise, image_index, 211, aggregation=name))
        selected[name] = counts[order[:21]].mean()
    assert selected["sum"] > selected["max"] > selected["mean"]
    assert selected["sum"] > selected["top_k_mean"] > selected["mean"]


# Messages


def test_unknown_aggregation_raises_with_known_names():
    with pytest.raises(ConfigError, match="CURATE.SCORE.AGGREGATION .*max, mean, sum, .*got 'median'"):
        aggregate(VALUES, IMAGE_INDEX, 4, aggregation="median")


def test_superfluous_or_missing_weights_raise():
    with pytest.raises(ConfigError, match="object_weights .*class_weighted_sum"):
        module.aggregate(VALUES, IMAGE_INDEX, 4, aggregation="class_weighted_sum")
    with pytest.raises(ConfigError, match="object_weights .*got mean"):
        module.aggregate(VALUES, IMAGE_INDEX, 4, aggregation="mean", object_weights=VALUES)
    with pytest.raises(PredictionError, match=r"object_weights .*\(3,\) and \(8,\)"):
        aggregate(VALUES, IMAGE_INDEX, 4, aggregation="class_weighted_sum", object_weights=np.ones(3))
    with pytest.raises(ConfigError, match="k .*got 0"):
        aggregate(VALUES, IMAGE_INDEX, 4, k=0)


@pytest.mark.parametrize("index", [-1, 4])
def test_image_index_outside_pool_raises(index):
    with pytest.raises(PredictionError, match=r"image_index .*\[0, 4\)"):
        aggregate(VALUES[:2], np.array([0, index]), 4)


def test_columns_of_different_lengths_raise():
    with pytest.raises(PredictionError, match=r"image_index .*\(8,\) and \(3,\)"):
        aggregate(VALUES, IMAGE_INDEX[:3], 4)


# Descriptions


def test_every_measure_has_a_complete_description():
    found = describe_measures()
    assert [one.name for one in found] == [*MEASURES, *LABEL_MEASURES]
    for one in found:
        assert all((one.meaning, one.value_range, one.higher, one.source)), one.name
        assert not one.meaning.startswith("Return") and one.meaning.endswith(".")
    variability = describe_measure("variability")
    assert (variability.value_range, variability.higher) == ("in [0, 1/2]", "more disagreement")
    assert (variability.needs_labels, variability.needs_members) == (True, True)
    assert (describe_measure("entropy").needs_labels, describe_measure("entropy").needs_members) == (False, False)
