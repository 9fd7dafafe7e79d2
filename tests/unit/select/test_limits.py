"""Minimum and maximum quotas: by hand, and the errors when they cannot be met."""

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


def test_minimum_takes_best_then_order_fills_budget():
    log = select(FALLING, budget=4, minimums=[quota("class bus", [0, 0, 0, 1, 2, 3], 3)])
    assert log.selection.image_ids.tolist() == [4, 5, 1, 2]
    assert log.selection.reasons == ("minimum class bus=3",) * 2 + ("top_n",) * 2


def test_minimum_counts_images_of_earlier_minimums():
    minimums = [quota("class bus", [0, 0, 0, 1, 0, 1], 2), quota("weather rain", [0, 1, 0, 1, 0, 1], 2)]
    log = select(FALLING, budget=3, minimums=minimums)
    assert log.selection.image_ids.tolist() == [4, 6, 1]
    assert log.counts(taken=True) == {"minimum class bus=2": 2, "top_n": 1}


def test_minimum_already_met_takes_nothing():
    log = select(FALLING, budget=2, minimums=[quota("class bus", [0] * 6, 0)])
    assert log.selection.image_ids.tolist() == [1, 2]


def test_maximum_is_not_exceeded_and_next_image_is_taken():
    log = select(FALLING, budget=3, maximums=[quota("class car", [2, 2, 1, 0, 1, 0], 3)])
    assert log.selection.image_ids.tolist() == [1, 3, 4]
    assert log.counts(taken=False) == {"maximum class car=3": 1, "budget": 2}


def test_maximum_applies_to_minimums():
    maximums, minimums = [quota("class car", [0, 0, 0, 5, 1, 0], 4)], [quota("class bus", [0, 0, 0, 1, 1, 1], 2)]
    log = select(FALLING, budget=2, minimums=minimums, maximums=maximums)
    assert log.selection.image_ids.tolist() == [5, 6]


def test_minimum_skips_images_over_budget():
    budget = box_budget(np.array([1, 1, 1, 9, 2, 3]), num_boxes=6)
    log = select(FALLING, budget=budget, minimums=[quota("class bus", [0, 0, 0, 1, 1, 1], 2)])
    assert log.selection.image_ids.tolist() == [5, 6, 1]


def test_k_center_continues_after_maximum_removes_images():
    # k-center orders only as many as fit the budget; without a second round the maximum would leave two unused.
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
            "minimum class bus=4: .*only 3",
        ),
        (
            {
                "minimums": [quota("class bus", [1, 0, 1, 1, 1, 0], 4)],
                "noise_filter": "drop",
                "noise_filter_quantile": 0.8,
                "columns": PoolColumns(label_error_score=np.array([1.0, 0, 0, 0, 0, 0])),
            },
            r"minimum class bus=4: .*only 3 \(4 before",
        ),
        (
            {"minimums": [quota("class bus", [0, 0, 1, 1, 1, 0], 2), quota("weather rain", [1, 1, 0, 0, 0, 0], 2)]},
            "minimum weather rain=2: .*budget of 3 images .*only 1",
        ),
        (
            {
                "minimums": [quota("class bus", [0, 0, 1, 1, 1, 0], 2)],
                "maximums": [quota("class car", [0, 0, 2, 2, 2, 0], 3)],
            },
            "minimum class bus=2: .*maximum class car=3 .*only 1",
        ),
    ],
)
def test_minimum_that_cannot_be_met_is_named(options, message):
    budget = Budget(np.ones(6, np.int64), 3, "3 images")
    with pytest.raises(SelectionError, match=message):
        select(FALLING, budget=budget, **options)


def test_minimum_of_absent_class_is_named():
    with pytest.raises(SelectionError, match="minimum class tram=1: .*only 0"):
        select(FALLING, budget=2, minimums=[quota("class tram", [0] * 6, 1)])


@pytest.mark.parametrize("amounts, limit", [([0, -1], 2), ([0, 1], -2)])
def test_quota_out_of_range_is_named(amounts, limit):
    with pytest.raises(SelectionError, match=f"class bus={limit}"):
        quota("class bus", amounts, limit)
