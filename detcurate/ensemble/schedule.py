"""Iterations at which members are saved: schedules, averaging windows, cosine cycles and thinning to a budget.

Iterations count from 0, as Detectron2's do: the state after 1,000 updates is that of iteration 999.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detcurate.errors import ConfigError

# A shorter last cycle would end its member at a learning rate well above the others'.
_SHORTEST_LAST_CYCLE = 0.9


@dataclass(frozen=True)
class ScheduleOptions:
    """Options of the schedules; each schedule reads its own.

    Args:
        members_per_run: Number of members, for ``last_fraction`` and ``cosine_cycles``.
        last_fraction: Part of training over which ``last_fraction`` spreads them, in (0, 1].
        iterations: The iterations of ``explicit``.
        every: Interval of ``every_n``, at least 1.
        cycles: Number of cycles M of ``cosine_cycles``, at least 1.
    """

    members_per_run: int = 5
    last_fraction: float = 0.5
    iterations: tuple[int, ...] = ()
    every: int = 1000
    cycles: int = 5


def last_fraction(max_iter: int, options: ScheduleOptions) -> tuple[int, ...]:
    """Return ``members_per_run`` iterations, equally spaced over the last fraction of training."""
    window, members = max(1, round(max_iter * options.last_fraction)), options.members_per_run
    if members > window:
        raise ConfigError(
            f"CURATE.ENSEMBLE.MEMBERS_PER_RUN: more than the {window} iterations of the last fraction (got {members}). "
            "Train longer or raise CURATE.ENSEMBLE.LAST_FRACTION."
        )
    steps = np.arange(1, members + 1) * (window / members)
    return tuple(int(max_iter - window + round(step) - 1) for step in steps)


def explicit(max_iter: int, options: ScheduleOptions) -> tuple[int, ...]:
    """Return the given iterations, ascending; the last iteration need not be among them."""
    given = options.iterations
    if not given or min(given) < 0 or max(given) >= max_iter or len(set(given)) != len(given):
        raise ConfigError(
            f"CURATE.ENSEMBLE.ITERATIONS: not unique numbers from 0 to SOLVER.MAX_ITER - 1 = {max_iter - 1} "
            f"(got {list(given)})."
        )
    return tuple(sorted(given))


def every_n(max_iter: int, options: ScheduleOptions) -> tuple[int, ...]:
    """Return every ``every``-th iteration of training, and the last."""
    if options.every > max_iter:
        raise ConfigError(
            f"CURATE.ENSEMBLE.EVERY: more than SOLVER.MAX_ITER = {max_iter} (got {options.every}). Lower it."
        )
    return tuple(sorted({*range(options.every - 1, max_iter, options.every), max_iter - 1}))


def cosine_cycles(max_iter: int, options: ScheduleOptions) -> tuple[int, ...]:
    """Return the ends of the last ``members_per_run`` cycles, where the learning rate is lowest.

    Source: Huang et al. 2017, arXiv 1704.00109, section 3 (the last m of M snapshots make the ensemble).
    """
    length = cycle_length(max_iter, options.cycles)
    if options.members_per_run > options.cycles:
        raise ConfigError(
            f"CURATE.ENSEMBLE.MEMBERS_PER_RUN: more than CURATE.ENSEMBLE.CYCLES = {options.cycles} (got "
            f"{options.members_per_run}). Each cycle gives one member."
        )
    ends = [min(cycle * length, max_iter) - 1 for cycle in range(1, options.cycles + 1)]
    return tuple(ends[-options.members_per_run :])


SCHEDULES: Mapping[str, Callable[[int, ScheduleOptions], tuple[int, ...]]] = {
    "last_fraction": last_fraction,
    "explicit": explicit,
    "every_n": every_n,
    "cosine_cycles": cosine_cycles,
}


def member_iterations(
    max_iter: int,
    *,
    schedule: str = "last_fraction",
    members_per_run: int = 5,
    last_fraction: float = 0.5,
    explicit: Sequence[int] = (),
    every: int = 1000,
    cycles: int = 5,
) -> tuple[int, ...]:
    """Return the iterations (from 0) after which a member is saved, ascending and unique.

    Explicit iterations replace the schedule ``last_fraction``. All other schedules include the last iteration.

    Raises:
        ConfigError: The schedule is unknown, or its options are invalid.

    Example:
        >>> member_iterations(1000, members_per_run=5, last_fraction=0.5)
        (599, 699, 799, 899, 999)
        >>> member_iterations(1000, schedule="cosine_cycles", members_per_run=2, cycles=4)
        (749, 999)
    """
    name = "explicit" if explicit and schedule == "last_fraction" else schedule
    if name not in SCHEDULES:
        raise ConfigError(f"CURATE.ENSEMBLE.SCHEDULE: must be one of {', '.join(sorted(SCHEDULES))} (got {name!r})")
    options = ScheduleOptions(members_per_run, last_fraction, tuple(explicit), every, cycles)
    return SCHEDULES[name](max_iter, options)


def cycle_length(max_iter: int, cycles: int) -> int:
    """Return ceil(T / M), the number of iterations of a cosine cycle.

    Raises:
        ConfigError: The M-th cycle would end too early, so that its member would not be trained to the end.
    """
    length = math.ceil(max_iter / cycles)
    last = max_iter - (cycles - 1) * length
    if last < _SHORTEST_LAST_CYCLE * length:
        raise ConfigError(
            f"CURATE.ENSEMBLE.CYCLES: does not divide SOLVER.MAX_ITER = {max_iter} (got {cycles}, the last cycle of "
            f"{length} iterations would have {max(last, 0)}). Set SOLVER.MAX_ITER {cycles * length}, for instance."
        )
    return length


def cosine_cycle_multiplier(iteration: int, *, max_iter: int, cycles: int) -> float:
    """Return the learning rate of an iteration (from 0) as a fraction of the base rate, in (0, 1].

    Source: Huang et al. 2017, arXiv 1704.00109, eq. 2, with t = iteration + 1.

    Example:
        >>> [round(cosine_cycle_multiplier(i, max_iter=8, cycles=2), 3) for i in range(8)]
        [1.0, 0.854, 0.5, 0.146, 1.0, 0.854, 0.5, 0.146]
    """
    length = cycle_length(max_iter, cycles)
    return (math.cos(math.pi * (iteration % length) / length) + 1) / 2


def averaging_windows(iterations: Sequence[int], *, last: int, every: int) -> dict[int, tuple[int, ...]]:
    """Return the end of each averaging window, and the iterations of the averaged weights.

    A window begins after a member and ends with the next one. Samples are counted back from its end, the first sample.

    Args:
        iterations: Iterations of the members, ascending.
        last: Number of windows, counted from the end of training; 0 for none.
        every: Iterations between two samples.

    Raises:
        ConfigError: There are fewer windows, or a window has a single sample, which would repeat its member.

    Example:
        >>> averaging_windows((3, 6, 12), last=1, every=2)
        {12: (8, 10, 12)}
    """
    if last > len(iterations) - 1:
        raise ConfigError(
            f"CURATE.ENSEMBLE.AVERAGE_LAST: more than the {max(len(iterations) - 1, 0)} windows between "
            f"{len(iterations)} members of a run (got {last}). Lower it or save more members."
        )
    windows = {}
    for start, end in list(zip(iterations[:-1], iterations[1:], strict=True))[len(iterations) - 1 - last :]:
        samples = tuple(range(end, start, -every))[::-1]
        if len(samples) < 2:
            raise ConfigError(
                f"CURATE.ENSEMBLE.AVERAGE_EVERY: not less than the {end - start} iterations between the members "
                f"{start} and {end} (got {every}). Lower it: an average of one sample repeats the member."
            )
        windows[end] = samples
    return windows


@functools.lru_cache(maxsize=8)
def thin_evenly(positions: tuple[float, ...], count: int) -> tuple[int, ...]:
    """Return the indices of ``count`` positions that are as evenly spaced as possible, including first and last.

    The sum of squared gaps is minimal. A count of one keeps the last; a count of at least all keeps all.

    Args:
        positions: Ascending.
        count: At least 1.

    Example:
        >>> thin_evenly((0, 1, 2, 3, 4, 5, 6), 3)
        (0, 3, 6)
    """
    n = len(positions)
    if count >= n:
        return tuple(range(n))
    if count == 1:
        return (n - 1,)
    places = np.asarray(positions, np.float64)
    gaps = np.where(np.arange(n)[:, None] < np.arange(n), (places - places[:, None]) ** 2, np.inf)
    cost = np.where(np.arange(n) == 0, 0.0, np.inf)
    before = []  # for each further position: the best previous one
    for _ in range(count - 1):
        through = cost[:, None] + gaps
        before.append(through.argmin(axis=0))
        cost = through.min(axis=0)
    kept = [n - 1]
    for choice in reversed(before):
        kept.append(int(choice[kept[-1]]))
    return tuple(reversed(kept))
