"""Statistics of the members' predictions for each cluster, computed once for all measures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detcurate.errors import ConfigError
from detcurate.score.associate import kernel_array, kernel_columns
from detcurate.score.kernels.cluster_sums import gather_predictions
from detcurate.structures import Clusters, Detections

MISSING = ("background", "ignore")
"""The treatment of a member without a detection in a cluster: background with probability 1, or not counted."""


@dataclass(frozen=True)
class ClusterStatistics:
    """The predictions of all members for G clusters, summed over the members: the input of the measures.

    Args:
        posterior_form: ``"softmax"`` or ``"sigmoid"``, as in the detections.
        num_members: E, the size of the ensemble.
        num_fired: (G,) int64 in [1, E].
        num_predictions: (G,) int64, the divisor of the means below: E, or ``num_fired`` with ``missing="ignore"``.
        mean_probs: (G, C + 1) float64, the consensus posterior, background last. Softmax: rows that sum to 1. Sigmoid:
            the mean of each class's probability, 0 for a miss, and in the last column 1 minus their maximum.
        own_entropies: (G, 1) float64 for softmax, (G, C) for sigmoid: the mean entropy of the members, of the whole
            distribution or of each class as a binary variable, nats.
        outcomes: (G, C + 1) int64, the number of members for which each class is the most probable, background last.
        favourites: (G, E) int16, the most probable class of each member, -1 for a miss.
        mean_iou: (G,) float64 in [0, 1], the mean IoU of the members' boxes with the consensus box.
        box_deviation: (G,) float64, 0 or more: the root of the mean variance of (cx/w̄, cy/h̄, ln w, ln h).
    """

    posterior_form: str
    num_members: int
    num_fired: np.ndarray
    num_predictions: np.ndarray
    mean_probs: np.ndarray
    own_entropies: np.ndarray
    outcomes: np.ndarray
    favourites: np.ndarray
    mean_iou: np.ndarray
    box_deviation: np.ndarray

    def __len__(self) -> int:
        return len(self.num_fired)

    @property
    def is_sigmoid(self) -> bool:
        """Whether each class is a binary variable of its own."""
        return self.posterior_form == "sigmoid"


def gather_cluster_statistics(
    detections: Detections, clusters: Clusters, *, missing: str = "background"
) -> ClusterStatistics:
    """Summarise the members' predictions for each cluster.

    Args:
        detections: N rows with posteriors over C classes and the background.
        clusters: G clusters of E members.
        missing: A name in ``MISSING``.

    Raises:
        ConfigError: ``missing`` has no such name.
        PredictionError: A vote is a row beyond the detections.

    Source:
        Chitta et al. 2019 (arXiv 1905.12737): the ensemble's posterior is the mean of its members'; the miss as a
        vote for background is [ours]. ``ignore`` is the convention of probdet (Harakeh and Waslander 2021, arXiv
        2101.05036).

    Example:
        >>> one = Detections(
        ...     image_ids=np.array([7]),
        ...     member=np.array([0]),
        ...     boxes=np.array([[0.0, 0.0, 10.0, 10.0]]),
        ...     scores=np.array([1.0]),
        ...     class_index=np.array([0]),
        ...     class_probs=np.array([[1.0, 0.0]]),
        ... )
        >>> seen_by_one_of_two = Clusters(np.array([7]), one.boxes, np.array([[0, -1]]))
        >>> gather_cluster_statistics(one, seen_by_one_of_two).mean_probs.tolist()
        [[0.5, 0.5]]
        >>> gather_cluster_statistics(one, seen_by_one_of_two, missing="ignore").mean_probs.tolist()
        [[1.0, 0.0]]
    """
    if missing not in MISSING:
        raise ConfigError(f"CURATE.SCORE.MISSING must be one of {', '.join(MISSING)} (got {missing!r})")
    clusters.validate_rows(detections)
    counts_misses = missing == "background"
    _, boxes, _, _, class_probs = kernel_columns(detections)
    means, own, outcomes, favourites, overlap, deviation = gather_predictions(
        kernel_array(clusters.votes, np.int64),
        class_probs,
        boxes,
        kernel_array(clusters.boxes, np.float32),
        detections.posterior_form == "sigmoid",
        counts_misses,
    )
    num_fired = clusters.num_fired
    return ClusterStatistics(
        posterior_form=detections.posterior_form,
        num_members=clusters.num_members,
        num_fired=num_fired,
        num_predictions=np.full(len(clusters), clusters.num_members) if counts_misses else num_fired,
        mean_probs=means,
        own_entropies=own,
        outcomes=outcomes,
        favourites=favourites,
        mean_iou=overlap,
        box_deviation=deviation,
    )
