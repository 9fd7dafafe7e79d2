"""Divide groups of images into two sides in proportion: iterative stratification, then moves and swaps."""

from __future__ import annotations

import numpy as np
from numba import njit

from detcurate.coco.dataset import CocoDataset

_MAX_SWEEPS, _ALL_PARTNERS, _NUM_PARTNERS = 20, 1_024, 32


def choose_validation(
    dataset: CocoDataset, groups: np.ndarray, *, fraction: float, stratify: bool, seed: int
) -> np.ndarray:
    """Choose the groups of the validation side.

    Iterative stratification gives a first division: the class with the fewest groups left is divided first, and each of
    its groups goes to the side that lacks the larger share of that class. Moves and swaps of groups then lower the sum
    of squared deviations of the shares from ``fraction``. The share of the images weighs as much as all classes
    together; without ``stratify`` it alone counts.

    Args:
        dataset: The source.
        groups: (I,) int64, the group of each image, from 0; at least two groups.
        fraction: In (0, 1).
        stratify: Whether the classes count.
        seed: Of the order in which groups are visited.

    Returns:
        (G,) bool, of which at least one is True and one is False.

    Source:
        Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011, algorithm 1.
    """
    rng = np.random.default_rng(seed)
    num_groups = int(groups.max()) + 1
    order = rng.permutation(num_groups)
    rank = np.empty(num_groups, np.int64)
    rank[order] = np.arange(num_groups)
    num_classes = len(dataset.class_names) if stratify else 0
    rows, columns = [rank[groups]], [np.full(len(groups), num_classes)]  # the last column counts images
    if stratify:
        rows.append(rank[groups[dataset.image_index]])
        columns.append(dataset.class_index)
    num_labels = num_classes + 1
    entries, counts = np.unique(np.concatenate(rows) * num_labels + np.concatenate(columns), return_counts=True)
    at, label = entries // num_labels, entries % num_labels
    by_label = np.argsort(label, kind="stable")
    weights = np.ones(num_labels)
    weights[-1] = max(num_classes, 1)
    partners = rng.integers(1, num_groups, size=(_MAX_SWEEPS, _NUM_PARTNERS))
    if num_groups <= _ALL_PARTNERS:
        partners = np.tile(np.arange(1, num_groups), (_MAX_SWEEPS, 1))
    is_val = divide_groups(
        _starts(at, num_groups), label, counts.astype(float),
        _starts(label, num_labels), at[by_label], counts[by_label].astype(float),
        weights, fraction, rng.random(num_groups), partners,
    )  # fmt: skip
    return np.asarray(is_val[rank])


def _starts(values: np.ndarray, num_bins: int) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(np.bincount(values, minlength=num_bins))))


@njit(cache=True)
def divide_groups(starts, columns, counts, class_starts, members, member_counts, weights, fraction, draws, partners):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Divide groups into two sides in proportion; see :func:`choose_validation`.

    Args:
        starts: (G + 1,) int64, where the entries of each group begin.
        columns: (N,) int64 in [0, L), the label of each entry, unique within a group; the last label counts images.
        counts: (N,) float64, positive.
        class_starts: (L + 1,) int64, where the entries of each label begin in the two arrays that follow.
        members: (N,) int64, the group of each entry.
        member_counts: (N,) float64.
        weights: (L,) float64, of the labels.
        fraction: In (0, 1).
        draws: (G,) float64 in [0, 1), which decide ties.
        partners: (S, K) int64 in [1, G), the distances of the groups tried for a swap in each sweep.

    Returns:
        (G,) bool, the groups of the validation side.
    """
    num_groups, num_labels = len(starts) - 1, len(weights)
    total, taken = np.zeros(num_labels), np.zeros((2, num_labels))
    for k in range(len(columns)):
        total[columns[k]] += counts[k]
    side = np.full(num_groups, -1)
    left = class_starts[1:] - class_starts[:-1]
    is_done = np.zeros(num_labels, np.bool_)
    for _ in range(num_labels):
        label = num_labels - 1
        for other in range(num_labels - 1):
            if not is_done[other] and left[other] > 0 and (label == num_labels - 1 or left[other] < left[label]):
                label = other
        is_done[label] = True
        begin, end = class_starts[label], class_starts[label + 1]
        for k in np.argsort(-member_counts[begin:end], kind="mergesort"):
            group = members[begin + k]
            if side[group] >= 0:
                continue
            chosen = -1
            for deciding in (label, num_labels - 1):
                val_lacks = 1.0 - taken[1, deciding] / (fraction * total[deciding])
                train_lacks = 1.0 - taken[0, deciding] / ((1.0 - fraction) * total[deciding])
                if chosen < 0 and abs(val_lacks - train_lacks) > 1e-9:
                    chosen = 1 if val_lacks > train_lacks else 0
            if chosen < 0:
                chosen = 1 if draws[group] < fraction else 0
            side[group] = chosen
            for j in range(starts[group], starts[group + 1]):
                taken[chosen, columns[j]] += counts[j]
                left[columns[j]] -= 1
    deviation, scale = np.zeros(num_labels), np.zeros(num_labels)
    for label in range(num_labels):
        if total[label] > 0:
            scale[label] = 1.0 / total[label]
            deviation[label] = taken[1, label] * scale[label] - fraction
    num_val = side.sum()

    for side_value in (0, 1):  # neither side may be empty
        if num_val == side_value * num_groups:
            best, best_change = -1, np.inf
            for group in range(num_groups):
                change = change_of_flip(group, side, deviation, scale, weights, starts, columns, counts)
                if change < best_change:
                    best, best_change = group, change
            num_val += flip(best, side, deviation, scale, starts, columns, counts)

    for sweep in range(len(partners)):
        is_better = False
        for group in range(num_groups):
            if num_val + (1 - 2 * side[group]) in (0, num_groups):
                continue
            if change_of_flip(group, side, deviation, scale, weights, starts, columns, counts) < -1e-12:
                num_val += flip(group, side, deviation, scale, starts, columns, counts)
                is_better = True
        for group in range(num_groups):
            best, best_change = -1, -1e-12
            before = change_of_flip(group, side, deviation, scale, weights, starts, columns, counts)
            flip(group, side, deviation, scale, starts, columns, counts)
            for distance in partners[sweep]:
                other = (group + distance) % num_groups
                if side[other] == side[group]:
                    change = before + change_of_flip(other, side, deviation, scale, weights, starts, columns, counts)
                    if change < best_change:
                        best, best_change = other, change
            flip(group if best < 0 else best, side, deviation, scale, starts, columns, counts)
            is_better |= best >= 0
        if not is_better:
            break
    return side == 1


@njit(cache=True)
def change_of_flip(group, side, deviation, scale, weights, starts, columns, counts):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return by how much the weighted sum of squared deviations changes when a group changes sides."""
    sign = 1.0 - 2.0 * side[group]
    change = 0.0
    for j in range(starts[group], starts[group + 1]):
        label = columns[j]
        step = sign * counts[j] * scale[label]
        change += weights[label] * step * (2.0 * deviation[label] + step)
    return change


@njit(cache=True)
def flip(group, side, deviation, scale, starts, columns, counts):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Move a group to the other side, in place; return the change of the number of validation groups."""
    sign = 1 - 2 * side[group]
    for j in range(starts[group], starts[group + 1]):
        deviation[columns[j]] += sign * counts[j] * scale[columns[j]]
    side[group] = 1 - side[group]
    return sign
