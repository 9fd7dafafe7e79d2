"""Compiled sums over the members' detections of clusters and labels, and the comparison of clusters with labels."""

from __future__ import annotations

import numpy as np
from numba import njit

from detcurate.score.kernels.association import compare_content, pair_iou


@njit(cache=True, nogil=True)
def gather_predictions(votes, class_probs, boxes, consensus_boxes, is_sigmoid, counts_misses):
    """Sum the predictions of the members for each cluster.

    The sums are accumulated member by member: a (G, E, C + 1) array would take gigabytes for large ensembles.
    Softmax rows are renormalised in float64, because float32 rows may deviate by 1e-3, and their entropies too.

    Args:
        votes: (G, E) int64, rows or -1 for a miss.
        class_probs: (N, C + 1) float32.
        boxes: (N, 4) float32.
        consensus_boxes: (G, 4) float32.
        is_sigmoid: bool.
        counts_misses: bool, whether a miss counts as background with probability 1, or is not counted.

    Returns:
        (G, C + 1) mean posterior; mean entropy of the members, (G, 1) for softmax or (G, C); (G, C + 1) int64 number of
        members by most probable class; (G, E) int16 these classes, -1 for a miss; (G,) mean IoU with the consensus box;
        (G,) box deviation.
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
                    own[g, column] += binary_entropy_of(probability)
            else:
                own[g, 0] += _add_softmax(class_probs, row, means, g)
        predictions = num_members if counts_misses else fired
        if counts_misses:
            outcomes[g, background] += num_members - fired
            if not is_sigmoid:
                means[g, background] += num_members - fired
        means[g] /= predictions
        own[g] /= predictions
        if is_sigmoid:
            means[g, background] = 1.0 - means[g, :background].max()
        overlap[g] /= fired
        deviation[g] = _box_deviation(votes, g, boxes, fired)
    return means, own, outcomes, favourites, overlap, deviation


@njit(cache=True, nogil=True)
def most_probable(class_probs, row):
    """Return the column of the highest probability of a row, the first of equal ones."""
    best = 0
    for column in range(1, class_probs.shape[1]):
        if class_probs[row, column] > class_probs[row, best]:
            best = column
    return best


@njit(cache=True, nogil=True)
def binary_entropy_of(probability):
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


_TOUCH = 0.05  # a cluster with a smaller IoU is not compared with a label


@njit(cache=True, nogil=True)
def match_predictions(
    rows,
    starts,
    label_starts,
    member,
    boxes,
    scores,
    class_index,
    class_probs,
    label_boxes,
    num_members,
    iou_threshold,
):
    """Match each member's detections to the ground-truth boxes.

    Args:
        rows: (N,) int64, the detections by image.
        starts: (I + 1,) int64, the start of each image in ``rows``.
        label_starts: (I + 1,) int64, the start of each image's ground-truth boxes.
        member: (N,) int32.
        boxes: (N, 4) float32.
        scores: (N,) float32.
        class_index: (N,) int32.
        class_probs: (N, C + 1) float32.
        label_boxes: (J, 4) float32, by image.
        num_members: E.
        iou_threshold: float.

    Returns:
        (J, E) int64 rows, -1 for a miss, and (J, E) float64 IoUs, 0 for a miss.
    """
    votes = np.full((len(label_boxes), num_members), -1, np.int64)
    overlaps = np.zeros((len(label_boxes), num_members))
    for image in range(len(starts) - 1):
        for place in range(starts[image], starts[image + 1]):
            row = rows[place]
            best, best_iou = -1, 0.0
            for label in range(label_starts[image], label_starts[image + 1]):
                iou = pair_iou(boxes, row, label_boxes, label)
                if iou > best_iou:
                    best, best_iou = label, iou
            if best < 0 or best_iou < iou_threshold:
                continue
            other = votes[best, member[row]]
            # Of several detections the most confident one; of equally confident ones the first by content.
            if other >= 0 and compare_content(row, other, boxes, scores, class_index, class_probs) >= 0:
                continue
            votes[best, member[row]], overlaps[best, member[row]] = row, best_iou
    return votes, overlaps


@njit(cache=True, nogil=True)
def judge_predictions(votes, class_probs, label_class, is_sigmoid):
    """Compare the matched detections with the labels.

    Args:
        votes: (J, E) int64, rows or -1 for a miss.
        class_probs: (N, C + 1) float32.
        label_class: (J,) int64.
        is_sigmoid: bool.

    Returns:
        (J, E) float64 probability of the label, 0 for a miss; (J, E) int16 most probable class of each detection, -1
        for a miss; (J,) float64 mean distance of the posterior from the label; (J, C + 1) mean posterior.
    """
    num_labels, num_members = votes.shape
    num_columns = class_probs.shape[1]
    background = num_columns - 1
    probability = np.zeros((num_labels, num_members))
    favourites = np.full((num_labels, num_members), -1, np.int16)
    distance, means = np.zeros(num_labels), np.zeros((num_labels, num_columns))
    last = background if is_sigmoid else num_columns
    for j in range(num_labels):
        y = label_class[j]
        for e in range(num_members):
            row = votes[j, e]
            if row < 0:
                means[j, background] += 0.0 if is_sigmoid else 1.0
                distance[j] += 1.0 if is_sigmoid else np.sqrt(2.0)
                continue
            total, squares = 1.0, 0.0
            if not is_sigmoid:
                total = 0.0
                for column in range(num_columns):
                    total += np.float64(class_probs[row, column])
            for column in range(last):
                p = class_probs[row, column] / total
                means[j, column] += p
                squares += (p - 1.0) ** 2 if column == y else p**2
            probability[j, e] = class_probs[row, y] / total
            favourites[j, e] = most_probable(class_probs, row)
            distance[j] += np.sqrt(squares)
        means[j] /= num_members
        if is_sigmoid:
            means[j, background] = 1.0 - means[j, :background].max()
    return probability, favourites, distance / num_members, means


@njit(cache=True, nogil=True)
def compare_clusters(cluster_starts, label_starts, cluster_boxes, confidence, label_boxes, is_crowd, iou_threshold):
    """Compare the clusters of each image with its ground truth, including crowd regions.

    Args:
        cluster_starts: (I + 1,) int64, the start of each image's clusters.
        label_starts: (I + 1,) int64, the start of each image's ground-truth boxes.
        cluster_boxes: (G, 4) float32, by image.
        confidence: (G,) float64.
        label_boxes: (J, 4) float32, by image.
        is_crowd: (J,) bool.
        iou_threshold: float.

    Returns:
        (G,) int64 the label that each cluster overlaps most, not a crowd region, -1 for none; (G,) float64 their IoU;
        (G,) float64 the greatest share of the cluster's area in one crowd region; (J,) int64 the cluster that each
        label is compared with, -1 for none; (J,) float64 their IoU. That cluster has the greatest product of confidence
        and IoU among those nearest to the label and those with an IoU below the threshold with every label.
    """
    nearest = np.full(len(cluster_boxes), -1, np.int64)
    overlap, in_crowd = np.zeros(len(cluster_boxes)), np.zeros(len(cluster_boxes))
    own, own_overlap = np.full(len(label_boxes), -1, np.int64), np.zeros(len(label_boxes))
    weight = np.zeros(len(label_boxes))
    for image in range(len(cluster_starts) - 1):
        for g in range(cluster_starts[image], cluster_starts[image + 1]):
            for j in range(label_starts[image], label_starts[image + 1]):
                if is_crowd[j]:
                    in_crowd[g] = max(in_crowd[g], _share_inside(cluster_boxes, g, label_boxes, j))
                    continue
                iou = pair_iou(cluster_boxes, g, label_boxes, j)
                if iou > overlap[g]:
                    nearest[g], overlap[g] = j, iou
        for g in range(cluster_starts[image], cluster_starts[image + 1]):
            for j in range(label_starts[image], label_starts[image + 1]):
                if is_crowd[j] or (nearest[g] != j and overlap[g] >= iou_threshold):
                    continue
                iou = pair_iou(cluster_boxes, g, label_boxes, j)
                if iou >= _TOUCH and confidence[g] * iou > weight[j]:
                    own[j], own_overlap[j], weight[j] = g, iou, confidence[g] * iou
    return nearest, overlap, in_crowd, own, own_overlap


@njit(cache=True, nogil=True)
def _share_inside(boxes, row, others, other):
    """Return the share of a box's area inside another box."""
    width = min(boxes[row, 2], others[other, 2]) - max(boxes[row, 0], others[other, 0])
    height = min(boxes[row, 3], others[other, 3]) - max(boxes[row, 1], others[other, 1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    area = (np.float64(boxes[row, 2]) - boxes[row, 0]) * (np.float64(boxes[row, 3]) - boxes[row, 1])
    return np.float64(width) * np.float64(height) / area if area > 0.0 else 0.0
