"""The ids of a COCO file as numbers: integers are themselves, texts are numbered."""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from detcurate.coco.fast import ABSENT_ID


@dataclass
class IdTable:
    """Numbers for the ids of one kind: integers are themselves, texts get the smallest numbers that are free.

    A text that is written like an integer is that integer: annotations often say "41" where the image says 41.
    """

    named: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Sequence[int | str]) -> tuple[IdTable, np.ndarray]:
        """Return the table of all ids of one kind, and the (n,) int64 numbers of the values."""
        if (numbers := int64_column(values)) is not None:
            return cls(), numbers
        used = {number for value in values if (number := as_number(value)) is not None}
        texts = sorted({str(value) for value in values if as_number(value) is None})
        free = (number for number in itertools.count(1) if number not in used)
        table = cls(dict(zip(texts, free)))  # noqa: B905  the numbers never end
        return table, table.numbers(values)

    def numbers(self, values: Sequence[int | str]) -> np.ndarray:
        """Return (n,) int64 numbers, ``ABSENT_ID`` for what names nothing: a text, or the number of another text."""
        if (numbers := int64_column(values)) is not None:
            return self.integers(numbers)
        integers = [as_number(value) for value in values]
        is_integer = np.array([number is not None for number in integers])
        texts = (self.named.get(str(value), ABSENT_ID) for value in values)
        pairs = zip(integers, texts, strict=True)
        numbers = np.array([text if number is None else number for number, text in pairs], np.int64)
        numbers[is_integer] = self.integers(numbers[is_integer])
        return numbers

    def integers(self, numbers: np.ndarray) -> np.ndarray:
        """Return int64 ids of the file as numbers: ``ABSENT_ID`` for one that stands for a text inside."""
        if not self.named:
            return numbers
        return np.where(np.isin(numbers, list(self.named.values())), ABSENT_ID, numbers)


def int64_column(values: Sequence[int | str | None], lowest: int = ABSENT_ID + 1) -> np.ndarray | None:
    """Return the values as int64 when they all are integers of 64 bits, else ``None``."""
    if not len(values):
        return np.zeros(0, np.int64)
    try:
        column = np.frombuffer(array("q", values), np.int64)  # type: ignore[type-var]
    except (TypeError, OverflowError):
        return None
    return column if column.min() >= lowest else None


def as_number(value: int | str) -> int | None:
    """Return the 64-bit integer that a value is or is written like."""
    if isinstance(value, str):
        if not re.fullmatch(r"0|-?[1-9]\d{0,18}", value):
            return None
        value = int(value)
    return value if -(2**63) < value < 2**63 else None
