"""The compiled association: content order, the two methods, and one-to-one assignment.

All loops are scalar on purpose: array views cost more than the arithmetic.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def associate_images(
    rows,
    starts,
    member,
    boxes,
    scores,
    class_index,
    class_probs,
    per_class,
    num_members,
    iou_threshold,
    method,
):
    """Associate the detections image by image.

    Args:
        rows: (N,) int64, the detections by image.
        starts: (I + 1,) int64, the start of each image in ``rows``.
        member: (N,) int32.
        boxes: (N, 4) float32.
        scores: (N,) float32.
        class_index: (N,) int32.
        class_probs: (N, C + 1) float32.
        per_class: bool.
        num_members: E.
        iou_threshold: float.
        method: 0 for sequential, 1 for optimal.

    Returns:
        (G,) int64 image of each cluster in [0, I), (G, 4) float32 mean boxes, (G, E) int64 votes, -1 for a miss.
    """
    cluster_of = np.full(len(rows), -1, np.int64)
    means = np.empty((len(rows), 4))
    totals = np.zeros((len(rows), 4))  # sums of equal boxes are exact, so identical members give exactly their box
    sizes = np.zeros(len(rows), np.int64)
    kinds = np.zeros(len(rows), np.int32)
    image_of = np.empty(len(rows), np.int64)
    count = 0
    for image in range(len(starts) - 1):
        first = count
        order = _content_order(rows[starts[image] : starts[image + 1]], member, boxes, scores, class_index, class_probs)
        state = (cluster_of, means, totals, sizes, kinds)
        if method == 0:
            count = _sequential(order, first, state, member, boxes, class_index, per_class, num_members, iou_threshold)
        else:
            columns = (member, boxes, scores, class_index, class_probs)
            count = _optimal(order, first, state, columns, per_class, num_members, iou_threshold)
        image_of[first:count] = image
    votes = np.full((count, num_members), -1, np.int64)
    for row in range(len(rows)):
        if cluster_of[row] >= 0:
            votes[cluster_of[row], member[row]] = row
    return image_of[:count].copy(), means[:count].astype(np.float32), votes


@njit(cache=True, nogil=True)
def compare_content(a, b, boxes, scores, class_index, class_probs):
    """Return -1 if detection a comes first, 1 if b does, 0 if their content is equal."""
    if scores[a] != scores[b]:
        return -1 if scores[a] > scores[b] else 1
    for side in range(4):
        if boxes[a, side] != boxes[b, side]:
            return -1 if boxes[a, side] < boxes[b, side] else 1
    if class_index[a] != class_index[b]:
        return -1 if class_index[a] < class_index[b] else 1
    for column in range(class_probs.shape[1]):
        if class_probs[a, column] != class_probs[b, column]:
            return -1 if class_probs[a, column] < class_probs[b, column] else 1
    return 0


@njit(cache=True, nogil=True)
def _content_order(rows, member, boxes, scores, class_index, class_probs):
    """Return one image's rows by descending score, then content, then member."""
    order = rows[np.argsort(-scores[rows], kind="mergesort")]
    for place in range(1, len(order)):  # only ties are out of order, and they are few
        row, hole = order[place], place
        while hole > 0 and scores[order[hole - 1]] == scores[row]:
            before = order[hole - 1]
            compared = compare_content(row, before, boxes, scores, class_index, class_probs)
            if compared > 0 or (compared == 0 and member[row] >= member[before]):
                break
            order[hole] = before
            hole -= 1
        order[hole] = row
    return order


@njit(cache=True, nogil=True)
def pair_iou(boxes, row, means, cluster):
    """Return the IoU of one row of each of two arrays of boxes."""
    # In float64 also for float32 boxes, so that equal boxes have an IoU of exactly 1.
    width = np.float64(min(boxes[row, 2], means[cluster, 2])) - max(boxes[row, 0], means[cluster, 0])
    height = np.float64(min(boxes[row, 3], means[cluster, 3])) - max(boxes[row, 1], means[cluster, 1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    inside = width * height
    box_area = (np.float64(boxes[row, 2]) - boxes[row, 0]) * (np.float64(boxes[row, 3]) - boxes[row, 1])
    mean_area = (np.float64(means[cluster, 2]) - means[cluster, 0]) * (
        np.float64(means[cluster, 3]) - means[cluster, 1]
    )
    return inside / (box_area + mean_area - inside)


@njit(cache=True, nogil=True)
def _join(row, cluster, state, boxes, kind):
    cluster_of, means, totals, sizes, kinds = state
    cluster_of[row] = cluster
    kinds[cluster] = kind
    sizes[cluster] += 1
    for side in range(4):
        totals[cluster, side] += boxes[row, side]
        means[cluster, side] = totals[cluster, side] / sizes[cluster]


@njit(cache=True, nogil=True)
def _sequential(order, first, state, member, boxes, class_index, per_class, num_members, iou_threshold):
    """Group one image's detections, best first; return the new number of clusters."""
    means, kinds, count = state[1], state[4], first
    fired = np.zeros((len(order), num_members), np.bool_)
    corners, overlap = np.empty((5, len(order))), np.empty(len(order))
    for row in order:
        kind = class_index[row] if per_class else 0
        best, best_iou = -1, 0.0
        _overlaps(boxes, row, corners, count - first, overlap)
        for cluster in range(first, count):
            if overlap[cluster - first] > best_iou and kinds[cluster] == kind:
                best, best_iou = cluster, overlap[cluster - first]
        if best_iou < iou_threshold:
            best, count = count, count + 1
        elif fired[best - first, member[row]]:
            continue
        fired[best - first, member[row]] = True
        _join(row, best, state, boxes, kind)
        for side in range(4):
            corners[side, best - first] = means[best, side]
        corners[4, best - first] = (means[best, 2] - means[best, 0]) * (means[best, 3] - means[best, 1])
    return count


@njit(cache=True, nogil=True, error_model="numpy")  # the check for a zero divisor would be a branch
def _overlaps(boxes, row, corners, count, overlap):
    """Compute the IoU of a detection with each cluster into ``overlap``, without branches for SIMD."""
    left, top, right, bottom = (
        np.float64(boxes[row, 0]),
        np.float64(boxes[row, 1]),
        np.float64(boxes[row, 2]),
        np.float64(boxes[row, 3]),
    )
    area = (right - left) * (bottom - top)
    for k in range(count):
        width = max(min(right, corners[2, k]) - max(left, corners[0, k]), 0.0)
        height = max(min(bottom, corners[3, k]) - max(top, corners[1, k]), 0.0)
        inside = width * height
        overlap[k] = inside / (area + corners[4, k] - inside)


@njit(cache=True, nogil=True)
def _optimal(order, first, state, columns, per_class, num_members, iou_threshold):
    """Assign one image's detections member by member; return the new number of clusters."""
    member, boxes, class_index = columns[0], columns[1], columns[3]
    means, kinds, count = state[1], state[4], first
    for which in _member_order(order, columns, num_members):
        own = _without_duplicates(order[member[order] == which], boxes, class_index, per_class, iou_threshold)
        values = np.zeros((len(own), count - first))
        for i in range(len(own)):
            for j in range(count - first):
                if not per_class or kinds[first + j] == class_index[own[i]]:
                    iou = pair_iou(boxes, own[i], means, first + j)
                    values[i, j] = iou if iou >= iou_threshold else 0.0
        assigned = assign(values)
        for i in range(len(own)):
            kind = class_index[own[i]] if per_class else 0
            if assigned[i] >= 0:
                _join(own[i], first + assigned[i], state, boxes, kind)
            else:
                _join(own[i], count, state, boxes, kind)
                count += 1
    return count


@njit(cache=True, nogil=True)
def _without_duplicates(own, boxes, class_index, per_class, iou_threshold):
    """Return a member's rows, best first, without those that overlap a better one by the threshold."""
    kept = np.empty(len(own), np.int64)
    count = 0
    for row in own:
        is_new = True
        for k in range(count):
            same = not per_class or class_index[kept[k]] == class_index[row]
            if same and pair_iou(boxes, row, boxes, kept[k]) >= iou_threshold:
                is_new = False
                break
        if is_new:
            kept[count] = row
            count += 1
    return kept[:count]


@njit(cache=True, nogil=True)
def _member_order(order, columns, num_members):
    """Return the members with detections, ordered by their detections, best first, and not by their number."""
    member, boxes, scores, class_index, class_probs = columns
    rows = np.full((num_members, len(order)), -1, np.int64)
    sizes = np.zeros(num_members, np.int64)
    for row in order:
        rows[member[row], sizes[member[row]]] = row
        sizes[member[row]] += 1
    members = np.flatnonzero(sizes)
    for place in range(1, len(members)):
        which, hole = members[place], place
        while hole > 0:
            before = members[hole - 1]
            compared = 0
            for k in range(min(sizes[which], sizes[before])):
                compared = compare_content(rows[which, k], rows[before, k], boxes, scores, class_index, class_probs)
                if compared != 0:
                    break
            if compared > 0 or (compared == 0 and sizes[which] <= sizes[before]):
                break
            members[hole] = before
            hole -= 1
        members[hole] = which
    return members


@njit(cache=True, nogil=True)
def assign(values):
    """Return (n,) int64, the column of each row in the assignment of greatest sum; -1 where the value is 0.

    Args:
        values: (n, m) float64, 0 or more; pairs with 0 are never assigned.
    """
    n, m = values.shape
    if n == 0 or m == 0:
        return np.full(n, -1, np.int64)
    row_of = _shortest_paths(values) if n <= m else _shortest_paths(values.T.copy())
    assigned = np.full(n, -1, np.int64)
    for wide in range(len(row_of)):
        narrow = row_of[wide]
        if narrow >= 0:
            i, j = (narrow, wide) if n <= m else (wide, narrow)
            if values[i, j] > 0.0:
                assigned[i] = j
    return assigned


@njit(cache=True, nogil=True)
def _shortest_paths(values):
    """Return (m,) int64, the row assigned to each column, -1 for none; each of the n <= m rows is assigned."""
    n, m = values.shape
    row_price, column_price = np.zeros(n), np.zeros(m + 1)
    row_of = np.full(m + 1, -1, np.int64)  # column m holds the row that is being assigned
    came_from = np.zeros(m + 1, np.int64)
    for start in range(n):
        row_of[m] = start
        j = m
        distance, done = np.full(m + 1, np.inf), np.zeros(m + 1, np.bool_)
        while row_of[j] >= 0:
            done[j] = True
            i, nearest, step = row_of[j], -1, np.inf
            for k in range(m):
                if not done[k]:
                    reduced = -values[i, k] - row_price[i] - column_price[k]
                    if reduced < distance[k]:
                        distance[k], came_from[k] = reduced, j
                    if distance[k] < step:
                        step, nearest = distance[k], k
            for k in range(m + 1):
                if done[k]:
                    row_price[row_of[k]] += step
                    column_price[k] -= step
                else:
                    distance[k] -= step
            j = nearest
        while j != m:
            row_of[j] = row_of[came_from[j]]
            j = came_from[j]
    return row_of[:m]
