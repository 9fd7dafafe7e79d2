"""Association: which detections of the members are answers about the same object."""

from __future__ import annotations

import numpy as np
from numba import njit

from detcurate.errors import PredictionError
from detcurate.structures import Clusters, Detections


def associate(detections: Detections, *, num_members: int, iou_threshold: float = 0.5) -> Clusters:
    """Group the detections of all members into object hypotheses, without regard to class.

    Image by image, in descending order of score, each detection looks for the cluster whose running mean box
    it overlaps most. At ``iou_threshold`` or more it joins; if its member has already voted there it is absorbed,
    that is dropped: a member suppresses duplicates per class, so it may put several boxes on one object, and a
    cluster of their own would look like an object that only one member sees. Below the threshold it opens a
    cluster. Equal scores are ordered by the content of the detection, never by its row, so the result does not
    depend on the order of the rows or on the numbering of the members.

    No detection gives no cluster. Members that agree exactly give one cluster an object with no miss.

    Args:
        detections: N rows, of any images in any order.
        num_members: E, the size of the ensemble, whether or not each member fired.
        iou_threshold: the least IoU with a cluster's mean box to be taken for the same object, in (0, 1].

    Returns:
        G clusters, ordered by image_id and then by the score of the detection that opened them.

    Raises:
        PredictionError: A member is outside [0, E), E is below 1, or the threshold is outside (0, 1].

    Source:
        Sequential association to the running mean box, as in weighted boxes fusion (Solovyev et al. 2021, arXiv
        1910.13302), with one vote a member and unweighted means [ours].

    Example:
        >>> two_members = Detections(
        ...     image_ids=np.array([7, 7, 7]),
        ...     member=np.array([0, 1, 1]),
        ...     boxes=np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [50.0, 50.0, 60.0, 60.0]]),
        ...     scores=np.array([0.9, 0.8, 0.7]),
        ...     class_index=np.array([0, 0, 0]),
        ...     class_probs=np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]),
        ... )
        >>> clusters = associate(two_members, num_members=2)
        >>> clusters.votes.tolist()
        [[0, 1], [-1, 2]]
        >>> clusters.boxes[0].tolist()
        [0.0, 0.0, 10.0, 9.0]
    """
    _validate_members(detections, num_members)
    if not 0 < iou_threshold <= 1:
        raise PredictionError(f"iou_threshold must be in (0, 1], got {iou_threshold}; 0.5 is the usual choice")
    order = _content_order(detections)
    image_ids = detections.image_ids[order].astype(np.int64)
    member = detections.member[order].astype(np.int64)
    boxes = detections.boxes[order].astype(np.float64)
    cluster_of, means = _group(image_ids, member, boxes, num_members, _most_per_image(image_ids), float(iou_threshold))

    voted = cluster_of >= 0
    votes = np.full((len(means), num_members), -1, np.int64)
    votes[cluster_of[voted], member[voted]] = order[voted]
    cluster_image_ids = np.empty(len(means), np.int64)
    cluster_image_ids[cluster_of[voted]] = image_ids[voted]
    return Clusters(image_ids=cluster_image_ids, boxes=means.astype(np.float32), votes=votes)


def _validate_members(detections: Detections, num_members: int) -> None:
    """Check that every detection belongs to one of the E members."""
    if num_members < 1:
        raise PredictionError(f"num_members must be at least 1, got {num_members}")
    outside = np.flatnonzero((detections.member < 0) | (detections.member >= num_members))
    if len(outside):
        member, image_id = detections.member[outside[0]], detections.image_ids[outside[0]]
        raise PredictionError(
            f"member must be in [0, {num_members}), got {member} (image_id {image_id}); "
            "pass the size of the ensemble that made the predictions"
        )


def _content_order(detections: Detections) -> np.ndarray:
    """(N,) int64 rows by image, then descending score, then content; only equal content is ordered by member."""
    order = np.lexsort((-detections.scores, detections.image_ids))
    image_ids, scores = detections.image_ids[order], detections.scores[order]
    same = (image_ids[1:] == image_ids[:-1]) & (scores[1:] == scores[:-1])
    tied = np.zeros(len(order), np.bool_)
    tied[1:] |= same
    tied[:-1] |= same
    if tied.any():  # the many keys are sorted for the ties alone: they are few, unless the scores are coarse
        rows = order[tied]
        run = np.cumsum(np.concatenate(([True], ~same)))[tied]
        content = np.column_stack((detections.boxes, detections.class_index, detections.class_probs))[rows]
        keys = (detections.member[rows], *content.T[::-1], run)
        order[tied] = rows[np.lexsort(keys)]
    return order


def _most_per_image(image_ids: np.ndarray) -> int:
    """The largest number of detections on one image, of sorted image_ids; 0 for none."""
    starts = np.flatnonzero(np.diff(image_ids, prepend=image_ids[:1] - 1))
    return int(np.diff(starts, append=len(image_ids)).max(initial=0))


@njit(cache=True)
def _iou(boxes, row, means, cluster):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """IoU of one detection and one cluster's mean box; scalar on purpose, array views cost more than the arithmetic."""
    width = min(boxes[row, 2], means[cluster, 2]) - max(boxes[row, 0], means[cluster, 0])
    height = min(boxes[row, 3], means[cluster, 3]) - max(boxes[row, 1], means[cluster, 1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    box_area = (boxes[row, 2] - boxes[row, 0]) * (boxes[row, 3] - boxes[row, 1])
    mean_area = (means[cluster, 2] - means[cluster, 0]) * (means[cluster, 3] - means[cluster, 1])
    return width * height / (box_area + mean_area - width * height)


@njit(cache=True)
def _group(image_ids, member, boxes, num_members, most_per_image, iou_threshold):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Assign sorted detections to clusters: (N,) cluster or -1 when absorbed, and the (G, 4) mean boxes."""
    cluster_of = np.full(len(member), -1, np.int64)
    means = np.empty((len(member), 4))
    totals = np.zeros((len(member), 4))  # sums of equal boxes are exact, so identical members give exactly their box
    sizes = np.zeros(len(member), np.int64)
    fired = np.zeros((most_per_image, num_members), np.bool_)  # of the current image only
    first, count = 0, 0
    for row in range(len(member)):
        if row > 0 and image_ids[row] != image_ids[row - 1]:
            first = count
        best, best_iou = -1, 0.0
        for cluster in range(first, count):
            iou = _iou(boxes, row, means, cluster)
            if iou > best_iou:
                best, best_iou = cluster, iou
        if best_iou < iou_threshold:
            best, count = count, count + 1
            fired[best - first] = False
        elif fired[best - first, member[row]]:
            continue
        fired[best - first, member[row]] = True
        cluster_of[row] = best
        sizes[best] += 1
        for side in range(4):
            totals[best, side] += boxes[row, side]
            means[best, side] = totals[best, side] / sizes[best]
    return cluster_of, means[:count].copy()
