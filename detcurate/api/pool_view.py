"""The labelled pool as a view, and helpers of all views."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detcurate.coco.dataset import CocoDataset, read_coco
from detcurate.coco.image_files import opened_image
from detcurate.errors import ConfigError, DatasetError
from detcurate.interop.export.content import require_inside
from detcurate.interop.export.relabel_queue import LabelError
from detcurate.io.storage import Location, image_files, local_file, locate
from detcurate.pipeline.context import Run
from detcurate.pipeline.workspace import named_run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Folder = str | os.PathLike[str]


def open_run(output_dir: Folder) -> Run:
    """Return the run that wrote ``output_dir``.

    Raises:
        ConfigError: The folder is not the ``OUTPUT_DIR`` of a run.
    """
    return named_run(None, [str(output_dir)])


def data_frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return columns as a data frame.

    Raises:
        ConfigError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError(
            "to_pandas: pandas is not installed. Install it with pip install 'detcurate[notebook]'."
        ) from error
    frame: pd.DataFrame = pandas.DataFrame(dict(columns))
    return frame


def original_ids(pool: CocoDataset, image_ids: Sequence[int] | np.ndarray) -> list[int | str]:
    """Return image ids as they are in the annotation file."""
    return [pool.text_ids.get(int(number), int(number)) for number in image_ids]


def row_of(pool: CocoDataset, image_id: int | str) -> int:
    """Return the row of an image.

    Raises:
        DatasetError: There is no such image.
    """
    for row in range(len(pool)):
        if pool.original_id(row) == image_id:
            return row
    raise DatasetError(f"image_id: not an image of {pool.path} (got {image_id!r}). Pool.to_pandas() lists all.")


def require_column(name: str, known: Sequence[str]) -> None:
    """Raise ``ConfigError`` unless a column exists."""
    if name not in known:
        raise ConfigError(f"column: must be one of {', '.join(known)} (got {name!r})")


_LABEL, _CONSENSUS = "#0072b2", "#d55e00"  # line styles differ too, for readers who do not see the colours


@dataclass(frozen=True, repr=False)
class Pool:
    """Labelled images.

    Args:
        dataset: The columns; see :class:`detcurate.coco.dataset.CocoDataset`.
        image_root: The folder or URL that file names are relative to.
    """

    dataset: CocoDataset
    image_root: Location

    @classmethod
    def open(cls, output_dir: Folder) -> Pool:
        """Open the pool of a run.

        Raises:
            DetcurateError: The folder is not of a run, or the pool cannot be read.
        """
        run = open_run(output_dir)
        return cls(run.pool, run.image_root("pool"))

    @classmethod
    def read(cls, annotations: Folder, image_root: Folder) -> Pool:
        """Read an annotation file that belongs to no run; it and the images may be in object storage.

        Raises:
            DatasetError: It cannot be read.
        """
        file = local_file(os.fspath(annotations), name="annotations")
        return cls(read_coco(file), locate(os.fspath(image_root), name="image_root"))

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        num_classes = len(self.dataset.class_names)
        return (
            f"Pool({self.dataset.path.name}: {len(self):,} images, {self.dataset.num_boxes:,} boxes of "
            f"{num_classes} class{'es' if num_classes > 1 else ''})"
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per image: ``image_id``, ``file_name``, ``width``, ``height``, ``sequence``, ``num_boxes``."""
        pool = self.dataset
        return data_frame(
            {
                "image_id": original_ids(pool, pool.image_ids),
                "file_name": list(pool.file_names),
                "width": pool.widths,
                "height": pool.heights,
                "sequence": list(pool.sequences),
                "num_boxes": pool.boxes_per_image,
            }
        )

    def boxes_to_pandas(self) -> pd.DataFrame:
        """Return one row per box: ``image_id``, ``annotation_id``, ``class_name``, ``x1`` to ``y2``, ``iscrowd``."""
        pool = self.dataset
        sides = dict(zip(("x1", "y1", "x2", "y2"), pool.boxes.T, strict=True))
        return data_frame(
            {
                "image_id": original_ids(pool, pool.image_ids[pool.image_index]),
                "annotation_id": pool.annotation_ids,
                "class_name": [pool.class_names[index] for index in pool.class_index.tolist()],
                **sides,
                "iscrowd": pool.iscrowd,
            }
        )

    def plot_classes(self, ax: Axes) -> Axes:
        """Draw the number of boxes of each class, the most frequent on top."""
        counts = self.dataset.class_counts()
        order = np.argsort(counts, kind="stable")
        ax.barh([_plain(self.dataset.class_names[at]) for at in order.tolist()], counts[order], color=_LABEL)
        ax.set_xlabel("boxes")
        return ax

    def plot_image(self, image_id: int | str, ax: Axes, label_errors: Iterable[LabelError] = ()) -> Axes:
        """Draw an image with its labels, and the consensus boxes of its suspected label errors.

        Args:
            image_id: The id in the annotation file.
            ax: The axes to draw on.
            label_errors: Such as ``Manifest.label_errors``; those of other images are ignored.

        Raises:
            DatasetError: There is no such image, or its file name leads out of the image root.
        """
        from PIL import ImageOps

        pool, row = self.dataset, row_of(self.dataset, image_id)
        require_inside(pool.file_names[row], pool.path)
        (file,) = image_files(self.image_root, [pool.file_names[row]])
        with opened_image(file) as image:
            ax.imshow(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
        for at in np.flatnonzero(pool.image_index == row).tolist():
            _draw(ax, pool.boxes[at].tolist(), pool.class_names[int(pool.class_index[at])], _LABEL, "-")
        for label_error in label_errors:
            if label_error.image_row == row:
                _draw(ax, list(label_error.box), label_error.sentence(pool.class_names), _CONSENSUS, "--")
        ax.set_xlim(0, int(pool.widths[row]))
        ax.set_ylim(int(pool.heights[row]), 0)
        ax.set_title(_plain(pool.file_names[row]))
        ax.set_axis_off()
        return ax


def _plain(text: str) -> str:
    """Return a text that matplotlib does not parse as mathematics."""
    return text.replace("$", r"\$")


def _draw(ax: Axes, box: list[float], text: str, color: str, line: str) -> None:
    x1, y1, x2, y2 = box
    ax.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], line, color=color, linewidth=1.5)
    ax.text(
        x1,
        y1,
        _plain(text),
        color="white",
        fontsize=7,
        va="bottom",
        clip_on=True,
        bbox={"facecolor": color, "lw": 0, "pad": 1},
    )
