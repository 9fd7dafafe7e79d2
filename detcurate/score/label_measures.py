"""Measures that use the labels: how difficult each ground-truth box is for the members; higher = more difficult.

A member that misses the box gives its class a probability of 0. Wrong labels and difficult objects both have high
values; :mod:`detcurate.score.label_errors` distinguishes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detcurate.errors import PredictionError
from detcurate.score.associate import kernel_array, kernel_columns, validate_members
from detcurate.score.kernels.cluster_sums import judge_predictions, match_predictions
from detcurate.structures import Detections, Labels


@dataclass(frozen=True)
class LabelStatistics:
    """The members' predictions at J ground-truth boxes: the input of the measures that use labels.

    Args:
        posterior_form: ``"softmax"`` or ``"sigmoid"``, as in the detections.
        votes: (J, E) int64, the row of each member's matched detection, -1 for a miss.
        probability: (J, E) float64 in [0, 1], q: each member's probability of the label's class, 0 for a miss.
        iou: (J, E) float64 in [0, 1], u: the IoU of each member's detection with the box, 0 for a miss.
        favourites: (J, E) int16, the most probable class of each detection, C for background, -1 for a miss.
        is_right: (J, E) bool, whether that is the label's class.
        distance: (J,) float64, the mean over members of the Euclidean distance of the posterior from the label.
        mean_probs: (J, C + 1) float64, the consensus posterior; a miss counts as background.
        trajectories: The members of each run in iteration order, for measures along a training.
    """

    posterior_form: str
    votes: np.ndarray
    probability: np.ndarray
    iou: np.ndarray
    favourites: np.ndarray
    is_right: np.ndarray
    distance: np.ndarray
    mean_probs: np.ndarray
    trajectories: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.votes)


def gather_label_statistics(
    detections: Detections,
    labels: Labels,
    *,
    num_members: int,
    iou_threshold: float = 0.5,
    trajectories: Sequence[Sequence[int]] = (),
) -> LabelStatistics:
    """Match each member's detections to the ground-truth boxes, without crowd regions.

    A detection is matched to the box with the highest IoU, at least ``iou_threshold``, whatever its class. Of several
    detections of a member on one box the most confident one is used. A label that no member detects has misses only.

    Args:
        detections: N rows, of any images in any order.
        labels: Labels of the same images; rows with ``iscrowd`` are ignored.
        num_members: E, the size of the ensemble, including members without detections.
        iou_threshold: In (0, 1].
        trajectories: The numbers of the members of each run in iteration order. Members in no list are ignored by
            measures along a training.

    Raises:
        PredictionError: A member, of the detections or of a trajectory, is outside [0, E), the threshold is outside
            (0, 1], or a label has a class beyond those of the detections.

    Source:
        Statistics per example: dataset cartography (Swayamdipta et al. 2020, arXiv 2009.10795); the match to boxes is
        [ours].
    """
    validate_members(detections, num_members)
    if not 0 < iou_threshold <= 1:
        raise PredictionError(f"iou_threshold must be in (0, 1] (got {iou_threshold}). 0.5 is the usual choice.")
    runs = tuple(np.asarray(members, np.int64) for members in trajectories)
    if any(((members < 0) | (members >= num_members)).any() for members in runs):
        raise PredictionError(
            f"trajectories must have members in [0, {num_members}) (got {[members.tolist() for members in runs]})"
        )
    labels = labels.take(~labels.iscrowd)
    if len(labels) and int(labels.class_index.max()) >= detections.num_classes:
        raise PredictionError(
            f"labels must have the detections' {detections.num_classes} classes (got class_index "
            f"{labels.class_index.max()}). Predict with the classes of the pool."
        )
    image_ids = np.union1d(detections.image_ids, labels.image_ids)
    rows, starts = by_image(detections.image_ids, image_ids)
    label_rows, label_starts = by_image(labels.image_ids, image_ids)
    columns = kernel_columns(detections)
    label_boxes = labels.boxes[label_rows].astype(np.float32)
    sorted_votes, sorted_iou = match_predictions(
        rows, starts, label_starts, *columns, label_boxes, num_members, float(iou_threshold)
    )
    votes, iou = np.empty_like(sorted_votes), np.empty_like(sorted_iou)
    votes[label_rows], iou[label_rows] = sorted_votes, sorted_iou
    is_sigmoid = detections.posterior_form == "sigmoid"
    probability, favourites, distance, means = judge_predictions(
        votes, columns[-1], kernel_array(labels.class_index, np.int64), is_sigmoid
    )
    return LabelStatistics(
        posterior_form=detections.posterior_form,
        votes=votes,
        probability=probability,
        iou=iou,
        favourites=favourites,
        is_right=favourites == labels.class_index[:, None],
        distance=distance,
        mean_probs=means,
        trajectories=runs,
    )


def by_image(row_image_ids: np.ndarray, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) int64 rows by image, and (I + 1,) int64, the start of each of the ascending ``image_ids``."""
    rows = np.argsort(row_image_ids, kind="stable")
    return rows, np.searchsorted(row_image_ids[rows], np.append(image_ids, np.iinfo(np.int64).max))


def error_count(statistics: LabelStatistics) -> np.ndarray:
    """Return the share of members that miss the box or predict another class, #{e : argmax p_e ≠ y or missed} / E.

    0 when every member predicts the label's class, 1 when none does.

    Args:
        statistics: Of J ground-truth boxes.

    Returns:
        (J,) float64 in [0, 1]; higher = more members are wrong.

    Source:
        The label-aware acquisition function of Chitta et al. 2019 (arXiv 1905.12737).
    """
    wrong: np.ndarray = 1.0 - statistics.is_right.mean(axis=1)
    return wrong


def el2n(statistics: LabelStatistics) -> np.ndarray:
    """Return the mean distance of the posterior from the label, (1/E) Σ_e ‖p_e − onehot(y)‖₂.

    0 when every member is certain of the label, √2 when every one is certain of another class or misses the box. For
    sigmoids the distance is over the C classes: a miss has 1, and √C is the maximum.

    Args:
        statistics: Of J ground-truth boxes.

    Returns:
        (J,) float64 in [0, √2], for sigmoids [0, √C]; higher = farther from the label.

    Source:
        Paul et al. 2021 (arXiv 2107.07075), definition 2.
    """
    return statistics.distance


def forgetting(statistics: LabelStatistics) -> np.ndarray:
    """Return the number of forgetting events: right at one checkpoint and wrong at the next, summed over the runs.

    0 when no wrong checkpoint follows a right one, also if the label was never learned. Runs with one checkpoint have
    no forgetting events.

    Args:
        statistics: Of J ground-truth boxes, with the runs' trajectories.

    Returns:
        (J,) float64, whole numbers, 0 or more; higher = forgotten more often.

    Source:
        Toneva et al. 2019 (arXiv 1812.05159), "forgetting event", at the checkpoints of a run.
    """
    events = np.zeros(len(statistics))
    for members in statistics.trajectories:
        is_right = statistics.is_right[:, members]
        events += (is_right[:, :-1] & ~is_right[:, 1:]).sum(axis=1)
    return events


def low_confidence(statistics: LabelStatistics) -> np.ndarray:
    """Return 1 minus the mean probability of the label, 1 − (1/E) Σ_e q_e.

    0 when every member is certain of the label, 1 when all give it probability 0.

    Args:
        statistics: Of J ground-truth boxes.

    Returns:
        (J,) float64 in [0, 1]; higher = less confident.

    Source:
        ``confidence`` of dataset cartography (Swayamdipta et al. 2020, arXiv 2009.10795), with the sign reversed.
    """
    lack: np.ndarray = np.maximum(1.0 - statistics.probability.mean(axis=1), 0.0)
    return lack


def variability(statistics: LabelStatistics) -> np.ndarray:
    """Return the standard deviation of the label's probability over the members.

    0 when all members agree, 1/2 when half are certain of the label and half give it probability 0.

    Args:
        statistics: Of J ground-truth boxes.

    Returns:
        (J,) float64 in [0, 1/2]; higher = more disagreement.

    Source:
        ``variability`` of dataset cartography (Swayamdipta et al. 2020, arXiv 2009.10795).
    """
    deviation: np.ndarray = statistics.probability.std(axis=1)
    return deviation


def prediction_variance(statistics: LabelStatistics) -> np.ndarray:
    """Return the variance over members of the label's probability plus that of the IoU with its box.

    0 when all members have equal probability and IoU, 1/2 when half of them are perfect and half miss the box.

    Args:
        statistics: Of J ground-truth boxes.

    Returns:
        (J,) float64 in [0, 1/2]; higher = more disagreement.

    Source:
        The idea of VPS, arXiv 2505.17245.
    """
    variance: np.ndarray = statistics.probability.var(axis=1) + statistics.iou.var(axis=1)
    return variance
