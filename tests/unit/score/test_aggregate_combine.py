import numpy as np
import pytest
from scipy.stats import zscore

from detcurate.errors import ConfigError
from detcurate.score.aggregate import NORMALIZATIONS, combine

COMPONENTS = {"entropy": np.array([0.0, 0.3, 0.1, 0.3, 0.9]), "box_std": np.array([5.0, 4.0, 3.0, 2.0, 1.0])}


# Arithmetic


def test_ranks_by_hand():
    assert NORMALIZATIONS["rank"](COMPONENTS["entropy"]).tolist() == [0.0, 0.625, 0.25, 0.625, 1.0]


def test_zscores_by_hand():
    root = 2**0.5
    assert NORMALIZATIONS["zscore"](COMPONENTS["box_std"]) == pytest.approx([root, root / 2, 0, -root / 2, -root])


def test_combine_weighted_mean_by_hand():
    score = combine(COMPONENTS, {"entropy": 3, "box_std": 1})
    assert score == pytest.approx([(0 + 1) / 4, (1.875 + 0.75) / 4, (0.75 + 0.5) / 4, (1.875 + 0.25) / 4, 3 / 4])
    assert score.dtype == np.float64
    assert combine(COMPONENTS, {"entropy": 1, "box_std": 1}, normalization="none") == pytest.approx(
        [2.5, 2.15, 1.55, 1.15, 0.95]
    )


# Oracles


def test_ranks_equal_counting_in_plain_python():
    values = np.round(np.random.default_rng(0).uniform(0, 1, 301), 2).tolist()
    expected = [sum(other < v for other in values) + (values.count(v) - 1) / 2 for v in values]  # from 0
    assert NORMALIZATIONS["rank"](np.array(values)) == pytest.approx([place / 300 for place in expected], abs=1e-12)


def test_zscores_equal_scipy():
    values = np.random.default_rng(1).uniform(0, 1, 301)
    np.testing.assert_allclose(NORMALIZATIONS["zscore"](values), zscore(values), rtol=1e-9)


# Properties


@pytest.mark.parametrize("values", [np.array([0.4]), np.full(3, 0.1), np.full(7, 1 / 3)])
def test_equal_values_normalise_to_the_middle(values):
    assert NORMALIZATIONS["rank"](values).tolist() == [0.5] * len(values)
    assert NORMALIZATIONS["zscore"](values).tolist() == [0.0] * len(values)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_combine_of_empty_pool_is_empty(normalization):
    score = combine({"entropy": np.zeros(0), "box_std": np.zeros(0)}, {"entropy": 1.0}, normalization=normalization)
    assert score.shape == (0,)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_combine_is_monotone_for_every_normalization(normalization):
    values = np.array([3.0, 1.0, 2.0, 8.0])
    score = combine({"entropy": values}, {"entropy": 0.2}, normalization=normalization)
    assert np.argsort(score).tolist() == np.argsort(values).tolist()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_combine_depends_on_ratio_of_weights_only(normalization):
    once = combine(COMPONENTS, {"entropy": 0.3, "box_std": 0.1}, normalization=normalization)
    tenfold = combine(COMPONENTS, {"box_std": 1, "entropy": 3}, normalization=normalization)
    np.testing.assert_allclose(once, tenfold, rtol=1e-12)


def test_ranks_ignore_scale():
    stretched = {"entropy": np.exp(9 * COMPONENTS["entropy"]), "box_std": COMPONENTS["box_std"] * 1e6}
    weights = {"entropy": 1.0, "box_std": 2.0}
    assert combine(stretched, weights).tolist() == combine(COMPONENTS, weights).tolist()


def test_component_without_weight_is_ignored():
    alone = combine({"entropy": COMPONENTS["entropy"]}, {"entropy": 1.0})
    assert combine(COMPONENTS, {"entropy": 1.0}).tolist() == alone.tolist()
    assert combine(COMPONENTS, {"entropy": 1.0, "box_std": 0.0}).tolist() == alone.tolist()


def test_integer_components_are_accepted():
    assert combine({"count": np.array([4, 0, 2])}, {"count": 1}, normalization="none").tolist() == [4.0, 0.0, 2.0]


# Messages


def test_unknown_normalization_raises_with_known_names():
    with pytest.raises(ConfigError, match="CURATE.SCORE.NORMALIZATION .*rank, zscore, none.*got 'minmax'"):
        combine(COMPONENTS, {"entropy": 1.0}, normalization="minmax")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"margin": 1.0}, "weights .*entropy, box_std.*got 'margin'"),
        ({"entropy": -1.0}, "weight of entropy .*got -1.0"),
        ({"entropy": float("nan")}, "weight of entropy .*got nan"),
        ({"entropy": 0.0}, "weights .*got {'entropy': 0.0}"),
        ({}, "weights .*got {}"),
    ],
)
def test_invalid_weights_raise(weights, message):
    with pytest.raises(ConfigError, match=message):
        combine(COMPONENTS, weights)


def test_columns_of_different_lengths_raise():
    with pytest.raises(ConfigError, match="components .*length"):
        combine({"entropy": np.zeros(3), "box_std": np.zeros(4)}, {"entropy": 1.0, "box_std": 1.0})
