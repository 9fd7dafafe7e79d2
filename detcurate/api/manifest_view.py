"""The subset of a run, its provenance and its suspected label errors as a view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detcurate.api.pool_view import Folder, Pool, data_frame, open_run, require_column
from detcurate.coco.dataset import CocoDataset
from detcurate.interop.export.relabel_queue import LabelError, read_label_errors
from detcurate.manifest.compare import open_manifest
from detcurate.manifest.provenance import read_provenance
from detcurate.pipeline.commands.export import queue_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Manifest:
    """A subset of a pool.

    Args:
        directory: The folder of the manifest.
        subset: The images and labels of ``subset.json``.
        provenance: The content of ``provenance.json``; see docs/explanation/coco-files.md.
        label_errors: The label errors in ``relabel.json``, the most suspicious first, with rows of ``pool``.
        pool: The pool that it is a subset of.
    """

    directory: Path
    subset: CocoDataset
    provenance: Mapping[str, Any]
    label_errors: tuple[LabelError, ...]
    pool: Pool

    @classmethod
    def open(cls, output_dir: Folder) -> Manifest:
        """Open the manifest of a run.

        Raises:
            DetcurateError: The folder is not of a run, or it has no manifest yet.
        """
        run = open_run(output_dir)
        run.stage_metadata("manifest")
        directory, pool = run.directory("manifest"), Pool(run.pool, run.image_root("pool"))
        label_errors = read_label_errors(queue_file(run), run.pool)
        return cls(directory, open_manifest(directory), read_provenance(directory), label_errors, pool)

    def __len__(self) -> int:
        return len(self.subset)

    def __repr__(self) -> str:
        kinds = Counter(label_error.kind for label_error in self.label_errors)
        errors = ", ".join(f"{name} {count:,}" for name, count in kinds.items()) or "no suspected label error"
        return (
            f"Manifest({len(self):,} of {len(self.pool):,} images, {self.subset.num_boxes:,} of "
            f"{self.pool.dataset.num_boxes:,} boxes by {self.provenance['strategy']}; {errors})"
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per image of the subset, as ``Pool.to_pandas`` does."""
        return Pool(self.subset, self.pool.image_root).to_pandas()

    def label_errors_to_pandas(self) -> pd.DataFrame:
        """Return one row per suspected label error, the most suspicious first.

        The columns are ``image_id``, ``file_name``, ``kind``, ``label_error_score``, ``labelled`` (null: no label),
        ``consensus``, ``score``, ``num_votes``, ``num_members``, ``selected``.
        """
        pool = self.pool.dataset
        names = pool.class_names
        labelled = [
            names[int(pool.class_index[label_error.label_row])] if label_error.label_row >= 0 else None
            for label_error in self.label_errors
        ]
        own = ("kind", "label_error_score", "score", "num_votes", "num_members")
        columns = {name: [getattr(label_error, name) for label_error in self.label_errors] for name in own}
        return data_frame(
            {
                "image_id": [pool.original_id(label_error.image_row) for label_error in self.label_errors],
                "file_name": [pool.file_names[label_error.image_row] for label_error in self.label_errors],
                "kind": columns["kind"],
                "label_error_score": columns["label_error_score"],
                "labelled": labelled,
                "consensus": [names[label_error.class_index] for label_error in self.label_errors],
                **{name: columns[name] for name in ("score", "num_votes", "num_members")},
                "selected": [label_error.is_selected for label_error in self.label_errors],
            }
        )

    def plot_before_after(self, ax: Axes, field: str = "classes") -> Axes:
        """Draw the shares of a histogram in the provenance for pool and subset.

        Raises:
            ConfigError: The provenance has no such histogram.
        """
        histograms = self.provenance["histograms"]
        require_column(field, list(histograms))
        names = list(histograms[field])
        rows = np.arange(len(names))
        for offset, when, color, hatch in ((0.2, "before", "#bbbbbb", "//"), (-0.2, "after", "#0072b2", "")):
            counts = np.array([histograms[field][name][when] for name in names], float)
            shares = 100 * counts / max(counts.sum(), 1)
            label = {"before": "pool", "after": "subset"}[when]
            ax.barh(rows + offset, shares, 0.38, label=label, color=color, hatch=hatch)
        ax.set_yticks(rows, names)
        ax.set_xlabel(f"{field}, % of the boxes" if field in ("classes", "box_size") else f"{field}, % of the images")
        ax.legend()
        return ax
