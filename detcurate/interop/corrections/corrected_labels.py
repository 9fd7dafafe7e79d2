"""Corrected labels of any tool, and their comparison with the images and classes of the pool."""

from __future__ import annotations

import difflib
import math
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detcurate.coco.dataset import CocoDataset
from detcurate.errors import DatasetError

_BORDER_PX = 1.0  # tools round to hundredths, and annotators draw slightly past the edge

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class CorrectedBox:
    """One corrected label.

    Args:
        box: xyxy; px, or shares of the image's size where ``is_share``.
        class_name: The name of the class in the pool.
        key: The id of the corresponding annotation of the pool, as text; empty when unknown.
        is_share: Whether the box is in shares.
    """

    box: Box
    class_name: str
    key: str = ""
    is_share: bool = False


@dataclass(frozen=True)
class CorrectedImage:
    """One reviewed image with all of its correct labels.

    Args:
        path: The file of the correction.
        file_name: The file name in the pool.
        boxes: The labels; none for an image without objects.
        image_id: The id in the pool where the file states it, to distinguish images of one file name.
        size: Width and height in px where the file states them.
    """

    path: Path
    file_name: str
    boxes: tuple[CorrectedBox, ...]
    image_id: int | str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class CorrectedFile:
    """The content of one file of corrections.

    Args:
        path: The file.
        format: ``coco``, ``cvat`` or ``label-studio``.
        sha256: Digest of its bytes.
        images: The reviewed images.
        skipped: Reason -> number of skipped items: ``proposals`` that were not accepted, ``not_annotated`` images,
            ``crowd_regions``.
    """

    path: Path
    format: str
    sha256: str
    images: tuple[CorrectedImage, ...]
    skipped: dict[str, int]


@dataclass(frozen=True)
class ImageLabels:
    """The corrected labels of one image of the pool.

    Args:
        row: The image's row in the pool.
        boxes: (n, 4) float64, xyxy px, inside the image.
        class_index: (n,) int64 in [0, C).
        keys: n texts, as in ``CorrectedBox``.
    """

    row: int
    boxes: np.ndarray
    class_index: np.ndarray
    keys: tuple[str, ...]


def labels_of_pool(pool: CocoDataset, files: Sequence[CorrectedFile]) -> list[ImageLabels]:
    """Check corrected labels against the pool.

    Args:
        pool: The pool that they are corrections of.
        files: One or more.

    Returns:
        One row an image, in the order of the pool.

    Raises:
        DatasetError: Nothing is corrected, an image is not in the pool, has another size or is corrected twice, a
            class is unknown, or a box has no area or leads out of its image.
    """
    images = [image for file in files for image in file.images]
    if not images:
        raise DatasetError(f"{_names(files)}: holds no corrected image. Export the annotated tasks and try again.")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(pool.file_names):
        rows.setdefault(posixpath.normpath(name), []).append(row)
    found: dict[int, tuple[CorrectedImage, ImageLabels]] = {}
    for image in images:
        row = _row_of(pool, rows, image)
        if row in found:
            other = found[row][0].path
            where = f"{other}" if other == image.path else f"{other} and {image.path}"
            raise DatasetError(
                f"{where}: corrects an image twice (got {image.file_name!r}). Leave one of the corrections out."
            )
        found[row] = (image, _labels(pool, row, image))
    corrected = [labels for _, labels in sorted(found.values(), key=lambda pair: pair[1].row)]
    num_before = int(pool.boxes_per_image[[labels.row for labels in corrected]].sum())
    if num_before and not sum(len(labels.boxes) for labels in corrected):
        raise DatasetError(
            f"{_names(files)}: holds no box for {len(corrected):,} images with {num_before:,} boxes in the pool. "
            "Export the annotations, not only the images."
        )
    return corrected


def _names(files: Sequence[CorrectedFile]) -> str:
    return ", ".join(str(file.path) for file in files)


def _row_of(pool: CocoDataset, rows: dict[str, list[int]], image: CorrectedImage) -> int:
    candidates = rows.get(posixpath.normpath(image.file_name), [])
    if len(candidates) > 1:
        candidates = [row for row in candidates if pool.original_id(row) == image.image_id]
        if not candidates:
            raise DatasetError(
                f"{image.path}: the pool has two images of this file_name, and the image_id is of neither (got "
                f"{image.file_name!r}, image_id {image.image_id!r}). Export as COCO or from Label Studio."
            )
    if not candidates:
        near = difflib.get_close_matches(image.file_name, rows, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DatasetError(
            f"{image.path}: an image is not in the pool {pool.path} (got {image.file_name!r}){hint}. Use the file "
            "names of the pool, including their folders."
        )
    row = candidates[0]
    size = (int(pool.widths[row]), int(pool.heights[row]))
    if image.size is not None and image.size != size:
        raise DatasetError(
            f"{image.path}: {image.file_name!r} has another size than in the pool (got {image.size[0]}x{image.size[1]} "
            f"instead of {size[0]}x{size[1]}). Correct the image of the pool, not a resized copy."
        )
    return row


def _labels(pool: CocoDataset, row: int, image: CorrectedImage) -> ImageLabels:
    classes = {name: index for index, name in enumerate(pool.class_names)}
    size = (int(pool.widths[row]), int(pool.heights[row]))
    boxes, indices = np.zeros((len(image.boxes), 4)), np.zeros(len(image.boxes), np.int64)
    for number, corrected in enumerate(image.boxes):
        if corrected.class_name not in classes:
            near = difflib.get_close_matches(corrected.class_name, classes, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise DatasetError(
                f"{image.path}: a class of {image.file_name!r} is not in the pool (got {corrected.class_name!r}){hint}"
                f". Use one of {', '.join(pool.class_names)}, or add it to the pool's categories first."
            )
        boxes[number] = _inside(corrected, size, image)
        indices[number] = classes[corrected.class_name]
    return ImageLabels(row, boxes, indices, tuple(corrected.key for corrected in image.boxes))


def _inside(corrected: CorrectedBox, size: tuple[int, int], image: CorrectedImage) -> Box:
    """Return a box in px, clipped to the image if it exceeds it by at most a pixel."""
    width, height = size
    box = corrected.box
    if corrected.is_share:
        box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    x1, y1, x2, y2 = box
    is_number = all(math.isfinite(side) for side in box)
    past = max(-x1, -y1, x2 - width, y2 - height) if is_number else math.inf
    if not past <= _BORDER_PX:
        problem = f"outside its image of {width}x{height}"
    else:
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        if x1 < x2 and y1 < y2:
            return x1, y1, x2, y2
        problem = "without area"
    shown = ", ".join(f"{side:g}" for side in box)
    raise DatasetError(
        f"{image.path}: a box is {problem} (got x1, y1, x2, y2 = {shown} of {corrected.class_name!r} on "
        f"{image.file_name!r}). Fix it in the tool and export again."
    )
