"""Decode the records of a results file into columns, and report those that cannot be used."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np

from detcurate.coco import ABSENT_ID
from detcurate.coco.dataset import CocoDataset
from detcurate.coco.decode import IdTable, shorten
from detcurate.coco.records import Records
from detcurate.errors import PredictionError
from detcurate.structures import is_posterior
from detcurate.structures.boxes import xywh_to_xyxy

_MOST_DIGITS = 64
IGNORED, UNKNOWN = -1, -2
"""Instead of a row: the image is quarantined; the pool has no such image."""

Names = Sequence[int | str]
_Numbers = Callable[[Names], np.ndarray]


@dataclass(frozen=True)
class PoolIndex:
    """The images and categories of a pool, by their names in results files.

    Args:
        image_ids: (I,) int64 ascending, the usable images.
        sizes: (I, 2) int64, their widths and heights in px.
        ignored: (Q,) int64, the quarantined images.
        image_numbers: Function from n names to (n,) int64 image ids, ``ABSENT_ID`` for an unknown name.
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
    """Return the images and categories that results files may name.

    Args:
        dataset: The pool.
        image_ids: (I,) int64 ascending, its usable images.
        image_key: The meaning of ``image_id`` in the results; one of ``IMAGE_KEYS``.
        category_key: The meaning of ``category_id`` in the results; one of ``CATEGORY_KEYS``.

    Raises:
        PredictionError: Two images have the same name.
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
    """Name images by file name without folder and suffix, a name of digits as a number, as Ultralytics does."""
    number_of: dict[int | str, int] = {}
    for row, (file_name, image_id) in enumerate(zip(dataset.file_names, dataset.image_ids.tolist(), strict=True)):
        if number_of.setdefault(_stem(PurePosixPath(file_name).stem), image_id) != image_id:
            raise PredictionError(
                f"--image-key stem: two images have the file name {PurePosixPath(file_name).stem!r} without folder and "
                f"suffix (got {file_name!r}, image_id {dataset.original_id(row)} in {dataset.path}). Write the pool's "
                "image ids into the results and use --image-key id."
            )
    return lambda names: np.array([number_of.get(_stem(name), ABSENT_ID) for name in names], np.int64)


def _stem(name: int | str) -> int | str:
    return (
        int(name) if isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < _MOST_DIGITS else name
    )


IMAGE_KEYS: Mapping[str, Callable[[CocoDataset], _Numbers]] = {"id": _by_id, "stem": _by_stem}
"""The meanings of ``image_id``: the pool's image id, or the file name without folder and suffix."""

CATEGORY_KEYS: Mapping[str, Callable[[CocoDataset], np.ndarray]] = {
    "id": lambda dataset: dataset.category_ids,
    "from-0": lambda dataset: np.arange(len(dataset.category_ids)),
    "from-1": lambda dataset: np.arange(1, len(dataset.category_ids) + 1),
}
"""The meanings of ``category_id``: the pool's category id, or its position among the ascending ids, from 0 or 1."""


def _positions(ascending: np.ndarray, values: np.ndarray, *, absent: int) -> np.ndarray:
    """Return the position of each value in an ascending array, ``absent`` for a value that is not in it."""
    if not len(ascending):
        return np.full(len(values), absent, np.int64)
    rows = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return np.where(ascending[rows] == values, rows, absent)


SCORE, SOFTMAX, SIGMOID = "score", "softmax", "sigmoid"
"""The forms of a file's probabilities: score and category alone, or ``class_probs`` of either form."""

_CONSTRAINTS = {
    "image_id": "an integer or a text",
    "category_id": "an integer",
    "bbox": "four finite numbers [x, y, width, height]",
    "score": "a finite number in [0, 1]",
    "class_probs": "a list of finite numbers",
}


class Record(msgspec.Struct, gc=False):
    """The fields of a detection that are read; others are ignored."""

    image_id: int | str
    category_id: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    bbox: tuple[float, float, float, float]
    score: float
    class_probs: list[float] | None = None


_RECORDS, _ONE = msgspec.json.Decoder(list[Record]), msgspec.json.Decoder(Record)


def decode_records(records: Records, positions: Sequence[int] | np.ndarray, text: bytes) -> list[Record]:
    """Decode the records at some positions from their text as one JSON list.

    Raises:
        PredictionError: A record lacks a field, or one has another type; the first such record is named.
    """
    try:
        return _RECORDS.decode(text)
    except msgspec.DecodeError:
        for position in positions:
            try:
                _ONE.decode(records[position])
            except msgspec.DecodeError as error:
                _raise_malformed(records, int(position), str(error))
        raise


def _raise_malformed(records: Records, position: int, message: str) -> NoReturn:
    name, record, path = f"results[{position}]", records.value(position), records.source.path
    is_named = isinstance(record, dict) and "image_id" in record
    where = f"({path}, image_id {shorten(record['image_id'])})" if is_named else f"({path})"
    if not isinstance(record, dict):
        problem = f"{name}: not an object (got {shorten(record)})"
    elif missing := re.match(r"Object missing required field `(\w+)`", message):
        problem = f"{name}: the field {missing[1]!r} is missing"
    else:
        found = re.search(r"at `\$\.(\w+)", message)
        key = found[1] if found else _infinite_key(record)
        problem = f"{name}.{key}: not {_CONSTRAINTS[key]} (got {shorten(record[key])})"
    hint = " A null may also be a NaN or Infinity." if "null" in problem or "None" in problem else ""
    raise PredictionError(f"{problem} {where}. Write the results again without such records.{hint}") from None


def _infinite_key(record: dict[str, Any]) -> str:
    """Return the field with a number too large for a float, such as 1e999, which the decoder does not name."""
    for key in _CONSTRAINTS:
        values = record[key] if isinstance(record.get(key), list) else [record.get(key)]
        if math.inf in values or -math.inf in values:
            return key
    return "bbox"


@dataclass(frozen=True)
class Columns:
    """Some records as columns; n of them.

    Args:
        image_rows: (n,) int64, rows of the pool's index, or ``IGNORED`` or ``UNKNOWN``.
        class_index: (n,) int64 in [0, C), or ``UNKNOWN``.
        boxes: (n, 4) float32 xyxy, px, clipped to the image.
        is_cut: (n,) bool, whether clipping changed the box.
        is_tiny: (n,) bool, whether the whole box is within the first pixel, as normalized boxes are.
        scores: (n,) float64.
        num_probs: (n,) int64, the lengths of ``class_probs``, 0 where there is none.
        class_probs: Float64, the values of all records concatenated.
    """

    image_rows: np.ndarray
    class_index: np.ndarray
    boxes: np.ndarray
    is_cut: np.ndarray
    is_tiny: np.ndarray
    scores: np.ndarray
    num_probs: np.ndarray
    class_probs: np.ndarray

    @property
    def has_area(self) -> np.ndarray:
        """(n,) bool: whether a part of the box is inside the image."""
        return np.asarray(np.all(self.boxes[:, :2] < self.boxes[:, 2:], axis=1))

    def posterior(self, form: str, num_classes: int) -> np.ndarray:
        """Return (n, C + 1) float32, background last, for records of one form.

        A score alone is taken as the probability of its class, and the rest as that of the background.
        """
        n = len(self.scores)
        if form == SCORE:
            probs = np.zeros((n, num_classes + 1))
            probs[np.arange(n), self.class_index] = self.scores
            probs[:, -1] = 1.0 - self.scores
            return probs.astype(np.float32)
        probs = self.class_probs.reshape(n, -1).astype(np.float32)
        return probs if form == SOFTMAX else np.column_stack((probs, 1 - probs.max(axis=1, initial=0.0)))


def columns_of(decoded: Sequence[Record], pool: PoolIndex) -> Columns:
    """Return decoded records as columns."""
    n = len(decoded)
    rows = pool.image_rows([record.image_id for record in decoded])
    sides = itertools.chain.from_iterable([record.bbox for record in decoded])
    with np.errstate(over="ignore"):  # an infinite side is clipped
        boxes = xywh_to_xyxy(np.fromiter(sides, np.float64, 4 * n).reshape(-1, 4))
    limits = np.tile(pool.sizes[np.maximum(rows, 0)], 2) if len(pool.sizes) else np.zeros((n, 4))
    inside = np.clip(boxes, 0.0, limits)
    probs = [record.class_probs or [] for record in decoded]
    return Columns(
        image_rows=rows,
        class_index=pool.class_index(np.array([record.category_id for record in decoded], np.int64)),
        boxes=inside.astype(np.float32),
        is_cut=np.any(np.abs(inside - boxes) > _ROUNDING_PX, axis=1),
        is_tiny=np.all((boxes >= 0) & (boxes <= 1), axis=1) & np.all(limits > 2, axis=1),
        scores=np.array([record.score for record in decoded], np.float64),
        num_probs=np.array([len(values) for values in probs], np.int64),
        class_probs=np.fromiter(itertools.chain.from_iterable(probs), np.float64),
    )


_NORMALIZED_SHARE = 0.5  # the same share as for the boxes of an annotation file
_ROUNDING_PX = 0.5  # a box that ends less than this outside the image counts as inside


@dataclass
class _Finding:
    text: str
    image_id: str
    advice: str
    count: int

    def sentence(self, path: Path) -> str:
        records = f"{self.count:,} such record{'s' if self.count > 1 else ''}"
        return f"{self.text} ({path}, image_id {self.image_id}; {records}). {self.advice}"


@dataclass
class Findings:
    """The unusable values of a file's records: the first example of each kind, and their number.

    Args:
        records: The records of the file.
        pool: The images and categories that they may name.
        form: The form of the file's records; ``None`` before the first is read.
        num_tiny: The number of boxes within the first pixel of their image.
    """

    records: Records
    pool: PoolIndex
    form: str | None = None
    num_tiny: int = 0
    found: dict[str, _Finding] = field(default_factory=dict)

    def check(self, start: int, columns: Columns) -> None:
        """Check consecutive records; the first one has position ``start``."""
        self.num_tiny += int(columns.is_tiny.sum())
        known = ", ".join(map(str, self.pool.category_ids[:8].tolist())) + (", …" if self.pool.num_classes > 8 else "")
        self._require("image_id", columns.image_rows != UNKNOWN, "not an image of the pool", start)
        self._require("category_id", columns.class_index != UNKNOWN, f"not a category of the pool ({known})", start)
        self._require("score", (columns.scores >= 0) & (columns.scores <= 1), "outside [0, 1]", start)
        c = self.pool.num_classes
        fits = np.isin(columns.num_probs, (0, c, c + 1))
        self._require("class_probs", fits, f"neither {c} values nor {c + 1} with the background last", start)
        if self.found:  # the checks that follow rely on these
            return
        forms = np.where(columns.num_probs == 0, SCORE, np.where(columns.num_probs == c, SIGMOID, SOFTMAX))
        self.form = self.form or str(forms[0])
        of_one = forms == self.form
        first = "absent" if self.form == SCORE else self.form
        self._require("class_probs", of_one, f"not of the form of the file's first record ({first})", start)
        if of_one.all() and self.form != SCORE:
            posterior, constraint = is_posterior(columns.posterior(self.form, c), self.form)
            self._require("class_probs", posterior, f"must {constraint}", start)

    def _require(self, key: str, fits: np.ndarray, problem: str, start: int) -> None:
        if fits.all():
            return
        count = int((~fits).sum())
        if problem in self.found:
            self.found[problem].count += count
            return
        position = start + int(np.argmin(fits))
        record = self.records.value(position)
        value = "none" if record.get(key) is None else shorten(record[key])
        text = f"results[{position}].{key}: {problem} (got {value})"
        self.found[problem] = _Finding(text, shorten(record["image_id"]), _ADVICE[key], count)

    def raise_found(self) -> None:
        """Raise ``PredictionError`` with the first example of each kind and the number of such records."""
        path = self.records.source.path
        if self.num_tiny > _NORMALIZED_SHARE * len(self.records):
            raise PredictionError(
                f"bbox: normalized instead of in pixels (got {self.num_tiny:,} of {len(self.records):,} boxes within "
                f"1 px in {path}). Multiply them by the image's width and height."
            )
        if self.found:
            raise PredictionError("\n  ".join(finding.sentence(path) for finding in self.found.values()))


_ADVICE = {
    "image_id": "Import predictions on images of the pool only. If these are file names, pass --image-key stem.",
    "category_id": "Use the pool's category ids. If the detector numbers its classes itself, pass --category-key "
    "from-0 or from-1.",
    "score": "Write confidences, not logits or percentages.",
    "class_probs": "Write probabilities in the order of the category ids, in the same form in all records.",
}
