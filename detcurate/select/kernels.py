"""Compiled loops of the selection: greedy thinning, greedy coverage, and selecting in order under limits.

The thinning kernels take rows best first and keep each row unless it is near a better kept row. The first ``num_kept``
rows are always kept.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def keep_far_from_better(keeper, first, starts, better, near, num_kept):
    """Thin a block of rows; all rows before it have been thinned.

    Args:
        keeper: (n,) int64, changed in place: for the rows of the block the best kept neighbour, -1 for none.
        first: The first row of the block.
        starts: (b + 1,) int64, the start of each row's kept neighbours before the block.
        better: (P,) int64, these neighbours, in any order.
        near: (b, b) bool, whether two rows of the block are near each other.
        num_kept: In [0, n].
    """
    for position in range(max(0, num_kept - first), len(starts) - 1):
        row = first + position
        best = row
        for at in range(starts[position], starts[position + 1]):
            best = min(best, better[at])
        other = 0
        while best == row and other < position:
            if near[position, other] and keeper[first + other] < 0:
                best = first + other
            other += 1
        keeper[row] = best if best < row else -1


@njit(cache=True, nogil=True)
def keep_apart(order, sequences, frame_index, gap, num_kept):
    """Thin all rows by their distance in frames to kept rows of their sequence.

    Args:
        order: (n,) int64, the rows by sequence and frame.
        sequences: (n,) int64, negative for none.
        frame_index: (n,) int64.
        gap: At least 1.
        num_kept: In [0, n].

    Returns:
        (n,) int64, the best kept row less than ``gap`` frames away, -1 for none.
    """
    position_of = np.empty(len(order), np.int64)
    for position in range(len(order)):
        position_of[order[position]] = position
    keeper = np.full(len(order), -1, np.int64)
    for row in range(num_kept, len(order)):
        if sequences[row] < 0:
            continue
        best = row
        for step in (-1, 1):
            at = position_of[row] + step
            while 0 <= at < len(order):
                other = order[at]
                if sequences[other] != sequences[row] or abs(frame_index[other] - frame_index[row]) >= gap:
                    break
                if other < best and keeper[other] < 0:
                    best = other
                at += step
        keeper[row] = best if best < row else -1
    return keeper


@njit(cache=True, nogil=True)
def keep_unlike_hashes(hashes, by_band, starts, masks, band_bits, most_bits, num_kept):
    """Thin all rows by the number of bits in which their hashes differ from kept ones.

    Args:
        hashes: (n,) uint64.
        by_band: (B, n) int64, for each band of bits the rows ordered by its value.
        starts: (B, 2**band_bits + 1) int64, the start of each value's rows.
        masks: (M,) uint64, the flips of a band to look up: those of at most ``most_bits // B`` bits.
        band_bits: Number of bits of a band.
        most_bits: Hashes that differ in at most so many bits are near each other.
        num_kept: In [0, n].

    Returns:
        (n,) int64, the best kept row that is near, -1 for none.
    """
    keeper = np.full(len(hashes), -1, np.int64)
    low = np.uint64((1 << band_bits) - 1)
    for row in range(num_kept, len(hashes)):
        best = row
        for band in range(len(by_band)):
            value = (hashes[row] >> np.uint64(band * band_bits)) & low
            for mask in masks:
                bucket = value ^ mask
                for at in range(starts[band, bucket], starts[band, bucket + np.uint64(1)]):
                    other = by_band[band, at]
                    if other < best and keeper[other] < 0 and _differing_bits(hashes[row], hashes[other]) <= most_bits:
                        best = other
        keeper[row] = best if best < row else -1
    return keeper


@njit(cache=True, nogil=True)
def _differing_bits(first, second):
    bits = first ^ second
    count = 0
    while bits:
        bits &= bits - np.uint64(1)
        count += 1
    return count


_CHOSEN = np.float32(4.0)  # above any cosine


@njit(cache=True, nogil=True)
def farthest_first(similarities, closeness, ceiling, most):
    """Choose the row of lowest closeness repeatedly while it is below the ceiling.

    Args:
        similarities: (b, b) float32.
        closeness: (b,) float32, the similarity of each row to the nearest center; changed in place.
        ceiling: float32.
        most: The largest number of rows to choose.

    Returns:
        (c,) int64 rows in order of choice; of equal ones the first.
    """
    chosen = np.empty(min(most, len(closeness)), np.int64)
    count = 0
    while count < len(chosen):
        row = np.argmin(closeness)
        if closeness[row] >= ceiling:
            break
        chosen[count] = row
        count += 1
        for other in range(len(closeness)):
            closeness[other] = max(closeness[other], similarities[row, other])
        closeness[row] = _CHOSEN
    return chosen[:count]


@njit(cache=True, nogil=True)
def lazy_greedy(starts, covered, similarities, coverage, most):
    """Choose the row that adds most coverage repeatedly; gains only decrease, so old gains are upper bounds.

    Args:
        starts: (n + 1,) int64, the start of the rows that each row covers.
        covered: (P,) int32 rows.
        similarities: (P,) float32, at least 0.
        coverage: (n,) float64, the similarity of each row to the nearest chosen one; changed in place.
        most: The largest number of rows to choose.

    Returns:
        (c,) int64 rows in order of choice; of equal gains the first.
    """
    heap = [(-_gain(starts, covered, similarities, coverage, row), row) for row in range(len(starts) - 1)]
    heapq.heapify(heap)
    chosen = np.empty(most, np.int64)
    count = 0
    while count < most and heap:
        row = heap[0][1]
        gain = _gain(starts, covered, similarities, coverage, row)
        if -gain > heap[0][0]:
            heapq.heapreplace(heap, (-gain, row))
            continue
        heapq.heappop(heap)
        chosen[count] = row
        count += 1
        for at in range(starts[row], starts[row + 1]):
            coverage[covered[at]] = max(coverage[covered[at]], similarities[at])
    return chosen[:count]


@njit(cache=True, nogil=True)
def _gain(starts, covered, similarities, coverage, row):
    gain = 0.0
    for at in range(starts[row], starts[row + 1]):
        gain += max(0.0, similarities[at] - coverage[covered[at]])
    return gain


NOT_REACHED, TAKEN, OVER_BUDGET, FIRST_MAXIMUM = 0, 1, 2, 3


@njit(cache=True, nogil=True)
def take_in_order(order, costs, remaining, maximum_amounts, maximum_remaining, counted, need, stops):
    """Select rows in order while budget and need remain.

    Args:
        order: (m,) int64 rows.
        costs: (I,) int64.
        remaining: The remaining budget.
        maximum_amounts: (Q, I) int64.
        maximum_remaining: (Q,) int64, what remains of each maximum quota; changed in place.
        counted: (I,) int64, the amount of each row that counts for the need.
        need: The loop ends when so much was selected.
        stops: bool, whether the loop also ends when the budget is spent, and at the first row that does not fit.

    Returns:
        (m,) int64, for each row ``NOT_REACHED``, ``TAKEN``, ``OVER_BUDGET``, or ``FIRST_MAXIMUM`` plus the number of
        the maximum quota that it would exceed; the remaining budget; the remaining need.
    """
    outcome = np.zeros(len(order), np.int64)
    for position in range(len(order)):
        if need <= 0 or (stops and remaining <= 0):
            break
        row = order[position]
        broken = -1
        for maximum in range(len(maximum_remaining)):
            if maximum_amounts[maximum, row] > maximum_remaining[maximum]:
                broken = maximum
                break
        if broken >= 0:
            outcome[position] = FIRST_MAXIMUM + broken
            continue
        if costs[row] > remaining:
            outcome[position] = OVER_BUDGET
            if stops:
                break
            continue
        outcome[position] = TAKEN
        remaining -= costs[row]
        need -= counted[row]
        for maximum in range(len(maximum_remaining)):
            maximum_remaining[maximum] -= maximum_amounts[maximum, row]
    return outcome, remaining, need
