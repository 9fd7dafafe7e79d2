"""Floors and caps: how much of a class, of a metadata value, or of empty images the subset must or may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detcurate.errors import SelectionError
from detcurate.select.budget import Budget
from detcurate.select.kernels.taking import FIRST_CAP, NOT_REACHED, TAKEN, TOO_DEAR, take_in_order
from detcurate.select.log import LogWriter
from detcurate.structures.validation import validate_column


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


def parse_quota(text: str, *, num_names: int) -> tuple[tuple[str, ...], int]:
    """Read ``class=limit`` (one name) or ``field=value=limit`` (two); the class and the value may hold ``=``.

    Raises:
        SelectionError: The text has another form, or the limit is no whole number of at least 0.

    Example:
        >>> parse_quota("traffic light=200", num_names=1), parse_quota("weather=rain=500", num_names=2)
        ((('traffic light',), 200), (('weather', 'rain'), 500))
    """
    name, _, limit = text.rpartition("=")
    names = tuple(name.split("=", num_names - 1))
    if len(names) != num_names or not all(names) or not (limit.isascii() and limit.isdigit()):
        form = "class=200" if num_names == 1 else "field=value=200"
        raise SelectionError(f"a floor or a cap must have the form {form}, got {text!r}")
    return names, int(limit)


class Purse:
    """The budget and the caps of one selection, and what is left of them.

    Args:
        budget: The budget.
        caps: The caps.
    """

    def __init__(self, budget: Budget, caps: Sequence[Quota]) -> None:
        self.budget = budget
        self.room = budget.limit
        self._caps = caps
        self._amounts = np.stack([cap.amounts for cap in caps]) if caps else np.zeros((0, len(budget.costs)), np.int64)
        self._rooms = np.array([cap.limit for cap in caps], np.int64)

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

    def meet(self, floor: Quota, log: LogWriter) -> None:
        """Take the best-scored images that hold what a floor counts, until it is met.

        What was taken before counts. An image that breaks a cap or does not fit the budget is passed over: a later one
        may do.

        Raises:
            SelectionError: The floor cannot be met: by the pool, by what is left of the budget, or under the caps.
        """
        need = floor.limit - int(floor.amounts[log.taken].sum())
        candidates = log.candidates
        holding = candidates[floor.amounts[candidates] > 0]
        held = int(floor.amounts[holding].sum())
        if held < need:
            in_pool = int(floor.amounts.sum())
            thinned = f" ({in_pool:,} before the guard and the thinning)" if held + floor.limit - need < in_pool else ""
            raise SelectionError(
                f"floor {floor} must be at most what the pool holds, got a pool that holds "
                f"{held + floor.limit - need:,}{thinned}; lower the floor"
            )
        outcome, lacking = self._walk(holding, floor.amounts, need, stops=False)
        if lacking > 0:
            blocking = sorted({str(self._caps[code - FIRST_CAP]) for code in outcome.tolist() if code >= FIRST_CAP})
            limits = [f"the budget of {self.budget.text}"] if (outcome == TOO_DEAR).any() else []
            limits += [f"cap {name}" for name in blocking]
            raise SelectionError(
                f"floor {floor} must be met within {' and '.join(limits)}, got {floor.limit - lacking:,} with the "
                "best-scored images after the floors before it; raise the limit or lower the floor"
            )
        log.take(holding[outcome == TAKEN], f"floor {floor}")

    def spend(self, order: np.ndarray, log: LogWriter, reason: str) -> bool:
        """Take rows in order until one does not fit; those that break a cap are removed.

        Returns:
            Whether a row did not fit: the budget is spent.
        """
        outcome, _ = self._walk(order, np.zeros(len(self.costs), np.int64), 1, stops=True)
        log.take(order[outcome == TAKEN], reason)
        for number, cap in enumerate(self._caps):
            log.remove(order[outcome == FIRST_CAP + number], f"cap {cap}")
        return bool(((outcome == TOO_DEAR) | (outcome == NOT_REACHED)).any())

    def _walk(self, order: np.ndarray, wanted: np.ndarray, need: int, *, stops: bool) -> tuple[np.ndarray, int]:
        outcome, room, lacking = take_in_order(
            order, self.costs, self.room, self._amounts, self._rooms, wanted, need, stops
        )
        self.room = int(room)
        return outcome, int(lacking)
