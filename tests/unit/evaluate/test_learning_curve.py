"""Power laws through random subsets, read backwards: how many random images a subset is worth."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from detcurate.errors import PredictionError
from detcurate.evaluate.learning_curve import (
    PowerLaw,
    bootstrap_interval,
    equivalent_images,
    fit_power_law,
    learning_curve,
    student_interval,
)

SIZES = np.array([100, 200, 400, 800, 1600])


def ap_of(sizes, asymptote=60.0, scale=300.0, exponent=0.5):
    return asymptote - scale * sizes.astype(float) ** -exponent


def noisy(seed, *, num_seeds=7, sigma=1.0, sizes=SIZES):
    return ap_of(sizes)[:, None] + np.random.default_rng(seed).normal(0, sigma, (len(sizes), num_seeds))


def curve_of(ap, **others: tuple[int, list[float]]):
    """Return what is found for subsets of ``SIZES`` with the arms' names, and others that are given whole."""
    sizes = {f"random_{n}": int(n) for n in SIZES[: len(ap)]}
    of = dict(zip(sizes, np.asarray(ap, float), strict=True))
    for arm, (n, values) in others.items():
        sizes[arm], of[arm] = n, np.array(values, float)
    return learning_curve(sizes, of)


# Arithmetic


def test_fit_of_three_points_by_hand():
    """Each doubling halves what is missing of 40: 20, 30, 35, so the exponent is 1 and the scale 20 · 100."""
    law = fit_power_law(np.array([100, 200, 400]), np.array([[20.0], [30.0], [35.0]]))
    assert (law.asymptote, law.scale, law.exponent) == pytest.approx((40, 2000, 1), rel=1e-6)
    assert (law.smallest, law.largest) == (100, 400)
    assert law.rmse == pytest.approx(0, abs=1e-6)
    assert law.ap(np.array([50, 1000])) == pytest.approx([0, 38], abs=1e-4)
    assert equivalent_images(law, 32.0) == pytest.approx(250)


def test_equivalent_images_at_the_ends():
    law = PowerLaw(asymptote=40.0, scale=2000.0, exponent=1.0, smallest=100, largest=400, rmse=0.0)
    assert [equivalent_images(law, ap) for ap in (20.0, 35.0)] == pytest.approx([100, 400])
    assert [equivalent_images(law, ap) for ap in (0.0, 19.9, 35.1, 39.99, 40.0, 90.0)] == [0, 0, *[math.inf] * 4]


def test_fit_of_falling_or_flat_curve_is_its_mean():
    for ap in (np.array([[50.0], [40.0], [30.0]]), np.full((3, 1), 40.0)):
        law = fit_power_law(np.array([100, 200, 400]), ap)
        assert (law.asymptote, law.scale, law.exponent) == (40.0, 0.0, 0.0)
        assert law.ap(np.array([1, 10])) == pytest.approx([40, 40])
        assert [equivalent_images(law, value) for value in (39.0, 41.0)] == [0, math.inf]
    assert fit_power_law(np.array([100, 200, 400]), np.array([[50.0], [40.0], [30.0]])).rmse == pytest.approx(
        8.165, 1e-4
    )


def test_asymptote_is_at_most_100():
    law = fit_power_law(SIZES, np.array([[10.0], [30.0], [50.0], [70.0], [90.0]]))
    assert law.asymptote == 100
    assert law.scale > 0


def test_fit_of_a_step():
    law = fit_power_law(SIZES, np.array([[10.0], [20.0], [20.0], [20.0], [20.0]]))
    assert law.ap(SIZES) == pytest.approx([10, 20, 20, 20, 20], abs=0.02)


def test_fit_with_two_arms_of_one_size():
    sizes = np.array([100, 200, 200, 400])
    law = fit_power_law(sizes, np.array([[20.0], [29.0], [31.0], [35.0]]))
    assert law.ap(200) == pytest.approx(30, abs=1e-4)
    assert law.rmse == pytest.approx(math.sqrt(2 / 4), rel=1e-3)


def test_learning_curve_equivalent_by_hand():
    ap = np.array([[20.0, 20.0], [30.0, 30.0], [35.0, 35.0]])
    found = curve_of(ap, curated=(125, [32.0, 32.0]))
    assert [(point["num_images"], point["mean"], point["std"]) for point in found["points"]] == [
        (100, 20.0, 0.0), (200, 30.0, 0.0), (400, 35.0, 0.0),
    ]  # fmt: skip
    worth = found["equivalent"]
    assert (worth["num_images"], worth["ap"], worth["where"], worth["num_seeds"]) == (125, 32.0, "within", 2)
    assert (worth["images"], worth["more"]) == pytest.approx((250, 100))
    assert [end["images"] for end in worth["interval"]] == pytest.approx([250, 250])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_learning_curve_beyond_its_ends_gives_a_bound():
    ap = np.array([[20.0], [30.0], [35.0]])
    above = curve_of(ap, curated=(160, [36.0]))["equivalent"]
    assert above == {
        "num_images": 160, "ap": 36.0, "images": None, "where": "above", "more": pytest.approx(150),
        "interval": None, "num_seeds": 1,
    }  # fmt: skip
    below = curve_of(ap, curated=(160, [10.0]))["equivalent"]
    assert (below["images"], below["where"], below["more"]) == (None, "below", pytest.approx(-37.5))


def test_learning_curve_flat_has_no_equivalent():
    worth = curve_of(np.array([[31.0, 30.0], [30.0, 31.0], [29.0, 28.0]]), curated=(160, [40.0, 41.0]))["equivalent"]
    assert (worth["images"], worth["where"], worth["more"]) == (None, "flat", None)
    assert [end["where"] for end in worth["interval"]] == ["above", "above"]


def test_learning_curve_without_subset():
    found = curve_of(noisy(0))
    assert found["fit"]["smallest"] == 100
    assert found["equivalent"] is None
    assert curve_of(noisy(0), curated=(160, [40.0] * 6 + [math.nan]))["equivalent"] is None


def test_learning_curve_of_too_few_sizes_has_reason():
    found = curve_of(noisy(0)[:2], full=(200, np.full(7, 40.0)))
    assert found["fit"] is None
    assert "CURATE.RETRAIN.CURVE_FRACTIONS: " in found["why_not"] and "[100, 200]" in found["why_not"]
    assert len(found["points"]) == 3
    assert "got [40.0, nan]" not in learning_curve({}, {})["why_not"]
    unknown = curve_of(np.array([[math.nan], [1.0], [2.0], [3.0]]))
    assert unknown["points"][0] == {"arm": "random_100", "num_images": 100, "mean": None, "std": None, "values": [None]}
    assert "ap must be in [0, 100] (got nan)" in unknown["why_not"]


# Oracle


@pytest.mark.parametrize("seed", range(6))
def test_fit_equals_curve_fit_of_three_parameters(seed):
    ap = noisy(seed, sigma=0.3)
    law = fit_power_law(SIZES, ap)
    expected, _ = curve_fit(
        lambda n, a, b, c: a - b * n**-c,
        np.repeat(SIZES.astype(float), ap.shape[1]),
        ap.ravel(),
        p0=(60, 300, 0.5),
        maxfev=20_000,
    )
    assert (law.asymptote, law.scale, law.exponent) == pytest.approx(tuple(expected), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_interval_equals_loop(seed):
    rng = np.random.default_rng(seed)
    ap = noisy(seed, num_seeds=3)[:, None, :] + rng.normal(0, 0.5, (len(SIZES), 40, 3))
    subset = 45 + rng.normal(0, 1, (40, 3))
    drawn = np.random.default_rng(9).integers(0, 3, (40, 3))
    found = sorted(
        equivalent_images(fit_power_law(SIZES, ap[:, b, rows]), subset[b, rows].mean()) for b, rows in enumerate(drawn)
    )
    low, high = bootstrap_interval(SIZES, ap, subset, level=0.9, seed=9)
    assert (low, high) == pytest.approx((found[1], found[38]), rel=1e-6)


# Properties


@given(
    asymptote=st.floats(5, 99),
    share=st.floats(0.05, 1),
    exponent=st.floats(0.05, 3),
    sizes=st.lists(st.integers(10, 100_000), min_size=4, max_size=9, unique=True),
)
def test_points_on_a_law_are_recovered(asymptote, share, exponent, sizes):
    sizes = np.array(sizes)
    rise = share * asymptote
    ap = asymptote - rise * (sizes / sizes.min()) ** -exponent
    law = fit_power_law(sizes, ap[:, None])
    np.testing.assert_allclose(law.ap(sizes), ap, rtol=0, atol=1e-4)
    between = np.sqrt(sizes.min() * float(sizes.max()))
    if sizes.max() > 1.5 * sizes.min():
        wanted = asymptote - rise * (between / sizes.min()) ** -exponent
        found = equivalent_images(law, wanted)
        np.testing.assert_allclose(law.ap(found), wanted, rtol=0, atol=1e-4)


@given(seed=st.integers(0, 500))
def test_equivalent_images_are_monotone_in_ap(seed):
    law = fit_power_law(SIZES, noisy(seed, num_seeds=2, sigma=4.0))
    worth = [equivalent_images(law, ap) for ap in np.linspace(0, 100, 60)]
    assert worth == sorted(worth)
    assert (np.diff(law.ap(np.arange(1, 3000, 37))) >= 0).all()


def test_fit_ignores_order_of_sizes_and_seeds():
    ap, order = noisy(3), np.array([3, 0, 4, 2, 1])
    law, other = fit_power_law(SIZES, ap), fit_power_law(SIZES[order], ap[order][:, ::-1])
    assert (law.asymptote, law.exponent, law.rmse) == pytest.approx((other.asymptote, other.exponent, other.rmse))


def test_bootstrap_interval_of_equal_draws_is_one_number():
    ap = np.repeat(ap_of(SIZES)[:, None, None], 3, axis=2).repeat(11, axis=1)
    assert bootstrap_interval(SIZES, ap, np.full((11, 3), 45.0)) == pytest.approx((400, 400), rel=1e-4)


def test_bootstrap_interval_excludes_draws_without_ap():
    ap = np.repeat(ap_of(SIZES)[:, None, None], 3, axis=2).repeat(11, axis=1)
    ap[2, 4] = np.nan
    assert bootstrap_interval(SIZES, ap, np.full((11, 3), 45.0)) == pytest.approx((400, 400), rel=1e-4)
    assert np.isnan(bootstrap_interval(SIZES, np.full_like(ap, np.nan), np.full((11, 3), 45.0))).all()


def test_student_interval_by_hand():
    """On AP = 40 - 2000 / images two seeds move all points by ±0.1, which is no difference, and the subset by ±0.01.

    At the sizes where the curve is within 12.706 · 0.09 of 32 nothing can be told: from 1.1434 below it to as much
    above, 2000 / (8 ± 1.1434) images.
    """
    law = np.array([20.0, 30.0, 35.0])
    ap = np.stack([law - 0.1, law + 0.1], axis=1)
    assert student_interval(np.array([100, 200, 400]), ap, np.array([31.9, 32.1])) == pytest.approx((250, 250))
    low, high = student_interval(np.array([100, 200, 400]), ap, np.array([31.99, 32.01]))
    assert (low, high) == pytest.approx((2000 / 9.1435, 2000 / 6.8565), rel=0.01)


def test_student_interval_beyond_the_curve():
    sizes, ap = np.array([100, 200, 400]), np.repeat([[20.0], [30.0], [35.0]], 2, axis=1)
    assert student_interval(sizes, ap, np.array([38.0, 38.1])) == (math.inf, math.inf)
    assert student_interval(sizes, ap, np.array([10.0, 10.1])) == (0, 0)
    assert student_interval(sizes, ap, np.array([30.0, 40.0])) == (0, math.inf)
    assert student_interval(sizes, np.full((3, 2), 30.0), np.array([30.0, 31.0])) == (0, math.inf)
    assert student_interval(sizes, np.full((3, 2), 30.0), np.array([33.0, 33.1])) == (math.inf, math.inf)


def test_learning_curve_interval_is_union_of_both():
    """As it is with differences: what the seeds or the images leave open is open."""
    ap, subset = noisy(1, num_seeds=3), np.array([44.0, 45.0, 46.5])
    worth = curve_of(ap, curated=(160, subset))["equivalent"]
    low, high = student_interval(SIZES, ap, subset)
    inner = bootstrap_interval(SIZES, np.repeat(ap[:, None], 1000, axis=1), np.tile(subset, (1000, 1)))
    assert [end["images"] for end in worth["interval"]] == pytest.approx([min(low, inner[0]), max(high, inner[1])])
    assert low < inner[0] < worth["images"] < inner[1] < high
    wide = np.random.default_rng(0).normal(0, 6, (500, 1))
    arms = {f"random_{n}": int(n) for n in SIZES} | {"curated": 160}
    of = dict(zip(arms, [*ap, subset], strict=True))
    sets = {arm: np.tile(values, (500, 1)) + (wide if arm == "curated" else 0) for arm, values in of.items()}
    assert learning_curve(arms, of, sets)["equivalent"]["interval"][0]["images"] < low


@pytest.mark.parametrize(("num_seeds", "least"), [(2, 0.88), (4, 0.88)])
def test_interval_covers_true_value(num_seeds, least):
    """450 images are right: of 100 experiments about 95 intervals hold it, also with two seeds."""
    rng, held = np.random.default_rng(5), 0
    for _ in range(100):
        ap = ap_of(SIZES)[:, None] + rng.normal(0, 1, (len(SIZES), num_seeds))
        low, high = student_interval(SIZES, ap, ap_of(np.array([450])) + rng.normal(0, 1, num_seeds))
        held += low <= 450 <= high
    assert least < held / 100 < 1


# Messages


@pytest.mark.parametrize(
    ("sizes", "ap", "message"),
    [
        ([100, 200], [[1.0], [2.0]], r"CURATE.RETRAIN.CURVE_FRACTIONS: .*\[100, 200\]"),
        ([100, 200, 200], [[1.0], [2.0], [3.0]], r"CURATE.RETRAIN.CURVE_FRACTIONS: .*\[100, 200\]"),
        ([100, 200, 300], [[1.0], [2.0]], r"ap .*\(3, seeds\).*\(2, 1\)"),
        ([0, 200, 300], [[1.0], [2.0], [3.0]], "num_images .*got 0"),
        ([100, 200, 300], [[1.0], [200.0], [3.0]], r"ap .*\[0, 100\].*got 200.0"),
    ],
)
def test_invalid_points_raise(sizes, ap, message):
    with pytest.raises(PredictionError, match=message):
        fit_power_law(np.array(sizes), np.array(ap))
