"""The box around a COCO segmentation, read from a file that may say anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

_Side = Annotated[int, msgspec.Meta(gt=0, le=2**31 - 1)]
_RunLength = Annotated[int, msgspec.Meta(ge=0)]
_BITS = 5  # that a character of a compressed mask holds
_MOST_BITS = 60


class _Mask(msgspec.Struct):
    counts: str | list[_RunLength]
    size: tuple[_Side, _Side]


def box_of_segmentation(segmentation: Any) -> list[float] | None:
    """Return the xywh box around polygons or a run-length mask, or ``None`` when there is nothing to take it from.

    pycocotools is not asked: it divides by a height of 0, and reads and writes beyond a text that is cut short.

    Args:
        segmentation: What the record holds, as Python's JSON reader gives it.

    Example:
        >>> box_of_segmentation([[10, 12, 40, 12, 40.5, 30]])
        [10.0, 12.0, 30.5, 18.0]
    """
    try:
        if isinstance(segmentation, dict):
            mask = msgspec.convert(segmentation, _Mask)
            counts = _run_lengths(mask.counts) if isinstance(mask.counts, str) else mask.counts
            return _box_of_runs(counts, *mask.size)
        return _box_of_polygons(segmentation) if isinstance(segmentation, list) and segmentation else None
    except (ValueError, TypeError, OverflowError, msgspec.ValidationError):
        return None


def _box_of_polygons(polygons: Sequence[Any]) -> list[float] | None:
    points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons])
    low, high = points.min(axis=0), points.max(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        box = [*low.tolist(), *(high - low).tolist()]
    return box if np.isfinite(box).all() else None


def _run_lengths(text: str) -> list[int]:
    """Return the run lengths that the text of a compressed mask stands for.

    Source:
        ``rleFrString`` in pycocotools, ``common/maskApi.c``.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= _MOST_BITS:
            raise ValueError(f"{character!r} does not stand in a compressed mask")
        value |= (bits & 0x1F) << shift
        shift += _BITS
        if not bits & 0x20:  # the last character of this number
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("a compressed mask is cut short")
    return counts


def _box_of_runs(counts: Sequence[int], height: int, width: int) -> list[float] | None:
    """Return the box around every second run of a mask that is read column by column."""
    if min(counts, default=0) < 0 or sum(counts) > height * width:
        return None
    bounds = np.cumsum([0, *counts], dtype=np.int64)
    first, last = bounds[1:-1:2], bounds[2::2] - 1
    first, last = first[first <= last], last[first <= last]
    if not len(first):
        return None
    (left, top), (right, bottom) = np.divmod(first, height), np.divmod(last, height)
    y, y_last = (0, height - 1) if (left < right).any() else (top.min(), bottom.max())
    return [float(left.min()), float(y), float(right.max() - left.min() + 1), float(y_last - y + 1)]
