"""What the records of a results file may name: the images and the categories of a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from detcurate.coco.dataset import CocoDataset
from detcurate.coco.fast import ABSENT_ID
from detcurate.coco.ids import IdTable
from detcurate.errors import PredictionError

_MOST_DIGITS = 64
IGNORED, UNKNOWN = -1, -2
"""Instead of the row of an image: it is in quarantine; the pool has no such image."""

Names = Sequence[int | str]
_Numbers = Callable[[Names], np.ndarray]


@dataclass(frozen=True)
class PoolIndex:
    """The images and categories of a pool, by the names that results files have for them.

    Args:
        image_ids: (I,) int64 ascending, the images that answers are wanted for.
        sizes: (I, 2) int64, their widths and heights in px.
        ignored: (Q,) int64, images of the pool that no answers are wanted for.
        image_numbers: Returns the (n,) int64 image ids that n names stand for, ``ABSENT_ID`` where they name nothing.
        category_ids: (C,) int64 ascending, the ``category_id`` of class 0, 1, …
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    ignored: np.ndarray
    image_numbers: _Numbers
    category_ids: np.ndarray

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.category_ids)

    def image_rows(self, names: Names) -> np.ndarray:
        """Return (n,) int64: the row of each image in ``image_ids``, else ``IGNORED`` or ``UNKNOWN``."""
        numbers = self.image_numbers(names)
        rows = _positions(self.image_ids, numbers, absent=UNKNOWN)
        return np.where((rows == UNKNOWN) & np.isin(numbers, self.ignored), IGNORED, rows)

    def class_index(self, category_ids: np.ndarray) -> np.ndarray:
        """Return (n,) int64 in [0, C), or ``UNKNOWN``, for (n,) int64 category ids."""
        return _positions(self.category_ids, category_ids, absent=UNKNOWN)


def index_pool(
    dataset: CocoDataset, image_ids: np.ndarray, *, image_key: str = "id", category_key: str = "id"
) -> PoolIndex:
    """Return what results files may name.

    Args:
        dataset: The pool.
        image_ids: (I,) int64 ascending, its images that answers are wanted for.
        image_key: What ``image_id`` is in the results; one of ``IMAGE_KEYS``.
        category_key: What ``category_id`` is in them; one of ``CATEGORY_KEYS``.

    Raises:
        PredictionError: Two images have one name.
    """
    rows = dataset.subset_rows(image_ids)
    return PoolIndex(
        image_ids=image_ids,
        sizes=np.column_stack((dataset.widths[rows], dataset.heights[rows])),
        ignored=dataset.image_ids[~np.isin(dataset.image_ids, image_ids)],
        image_numbers=IMAGE_KEYS[image_key](dataset),
        category_ids=CATEGORY_KEYS[category_key](dataset),
    )


def _by_id(dataset: CocoDataset) -> _Numbers:
    return IdTable({text: number for number, text in dataset.text_ids.items()}).numbers


def _by_stem(dataset: CocoDataset) -> _Numbers:
    """Name images by file name without folder and suffix; one of digits alone is that number, as in Ultralytics."""
    number_of: dict[int | str, int] = {}
    for row, (file_name, image_id) in enumerate(zip(dataset.file_names, dataset.image_ids.tolist(), strict=True)):
        if number_of.setdefault(_stem(PurePosixPath(file_name).stem), image_id) != image_id:
            raise PredictionError(
                f"file names must differ without their folders and suffixes to tell images by them, got another "
                f"{PurePosixPath(file_name).stem!r} with {file_name!r} ({dataset.path}, image_id "
                f"{dataset.original_id(row)}); write the pool's image ids into the results and use the image key id"
            )
    return lambda names: np.array([number_of.get(_stem(name), ABSENT_ID) for name in names], np.int64)


def _stem(name: int | str) -> int | str:
    return (
        int(name) if isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < _MOST_DIGITS else name
    )


IMAGE_KEYS: Mapping[str, Callable[[CocoDataset], _Numbers]] = {"id": _by_id, "stem": _by_stem}
"""What ``image_id`` may be: the pool's image id, or the image's file name without folder and suffix."""

CATEGORY_KEYS: Mapping[str, Callable[[CocoDataset], np.ndarray]] = {
    "id": lambda dataset: dataset.category_ids,
    "from-0": lambda dataset: np.arange(len(dataset.category_ids)),
    "from-1": lambda dataset: np.arange(1, len(dataset.category_ids) + 1),
}
"""What ``category_id`` may be: the pool's category id, or the place of that among the ascending ids, from 0 or 1."""


def _positions(ascending: np.ndarray, values: np.ndarray, *, absent: int) -> np.ndarray:
    """Return where each value stands in an ascending array, ``absent`` where it does not."""
    if not len(ascending):
        return np.full(len(values), absent, np.int64)
    rows = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return np.where(ascending[rows] == values, rows, absent)
