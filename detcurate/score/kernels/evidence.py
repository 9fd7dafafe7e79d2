"""The compiled sums over the members' answers: one walk over the votes gives all that the measures need."""

from __future__ import annotations

import numpy as np
from numba import njit

from detcurate.score.kernels.associate import pair_iou


@njit(cache=True, nogil=True)
def gather_answers(votes, class_probs, boxes, consensus_boxes, is_sigmoid, counts_misses):
    """Sum up the answers about each cluster.

    The sums go member by member: a (G, E, C + 1) array of a shard would be gigabytes for large ensembles. Softmax rows
    are renormalised in float64, for a float32 row is off by up to 1e-3 and an entropy of it would be too.

    Args:
        votes: (G, E) int64, rows or -1 for a miss.
        class_probs: (N, C + 1) float32.
        boxes: (N, 4) float32.
        consensus_boxes: (G, 4) float32.
        is_sigmoid: bool.
        counts_misses: bool; whether a miss answers background with certainty, or nothing at all.

    Returns:
        (G, C + 1) mean posterior, (G, 1) for softmax or (G, C) mean of the members' own entropies, (G, C + 1) int64
        members by their most probable outcome, (G, E) int16 these outcomes, -1 for a miss, (G,) mean IoU with the
        consensus box, (G,) box deviation.
    """
    num_clusters, num_members = votes.shape
    num_columns = class_probs.shape[1]
    background = num_columns - 1
    means = np.zeros((num_clusters, num_columns))
    own = np.zeros((num_clusters, background if is_sigmoid else 1))
    outcomes = np.zeros((num_clusters, num_columns), np.int64)
    favourites = np.full(votes.shape, -1, np.int16)
    overlap, deviation = np.zeros(num_clusters), np.zeros(num_clusters)
    for g in range(num_clusters):
        fired = 0
        for e in range(num_members):
            row = votes[g, e]
            if row < 0:
                continue
            fired += 1
            favourites[g, e] = most_probable(class_probs, row)
            outcomes[g, favourites[g, e]] += 1
            overlap[g] += pair_iou(boxes, row, consensus_boxes, g)
            if is_sigmoid:
                for column in range(background):
                    probability = np.float64(class_probs[row, column])
                    means[g, column] += probability
                    own[g, column] += yes_no_entropy_of(probability)
            else:
                own[g, 0] += _add_softmax(class_probs, row, means, g)
        answers = num_members if counts_misses else fired
        if counts_misses:
            outcomes[g, background] += num_members - fired
            if not is_sigmoid:
                means[g, background] += num_members - fired
        means[g] /= answers
        own[g] /= answers
        if is_sigmoid:
            means[g, background] = 1.0 - means[g, :background].max()
        overlap[g] /= fired
        deviation[g] = _box_deviation(votes, g, boxes, fired)
    return means, own, outcomes, favourites, overlap, deviation


@njit(cache=True, nogil=True)
def most_probable(class_probs, row):
    """Return the column of the highest probability of a row, the first of equals."""
    best = 0
    for column in range(1, class_probs.shape[1]):
        if class_probs[row, column] > class_probs[row, best]:
            best = column
    return best


@njit(cache=True, nogil=True)
def yes_no_entropy_of(probability):
    """Return h(p) = −p ln p − (1 − p) ln(1 − p)."""
    if probability <= 0.0 or probability >= 1.0:
        return 0.0
    rest = 1.0 - probability
    return -probability * np.log(probability) - rest * np.log(rest)


@njit(cache=True, nogil=True)
def _add_softmax(class_probs, row, means, cluster):
    """Add a renormalised row to a cluster's sum and return its entropy."""
    total = 0.0
    for column in range(class_probs.shape[1]):
        total += np.float64(class_probs[row, column])
    entropy = 0.0
    for column in range(class_probs.shape[1]):
        probability = class_probs[row, column] / total
        means[cluster, column] += probability
        if probability > 0.0:
            entropy -= probability * np.log(probability)
    return entropy


@njit(cache=True, nogil=True)
def _box_deviation(votes, cluster, boxes, fired):
    """Return the root of the mean variance of (cx/w, cy/h, ln w, ln h) over the members that fired."""
    # From the members' boxes and not from the float32 consensus, which may round a sliver's size to 0. Logarithms are
    # of the ratio to the first box, so that equal boxes have a deviation of exactly 0.
    first, first_w, first_h = -1, 1.0, 1.0
    x_sum, y_sum, w_sum, h_sum, log_w_sum, log_h_sum = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for e in range(votes.shape[1]):
        row = votes[cluster, e]
        if row >= 0:
            x, y, w, h = _centre_and_size(boxes, row)
            if first < 0:
                first, first_w, first_h = row, w, h
            x_sum, y_sum, w_sum, h_sum = x_sum + x, y_sum + y, w_sum + w, h_sum + h
            log_w_sum, log_h_sum = log_w_sum + np.log(w / first_w), log_h_sum + np.log(h / first_h)
    squares = 0.0
    for e in range(votes.shape[1]):
        row = votes[cluster, e]
        if row >= 0:
            x, y, w, h = _centre_and_size(boxes, row)
            squares += ((x - x_sum / fired) / (w_sum / fired)) ** 2 + ((y - y_sum / fired) / (h_sum / fired)) ** 2
            squares += (np.log(w / first_w) - log_w_sum / fired) ** 2 + (np.log(h / first_h) - log_h_sum / fired) ** 2
    return np.sqrt(squares / (4 * fired))


@njit(cache=True, nogil=True)
def _centre_and_size(boxes, row):
    x1, y1, x2, y2 = (
        np.float64(boxes[row, 0]),
        np.float64(boxes[row, 1]),
        np.float64(boxes[row, 2]),
        np.float64(boxes[row, 3]),
    )
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
