"""The records that the stages hand to each other: frozen columns, checked when they are made.

Axes, everywhere in the project: I images, E members, N detections, G clusters, C classes. Boxes are
xyxy in absolute pixels. ``class_index`` is contiguous from 0; ``class_probs`` has C + 1 columns, the
background last. ``posterior_form`` says how to read them: one distribution a row, or one a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detcurate.errors import DetcurateError, PredictionError, SelectionError

POSTERIOR_FORMS = ("softmax", "sigmoid")

_POSTERIOR_TOLERANCE = 1e-3  # float32 softmax over many classes, or a file rounded to four digits
_DETECTION_COLUMNS = ("image_ids", "member", "boxes", "scores", "class_index", "class_probs")


def _validate_column(
    owner: str,
    name: str,
    values: np.ndarray,
    shape: tuple[int | str, ...],
    kind: str,
    error: type[DetcurateError],
) -> None:
    """Check one column's rank, fixed lengths, kind ("i" or "f") and, for floats, that all are finite."""
    expected = "(" + ", ".join(str(length) for length in shape) + ("," if len(shape) == 1 else "") + ")"
    fits = values.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, values.shape, strict=True)
    )
    if not fits:
        raise error(f"{owner}.{name} must have shape {expected}, got {values.shape}")
    if values.dtype.kind != kind:
        raise error(
            f"{owner}.{name} must be {'an integer' if kind == 'i' else 'a floating'} array, got dtype {values.dtype}"
        )
    if kind == "f" and not np.isfinite(values).all():
        raise error(f"{owner}.{name} must be finite, got {int((~np.isfinite(values)).sum())} NaN or infinite values")


def validate_ascending(name: str, image_ids: np.ndarray) -> None:
    """Raise ``SelectionError`` when the ids of a pool are not ascending and unique."""
    falls = np.flatnonzero(image_ids[1:] <= image_ids[:-1])
    if len(falls):
        before, after = image_ids[falls[0] : falls[0] + 2].tolist()
        raise SelectionError(f"{name} must be ascending and unique, got {after} after {before}; sort the pool's ids")


def _validate_rows(
    owner: str, name: str, fits: np.ndarray, values: np.ndarray, constraint: str, ids: np.ndarray
) -> None:
    """Raise with the first row that breaks a column's constraint, and the image it belongs to."""
    if not fits.all():
        row = int(np.argmin(fits))
        raise PredictionError(
            f"{owner}.{name} must {constraint}, got {values[row].tolist()} (row {row}, image_id {ids[row]}; "
            f"{int((~fits).sum())} such rows); drop or mend these rows where they are made"
        )


def _is_posterior(class_probs: np.ndarray, posterior_form: str) -> tuple[np.ndarray, str]:
    """Tell which rows are a posterior of the form, (N,) bool, and what such a row must be, in words."""
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
    """What the members of an ensemble saw on a set of images, one row a detection.

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
                f"Detections.posterior_form must be one of {', '.join(POSTERIOR_FORMS)}, got {self.posterior_form!r}"
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
            _validate_column("Detections", name, getattr(self, name), shape, kind, PredictionError)
        self._validate_ranges()

    def _validate_ranges(self) -> None:
        """Check what the measures rely on: the logarithm of a box's size, a row that is a posterior."""
        if self.num_classes < 1:
            raise PredictionError(f"Detections.class_probs must have C + 1 >= 2 columns, got {self.num_classes + 1}")
        known = (self.class_index >= 0) & (self.class_index < self.num_classes)
        posterior, constraint = _is_posterior(self.class_probs, self.posterior_form)
        checks = (
            ("member", self.member >= 0, "be at least 0"),
            ("boxes", np.all(self.boxes[:, :2] < self.boxes[:, 2:], axis=1), "have x1 < x2 and y1 < y2"),
            ("scores", (self.scores >= 0) & (self.scores <= 1), "be in [0, 1]"),
            ("class_index", known, f"be in [0, {self.num_classes})"),
            ("class_probs", posterior, constraint),
        )
        for name, fits, constraint in checks:
            _validate_rows("Detections", name, fits, getattr(self, name), constraint, self.image_ids)

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
            raise PredictionError("Detections.concatenate needs at least one record, got none")
        forms = {part.posterior_form for part in parts}
        if len(forms) > 1:
            raise PredictionError(
                f"Detections to join must have one posterior_form, got {' and '.join(sorted(forms))}; "
                "an ensemble is of detectors of one kind: join softmax and sigmoid heads in separate pools"
            )
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _DETECTION_COLUMNS}
        return cls(**columns, posterior_form=forms.pop())

    def take(self, rows: np.ndarray) -> Detections:
        """Return the rows that an index array or a mask names."""
        columns = {name: getattr(self, name)[rows] for name in _DETECTION_COLUMNS}
        return type(self)(**columns, posterior_form=self.posterior_form)


@dataclass(frozen=True)
class Clusters:
    """Object hypotheses: at most one detection of each member on what is taken for one object.

    Args:
        image_ids: (G,) int64.
        boxes: (G, 4) float32 xyxy, the mean box of the members that fired.
        votes: (G, E) int64, the row of each member's detection in the ``Detections``, -1 where it missed.

    Raises:
        PredictionError: A column has another shape or kind than stated, or a cluster has no vote or one below -1.
    """

    image_ids: np.ndarray
    boxes: np.ndarray
    votes: np.ndarray

    def __post_init__(self) -> None:
        g = len(self.image_ids)
        _validate_column("Clusters", "image_ids", self.image_ids, (g,), "i", PredictionError)
        _validate_column("Clusters", "boxes", self.boxes, (g, 4), "f", PredictionError)
        _validate_column("Clusters", "votes", self.votes, (g, "E"), "i", PredictionError)
        if g and not (self.votes >= 0).any(axis=1).all():
            raise PredictionError("Clusters.votes must hold at least one detection a cluster, got a cluster of none")
        if (self.votes < -1).any():
            raise PredictionError(f"Clusters.votes must be a row or -1 for a miss, got {self.votes.min()}")

    def validate_rows(self, detections: Detections) -> None:
        """Raise ``PredictionError`` when a vote names a row that ``detections`` does not have."""
        highest = int(self.votes.max(initial=-1))
        if highest >= len(detections):
            raise PredictionError(
                f"Clusters.votes must name rows below {len(detections)}, the number of detections, got {highest}; "
                "pass the detections that were associated"
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_members(self) -> int:
        """The size E of the ensemble, whether or not each member fired."""
        return int(self.votes.shape[1])

    @property
    def num_fired(self) -> np.ndarray:
        """(G,) int64 in [1, E]: how many members have a detection in each cluster."""
        return np.asarray((self.votes >= 0).sum(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class ObjectScores:
    """One row an object hypothesis: what the ensemble takes it for, and how much it disagrees on it.

    Args:
        image_ids: (G,) int64, the image of each object.
        boxes: (G, 4) float32, xyxy in absolute pixels, the consensus box.
        num_fired: (G,) int64 in [0, E], the members that saw it; 0 only where all were asked (mode ``reference``).
        class_index: (G,) int32 in [0, C), the most probable class of the consensus.
        confidence: (G,) float64 in [0, 1], the consensus probability of that class.
        measures: name -> (G,) float64; higher = more disagreement.

    Raises:
        PredictionError: A column has another shape or kind than stated, or holds NaN or infinity.
    """

    image_ids: np.ndarray
    boxes: np.ndarray
    num_fired: np.ndarray
    class_index: np.ndarray
    confidence: np.ndarray
    measures: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        g = len(self.image_ids)
        columns: tuple[tuple[str, tuple[int | str, ...], str], ...] = (
            ("image_ids", (g,), "i"),
            ("boxes", (g, 4), "f"),
            ("num_fired", (g,), "i"),
            ("class_index", (g,), "i"),
            ("confidence", (g,), "f"),
        )
        for name, shape, kind in columns:
            _validate_column("ObjectScores", name, getattr(self, name), shape, kind, PredictionError)
        for name, column in self.measures.items():
            _validate_column("ObjectScores", name, column, (g,), "f", PredictionError)

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def concatenate(cls, parts: Sequence[ObjectScores]) -> ObjectScores:
        """Join the rows of one or more records with the same measures, in the order given."""
        if not parts:
            raise PredictionError("ObjectScores.concatenate needs at least one record, got none")
        names = list(parts[0].measures)
        for part in parts:
            if set(part.measures) != set(names):
                raise PredictionError(
                    f"ObjectScores to join must have the same measures, got {names} and {list(part.measures)}; "
                    "score all shards with the same settings"
                )
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in cls.__annotations__
            if name != "measures"
        }
        return cls(
            **columns, measures={name: np.concatenate([part.measures[name] for part in parts]) for name in names}
        )


@dataclass(frozen=True)
class ImageScores:
    """One row an image of the pool: every component that was computed, and the score they combine to.

    Args:
        image_ids: (I,) int64, ascending and unique.
        image_score: (I,) float64; higher = keep first.
        components: name -> (I,) float64 or int64 column.

    Raises:
        SelectionError: A column has another length, is not finite, or the ids are not ascending and unique.
    """

    image_ids: np.ndarray
    image_score: np.ndarray
    components: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        i = len(self.image_ids)
        _validate_column("ImageScores", "image_ids", self.image_ids, (i,), "i", SelectionError)
        _validate_column("ImageScores", "image_score", self.image_score, (i,), "f", SelectionError)
        for name, column in self.components.items():
            kind = "i" if column.dtype.kind == "i" else "f"
            _validate_column("ImageScores", name, column, (i,), kind, SelectionError)
        validate_ascending("ImageScores.image_ids", self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class Selection:
    """The images to keep, best first, each with the reason it was taken.

    Args:
        image_ids: (K,) int64, unique, in order of rank.
        reasons: K texts, such as ``"top_n"``.

    Raises:
        SelectionError: The lengths differ or an image is named twice.
    """

    image_ids: np.ndarray
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        k = len(self.image_ids)
        _validate_column("Selection", "image_ids", self.image_ids, (k,), "i", SelectionError)
        if len(self.reasons) != k:
            raise SelectionError(f"Selection.reasons must hold {k} texts, got {len(self.reasons)}")
        if len(np.unique(self.image_ids)) != k:
            raise SelectionError("Selection.image_ids must be unique, got an image twice")

    def __len__(self) -> int:
        return len(self.image_ids)
