"""Evidence: what the members' answers about each object hypothesis come to, gathered once for all measures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detcurate.errors import ConfigError
from detcurate.score.associate import kernel_array, kernel_columns
from detcurate.score.kernels.cluster_sums import gather_predictions
from detcurate.structures import Clusters, Detections

MISSING = ("background", "ignore")
"""What a member that has no detection in a cluster answers: background with certainty, or nothing."""


@dataclass(frozen=True)
class ClusterStatistics:
    """The answers about G clusters, summed over the members; what a measure is a function of.

    Args:
        posterior_form: ``"softmax"`` or ``"sigmoid"``, as in the detections.
        num_members: E, the size of the ensemble.
        num_fired: (G,) int64 in [1, E].
        num_predictions: (G,) int64, what the means below are over: E, or with ``missing="ignore"`` those that fired.
        mean_probs: (G, C + 1) float64, the consensus posterior, background last. Softmax: rows that sum to 1. Sigmoid:
            the mean of each class's probability, 0 for a miss, and in the last column 1 less their maximum.
        own_entropies: (G, 1) float64 for softmax, (G, C) for sigmoid: the mean of the members' own entropies, of the
            whole distribution or of each class's yes or no, nats.
        outcomes: (G, C + 1) int64, how many members find each outcome the most probable, background last.
        favourites: (G, E) int16, these outcomes member by member, -1 for a miss.
        mean_iou: (G,) float64 in [0, 1], the mean overlap of the members' boxes with the consensus box.
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
        """Whether each class is a question of its own."""
        return self.posterior_form == "sigmoid"


def gather_cluster_statistics(
    detections: Detections, clusters: Clusters, *, missing: str = "background"
) -> ClusterStatistics:
    """Sum up the members' answers about each cluster. No cluster gives no row.

    Args:
        detections: N rows with posteriors over C classes and the background.
        clusters: G clusters of E members.
        missing: a name in ``MISSING``.

    Raises:
        ConfigError: ``missing`` has no such name.
        PredictionError: A vote names a row that the detections do not have.

    Source:
        Chitta et al. 2019 (arXiv 1905.12737): the ensemble's posterior is the mean of its members'; the miss as a
        vote for background is [ours]. ``ignore`` is what probdet does (Harakeh and Waslander 2021, arXiv 2101.05036).

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
        >>> gather_evidence(one, seen_by_one_of_two).mean_probs.tolist()
        [[0.5, 0.5]]
        >>> gather_evidence(one, seen_by_one_of_two, missing="ignore").mean_probs.tolist()
        [[1.0, 0.0]]
    """
    if missing not in MISSING:
        raise ConfigError(f"missing must be one of {', '.join(MISSING)}, got {missing!r}")
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
