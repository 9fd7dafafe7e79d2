"""The subset that a run has written, where it came from, and which labels want a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detcurate.api.pool_view import Folder, Pool, data_frame, open_run, require_column
from detcurate.coco.dataset import CocoDataset
from detcurate.interop.export.relabel_queue import Suspect, read_suspects
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
        directory: The manifest's.
        subset: The images and labels of ``subset.json``.
        provenance: What ``provenance.json`` says; docs/coco.md tells of it.
        suspects: What ``relabel.json`` lists, worst first, with rows of ``pool``.
        pool: The pool that it is a subset of.
    """

    directory: Path
    subset: CocoDataset
    provenance: Mapping[str, Any]
    suspects: tuple[Suspect, ...]
    pool: Pool

    @classmethod
    def open(cls, output_dir: Folder) -> Manifest:
        """Open the manifest of a run.

        Raises:
            DetcurateError: The folder is of no run, or no manifest is written there.
        """
        run = open_run(output_dir)
        run.marker("manifest")
        directory, pool = run.directory("manifest"), Pool(run.pool, run.image_root("pool"))
        suspects = read_suspects(queue_file(run), run.pool)
        return cls(directory, open_manifest(directory), read_provenance(directory), suspects, pool)

    def __len__(self) -> int:
        return len(self.subset)

    def __repr__(self) -> str:
        kinds = Counter(suspect.kind for suspect in self.suspects)
        found = ", ".join(f"{name} {count:,}" for name, count in kinds.items()) or "no suspected label"
        return (
            f"Manifest({len(self):,} of {len(self.pool):,} images, {self.subset.num_boxes:,} of "
            f"{self.pool.dataset.num_boxes:,} boxes by {self.provenance['strategy']}; {found})"
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return a row an image of the subset, as ``Pool.to_pandas`` does."""
        return Pool(self.subset, self.pool.image_root).to_pandas()

    def suspicions_to_pandas(self) -> pd.DataFrame:
        """Return a row a suspected label, worst first.

        The columns are ``image_id``, ``file_name``, ``kind``, ``suspicion``, ``labelled`` (null where nothing is),
        ``consensus``, ``score``, ``num_votes``, ``num_members``, ``selected``.
        """
        pool = self.pool.dataset
        names = pool.class_names
        labelled = [
            names[int(pool.class_index[suspect.label_row])] if suspect.label_row >= 0 else None
            for suspect in self.suspects
        ]
        own = ("kind", "suspicion", "score", "num_votes", "num_members")
        columns = {name: [getattr(suspect, name) for suspect in self.suspects] for name in own}
        return data_frame(
            {
                "image_id": [pool.original_id(suspect.image_row) for suspect in self.suspects],
                "file_name": [pool.file_names[suspect.image_row] for suspect in self.suspects],
                "kind": columns["kind"],
                "suspicion": columns["suspicion"],
                "labelled": labelled,
                "consensus": [names[suspect.class_index] for suspect in self.suspects],
                **{name: columns[name] for name in ("score", "num_votes", "num_members")},
                "selected": [suspect.is_selected for suspect in self.suspects],
            }
        )

    def plot_before_after(self, ax: Axes, field: str = "classes") -> Axes:
        """Draw the shares of a histogram of the provenance, of the pool and of the subset.

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
