"""Schedules, cosine cycles by the paper's equation, averaging windows, thinning by brute force."""

import itertools
import math

import numpy as np
import pytest

from detcurate.ensemble.schedule import (
    SCHEDULES,
    averaging_windows,
    cosine_cycle_multiplier,
    cycle_length,
    member_iterations,
    thin_evenly,
)
from detcurate.errors import ConfigError


@pytest.mark.parametrize(
    ("max_iter", "options", "expected"),
    [
        (10, {"schedule": "every_n", "every": 3}, (2, 5, 8, 9)),
        (9, {"schedule": "every_n", "every": 3}, (2, 5, 8)),
        (4, {"schedule": "every_n", "every": 4}, (3,)),
        (10, {"schedule": "explicit", "explicit": (7, 2)}, (2, 7)),
        (10, {"explicit": (7, 2)}, (2, 7)),
        (12, {"schedule": "cosine_cycles", "cycles": 4, "members_per_run": 3}, (5, 8, 11)),
        (100, {"schedule": "cosine_cycles", "cycles": 3, "members_per_run": 3}, (33, 67, 99)),
        (7, {"schedule": "cosine_cycles", "cycles": 1, "members_per_run": 1}, (6,)),
    ],
)
def test_schedule_matches_hand_computed(max_iter, options, expected):
    assert member_iterations(max_iter, **options) == expected


def test_schedules_are_unique_and_include_last_iteration():
    for max_iter, name in itertools.product((20, 21, 90, 1000), set(SCHEDULES) - {"explicit"}):
        for every, cycles in ((1, 2), (7, 5), (20, 10)):
            try:
                found = member_iterations(max_iter, schedule=name, members_per_run=2, every=every, cycles=cycles)
            except ConfigError:
                assert (name, max_iter) == ("cosine_cycles", 21)  # 21 in 10 cycles of 3
                continue
            assert list(found) == sorted(set(found))
            assert found[-1] == max_iter - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine"}, "SCHEDULE: .*'cosine'"),
        ({"schedule": "every_n", "every": 11}, "EVERY: .*= 10 .*got 11"),
        ({"schedule": "explicit"}, r"ITERATIONS: .*= 9 .*got \[\]"),
        ({"schedule": "cosine_cycles", "cycles": 2}, "MEMBERS_PER_RUN: .*CYCLES = 2 .*got 5"),
        (
            {"schedule": "cosine_cycles", "cycles": 3},
            "CYCLES: .*MAX_ITER = 10 .*got 3, .*4 iterations .*2.*MAX_ITER 12",
        ),
        ({"schedule": "cosine_cycles", "cycles": 6}, "CYCLES: .*got 6, .*2 iterations .* 0"),
    ],
)
def test_invalid_schedule_is_refused(options, message):
    with pytest.raises(ConfigError, match=f"^CURATE.ENSEMBLE.{message}"):
        member_iterations(10, **options)


@pytest.mark.parametrize(("max_iter", "cycles"), [(12, 3), (100, 3), (50, 1), (1000, 20)])
def test_learning_rate_equals_equation_2_of_snapshot_ensembles(max_iter, cycles):
    length = math.ceil(max_iter / cycles)
    for t in range(1, max_iter + 1):  # the paper counts from 1
        expected = 1 / 2 * (math.cos(math.pi * math.fmod(t - 1, length) / length) + 1)
        assert cosine_cycle_multiplier(t - 1, max_iter=max_iter, cycles=cycles) == pytest.approx(expected, abs=1e-12)


def test_cosine_members_have_lowest_learning_rate():
    rates = [cosine_cycle_multiplier(i, max_iter=60, cycles=4) for i in range(60)]
    members = member_iterations(60, schedule="cosine_cycles", members_per_run=4, cycles=4)
    assert [rates[i] for i in members] == [min(rates)] * 4
    assert [rates[i + 1] for i in members[:-1]] == [1.0] * 3
    assert cycle_length(60, 4) == 15


def test_averaging_windows_match_hand_computed():
    assert averaging_windows((3, 6, 12), last=0, every=1) == {}
    assert averaging_windows((3, 6, 12), last=2, every=1) == {6: (4, 5, 6), 12: (7, 8, 9, 10, 11, 12)}
    assert averaging_windows((3, 6, 12), last=1, every=4) == {12: (8, 12)}
    assert averaging_windows((4,), last=0, every=1) == {}


@pytest.mark.parametrize(
    ("last", "every", "message"),
    [
        (3, 1, "AVERAGE_LAST: .*2 windows .*3 members .*got 3"),
        (2, 3, "AVERAGE_EVERY: .*members 3 and 6 .*got 3"),
    ],
)
def test_invalid_averaging_windows_are_refused(last, every, message):
    with pytest.raises(ConfigError, match=f"^CURATE.ENSEMBLE.{message}"):
        averaging_windows((3, 6, 12), last=last, every=every)


def test_thinning_minimises_squared_gaps():
    rng = np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(2, 10))
        positions = np.sort(rng.choice(40, n, replace=False)).astype(float)
        for count in range(2, n):
            kept = thin_evenly(tuple(positions), count)
            choices = [(0, *inner, n - 1) for inner in itertools.combinations(range(1, n - 1), count - 2)]
            squares = [float((np.diff(positions[list(choice)]) ** 2).sum()) for choice in choices]
            assert kept in choices
            assert float((np.diff(positions[list(kept)]) ** 2).sum()) == pytest.approx(min(squares))


def test_thinning_keeps_last_and_at_most_all():
    assert thin_evenly((1.0, 5.0, 9.0), 1) == (2,)
    assert thin_evenly((1.0, 5.0, 9.0), 7) == (0, 1, 2)
    assert thin_evenly((4.0,), 1) == (0,)
    assert thin_evenly(tuple(range(0, 1000, 10)), 12)[::11] == (0, 99)
