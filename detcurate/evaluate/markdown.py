"""Figures and tables as GitHub shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HEADINGS: Mapping[str, str] = {"AP_small": "AP_S", "AP_medium": "AP_M", "AP_large": "AP_L"}
"""Figures that are called otherwise in the head of a table."""

ABSENT = "–"


def mean_and_std(figure: Mapping[str, Any]) -> str:
    """Return ``mean ± deviation`` with one decimal, the mean alone where one seed has none, a dash without a mean."""
    if figure["mean"] is None:
        return ABSENT
    mean = f"{figure['mean']:.1f}"
    return mean if figure["std"] is None else f"{mean} ± {figure['std']:.1f}"


def signed(value: float) -> str:
    """Return a difference with its sign and one decimal."""
    return f"{round(value, 1) + 0.0:+.1f}"  # + 0.0 turns -0.0 into 0.0


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a GitHub table whose columns also line up in a terminal: the first to the left, the rest to the right."""
    cells = [[_escape(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in [cells[0], rule, *cells[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(cell: str) -> str:
    return plain(cell).replace("|", "\\|")


def plain(text: str) -> str:
    """Return a text as one line in which no tag can begin, as viewers may show HTML that stands in Markdown."""
    return " ".join(text.split()).replace("<", "&lt;")
