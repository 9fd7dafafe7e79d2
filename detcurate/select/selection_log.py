"""The log of a selection: one reason for every image of the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detcurate.structures import Selection


@dataclass(frozen=True)
class SelectionLog:
    """The outcome of a selection, one row per image of the pool.

    Args:
        image_ids: (I,) int64, ascending.
        rank: (I,) int64, 1 for the first selected image, 0 for images that were not selected.
        reason_index: (I,) int64, the place of each image's reason in ``reasons``.
        reasons: Texts such as ``"top_n"``, ``"minimum class bicycle=200"``, ``"near_duplicate"``, ``"budget"``; first
            those of selected images, then those of removed images, each in the order of the steps.
        replaced_by: (I,) int64, the image_id of the better image that replaces a removed one; -1 for none.
    """

    image_ids: np.ndarray
    rank: np.ndarray
    reason_index: np.ndarray
    reasons: tuple[str, ...]
    replaced_by: np.ndarray

    @property
    def selection(self) -> Selection:
        """The selected images, in order."""
        rows = self.taken
        return Selection(self.image_ids[rows], tuple(self.reasons[index] for index in self.reason_index[rows].tolist()))

    @property
    def taken(self) -> np.ndarray:
        """(K,) int64 rows of the selected images, in order."""
        rows = np.flatnonzero(self.rank)
        return rows[np.argsort(self.rank[rows])]

    def counts(self, *, taken: bool) -> dict[str, int]:
        """Return reason -> number of images in the order of the steps, of the selected or of the removed images."""
        rows = (self.rank > 0) == taken
        found = np.bincount(self.reason_index[rows], minlength=len(self.reasons)).tolist()
        return {reason: count for reason, count in zip(self.reasons, found, strict=True) if count}


class LogWriter:
    """The state of a running selection: candidates, selected images, and removed images with their reasons.

    Args:
        image_ids: (I,) int64, ascending.
        best_first: (I,) int64, all rows by descending score.
    """

    def __init__(self, image_ids: np.ndarray, best_first: np.ndarray) -> None:
        self._image_ids = image_ids
        self._best_first = best_first
        self._reason = np.full(len(image_ids), -1, np.int64)
        self._replaced_by = np.full(len(image_ids), -1, np.int64)
        self._reasons: list[tuple[str, bool]] = []
        self._taken: list[np.ndarray] = []

    @property
    def candidates(self) -> np.ndarray:
        """(n,) int64, the rows that are neither selected nor removed, best first."""
        rows: np.ndarray = self._best_first[self._reason[self._best_first] < 0]
        return rows

    @property
    def taken(self) -> np.ndarray:
        """(k,) int64, the selected rows, in order."""
        return np.concatenate(self._taken) if self._taken else np.zeros(0, np.int64)

    def take(self, rows: np.ndarray, reason: str) -> None:
        """Select rows, in order."""
        self._reason[rows] = self._code(reason, is_taken=True)
        self._taken.append(rows)

    def remove(self, rows: np.ndarray, reason: str, replaced_by: np.ndarray | None = None) -> None:
        """Remove rows; ``replaced_by`` gives, for each, the row of the better image that replaces it."""
        self._reason[rows] = self._code(reason, is_taken=False)
        if replaced_by is not None:
            self._replaced_by[rows] = self._image_ids[replaced_by]

    def finish(self, reason: str) -> SelectionLog:
        """Remove the remaining candidates with a reason, and return the log."""
        self.remove(self.candidates, reason)
        order: Sequence[int] = sorted(range(len(self._reasons)), key=lambda code: not self._reasons[code][1])
        rank = np.zeros(len(self._image_ids), np.int64)
        rank[self.taken] = np.arange(1, len(self.taken) + 1)
        return SelectionLog(
            image_ids=self._image_ids,
            rank=rank,
            reason_index=np.argsort(order)[self._reason],
            reasons=tuple(self._reasons[code][0] for code in order),
            replaced_by=self._replaced_by,
        )

    def _code(self, reason: str, *, is_taken: bool) -> int:
        if (reason, is_taken) not in self._reasons:
            self._reasons.append((reason, is_taken))
        return self._reasons.index((reason, is_taken))
