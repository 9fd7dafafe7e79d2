"""What was selected, and what became of the other images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from detcurate.api.frames import Folder, data_frame, open_run, original_ids
from detcurate.coco.dataset import CocoDataset
from detcurate.pipeline.selection import REMOVED, SELECTION
from detcurate.pipeline.tables import read_columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Selection:
    """The images that were taken, best first, and those that were not, each with one reason.

    Args:
        taken: The columns of ``selection/selection.parquet``.
        removed: The columns of ``selection/removed.parquet``.
        pool: The pool.
    """

    taken: Mapping[str, np.ndarray]
    removed: Mapping[str, np.ndarray]
    pool: CocoDataset

    @classmethod
    def open(cls, output_dir: Folder) -> Selection:
        """Open the selection of a run.

        Raises:
            DetcurateError: The folder is of no run, or nothing is selected there.
        """
        run = open_run(output_dir)
        run.marker("select")
        directory = run.directory("select")
        return cls(read_columns(directory / SELECTION), read_columns(directory / REMOVED), run.pool)

    def __len__(self) -> int:
        return len(self.taken["image_id"])

    def __repr__(self) -> str:
        total = len(self) + len(self.removed["image_id"])
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons().items())
        return f"Selection({len(self):,} of {total:,} images; {reasons})"

    def reasons(self) -> dict[str, int]:
        """Return how many images have each reason, those of the taken ones first."""
        return {**Counter(self.taken["reason"].tolist()), **Counter(self.removed["reason"].tolist())}

    def to_pandas(self) -> pd.DataFrame:
        """Return a row an image, the taken ones first by rank.

        The columns are ``image_id``, ``rank`` (null where it was not taken), ``image_score``, ``reason``, and
        ``because``, the image that it gave way to.
        """
        given = [None if other != other else int(other) for other in self.removed["because"].tolist()]  # NaN is null
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
                "because": [None] * len(self) + [None if key is None else self._original(key) for key in given],
            }
        ).astype({"rank": "Int64"})
        return frame

    def _original(self, image_id: int) -> int | str:
        return original_ids(self.pool, [image_id])[0]

    def plot_reasons(self, ax: Axes) -> Axes:
        """Draw how many images have each reason; what was not taken is hatched."""
        reasons, taken = self.reasons(), set(self.taken["reason"].tolist())
        for name, count in reversed(reasons.items()):
            is_taken = name in taken
            ax.barh(name, count, color="#0072b2" if is_taken else "#bbbbbb", hatch="" if is_taken else "//")
        ax.set_xlabel("images")
        return ax
