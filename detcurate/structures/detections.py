"""Detections of the ensemble members, their clusters, and ground-truth labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detcurate.errors import PredictionError
from detcurate.structures.columns import validate_column, validate_rows

POSTERIOR_FORMS = ("softmax", "sigmoid")

_POSTERIOR_TOLERANCE = 1e-3  # float32 softmax over many classes, or a file rounded to four digits
_DETECTION_COLUMNS = ("image_ids", "member", "boxes", "scores", "class_index", "class_probs")


def is_posterior(class_probs: np.ndarray, posterior_form: str) -> tuple[np.ndarray, str]:
    """Return the rows that are a posterior of the form, (N,) bool, and its constraint for messages."""
    if posterior_form == "sigmoid":
        rest = 1.0 - class_probs[:, :-1].max(axis=1)
        fits = np.abs(class_probs[:, -1] - rest) <= _POSTERIOR_TOLERANCE
        constraint = f"hold the last value 1 - max of the others within {_POSTERIOR_TOLERANCE}, all in [0, 1]"
        return fits & np.all((class_probs >= 0) & (class_probs <= 1), axis=1), constraint
    sums = class_probs.sum(axis=1, dtype=np.float64)
    fits = np.all(class_probs >= 0, axis=1) & (np.abs(sums - 1.0) <= _POSTERIOR_TOLERANCE)
    return fits, f"be a posterior (no value below 0, sum 1 within {_POSTERIOR_TOLERANCE})"


@dataclass(frozen=True)
class Detections:
    """Detections of the ensemble members on a set of images, one row a detection.

    Args:
        image_ids: (N,) int64, the image of each detection.
        member: (N,) int32 in [0, E), the member that made it.
        boxes: (N, 4) float32, xyxy in absolute pixels, with x1 < x2 and y1 < y2.
        scores: (N,) float32 in [0, 1], the detector's confidence.
        class_index: (N,) int32 in [0, C).
        class_probs: (N, C + 1) float32, the posterior over the classes, background last, in the form below.
        posterior_form: ``"softmax"``: a row is one distribution and sums to 1. ``"sigmoid"``: each of the first C
            columns is in [0, 1] on its own, the probability of that class against all else, and the last column is
            1 less their maximum. Both within 1e-3.

    Raises:
        PredictionError: A column has another shape, kind or range than stated, or holds NaN or infinity, or the form
            is not known.
    """

    image_ids: np.ndarray
    member: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    class_index: np.ndarray
    class_probs: np.ndarray
    posterior_form: str = "softmax"

    def __post_init__(self) -> None:
        if self.posterior_form not in POSTERIOR_FORMS:
            raise PredictionError(
                f"Detections.posterior_form: unknown (got {self.posterior_form!r}). "
                f"Use one of {', '.join(POSTERIOR_FORMS)}."
            )
        n = len(self.image_ids)
        columns: tuple[tuple[str, tuple[int | str, ...], str], ...] = (
            ("image_ids", (n,), "i"),
            ("member", (n,), "i"),
            ("boxes", (n, 4), "f"),
            ("scores", (n,), "f"),
            ("class_index", (n,), "i"),
            ("class_probs", (n, "C + 1"), "f"),
        )
        for name, shape, kind in columns:
            validate_column("Detections", name, getattr(self, name), shape, kind, PredictionError)
        self._validate_ranges()

    def _validate_ranges(self) -> None:
        """Check the assumptions of the measures: boxes with a size, rows that are posteriors."""
        if self.num_classes < 1:
            raise PredictionError(
                f"Detections.class_probs: too few columns (got {self.num_classes + 1}). It needs C + 1 >= 2."
            )
        known = (self.class_index >= 0) & (self.class_index < self.num_classes)
        boxes = self.boxes.astype(np.float32, copy=False)  # the dtype of the measures: a size may vanish in it
        posterior, constraint = is_posterior(self.class_probs, self.posterior_form)
        checks = (
            ("member", self.member >= 0, "be at least 0"),
            ("boxes", np.all(boxes[:, :2] < boxes[:, 2:], axis=1), "have x1 < x2 and y1 < y2 in float32"),
            ("scores", (self.scores >= 0) & (self.scores <= 1), "be in [0, 1]"),
            ("class_index", known, f"be in [0, {self.num_classes})"),
            ("class_probs", posterior, constraint),
        )
        for name, fits, constraint in checks:
            validate_rows("Detections", name, fits, getattr(self, name), constraint, self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """The number of classes C, without the background."""
        return int(self.class_probs.shape[1] - 1)

    @classmethod
    def empty(cls, num_classes: int, posterior_form: str = "softmax") -> Detections:
        """Return a record of no detections for C classes."""
        return cls(
            image_ids=np.zeros(0, np.int64),
            member=np.zeros(0, np.int32),
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            class_index=np.zeros(0, np.int32),
            class_probs=np.zeros((0, num_classes + 1), np.float32),
            posterior_form=posterior_form,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """Join the rows of one or more records of one posterior form, in the order given."""
        if not parts:
            raise PredictionError("Detections.concatenate: no records (got 0). Pass at least one.")
        if len(parts) == 1:
            return parts[0]
        forms = {part.posterior_form for part in parts}
        if len(forms) > 1:
            raise PredictionError(
                f"Detections.concatenate: more than one posterior_form (got {' and '.join(sorted(forms))}). "
                "Use separate ensembles for softmax and sigmoid heads."
            )
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _DETECTION_COLUMNS}
        return cls(**columns, posterior_form=forms.pop())

    def take(self, rows: np.ndarray) -> Detections:
        """Return the rows of an index array or a mask."""
        columns = {name: getattr(self, name)[rows] for name in _DETECTION_COLUMNS}
        return type(self)(**columns, posterior_form=self.posterior_form)


@dataclass(frozen=True)
class Clusters:
    """Object hypotheses: clusters of at most one detection of each member.

    Args:
        image_ids: (G,) int64.
        boxes: (G, 4) float32 xyxy, the mean box of the members with a detection.
        votes: (G, E) int64, the row of each member's detection in the ``Detections``, -1 where it missed.

    Raises:
        PredictionError: A column has another shape or kind than stated, or a cluster has no vote or one below -1.
    """

    image_ids: np.ndarray
    boxes: np.ndarray
    votes: np.ndarray

    def __post_init__(self) -> None:
        g = len(self.image_ids)
        validate_column("Clusters", "image_ids", self.image_ids, (g,), "i", PredictionError)
        validate_column("Clusters", "boxes", self.boxes, (g, 4), "f", PredictionError)
        validate_column("Clusters", "votes", self.votes, (g, "E"), "i", PredictionError)
        if g and not (self.votes >= 0).any(axis=1).all():
            raise PredictionError("Clusters.votes: a cluster without detections (got only -1 in a row).")
        if (self.votes < -1).any():
            raise PredictionError(f"Clusters.votes: neither a row nor -1 for a miss (got {self.votes.min()}).")

    def validate_rows(self, detections: Detections) -> None:
        """Raise ``PredictionError`` if a vote is not a row of ``detections``."""
        highest = int(self.votes.max(initial=-1))
        if highest >= len(detections):
            raise PredictionError(
                f"Clusters.votes: not a row of {len(detections)} detections (got {highest}). "
                "Pass the detections that were clustered."
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_members(self) -> int:
        """The size E of the ensemble, including members without detections."""
        return int(self.votes.shape[1])

    @property
    def num_fired(self) -> np.ndarray:
        """(G,) int64 in [1, E]: the number of members with a detection in each cluster."""
        return np.asarray((self.votes >= 0).sum(axis=1), dtype=np.int64)


_COLUMNS = ("image_ids", "annotation_ids", "boxes", "class_index", "iscrowd")


@dataclass(frozen=True)
class Labels:
    """The ground-truth boxes of a set of images, one row a box.

    Args:
        image_ids: (J,) int64, the image of each box.
        annotation_ids: (J,) int64.
        boxes: (J, 4) floating, xyxy in absolute pixels, with x1 < x2 and y1 < y2.
        class_index: (J,) int64 in [0, C).
        iscrowd: (J,) bool, whether the box is a region of many objects rather than one.

    Raises:
        PredictionError: A column has another shape, kind or range than stated.
    """

    image_ids: np.ndarray
    annotation_ids: np.ndarray
    boxes: np.ndarray
    class_index: np.ndarray
    iscrowd: np.ndarray

    def __post_init__(self) -> None:
        j = len(self.image_ids)
        columns: tuple[tuple[str, tuple[int | str, ...], str], ...] = (
            ("image_ids", (j,), "i"),
            ("annotation_ids", (j,), "i"),
            ("boxes", (j, 4), "f"),
            ("class_index", (j,), "i"),
            ("iscrowd", (j,), "b"),
        )
        for name, shape, kind in columns:
            validate_column("Labels", name, getattr(self, name), shape, kind, PredictionError)
        has_area = np.all(self.boxes[:, :2] < self.boxes[:, 2:], axis=1)
        validate_rows("Labels", "boxes", has_area, self.boxes, "have x1 < x2 and y1 < y2", self.image_ids)
        validate_rows("Labels", "class_index", self.class_index >= 0, self.class_index, "be at least 0", self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, rows: np.ndarray) -> Labels:
        """Return the rows of an index array or a mask."""
        return type(self)(**{name: getattr(self, name)[rows] for name in _COLUMNS})
