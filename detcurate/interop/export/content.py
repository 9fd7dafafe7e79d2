"""The content of an export: images with their labels and possible label errors."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detcurate.coco.dataset import CocoDataset
from detcurate.coco.image_files import leads_out_by_link
from detcurate.coco.records import Records
from detcurate.errors import DatasetError
from detcurate.interop.export.relabel_queue import LabelError, annotation_id_of
from detcurate.io.files import link_or_copy
from detcurate.io.safe_loading import is_inside
from detcurate.io.storage import Location


@dataclass(frozen=True)
class Label:
    """One label of an image.

    Args:
        annotation_id: The id in the pool's file; None where it has none.
        box: Four floats, xyxy px, inside the image.
        class_index: In [0, C).
        label_errors: The possible errors of this label, the highest score first.
    """

    annotation_id: int | str | None
    box: tuple[float, float, float, float]
    class_index: int
    label_errors: tuple[LabelError, ...] = ()


@dataclass(frozen=True)
class ImageContent:
    """One image, its labels without crowd regions, and its possible label errors, the highest score first."""

    image_id: int | str
    file_name: str
    width: int
    height: int
    labels: tuple[Label, ...]
    label_errors: tuple[LabelError, ...]


@dataclass(frozen=True)
class Content:
    """The input of the writer of a format.

    Args:
        dataset: The images and their labels.
        image_root: The folder that the file names are relative to.
        label_errors: With rows of ``dataset``, the highest score first; may be empty.
        rows: (K,) int64, the rows of the exported images, in the order of the export.
    """

    dataset: CocoDataset
    image_root: Location
    label_errors: Sequence[LabelError] = ()
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        for row in self.rows.tolist():
            require_inside(self.dataset.file_names[row], self.dataset.path)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the C classes."""
        return self.dataset.class_names

    @property
    def num_crowd_regions(self) -> int:
        """The number of crowd regions of the images; only COCO can hold them."""
        return int(np.isin(self.dataset.image_index[self.dataset.iscrowd], self.rows).sum())

    def images(self) -> Iterator[ImageContent]:
        """Yield the images in order, one at a time."""
        dataset = self.dataset
        _, annotations = dataset.open()
        bounds = np.searchsorted(dataset.image_index, np.arange(len(dataset) + 1))
        of_image: dict[int, list[LabelError]] = {}
        for label_error in self.label_errors:
            of_image.setdefault(label_error.image_row, []).append(label_error)
        for row in self.rows.tolist():
            label_errors = tuple(of_image.get(row, ()))
            labels = [at for at in range(bounds[row], bounds[row + 1]) if not dataset.iscrowd[at]]
            yield ImageContent(
                image_id=dataset.original_id(row),
                file_name=dataset.file_names[row],
                width=int(dataset.widths[row]),
                height=int(dataset.heights[row]),
                labels=tuple(self._label(at, row, annotations, label_errors) for at in labels),
                label_errors=label_errors,
            )

    def _label(self, at: int, row: int, annotations: Records, label_errors: Sequence[LabelError]) -> Label:
        size = np.tile((self.dataset.widths[row], self.dataset.heights[row]), 2)
        x1, y1, x2, y2 = self.dataset.boxes[at].clip(0, size).tolist()
        of_label = tuple(label_error for label_error in label_errors if label_error.label_row == at)
        key = annotation_id_of(self.dataset, annotations, at)
        return Label(key, (x1, y1, x2, y2), int(self.dataset.class_index[at]), of_label)


def queue_rows(label_errors: Sequence[LabelError]) -> np.ndarray:
    """Return the rows of the images with possible label errors, the highest score first: (K,) int64."""
    return np.array(list(dict.fromkeys(label_error.image_row for label_error in label_errors)), np.int64)


def require_inside(name: str, path: Path) -> None:
    """Raise ``DatasetError`` for a file name that leads out of the image root: an export writes files by it."""
    if not is_inside(name):
        raise DatasetError(
            f"{path}: a file_name is not relative or leads out of the image root (got {name!r}). Fix the file."
        )


def place_images(content: Content, directory: Path) -> None:
    """Place the images below a directory under their own names, as hard links, or as copies on another disk.

    Raises:
        DatasetError: An image is missing, or a link leads out of the image root.
    """
    for row in content.rows.tolist():
        name = content.dataset.file_names[row]
        source = content.image_root / name
        if leads_out_by_link(content.image_root, name):
            raise DatasetError(
                f"{source}: a link that leads out of the image root (image_id {content.dataset.original_id(row)}). "
                "Copy the image into it, or export without images by --images none."
            )
        if not source.is_file():
            raise DatasetError(
                f"{source}: the image is missing (image_id {content.dataset.original_id(row)}). Set DATASETS.ROOT, or "
                "export without images by --images none."
            )
        link_or_copy(source.resolve(), directory / posixpath.normpath(name))
