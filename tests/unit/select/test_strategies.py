"""k-center and facility location against their plain forms."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detcurate.select import strategies as module
from detcurate.select.compose import PoolColumns, select
from detcurate.select.limits import Quota
from detcurate.select.neighbours import unit_rows
from detcurate.select.strategies import facility_location, k_center
from detcurate.structures import ImageScores


def units_of(num_rows, num_features, seed=0):
    return unit_rows(np.random.default_rng(seed).normal(size=(num_rows, num_features)))


def plain_k_center(units, num_centers, taken=None):
    units = units.astype(np.float64)
    centers = [] if taken is not None else [0]
    closeness = (units @ (taken if taken is not None else units[:1]).T.astype(np.float64)).max(axis=1)
    closeness[centers] = np.inf
    while len(centers) < num_centers:
        row = int(closeness.argmin())
        centers.append(row)
        closeness = np.maximum(closeness, units @ units[row])
        closeness[centers] = np.inf
    return centers


def covering_radius(units, centers):
    return float(np.sqrt(np.maximum(0, 2 - 2 * (units @ units[centers].T).max(axis=1))).max())


# k-center


def test_k_center_by_hand():
    angles = np.array([0.0, 0.1, 1.0, 2.0, 2.1])
    units = np.column_stack((np.cos(angles), np.sin(angles))).astype(np.float32)
    assert k_center(units, num_centers=3).tolist() == [0, 4, 2]
    assert k_center(units, num_centers=2, taken=units[3:4]).tolist() == [0, 2]
    assert k_center(units, num_centers=0).tolist() == []


@pytest.mark.parametrize(("num_rows", "num_features", "num_centers"), [(23, 3, 23), (700, 5, 300), (5000, 16, 1500)])
def test_k_center_equals_plain_greedy(num_rows, num_features, num_centers):
    units = units_of(num_rows, num_features)
    assert k_center(units, num_centers=num_centers).tolist() == plain_k_center(units, num_centers)


def test_k_center_ignores_round_size_and_threads(monkeypatch):
    units = units_of(900, 6, seed=2)
    expected = k_center(units, num_centers=200).tolist()
    monkeypatch.setattr(module, "_CHUNK", 100)
    monkeypatch.setattr(module, "_FEWEST", 3)
    monkeypatch.setattr(module, "_MOST", 11)
    assert k_center(units, num_centers=200, num_threads=3).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), num_rows=st.integers(2, 9), num_centers=st.integers(1, 4))
def test_k_center_radius_is_within_twice_the_optimum(seed, num_rows, num_centers):
    num_centers = min(num_centers, num_rows)
    units = units_of(num_rows, 3, seed)
    best = min(covering_radius(units, list(set_)) for set_ in itertools.combinations(range(num_rows), num_centers))
    assert covering_radius(units, k_center(units, num_centers=num_centers)) <= 2 * best + 1e-3


def test_duplicates_are_chosen_once_each():
    units = unit_rows(np.repeat(np.eye(3), [400, 300, 111], axis=0))
    centers = k_center(units, num_centers=811)
    assert centers[:3].tolist() == [0, 400, 700]
    assert sorted(centers.tolist()) == list(range(811))


# Facility location


def plain_facility_location(weights, num_chosen, coverage=None):
    coverage = np.zeros(len(weights)) if coverage is None else coverage.astype(np.float64)
    chosen = []
    for _ in range(num_chosen):
        gains = np.maximum(0, weights - coverage).sum(axis=1)
        gains[chosen] = -np.inf
        row = int(gains.argmax())
        chosen.append(row)
        coverage = np.maximum(coverage, weights[row])
    return chosen


@pytest.mark.parametrize("num_chosen", [1, 7, 60])
def test_facility_location_equals_plain_greedy(num_chosen):
    units = units_of(60, 4, seed=5)
    weights = np.maximum((units @ units.T).astype(np.float64), 0)
    np.fill_diagonal(weights, 1)
    got = facility_location(units, num_chosen=num_chosen, num_neighbours=60)
    assert got.tolist() == plain_facility_location(weights, num_chosen)


def test_facility_location_counts_taken_rows():
    units = units_of(40, 4, seed=6)
    weights = np.maximum((units @ units.T).astype(np.float64), 0)
    np.fill_diagonal(weights, 1)
    got = facility_location(units, num_chosen=9, taken=units[3:5], num_neighbours=40)
    assert got.tolist() == plain_facility_location(weights, 9, np.maximum(weights[3], weights[4]))


def test_facility_location_on_sparse_graph_loses_little():
    units = units_of(300, 6, seed=7)
    cosines = np.maximum(units @ units.T, 0)
    value = {k: cosines[facility_location(units, num_chosen=40, num_neighbours=k)].max(axis=0).sum() for k in (20, 300)}
    assert value[20] > 0.97 * value[300]


def test_zero_requested_rows_give_none():
    assert facility_location(units_of(5, 3), num_chosen=0).tolist() == []


# In a selection


@pytest.mark.parametrize("strategy", ["k_center", "facility_location"])
def test_k_center_considers_only_best_by_score(strategy):
    rng = np.random.default_rng(8)
    scores = ImageScores(np.arange(50), rng.uniform(0, 1, 50), {})
    columns = PoolColumns(embeddings=rng.normal(size=(50, 7)).astype(np.float16))
    log = select(scores, budget=6, strategy=strategy, columns=columns, oversampling=3)
    best = np.argsort(-scores.image_score)[:18]
    assert set(log.taken) <= set(best)
    assert log.counts(taken=False) == {"outside_best": 32, "budget": 12}


@pytest.mark.parametrize("strategy", ["k_center", "facility_location"])
def test_choice_is_independent_of_image_ids(strategy):
    rng = np.random.default_rng(9)
    score, embeddings, ids = rng.uniform(0, 1, 41), rng.normal(size=(41, 5)), rng.permutation(41) + 7
    chosen = []
    for order in (np.arange(41), np.argsort(ids)):
        # The same images under other ids: which row they stand in must not matter.
        scores = ImageScores(np.arange(41), score[order], {})
        taken = select(scores, budget=9, strategy=strategy, columns=PoolColumns(embeddings=embeddings[order])).taken
        chosen.append(order[taken].tolist())
    assert chosen[0] == chosen[1]


def test_images_of_minimums_are_centers_already():
    angles = np.array([0.0, 0.02, 1.5, 3.0])
    embeddings = np.column_stack((np.cos(angles), np.sin(angles)))
    scores = ImageScores(np.arange(4), np.array([0.1, 0.9, 0.8, 0.7]), {})
    minimum = Quota("class bus", np.array([1, 0, 0, 0]), 1)
    log = select(scores, budget=3, strategy="k_center", columns=PoolColumns(embeddings=embeddings), minimums=[minimum])
    assert log.selection.image_ids.tolist() == [0, 3, 2]  # 1 scores best, and stands beside 0
