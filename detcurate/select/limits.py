"""Budgets: a limit on what the subset may cost, in images, boxes, or seconds of annotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from detcurate.errors import SelectionError
from detcurate.select.kernels import FIRST_MAXIMUM, NOT_REACHED, OVER_BUDGET, TAKEN, take_in_order
from detcurate.select.selection_log import LogWriter
from detcurate.structures.columns import validate_column

_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class Budget:
    """What each image of the pool costs, and how much may be spent. Whole numbers, so that sums are exact.

    Images are bought in an order, and buying stops when all is spent or at the first image that does not fit: a smaller
    budget then buys the head of what a larger one buys, and no cheap image is bought for being cheap. What is left
    over is less than the cost of that image. Floors and caps are the exceptions, see :mod:`detcurate.select.limits`.

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


@dataclass(frozen=True)
class Quota:
    """A floor or a cap.

    Args:
        name: What it counts, such as ``"class bicycle"``.
        amounts: (I,) int64, at least 0: what each image holds of it.
        limit: at least 0; a floor wants at least so much of the subset, a cap allows at most so much.

    Raises:
        SelectionError: A value is out of range.
    """

    name: str
    amounts: np.ndarray
    limit: int

    def __post_init__(self) -> None:
        validate_column("Quota", "amounts", self.amounts, (len(self.amounts),), "i", SelectionError)
        if self.limit < 0 or (len(self.amounts) and self.amounts.min() < 0):
            raise SelectionError(f"{self} must be at least 0, and so what each image holds; mend it")

    def __str__(self) -> str:
        return f"{self.name}={self.limit}"


class BudgetTracker:
    """The budget and the caps of one selection, and what is left of them.

    Args:
        budget: The budget.
        maximums: The caps.
    """

    def __init__(self, budget: Budget, maximums: Sequence[Quota]) -> None:
        self.budget = budget
        self.room = budget.limit
        self._maximums = maximums
        self._amounts = (
            np.stack([maximum.amounts for maximum in maximums])
            if maximums
            else np.zeros((0, len(budget.costs)), np.int64)
        )
        self._rooms = np.array([maximum.limit for maximum in maximums], np.int64)

    @property
    def costs(self) -> np.ndarray:
        """(I,) int64, what each image costs."""
        return self.budget.costs

    def hold(self, rows: np.ndarray, log: LogWriter, reason: str) -> None:
        """Take rows that were bought before, even beyond a cap.

        Raises:
            SelectionError: They exceed the budget.
        """
        self.room -= int(self.costs[rows].sum())
        if self.room < 0:
            raise SelectionError(f"what is held must fit the budget of {self.budget.text}, got more; raise the budget")
        self._rooms = np.maximum(self._rooms - self._amounts[:, rows].sum(axis=1), 0)
        log.take(rows, reason)

    def beyond(self, rows: np.ndarray, factor: float) -> np.ndarray:
        """Return the rows after those that together cost up to ``factor`` times what is left."""
        reached = np.searchsorted(np.cumsum(self.costs[rows]), factor * self.room, side="right")
        return rows[reached:]

    def meet(self, minimum: Quota, log: LogWriter) -> None:
        """Take the best-scored images that hold what a floor counts, until it is met.

        What was taken before counts. An image that breaks a cap or does not fit the budget is passed over: a later one
        may do.

        Raises:
            SelectionError: The floor cannot be met: by the pool, by what is left of the budget, or under the caps.
        """
        need = minimum.limit - int(minimum.amounts[log.taken].sum())
        candidates = log.candidates
        holding = candidates[minimum.amounts[candidates] > 0]
        held = int(minimum.amounts[holding].sum())
        if held < need:
            in_pool = int(minimum.amounts.sum())
            thinned = (
                f" ({in_pool:,} before the noise filter and the thinning)"
                if held + minimum.limit - need < in_pool
                else ""
            )
            raise SelectionError(
                f"floor {minimum} must be at most what the pool holds, got a pool that holds "
                f"{held + minimum.limit - need:,}{thinned}; lower the floor"
            )
        outcome, lacking = self._walk(holding, minimum.amounts, need, stops=False)
        if lacking > 0:
            blocking = sorted(
                {str(self._maximums[code - FIRST_MAXIMUM]) for code in outcome.tolist() if code >= FIRST_MAXIMUM}
            )
            limits = [f"the budget of {self.budget.text}"] if (outcome == OVER_BUDGET).any() else []
            limits += [f"cap {name}" for name in blocking]
            raise SelectionError(
                f"floor {minimum} must be met within {' and '.join(limits)}, got {minimum.limit - lacking:,} with the "
                "best-scored images after the floors before it; raise the limit or lower the floor"
            )
        log.take(holding[outcome == TAKEN], f"floor {minimum}")

    def spend(self, order: np.ndarray, log: LogWriter, reason: str) -> bool:
        """Take rows in order until one does not fit; those that break a cap are removed.

        Returns:
            Whether a row did not fit: the budget is spent.
        """
        outcome, _ = self._walk(order, np.zeros(len(self.costs), np.int64), 1, stops=True)
        log.take(order[outcome == TAKEN], reason)
        for number, maximum in enumerate(self._maximums):
            log.remove(order[outcome == FIRST_MAXIMUM + number], f"cap {maximum}")
        return bool(((outcome == OVER_BUDGET) | (outcome == NOT_REACHED)).any())

    def _walk(self, order: np.ndarray, wanted: np.ndarray, need: int, *, stops: bool) -> tuple[np.ndarray, int]:
        outcome, room, lacking = take_in_order(
            order, self.costs, self.room, self._amounts, self._rooms, wanted, need, stops
        )
        self.room = int(room)
        return outcome, int(lacking)
