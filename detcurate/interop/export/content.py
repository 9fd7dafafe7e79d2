"""What is handed over: images with their labels, and what is suspected of them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detcurate.coco.dataset import CocoDataset
from detcurate.coco.image_files import leads_out_by_link
from detcurate.coco.text import Records
from detcurate.errors import DatasetError
from detcurate.interop.export.relabel_queue import LabelError, annotation_id_of
from detcurate.io.files import link_or_copy
from detcurate.io.safe_loading import is_inside
from detcurate.io.storage import Location


@dataclass(frozen=True)
class Label:
    """One label of an image.

    Args:
        annotation_id: As the pool's file has it; None where it has none.
        box: Four floats, xyxy px, inside the image.
        class_index: In [0, C).
        label_errors: What is suspected of it, worst first.
    """

    annotation_id: int | str | None
    box: tuple[float, float, float, float]
    class_index: int
    label_errors: tuple[LabelError, ...] = ()


@dataclass(frozen=True)
class ImageContent:
    """One image, its labels without crowd regions, and what is suspected in it, worst first."""

    image_id: int | str
    file_name: str
    width: int
    height: int
    labels: tuple[Label, ...]
    label_errors: tuple[LabelError, ...]


@dataclass(frozen=True)
class Content:
    """What a writer of a format is given.

    Args:
        dataset: The images and their labels.
        image_root: What the file names are relative to.
        label_errors: With rows of ``dataset``, worst first; may be empty.
        rows: (K,) int64, the rows of the images that are meant, best first.
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
        """C texts."""
        return self.dataset.class_names

    @property
    def num_crowd_regions(self) -> int:
        """How many crowd regions the images have, which no format but COCO can hold."""
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
        about = tuple(label_error for label_error in label_errors if label_error.label_row == at)
        key = annotation_id_of(self.dataset, annotations, at)
        return Label(key, (x1, y1, x2, y2), int(self.dataset.class_index[at]), about)


def queue_rows(label_errors: Sequence[LabelError]) -> np.ndarray:
    """Return the rows of the suspected images, the one with the worst suspicion first: (K,) int64."""
    return np.array(list(dict.fromkeys(label_error.image_row for label_error in label_errors)), np.int64)


def require_inside(name: str, path: Path) -> None:
    """Raise ``DatasetError`` when a file name leads out of the image root: it would be written to from here on."""
    if not is_inside(name):
        raise DatasetError(
            f"file_name must be relative and stay inside the image root, got {name!r} ({path}); mend the file"
        )


def place_images(content: Content, directory: Path) -> None:
    """Put the images below a directory under their own names, as hard links, or as copies on another disk.

    Raises:
        DatasetError: An image is absent, or a link leads out of the image root.
    """
    for row in content.rows.tolist():
        name = content.dataset.file_names[row]
        source = content.image_root / name
        if leads_out_by_link(content.image_root, name):
            raise DatasetError(
                f"an image must be below the image root to be handed over, got a link that leads out of it ({source}, "
                f"image_id {content.dataset.original_id(row)}); copy it, or hand over the list alone with --images none"
            )
        if not source.is_file():
            raise DatasetError(
                f"an image must be there to be linked, got none ({source}, image_id {content.dataset.original_id(row)})"
                "; set DATASETS.ROOT, or hand over the list alone with --images none"
            )
        link_or_copy(source.resolve(), directory / posixpath.normpath(name))
