"""Budgets (images, boxes or annotation time) and minimum and maximum quotas of a selection."""

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
    """The cost of each image and the limit of their sum, in whole numbers so that sums are exact.

    Images are selected in an order until the budget is spent or the first image does not fit. So a smaller budget
    selects a prefix of what a larger one selects, and cheap images have no advantage. The unused rest is less than the
    cost of the first image that does not fit. Quotas are exceptions: see :class:`BudgetTracker`.

    Args:
        costs: (I,) int64, at least 0.
        limit: At least 1.
        text: The limit in words, such as ``"300 images"``.

    Raises:
        SelectionError: A cost or the limit is out of range.
    """

    costs: np.ndarray
    limit: int
    text: str

    def __post_init__(self) -> None:
        validate_column("Budget", "costs", self.costs, (len(self.costs),), "i", SelectionError)
        if len(self.costs) and self.costs.min() < 0:
            raise SelectionError(f"costs must be at least 0 (got {self.costs.min()})")
        if self.limit < 1:
            raise SelectionError(f"the budget must be above 0 (got {self.text})")


def image_budget(num_images: int, *, fraction: float | None = None, count: int | None = None) -> Budget:
    """Return a budget of a fraction of the pool or of a number of images; see :func:`resolve_budget`."""
    limit = resolve_budget(num_images, fraction=fraction, count=count)
    return Budget(np.ones(num_images, np.int64), limit, f"{limit:,} images")


def box_budget(boxes_per_image: np.ndarray, *, num_boxes: int) -> Budget:
    """Return a budget of a number of boxes; images without boxes cost nothing.

    Args:
        boxes_per_image: (I,) integers.
        num_boxes: In [1, number of boxes of the pool].

    Raises:
        SelectionError: ``num_boxes`` is out of range.

    Example:
        >>> box_budget(np.array([3, 0, 4]), num_boxes=5).text
        '5 boxes'
    """
    total = int(boxes_per_image.sum())
    if num_boxes > total:
        raise SelectionError(f"num_boxes must be at most the pool's {total:,} boxes (got {num_boxes:,})")
    return Budget(boxes_per_image.astype(np.int64), num_boxes, f"{num_boxes:,} boxes")


def time_budget(
    boxes_per_image: np.ndarray, *, seconds: float, seconds_per_image: float, seconds_per_box: float
) -> Budget:
    """Return a budget of annotation time, counted in microseconds.

    Args:
        boxes_per_image: (I,) integers.
        seconds: Above 0, at most the annotation time of the whole pool.
        seconds_per_image: Time per image, apart from its boxes.
        seconds_per_box: Time per box; one of the two is above 0.

    Raises:
        SelectionError: A time is out of range.

    Example:
        >>> time_budget(np.array([3, 0]), seconds=40, seconds_per_image=5, seconds_per_box=10.5).costs.tolist()
        [36500000, 5000000]
    """
    an_image, a_box = round(seconds_per_image * _MICROSECONDS), round(seconds_per_box * _MICROSECONDS)
    if min(an_image, a_box) < 0 or an_image + a_box == 0:
        raise SelectionError(
            "seconds_per_image and seconds_per_box must be at least 0, and one of them above 0 (got "
            f"{seconds_per_image} and {seconds_per_box})"
        )
    costs = an_image + a_box * boxes_per_image.astype(np.int64)
    limit, total = round(seconds * _MICROSECONDS), int(costs.sum())
    if limit > total:
        raise SelectionError(
            f"cost_seconds must be at most {total / _MICROSECONDS:,g}, the annotation time of the whole pool (got "
            f"{seconds:,g})"
        )
    return Budget(costs, limit, f"{seconds:,g} s of annotation")


def resolve_budget(num_images: int, *, fraction: float | None, count: int | None) -> int:
    """Return the number of images of a fraction of the pool, or a checked number of images.

    A fraction gives the nearest number of images, rounded half up and at least 1. It is used as the decimal that was
    written: 0.29 of 50 images is 14.5, so 15, although the nearest float to 0.29 is smaller.

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
        raise SelectionError(f"the pool must have at least one image (got {num_images})")
    if fraction is not None and count is None:
        if not 0 < fraction <= 1:
            raise SelectionError(f"fraction must be in (0, 1] (got {fraction}). 0.5 keeps half of the pool.")
        exact = Decimal(repr(float(fraction))) * num_images
        return max(1, int(exact.to_integral_value(rounding=ROUND_HALF_UP)))
    if count is not None and fraction is None:
        if count < 1:
            raise SelectionError(f"count must be at least 1 (got {count})")
        if count > num_images:
            raise SelectionError(f"count must be at most the pool's {num_images} images (got {count})")
        return int(count)
    raise SelectionError(f"exactly one of fraction and count must be given (got fraction={fraction} and count={count})")


@dataclass(frozen=True)
class Quota:
    """A minimum or maximum quota of the subset.

    Args:
        name: The counted quantity, such as ``"class bicycle"``.
        amounts: (I,) int64, at least 0: the amount in each image.
        limit: At least 0; the smallest or largest total amount of the subset.

    Raises:
        SelectionError: A value is out of range.
    """

    name: str
    amounts: np.ndarray
    limit: int

    def __post_init__(self) -> None:
        validate_column("Quota", "amounts", self.amounts, (len(self.amounts),), "i", SelectionError)
        if self.limit < 0 or (len(self.amounts) and self.amounts.min() < 0):
            raise SelectionError(f"quota {self}: the limit and all amounts must be at least 0")

    def __str__(self) -> str:
        return f"{self.name}={self.limit}"


class BudgetTracker:
    """The budget and the maximum quotas of one selection, and what remains of them.

    Args:
        budget: The budget.
        maximums: The maximum quotas.
    """

    def __init__(self, budget: Budget, maximums: Sequence[Quota]) -> None:
        self.budget = budget
        self.remaining = budget.limit
        self._maximums = maximums
        self._amounts = (
            np.stack([maximum.amounts for maximum in maximums])
            if maximums
            else np.zeros((0, len(budget.costs)), np.int64)
        )
        self._maximum_remaining = np.array([maximum.limit for maximum in maximums], np.int64)

    @property
    def costs(self) -> np.ndarray:
        """(I,) int64, the cost of each image."""
        return self.budget.costs

    def hold(self, rows: np.ndarray, log: LogWriter, reason: str) -> None:
        """Select rows that were selected before, even beyond a maximum quota.

        Raises:
            SelectionError: They exceed the budget.
        """
        self.remaining -= int(self.costs[rows].sum())
        if self.remaining < 0:
            raise SelectionError(
                f"budget of {self.budget.text}: the {len(rows):,} images selected before exceed it. Raise the budget."
            )
        self._maximum_remaining = np.maximum(self._maximum_remaining - self._amounts[:, rows].sum(axis=1), 0)
        log.take(rows, reason)

    def beyond(self, rows: np.ndarray, factor: float) -> np.ndarray:
        """Return the rows after those that together cost up to ``factor`` times the remaining budget."""
        reached = np.searchsorted(np.cumsum(self.costs[rows]), factor * self.remaining, side="right")
        return rows[reached:]

    def meet(self, minimum: Quota, log: LogWriter) -> None:
        """Select the best-scored images with the counted quantity until a minimum quota is met.

        Images selected before count. Images that exceed a maximum quota or do not fit the budget are skipped.

        Raises:
            SelectionError: The pool, the remaining budget or a maximum quota does not allow it.
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
                f"minimum {minimum}: the pool has only {held + minimum.limit - need:,}{thinned}. Lower the minimum."
            )
        outcome, lacking = self._walk(holding, minimum.amounts, need, stops=False)
        if lacking > 0:
            blocking = sorted(
                {str(self._maximums[code - FIRST_MAXIMUM]) for code in outcome.tolist() if code >= FIRST_MAXIMUM}
            )
            limits = [f"the budget of {self.budget.text}"] if (outcome == OVER_BUDGET).any() else []
            limits += [f"maximum {name}" for name in blocking]
            raise SelectionError(
                f"minimum {minimum}: {' and '.join(limits)} allows only {minimum.limit - lacking:,}. Raise that limit, "
                "or lower the minimum."
            )
        log.take(holding[outcome == TAKEN], f"minimum {minimum}")

    def spend(self, order: np.ndarray, log: LogWriter, reason: str) -> bool:
        """Select rows in order until one does not fit; remove those that exceed a maximum quota.

        Returns:
            Whether a row did not fit, so that the budget is spent.
        """
        outcome, _ = self._walk(order, np.zeros(len(self.costs), np.int64), 1, stops=True)
        log.take(order[outcome == TAKEN], reason)
        for number, maximum in enumerate(self._maximums):
            log.remove(order[outcome == FIRST_MAXIMUM + number], f"maximum {maximum}")
        return bool(((outcome == OVER_BUDGET) | (outcome == NOT_REACHED)).any())

    def _walk(self, order: np.ndarray, counted: np.ndarray, need: int, *, stops: bool) -> tuple[np.ndarray, int]:
        outcome, remaining, lacking = take_in_order(
            order, self.costs, self.remaining, self._amounts, self._maximum_remaining, counted, need, stops
        )
        self.remaining = int(remaining)
        return outcome, int(lacking)
