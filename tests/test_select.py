import numpy as np
import pytest

from detcurate.errors import SelectionError
from detcurate.select.budget import resolve_budget
from detcurate.select.rank import STRATEGIES, select
from detcurate.structures import ImageScores


def scores_of(image_score, image_ids=None):
    image_score = np.asarray(image_score, np.float64)
    image_ids = np.arange(len(image_score)) * 10 + 5 if image_ids is None else np.asarray(image_ids)
    return ImageScores(image_ids, image_score, {})


# Budget


@pytest.mark.parametrize(
    ("num_images", "fraction", "expected"),
    [
        (600, 0.5, 300),
        (600, 1.0, 600),
        (7, 0.5, 4),
        (25, 0.1, 3),
        (50, 0.29, 15),
        (3, 0.001, 1),
        (1, 0.2, 1),
        (9, 0.05, 1),
    ],
)
def test_a_fraction_is_rounded_half_up_to_one_image_or_more(num_images, fraction, expected):
    assert resolve_budget(num_images, fraction=fraction, count=None) == expected


@pytest.mark.parametrize("num_images", [1, 2, 17, 600])
def test_a_fraction_never_leaves_the_pool_and_never_falls(num_images):
    budgets = [resolve_budget(num_images, fraction=step / 97, count=None) for step in range(1, 98)]
    assert budgets == sorted(budgets)
    assert 1 <= budgets[0] and budgets[-1] == num_images


@pytest.mark.parametrize("count", [1, 40, 600])
def test_a_count_is_itself(count):
    assert resolve_budget(600, fraction=None, count=count) == count


@pytest.mark.parametrize(
    ("num_images", "fraction", "count", "message"),
    [
        (600, None, 700, r"count must be at most the pool's 600 images, got 700; lower the count"),
        (600, None, 0, "count must be at least 1, got 0"),
        (600, 0.0, None, r"fraction must be in \(0, 1\], got 0.0"),
        (600, 1.5, None, r"fraction must be in \(0, 1\], got 1.5"),
        (600, float("nan"), None, r"fraction must be in \(0, 1\], got nan"),
        (600, 0.5, 300, "exactly one of fraction and count must be given, got fraction=0.5 and count=300"),
        (600, None, None, "exactly one of fraction and count must be given, got fraction=None and count=None"),
        (0, 0.5, None, "the pool must hold at least one image, got 0"),
    ],
)
def test_a_budget_that_cannot_be_met_is_named(num_images, fraction, count, message):
    with pytest.raises(SelectionError, match=message):
        resolve_budget(num_images, fraction=fraction, count=count)


# Top-N


def test_the_highest_first_and_ties_by_image_id():
    selection = select(scores_of([0.2, 0.9, 0.5, 0.9, 0.5, 0.5]), budget=4)
    assert selection.image_ids.tolist() == [15, 35, 25, 45]
    assert selection.reasons == ("top_n",) * 4


def test_top_n_against_a_plain_sort():
    scores = scores_of(np.round(np.random.default_rng(0).uniform(0, 1, 211), 1))
    expected = sorted(zip(-scores.image_score, scores.image_ids, strict=True))[:57]
    assert select(scores, budget=57).image_ids.tolist() == [image_id for _, image_id in expected]


def test_a_smaller_budget_is_the_head_of_a_larger_one():
    scores = scores_of(np.random.default_rng(1).uniform(0, 1, 31))
    assert select(scores, budget=7).image_ids.tolist() == select(scores, budget=19).image_ids[:7].tolist()


def test_the_seed_is_of_no_effect_on_top_n():
    scores = scores_of(np.random.default_rng(2).uniform(0, 1, 31))
    assert select(scores, budget=7, seed=1).image_ids.tolist() == select(scores, budget=7, seed=2).image_ids.tolist()


# Random


def test_random_does_not_look_at_the_score_and_repeats_with_the_seed():
    first, second = scores_of(np.linspace(0, 1, 31)), scores_of(np.linspace(1, 0, 31))
    drawn = [select(scores, budget=11, strategy="random", seed=3).image_ids.tolist() for scores in (first, second)]
    assert drawn[0] == drawn[1] == sorted(drawn[0])
    assert drawn[0] != select(first, budget=11, strategy="random", seed=4).image_ids.tolist()


def test_random_is_uniform():
    scores = scores_of(np.linspace(0, 1, 10))
    counts = np.zeros(10)
    for seed in range(1500):
        counts[(select(scores, budget=4, strategy="random", seed=seed).image_ids - 5) // 10] += 1
    # 600 expected each; the deviation of a binomial of 1500 at 0.4 is 19.
    assert (np.abs(counts - 600) < 5 * 19).all()


# Both


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_whole_pool_is_every_image_once(strategy):
    scores = scores_of(np.random.default_rng(5).uniform(0, 1, 13))
    selection = select(scores, budget=13, strategy=strategy)
    assert sorted(selection.image_ids.tolist()) == scores.image_ids.tolist()
    assert set(selection.reasons) == {strategy}


@pytest.mark.parametrize("budget", [0, -1, 4])
def test_a_budget_outside_the_pool_is_refused(budget):
    with pytest.raises(SelectionError, match=rf"budget must be in \[1, 3\], the images of the pool, got {budget}"):
        select(scores_of([0.1, 0.2, 0.3]), budget=budget)


def test_an_unknown_strategy_is_answered_with_the_names():
    with pytest.raises(SelectionError, match="strategy must be one of top_n, random, got 'best'"):
        select(scores_of([0.1, 0.2, 0.3]), budget=2, strategy="best")


def test_a_negative_seed_is_refused():
    with pytest.raises(SelectionError, match="seed must be at least 0, got -1"):
        select(scores_of([0.1, 0.2, 0.3]), budget=2, strategy="random", seed=-1)
