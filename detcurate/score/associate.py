"""Association of the members' detections to clusters, one per object hypothesis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from detcurate.errors import ConfigError, PredictionError
from detcurate.score.kernels.association import associate_images
from detcurate.structures import Clusters, Detections

ASSOCIATIONS: Mapping[str, int] = {"sequential": 0, "optimal": 1}
"""Association method -> its number in the compiled code."""


def associate(
    detections: Detections,
    *,
    num_members: int,
    iou_threshold: float = 0.5,
    method: str = "sequential",
    per_class: bool = False,
) -> Clusters:
    """Group the detections of all members into clusters with at most one detection per member.

    ``sequential``: in each image, by descending score, a detection joins the cluster whose running mean box it overlaps
    most, if the IoU is at least ``iou_threshold``; otherwise it opens a cluster. If its member has a detection there
    already, it is dropped: non-maximum suppression works per class, so a member may put several boxes on one object,
    and a separate cluster would look like an object that only one member detects.

    ``optimal``: the members are processed in order of their best detection. All detections of a member are assigned to
    the running mean boxes one to one, with the greatest sum of IoUs of at least ``iou_threshold``; the others open
    clusters. Detections that overlap a better one of the same member so much are dropped first. This is slower and
    separates neighbouring objects better.

    Equal scores are ordered by the content of the detection, so the result does not depend on the order of the rows or
    on the numbering of the members. Members that agree exactly give one cluster per object without misses.

    Args:
        detections: N rows, of any images in any order.
        num_members: E, the size of the ensemble, including members without detections.
        iou_threshold: The smallest IoU with a cluster's mean box to join it, in (0, 1].
        method: A name in ``ASSOCIATIONS``.
        per_class: Whether clusters have detections of one ``class_index`` only. Off by default, so that members that
            predict car and truck for one object disagree instead of missing it.

    Returns:
        G clusters, ordered by image_id and then by the order in which they were opened.

    Raises:
        ConfigError: The method has no such name.
        PredictionError: A member is outside [0, E), E is below 1, or the threshold is outside (0, 1].

    Source:
        Sequential association to the running mean box, as in weighted boxes fusion (Solovyev et al. 2021, arXiv
        1910.13302), with one vote per member and unweighted means [ours]. The assignment: Kuhn 1955, by shortest
        augmenting paths (Jonker and Volgenant 1987).

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
    validate_members(detections, num_members)
    if not 0 < iou_threshold <= 1:
        raise PredictionError(f"iou_threshold must be in (0, 1] (got {iou_threshold}). 0.5 is the usual choice.")
    if method not in ASSOCIATIONS:
        raise ConfigError(f"CURATE.SCORE.ASSOCIATION must be one of {', '.join(ASSOCIATIONS)} (got {method!r})")
    rows, starts = rows_by_image(detections.image_ids)
    columns = kernel_columns(detections)
    image, means, votes = associate_images(
        rows, starts, *columns, per_class, num_members, float(iou_threshold), ASSOCIATIONS[method]
    )
    return Clusters(image_ids=detections.image_ids[rows[starts[image]]], boxes=means, votes=votes)


def rows_by_image(image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) int64 rows by ascending image_id, and (I + 1,) int64, the start of each of I images with rows."""
    if (image_ids[1:] >= image_ids[:-1]).all():
        rows = np.arange(len(image_ids))
    else:
        rows = np.argsort(image_ids, kind="stable")
    ordered = image_ids[rows]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    return rows, np.append(first, len(rows))


def kernel_columns(detections: Detections) -> tuple[np.ndarray, ...]:
    """Return member, boxes, scores, class_index and class_probs in the types of the compiled kernels."""
    return (
        kernel_array(detections.member, np.int32),
        kernel_array(detections.boxes, np.float32),
        kernel_array(detections.scores, np.float32),
        kernel_array(detections.class_index, np.int32),
        kernel_array(detections.class_probs, np.float32),
    )


def kernel_array(values: np.ndarray, dtype: type) -> np.ndarray:
    """Return an array in the type of the compiled kernels, as a copy if its type or layout differs or it is read-only.

    The kernels do not write to it, but numba would compile them again for the read-only arrays that Parquet returns.
    """
    return np.require(values, dtype, ["C", "W"])


def validate_members(detections: Detections, num_members: int) -> None:
    """Raise ``PredictionError`` unless E is at least 1 and every detection belongs to one of E members."""
    if num_members < 1:
        raise PredictionError(f"num_members must be at least 1 (got {num_members})")
    outside = np.flatnonzero((detections.member < 0) | (detections.member >= num_members))
    if len(outside):
        member, image_id = detections.member[outside[0]], detections.image_ids[outside[0]]
        raise PredictionError(
            f"member must be in [0, {num_members}) (got {member}, image_id {image_id}). "
            "Pass the size of the ensemble that made the predictions."
        )
