"""Scores of objects and images, and the selection of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detcurate.errors import PredictionError, SelectionError
from detcurate.structures.columns import validate_ascending, validate_column


@dataclass(frozen=True)
class ObjectScores:
    """Scores of objects, one row an object: a cluster of detections, or a ground-truth box.

    Args:
        image_ids: (G,) int64, the image of each object.
        boxes: (G, 4) float32, xyxy in absolute pixels, of a cluster the consensus box.
        num_fired: (G,) int64 in [0, E], the number of members with a detection; 0 only for a label, or in the mode
            ``reference``.
        class_index: (G,) int32 in [0, C), the label's class; of a cluster the most probable class of the consensus.
        confidence: (G,) float64 in [0, 1], the consensus probability of that class.
        votes: (G, E) int16, the most probable class of each member's prediction, C for the background, -1 where the
            member has no detection.
        annotation_ids: (G,) int64, a label's own id, a cluster's that of the label with the largest overlap; -1 for
            none.
        measures: name -> (G,) float64; higher = more disagreement, or a more probable label error.
        consensus_boxes: (G, 4) float32, of a label the box of the cluster that is compared with it, xyxy in absolute
            pixels; the label's own box where there is none. None, as the three below, where no cluster is compared:
            of clusters, and in the mode ``reference``.
        consensus_class: (G,) int32 in [0, C), the most probable class of that cluster; -1 for none.
        consensus_confidence: (G,) float64 in [0, 1], the consensus probability of that class; 0 for none.
        consensus_votes: (G,) int32 in [0, E], the members whose most probable class it is; 0 for none.

    Raises:
        PredictionError: A column has another shape or kind than stated, or holds NaN or infinity.
    """

    image_ids: np.ndarray
    boxes: np.ndarray
    num_fired: np.ndarray
    class_index: np.ndarray
    confidence: np.ndarray
    votes: np.ndarray
    annotation_ids: np.ndarray
    measures: Mapping[str, np.ndarray]
    consensus_boxes: np.ndarray | None = None
    consensus_class: np.ndarray | None = None
    consensus_confidence: np.ndarray | None = None
    consensus_votes: np.ndarray | None = None

    def __post_init__(self) -> None:
        g = len(self.image_ids)
        columns: tuple[tuple[str, tuple[int | str, ...], str], ...] = (
            ("image_ids", (g,), "i"),
            ("boxes", (g, 4), "f"),
            ("num_fired", (g,), "i"),
            ("class_index", (g,), "i"),
            ("confidence", (g,), "f"),
            ("votes", (g, "E"), "i"),
            ("annotation_ids", (g,), "i"),
        )
        for name, shape, kind in columns:
            validate_column("ObjectScores", name, getattr(self, name), shape, kind, PredictionError)
        for name, column in self.measures.items():
            validate_column("ObjectScores", name, column, (g,), "f", PredictionError)
        if self.consensus_boxes is None:
            return
        for name, shape, kind in (
            ("consensus_boxes", (g, 4), "f"),
            ("consensus_class", (g,), "i"),
            ("consensus_confidence", (g,), "f"),
            ("consensus_votes", (g,), "i"),
        ):
            validate_column("ObjectScores", name, getattr(self, name), shape, kind, PredictionError)

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def concatenate(cls, parts: Sequence[ObjectScores]) -> ObjectScores:
        """Join the rows of one or more records with the same measures, in the order given."""
        if not parts:
            raise PredictionError("ObjectScores.concatenate: no records (got 0). Pass at least one.")
        names = list(parts[0].measures)
        for part in parts:
            if set(part.measures) != set(names):
                raise PredictionError(
                    f"ObjectScores.concatenate: different measures (got {names} and {list(part.measures)}). "
                    "Score all shards with the same settings."
                )
        has_consensus = all(part.consensus_boxes is not None for part in parts)
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in cls.__annotations__
            if name != "measures" and (has_consensus or not name.startswith("consensus_"))
        }
        return cls(
            **columns, measures={name: np.concatenate([part.measures[name] for part in parts]) for name in names}
        )


@dataclass(frozen=True)
class ImageScores:
    """One row an image of the pool: the computed components, and the score that combines them.

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
        validate_column("ImageScores", "image_ids", self.image_ids, (i,), "i", SelectionError)
        validate_column("ImageScores", "image_score", self.image_score, (i,), "f", SelectionError)
        for name, column in self.components.items():
            kind = "i" if column.dtype.kind == "i" else "f"
            validate_column("ImageScores", name, column, (i,), kind, SelectionError)
        validate_ascending("ImageScores.image_ids", self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class Selection:
    """The selected images, best first, each with the reason of its selection.

    Args:
        image_ids: (K,) int64, unique, in order of rank.
        reasons: K texts, such as ``"top_n"``.

    Raises:
        SelectionError: The lengths differ or an image is repeated.
    """

    image_ids: np.ndarray
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        k = len(self.image_ids)
        validate_column("Selection", "image_ids", self.image_ids, (k,), "i", SelectionError)
        if len(self.reasons) != k:
            raise SelectionError(f"Selection.reasons: wrong length (got {len(self.reasons)}). It must be {k}.")
        if len(np.unique(self.image_ids)) != k:
            raise SelectionError(
                f"Selection.image_ids: not unique (got {k - len(np.unique(self.image_ids))} repeated)."
            )

    def __len__(self) -> int:
        return len(self.image_ids)
