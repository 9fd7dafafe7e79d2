"""Scores and selection of a pool as views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from detcurate.api.pool_view import Folder, data_frame, open_run, original_ids, require_column, row_of
from detcurate.coco.dataset import CocoDataset
from detcurate.pipeline.object_table import ObjectsTable
from detcurate.pipeline.tables import RemovedTable, SelectionTable, read_scores
from detcurate.structures import ImageScores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_SCORE = "image_score"


@dataclass(frozen=True, repr=False)
class Scores:
    """The score of each image and its components.

    Args:
        images: The columns; see :class:`detcurate.structures.ImageScores`.
        objects: The table ``score/objects.parquet``; the mode ``dense`` writes none.
        pool: The pool that was scored.
    """

    images: ImageScores
    objects: ObjectsTable
    pool: CocoDataset

    @classmethod
    def open(cls, output_dir: Folder) -> Scores:
        """Open the scores of a run.

        Raises:
            DetcurateError: The folder is not of a run, or its pool is not scored yet.
        """
        run = open_run(output_dir)
        return cls(read_scores(run), ObjectsTable.of(run), run.pool)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        low, high = self.images.image_score.min(), self.images.image_score.max()
        count = len(self.images.components)
        return f"Scores({len(self):,} images, image_score {low:.3f} to {high:.3f}, {count} components)"

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per image, the highest score first; docs/explanation/scoring.md describes the columns."""
        order = np.lexsort((self.images.image_ids, -self.images.image_score))
        columns = {name: values[order] for name, values in self._columns().items()}
        return data_frame({"image_id": original_ids(self.pool, self.images.image_ids[order]), **columns})

    def objects_to_pandas(self, image_id: int | str | None = None) -> pd.DataFrame:
        """Return one row per object of one image, or of all images where they fit into memory.

        Raises:
            DatasetError: There is no such image.
            PredictionError: There is no table of objects.
        """
        row = None if image_id is None else row_of(self.pool, image_id)
        table = self.objects.rows(None if row is None else self.pool.image_ids[row : row + 1])
        columns = {name: table[name].to_pandas() for name in table.column_names}
        columns["image_id"] = original_ids(self.pool, table["image_id"].to_pylist())
        return data_frame(columns)

    def plot_distribution(self, ax: Axes, column: str = _SCORE) -> Axes:
        """Draw the histogram of a column over the pool.

        Raises:
            ConfigError: There is no such column.
        """
        columns = self._columns()
        require_column(column, list(columns))
        ax.hist(columns[column], bins=40, color="#0072b2")
        ax.set_xlabel(column)
        ax.set_ylabel("images")
        return ax

    def plot_against(self, ax: Axes, x: str = "num_objects", y: str = _SCORE) -> Axes:
        """Draw one column against another; by default, whether the score prefers crowded images.

        Raises:
            ConfigError: There is no such column.
        """
        columns = self._columns()
        for name in (x, y):
            require_column(name, list(columns))
        ax.scatter(columns[x], columns[y], s=12, alpha=0.5, color="#0072b2", linewidths=0)
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        return ax

    def _columns(self) -> dict[str, np.ndarray]:
        return {_SCORE: self.images.image_score, **self.images.components}


@dataclass(frozen=True, repr=False)
class Selection:
    """The selected images, best first, and the excluded ones, each with one reason.

    Args:
        taken: The columns of ``select/selection.parquet``.
        removed: The columns of ``select/removed.parquet``.
        pool: The pool.
    """

    taken: Mapping[str, np.ndarray]
    removed: Mapping[str, np.ndarray]
    pool: CocoDataset

    @classmethod
    def open(cls, output_dir: Folder) -> Selection:
        """Open the selection of a run.

        Raises:
            DetcurateError: The folder is not of a run, or nothing is selected yet.
        """
        run = open_run(output_dir)
        return cls(SelectionTable.of(run).read(), RemovedTable.of(run).read(), run.pool)

    def __len__(self) -> int:
        return len(self.taken["image_id"])

    def __repr__(self) -> str:
        total = len(self) + len(self.removed["image_id"])
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons().items())
        return f"Selection({len(self):,} of {total:,} images; {reasons})"

    def reasons(self) -> dict[str, int]:
        """Return the number of images of each reason, those of selected images first."""
        return {**Counter(self.taken["reason"].tolist()), **Counter(self.removed["reason"].tolist())}

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per image, the selected ones first by rank.

        The columns are ``image_id``, ``rank`` (null for excluded images), ``image_score``, ``reason``, and
        ``replaced_by``, the id of the image that was kept instead (null where there is none).
        """
        given = [
            None if other != other else int(other) for other in self.removed["replaced_by"].tolist()
        ]  # NaN is null
        columns = {
            name: [*self.taken[name].tolist(), *self.removed[name].tolist()]
            for name in ("image_id", "image_score", "reason")
        }
        frame: pd.DataFrame = data_frame(
            {
                "image_id": original_ids(self.pool, columns["image_id"]),
                "rank": [*self.taken["rank"].tolist(), *[None] * len(given)],
                "image_score": columns["image_score"],
                "reason": columns["reason"],
                "replaced_by": [None] * len(self) + [None if key is None else self._original(key) for key in given],
            }
        ).astype({"rank": "Int64"})
        return frame

    def _original(self, image_id: int) -> int | str:
        return original_ids(self.pool, [image_id])[0]

    def plot_reasons(self, ax: Axes) -> Axes:
        """Draw the number of images of each reason; excluded images are hatched."""
        reasons, taken = self.reasons(), set(self.taken["reason"].tolist())
        for name, count in reversed(reasons.items()):
            is_taken = name in taken
            ax.barh(name, count, color="#0072b2" if is_taken else "#bbbbbb", hatch="" if is_taken else "//")
        ax.set_xlabel("images")
        return ax
