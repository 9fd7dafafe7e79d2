"""Association: which detections of the members are answers about the same object."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from detcurate.errors import ConfigError, PredictionError
from detcurate.score.kernels.association import associate_images
from detcurate.structures import Clusters, Detections

ASSOCIATIONS: Mapping[str, int] = {"sequential": 0, "optimal": 1}
"""The ways to associate, by the number that the compiled code knows them by."""


def associate(
    detections: Detections,
    *,
    num_members: int,
    iou_threshold: float = 0.5,
    method: str = "sequential",
    per_class: bool = False,
) -> Clusters:
    """Group the detections of all members into object hypotheses: at most one detection a member in each.

    ``sequential``: image by image, in descending order of score, each detection looks for the cluster whose running
    mean box it overlaps most. At ``iou_threshold`` or more it joins; if its member has already voted there it is
    absorbed, that is dropped: a member suppresses duplicates per class, so it may put several boxes on one object, and
    a cluster of their own would look like an object that only one member sees. Below the threshold it opens a cluster.

    ``optimal``: member by member, the one with the best detection first, all detections of a member are assigned to
    the running mean boxes at once, one to one, so that the sum of the IoUs at ``iou_threshold`` or more is the
    greatest; those left over open clusters. What overlaps a better detection of the same member that much is absorbed
    before. It costs more, and separates objects that stand close to each other better.

    Equal scores are ordered by the content of the detection, never by its row, so the result does not depend on the
    order of the rows or on the numbering of the members. No detection gives no cluster. Members that agree exactly
    give one cluster an object with no miss.

    Args:
        detections: N rows, of any images in any order.
        num_members: E, the size of the ensemble, whether or not each member fired.
        iou_threshold: the least IoU with a cluster's mean box to be taken for the same object, in (0, 1].
        method: a name in ``ASSOCIATIONS``.
        per_class: whether detections of different ``class_index`` are never of one object. Off, so that members that
            see the same object as a car and as a truck disagree rather than miss it.

    Returns:
        G clusters, ordered by image_id and then by when they were opened.

    Raises:
        ConfigError: The method has no such name.
        PredictionError: A member is outside [0, E), E is below 1, or the threshold is outside (0, 1].

    Source:
        Sequential association to the running mean box, as in weighted boxes fusion (Solovyev et al. 2021, arXiv
        1910.13302), with one vote a member and unweighted means [ours]. The assignment: Kuhn 1955, by shortest
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
        raise PredictionError(f"iou_threshold must be in (0, 1], got {iou_threshold}; 0.5 is the usual choice")
    if method not in ASSOCIATIONS:
        raise ConfigError(f"the association must be one of {', '.join(ASSOCIATIONS)}, got {method!r}")
    rows, starts = rows_by_image(detections.image_ids)
    columns = kernel_columns(detections)
    image, means, votes = associate_images(
        rows, starts, *columns, per_class, num_members, float(iou_threshold), ASSOCIATIONS[method]
    )
    return Clusters(image_ids=detections.image_ids[rows[starts[image]]], boxes=means, votes=votes)


def rows_by_image(image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) int64 rows by ascending image_id, and (I + 1,) int64 where each image's begin; I images have rows."""
    if (image_ids[1:] >= image_ids[:-1]).all():
        rows = np.arange(len(image_ids))
    else:
        rows = np.argsort(image_ids, kind="stable")
    ordered = image_ids[rows]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    return rows, np.append(first, len(rows))


def kernel_columns(detections: Detections) -> tuple[np.ndarray, ...]:
    """Return member, boxes, scores, class_index and class_probs in the types that the kernels are compiled for."""
    return (
        kernel_array(detections.member, np.int32),
        kernel_array(detections.boxes, np.float32),
        kernel_array(detections.scores, np.float32),
        kernel_array(detections.class_index, np.int32),
        kernel_array(detections.class_probs, np.float32),
    )


def kernel_array(values: np.ndarray, dtype: type) -> np.ndarray:
    """Return an array as the kernels want it; a copy where it is of another type, layout, or cannot be written to.

    The kernels write to none of them, but a read-only array, as Parquet gives, is another type: they would be compiled
    again for it.
    """
    return np.require(values, dtype, ["C", "W"])


def validate_members(detections: Detections, num_members: int) -> None:
    """Raise ``PredictionError`` unless every detection belongs to one of E members, and E is at least 1."""
    if num_members < 1:
        raise PredictionError(f"num_members must be at least 1, got {num_members}")
    outside = np.flatnonzero((detections.member < 0) | (detections.member >= num_members))
    if len(outside):
        member, image_id = detections.member[outside[0]], detections.image_ids[outside[0]]
        raise PredictionError(
            f"member must be in [0, {num_members}), got {member} (image_id {image_id}); "
            "pass the size of the ensemble that made the predictions"
        )
