"""The compiled comparison of detections and clusters with the ground truth."""

from __future__ import annotations

import numpy as np
from numba import njit

from detcurate.score.kernels.associate import compare_content, pair_iou
from detcurate.score.kernels.evidence import most_probable

_TOUCH = 0.05  # a cluster that overlaps a label by less has nothing to say about it


@njit(cache=True, nogil=True)
def match_answers(
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
    """Find each member's answer to each ground-truth box.

    Args:
        rows: (N,) int64, the detections by image.
        starts: (I + 1,) int64, where each image's begin in ``rows``.
        label_starts: (I + 1,) int64, where each image's ground-truth boxes begin.
        member: (N,) int32.
        boxes: (N, 4) float32.
        scores: (N,) float32.
        class_index: (N,) int32.
        class_probs: (N, C + 1) float32.
        label_boxes: (J, 4) float32, by image.
        num_members: E.
        iou_threshold: float.

    Returns:
        (J, E) int64 rows, -1 for a miss, and (J, E) float64 IoU of the answers, 0 for a miss.
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
            # Of several answers the most confident one; of equally confident ones the first by content.
            if other >= 0 and compare_content(row, other, boxes, scores, class_index, class_probs) >= 0:
                continue
            votes[best, member[row]], overlaps[best, member[row]] = row, best_iou
    return votes, overlaps


@njit(cache=True, nogil=True)
def judge_answers(votes, class_probs, label_class, is_sigmoid):
    """Compare the answers with the labels.

    Args:
        votes: (J, E) int64, rows or -1 for a miss.
        class_probs: (N, C + 1) float32.
        label_class: (J,) int64.
        is_sigmoid: bool.

    Returns:
        (J, E) float64 probability of the label, 0 for a miss; (J, E) int16 most probable outcome of each answer, -1
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
    """Compare the clusters of each image with its ground truth, crowd regions included.

    Args:
        cluster_starts: (I + 1,) int64, where each image's clusters begin.
        label_starts: (I + 1,) int64, where each image's ground-truth boxes begin.
        cluster_boxes: (G, 4) float32, by image.
        confidence: (G,) float64.
        label_boxes: (J, 4) float32, by image.
        is_crowd: (J,) bool.
        iou_threshold: float.

    Returns:
        (G,) int64 the label that each cluster overlaps most, crowds left aside, -1 for none; (G,) float64 that IoU;
        (G,) float64 the greatest share of the cluster's area that lies in one crowd region; (J,) int64 the cluster that
        speaks for each label, -1 for none; (J,) float64 their IoU. The cluster is the one of the greatest product of
        confidence and IoU among those nearest to the label and those that overlap every label by less than the
        threshold.
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
    """Return the share of a box's area that lies in another."""
    width = min(boxes[row, 2], others[other, 2]) - max(boxes[row, 0], others[other, 0])
    height = min(boxes[row, 3], others[other, 3]) - max(boxes[row, 1], others[other, 1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    area = (np.float64(boxes[row, 2]) - boxes[row, 0]) * (np.float64(boxes[row, 3]) - boxes[row, 1])
    return np.float64(width) * np.float64(height) / area if area > 0.0 else 0.0
