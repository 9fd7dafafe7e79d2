"""Floors and caps: by hand, and what is said when they cannot be kept."""

import numpy as np
import pytest

from detcurate.errors import SelectionError
from detcurate.select.compose import PoolColumns, select
from detcurate.select.limits import Budget, Quota, box_budget
from detcurate.structures import ImageScores


def pool(image_score):
    image_score = np.asarray(image_score, np.float64)
    return ImageScores(np.arange(len(image_score)) + 1, image_score, {})


def quota(name, amounts, limit):
    return Quota(name, np.asarray(amounts, np.int64), limit)


FALLING = pool([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])


def test_a_floor_takes_the_best_that_hold_it_and_the_order_the_rest():
    log = select(FALLING, budget=4, minimums=[quota("class bus", [0, 0, 0, 1, 2, 3], 3)])
    assert log.selection.image_ids.tolist() == [4, 5, 1, 2]
    assert log.selection.reasons == ("floor class bus=3",) * 2 + ("top_n",) * 2


def test_what_one_floor_has_taken_counts_for_the_next():
    minimums = [quota("class bus", [0, 0, 0, 1, 0, 1], 2), quota("weather rain", [0, 1, 0, 1, 0, 1], 2)]
    log = select(FALLING, budget=3, minimums=minimums)
    assert log.selection.image_ids.tolist() == [4, 6, 1]
    assert log.counts(taken=True) == {"floor class bus=2": 2, "top_n": 1}


def test_a_floor_of_nothing_and_one_that_is_met_take_nothing():
    log = select(FALLING, budget=2, minimums=[quota("class bus", [0] * 6, 0)])
    assert log.selection.image_ids.tolist() == [1, 2]


def test_a_cap_is_never_exceeded_and_what_breaks_it_makes_room():
    log = select(FALLING, budget=3, maximums=[quota("class car", [2, 2, 1, 0, 1, 0], 3)])
    assert log.selection.image_ids.tolist() == [1, 3, 4]
    assert log.counts(taken=False) == {"cap class car=3": 1, "budget": 2}


def test_caps_hold_for_floors_too():
    maximums, minimums = [quota("class car", [0, 0, 0, 5, 1, 0], 4)], [quota("class bus", [0, 0, 0, 1, 1, 1], 2)]
    log = select(FALLING, budget=2, minimums=minimums, maximums=maximums)
    assert log.selection.image_ids.tolist() == [5, 6]


def test_a_floor_passes_over_what_does_not_fit_the_budget():
    budget = box_budget(np.array([1, 1, 1, 9, 2, 3]), num_boxes=6)
    log = select(FALLING, budget=budget, minimums=[quota("class bus", [0, 0, 0, 1, 1, 1], 2)])
    assert log.selection.image_ids.tolist() == [5, 6, 1]


def test_a_diverse_order_goes_on_when_caps_turn_some_of_it_down():
    # k-center asks for as many as the budget buys; without a second round the cap would leave two places empty.
    rng = np.random.default_rng(0)
    columns = PoolColumns(embeddings=rng.normal(size=(30, 4)))
    scores = pool(rng.uniform(0, 1, 30))
    maximum = quota("class car", rng.integers(0, 2, 30), 1)
    log = select(scores, budget=7, strategy="k_center", columns=columns, maximums=[maximum])
    assert len(log.taken) == 7
    assert maximum.amounts[log.taken].sum() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"minimums": [quota("class bus", [0, 0, 1, 1, 1, 0], 4)]},
            r"floor class bus=4 must be at most what the pool holds, got a pool that holds 3; lower the floor",
        ),
        (
            {
                "minimums": [quota("class bus", [1, 0, 1, 1, 1, 0], 4)],
                "noise_filter": "drop",
                "noise_filter_quantile": 0.8,
                "columns": PoolColumns(label_error_score=np.array([1.0, 0, 0, 0, 0, 0])),
            },
            r"got a pool that holds 3 \(4 before the noise filter and the thinning\); lower the floor",
        ),
        (
            {"minimums": [quota("class bus", [0, 0, 1, 1, 1, 0], 2), quota("weather rain", [1, 1, 0, 0, 0, 0], 2)]},
            r"floor weather rain=2 must be met within the budget of 3 images, got 1 with the best-scored images after "
            r"the floors before it; raise the limit or lower the floor",
        ),
        (
            {
                "minimums": [quota("class bus", [0, 0, 1, 1, 1, 0], 2)],
                "maximums": [quota("class car", [0, 0, 2, 2, 2, 0], 3)],
            },
            r"floor class bus=2 must be met within cap class car=3, got 1 with",
        ),
    ],
)
def test_a_floor_that_cannot_be_met_is_named(options, message):
    budget = Budget(np.ones(6, np.int64), 3, "3 images")
    with pytest.raises(SelectionError, match=message):
        select(FALLING, budget=budget, **options)


def test_a_class_that_no_image_holds():
    with pytest.raises(SelectionError, match="floor class tram=1 .* got a pool that holds 0; lower the floor"):
        select(FALLING, budget=2, minimums=[quota("class tram", [0] * 6, 1)])


@pytest.mark.parametrize("amounts, limit", [([0, -1], 2), ([0, 1], -2)])
def test_a_quota_out_of_range(amounts, limit):
    with pytest.raises(SelectionError, match=f"class bus={limit} must be at least 0"):
        quota("class bus", amounts, limit)
