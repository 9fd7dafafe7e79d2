"""Greedy thinning: of rows given best first, each is kept unless a better one that was kept stands too near.

The first ``num_kept`` rows are kept whatever they are near.
"""

from __future__ import annotations

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
