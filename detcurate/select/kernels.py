"""Greedy thinning: of rows given best first, each is kept unless a better one that was kept stands too near.

The first ``num_kept`` rows are kept whatever they are near.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def keep_far_from_better(keeper, first, starts, better, near, num_kept):
    """Decide the rows of a block; all rows before it are decided.

    Args:
        keeper: (n,) int64, changed in place: of the rows of the block the best kept neighbour, -1 for none.
        first: The first row of the block.
        starts: (b + 1,) int64, where each row's kept neighbours before the block begin.
        better: (P,) int64, these neighbours, in any order.
        near: (b, b) bool, which rows of the block are near each other.
        num_kept: in [0, n].
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
    """Decide all rows by their distance in frames to the kept ones of their sequence.

    Args:
        order: (n,) int64, the rows by sequence and frame.
        sequences: (n,) int64, negative for none.
        frame_index: (n,) int64.
        gap: at least 1.
        num_kept: in [0, n].

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
    """Decide all rows by the bits in which their hashes differ from the kept ones.

    Args:
        hashes: (n,) uint64.
        by_band: (B, n) int64, for each band of bits the rows by their value in it.
        starts: (B, 2**band_bits + 1) int64, where each value's rows begin.
        masks: (M,) uint64, the flips of a band that are looked up: those of at most ``most_bits // B`` bits.
        band_bits: bits of a band.
        most_bits: hashes that differ in no more bits are near each other.
        num_kept: in [0, n].

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
    """Choose the row of lowest closeness again and again, as long as it is below the ceiling.

    Args:
        similarities: (b, b) float32.
        closeness: (b,) float32, the similarity of each row to the nearest center; changed in place.
        ceiling: float32.
        most: how many to choose at most.

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
    """Choose the row that adds most coverage, again and again; a gain only falls, so that old ones are upper bounds.

    Args:
        starts: (n + 1,) int64, where the rows that each row covers begin.
        covered: (P,) int32 rows.
        similarities: (P,) float32, at least 0.
        coverage: (n,) float64, the similarity of each row to the nearest chosen one; changed in place.
        most: how many to choose at most.

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
def take_in_order(order, costs, room, maximum_amounts, maximum_rooms, wanted, need, stops):
    """Take rows in order while there is room and need.

    Args:
        order: (m,) int64 rows.
        costs: (I,) int64.
        room: what may be spent.
        maximum_amounts: (Q, I) int64.
        maximum_rooms: (Q,) int64, what is left under each cap; changed in place.
        wanted: (I,) int64, what each row gives towards the need.
        need: the walk ends when so much was given.
        stops: bool, whether it also ends when no room is left, and at the first row that does not fit it.

    Returns:
        (m,) int64, of each row ``NOT_REACHED``, ``TAKEN``, ``OVER_BUDGET``, or ``FIRST_MAXIMUM`` and above: the
        maximum it would break; the room that is left; the need that is left.
    """
    outcome = np.zeros(len(order), np.int64)
    for position in range(len(order)):
        if need <= 0 or (stops and room <= 0):
            break
        row = order[position]
        broken = -1
        for maximum in range(len(maximum_rooms)):
            if maximum_amounts[maximum, row] > maximum_rooms[maximum]:
                broken = maximum
                break
        if broken >= 0:
            outcome[position] = FIRST_MAXIMUM + broken
            continue
        if costs[row] > room:
            outcome[position] = OVER_BUDGET
            if stops:
                break
            continue
        outcome[position] = TAKEN
        room -= costs[row]
        need -= wanted[row]
        for maximum in range(len(maximum_rooms)):
            maximum_rooms[maximum] -= maximum_amounts[maximum, row]
    return outcome, room, need
