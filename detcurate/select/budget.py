"""Budgets: a limit on what the subset may cost, in images, boxes, or seconds of annotation."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from detcurate.errors import SelectionError
from detcurate.structures.validation import validate_column

_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class Budget:
    """What each image of the pool costs, and how much may be spent. Whole numbers, so that sums are exact.

    Images are bought in an order, and buying stops when all is spent or at the first image that does not fit: a smaller
    budget then buys the head of what a larger one buys, and no cheap image is bought for being cheap. What is left
    over is less than the cost of that image. Floors and caps are the exceptions, see :mod:`detcurate.select.quotas`.

    Args:
        costs: (I,) int64, at least 0.
        limit: at least 1.
        text: What a person calls it, such as ``"300 images"``.

    Raises:
        SelectionError: A cost or the limit is out of range.
    """

    costs: np.ndarray
    limit: int
    text: str

    def __post_init__(self) -> None:
        validate_column("Budget", "costs", self.costs, (len(self.costs),), "i", SelectionError)
        if len(self.costs) and self.costs.min() < 0:
            raise SelectionError(f"costs must be at least 0, got {self.costs.min()}")
        if self.limit < 1:
            raise SelectionError(f"a budget must be above 0, got {self.text}; raise it")


def image_budget(num_images: int, *, fraction: float | None = None, count: int | None = None) -> Budget:
    """Return the budget of a fraction of the pool, or of a number of images; as :func:`resolve_budget`."""
    limit = resolve_budget(num_images, fraction=fraction, count=count)
    return Budget(np.ones(num_images, np.int64), limit, f"{limit:,} images")


def box_budget(boxes_per_image: np.ndarray, *, num_boxes: int) -> Budget:
    """Return the budget of a number of boxes; an image without boxes is free.

    Args:
        boxes_per_image: (I,) integers.
        num_boxes: at least 1, at most what the pool holds.

    Raises:
        SelectionError: ``num_boxes`` is out of range.

    Example:
        >>> box_budget(np.array([3, 0, 4]), num_boxes=5).text
        '5 boxes'
    """
    total = int(boxes_per_image.sum())
    if num_boxes > total:
        raise SelectionError(f"num_boxes must be at most the pool's {total:,} boxes, got {num_boxes:,}; lower it")
    return Budget(boxes_per_image.astype(np.int64), num_boxes, f"{num_boxes:,} boxes")


def time_budget(
    boxes_per_image: np.ndarray, *, seconds: float, seconds_per_image: float, seconds_per_box: float
) -> Budget:
    """Return the budget of an annotator's time, in microseconds.

    Args:
        boxes_per_image: (I,) integers.
        seconds: above 0, at most what annotating the whole pool takes.
        seconds_per_image: What an image takes, apart from its boxes.
        seconds_per_box: What a box takes; one of the two is above 0.

    Raises:
        SelectionError: A time is out of range.

    Example:
        >>> time_budget(np.array([3, 0]), seconds=40, seconds_per_image=5, seconds_per_box=10.5).costs.tolist()
        [36500000, 5000000]
    """
    an_image, a_box = round(seconds_per_image * _MICROSECONDS), round(seconds_per_box * _MICROSECONDS)
    if min(an_image, a_box) < 0 or an_image + a_box == 0:
        raise SelectionError(
            "seconds_per_image and seconds_per_box must be at least 0, and one of them above 0, got "
            f"{seconds_per_image} and {seconds_per_box}; say what annotating costs"
        )
    costs = an_image + a_box * boxes_per_image.astype(np.int64)
    limit, total = round(seconds * _MICROSECONDS), int(costs.sum())
    if limit > total:
        raise SelectionError(
            f"cost_seconds must be at most the {total / _MICROSECONDS:,g} s that annotating the pool takes, got "
            f"{seconds:,g}; lower it"
        )
    return Budget(costs, limit, f"{seconds:,g} s of annotation")


def resolve_budget(num_images: int, *, fraction: float | None, count: int | None) -> int:
    """Turn a fraction of the pool, or a number of images, into a number of images.

    A fraction is rounded to the nearest image, a half up, and buys at least one. It is taken as the decimal that was
    written: 0.29 of 50 images is 14.5, so 15, although the nearest float to 0.29 lies below it.

    Args:
        num_images: I, the size of the pool, at least 1.
        fraction: in (0, 1], or None.
        count: in [1, I], or None.

    Returns:
        The number of images to select, in [1, I].

    Raises:
        SelectionError: Both or neither of the two are given, one is out of range, or the pool is empty.

    Example:
        >>> resolve_budget(600, fraction=0.5, count=None)
        300
        >>> resolve_budget(600, fraction=None, count=40)
        40
    """
    if num_images < 1:
        raise SelectionError(f"the pool must hold at least one image, got {num_images}; give a pool with images")
    if fraction is not None and count is None:
        if not 0 < fraction <= 1:
            raise SelectionError(f"fraction must be in (0, 1], got {fraction}; 0.5 keeps half of the pool")
        exact = Decimal(repr(float(fraction))) * num_images
        return max(1, int(exact.to_integral_value(rounding=ROUND_HALF_UP)))
    if count is not None and fraction is None:
        if count < 1:
            raise SelectionError(f"count must be at least 1, got {count}; give the number of images to keep")
        if count > num_images:
            raise SelectionError(
                f"count must be at most the pool's {num_images} images, got {count}; "
                "lower the count or give a larger pool"
            )
        return int(count)
    raise SelectionError(
        f"exactly one of fraction and count must be given, got fraction={fraction} and count={count}; leave one out"
    )
