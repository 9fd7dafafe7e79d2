"""The scores of a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detcurate.api.frames import Folder, data_frame, open_run, original_ids, require_column, row_of
from detcurate.coco.dataset import CocoDataset
from detcurate.errors import PredictionError
from detcurate.parquet import bounded
from detcurate.pipeline.score import OBJECTS, read_scores
from detcurate.storage import Location
from detcurate.structures import ImageScores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_SCORE = "image_score"


@dataclass(frozen=True, repr=False)
class Scores:
    """One row an image: the score, and every component that was computed.

    Args:
        images: The columns; see :class:`detcurate.structures.ImageScores`.
        objects: ``scores/objects.parquet``; absent after the mode ``dense``.
        pool: The pool that was scored.
    """

    images: ImageScores
    objects: Location
    pool: CocoDataset

    @classmethod
    def open(cls, output_dir: Folder) -> Scores:
        """Open the scores of a run.

        Raises:
            DetcurateError: The folder is of no run, or nothing is scored there.
        """
        run = open_run(output_dir)
        run.marker("score")
        return cls(read_scores(run), run.directory("score") / OBJECTS, run.pool)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        low, high = self.images.image_score.min(), self.images.image_score.max()
        count = len(self.images.components)
        return f"Scores({len(self):,} images, image_score {low:.3f} to {high:.3f}, {count} components)"

    def to_pandas(self) -> pd.DataFrame:
        """Return a row an image, the highest score first; docs/scoring.md has the columns."""
        order = np.lexsort((self.images.image_ids, -self.images.image_score))
        columns = {name: values[order] for name, values in self._columns().items()}
        return data_frame({"image_id": original_ids(self.pool, self.images.image_ids[order]), **columns})

    def objects_to_pandas(self, image_id: int | str | None = None) -> pd.DataFrame:
        """Return a row an object of one image or, where they fit into memory, of all; docs/scoring.md has the columns.

        Raises:
            DatasetError: There is no such image.
            PredictionError: There is no table of objects.
        """
        row = None if image_id is None else row_of(self.pool, image_id)
        filters = None if row is None else [("image_id", "=", int(self.pool.image_ids[row]))]
        try:
            table = pq.read_table(bounded(self.objects), partitioning=None, filters=filters)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise PredictionError(
                f"the objects must be a whole Parquet file ({self.objects}): {error}; score in a mode that has objects"
            ) from error
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
        """Draw one column against another: whether the score buys crowded images, by default.

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
