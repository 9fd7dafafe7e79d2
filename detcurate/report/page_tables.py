"""Tables of the page, and the same numbers as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detcurate.evaluate.coco_eval import FIGURES
from detcurate.report.report_data import Comparison

ABSENT = "–"
MOST_ROWS = 60
"""The most rows of a table in the page; its CSV has all."""

HEADINGS = {"AP_small": "AP small", "AP_medium": "AP medium", "AP_large": "AP large"}
COSTS = ("num_images", "num_boxes", "iterations", "images_seen", "seconds")

Cell = str | int | float | None


@dataclass(frozen=True)
class View:
    """A table as shown in the page, if that differs from its values.

    Args:
        columns: Headings.
        rows: Texts.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Table:
    """Rows of one kind.

    Args:
        name: The name of the CSV file.
        caption: The caption.
        columns: Headings.
        rows: Raw values; None for unknown ones.
        names: The number of leading columns with names, aligned left; the others are numbers, aligned right.
        view: The table in the page; by default the values with thousands separators and two decimals.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: int = 1
    view: View | None = None

    @property
    def shown(self) -> View:
        """The first rows, as shown in the page."""
        found = self.view or View(self.columns, tuple(tuple(text(cell) for cell in row) for row in self.rows))
        return View(found.columns, found.rows[:MOST_ROWS])

    @property
    def more(self) -> int:
        """The number of rows that the page does not show."""
        return max(len(self.rows) - MOST_ROWS, 0)


def text(cell: Cell) -> str:
    """Return a cell as text.

    Example:
        >>> text(1234), text(0.5), text(None), text("car")
        ('1,234', '0.50', '–', 'car')
    """
    if cell is None:
        return ABSENT
    if isinstance(cell, float):
        return f"{cell:,.2f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def to_csv(table: Table) -> bytes:
    """Return a table as CSV in UTF-8 with a header; unknown values are empty cells.

    A text that a spreadsheet would read as a formula gets a leading apostrophe.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([_no_formula(cell) for cell in row] for row in (table.columns, *table.rows))
    return stream.getvalue().encode("utf-8", "replace")


def _no_formula(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip()[:1] in _FORMULA and cell.strip() else cell


_FORMULA = ("=", "+", "-", "@")


def mean_costs(comparison: Comparison) -> dict[str, dict[str, float | None]]:
    """Return arm -> size of its training set and training cost, means over the seeds; None if unknown."""
    found: dict[str, dict[str, float | None]] = {}
    for arm in comparison.summary["arms"]:
        models = [model for model in comparison.models if model["arm"] == arm]
        values = {name: [model.get(name) for model in models] for name in COSTS}
        found[arm] = {name: None if None in of else sum(of) / len(of) for name, of in values.items()}  # type: ignore[arg-type]
    return found


def ap_table(comparison: Comparison) -> Table:
    """Return COCO's figures of each arm: mean and standard deviation over the seeds."""
    arms, costs = comparison.summary["arms"], mean_costs(comparison)
    rows, shown = [], []
    for arm, found in arms.items():
        counts = (_whole(costs[arm]["num_images"]), _whole(costs[arm]["num_boxes"]), found["num_seeds"])
        figures = [found["figures"][name] for name in FIGURES]
        rows.append((arm, *counts, *(value for figure in figures for value in (figure["mean"], figure["std"]))))
        shown.append((arm, *(text(count) for count in counts), *(mean_and_std(figure) for figure in figures)))
    first = ("arm", "images", "boxes", "seeds")
    columns = (*first, *(f"{name}_{part}" for name in FIGURES for part in ("mean", "std")))
    view = View((*first, *(HEADINGS.get(name, name) for name in FIGURES)), tuple(shown))
    return Table("ap", "AP in percent, mean ± standard deviation over seeds", columns, tuple(rows), view=view)


def class_ap_table(comparison: Comparison) -> Table:
    """Return the AP of each class and arm: mean and standard deviation over the seeds."""
    arms = comparison.summary["arms"]
    classes = next(iter(arms.values()))["per_class"] if arms else {}
    found = {name: [arms[arm]["per_class"][name] for arm in arms] for name in classes}
    # The best of the first arm first, classes without a label last.
    figures = dict(sorted(found.items(), key=lambda pair: -_or_below(pair[1][0]["mean"])))
    rows = tuple((name, *(value for one in of for value in (one["mean"], one["std"]))) for name, of in figures.items())
    columns = ("class", *(f"{arm}_{part}" for arm in arms for part in ("mean", "std")))
    shown = tuple((name, *(mean_and_std(figure) for figure in of)) for name, of in figures.items())
    caption = "AP of each class in percent, mean ± standard deviation over seeds"
    return Table("ap_by_class", caption, columns, rows, view=View(("class", *arms), shown))


def seed_table(comparison: Comparison) -> Table:
    """Return every trained detector with its figures."""
    columns = ("arm", "seed", "images", "boxes", *FIGURES)
    rows = tuple(
        (model["arm"], model["seed"], model["num_images"], model["num_boxes"], *(model["figures"][k] for k in FIGURES))
        for model in comparison.models
    )
    shown = tuple(
        (str(row[0]), str(row[1]), *(text(cell) for cell in row[2:4]), *(_one_decimal(cell) for cell in row[4:]))
        for row in rows
    )
    headings = ("arm", "seed", "images", "boxes", *(HEADINGS.get(name, name) for name in FIGURES))
    return Table("seeds", "Every detector, AP in percent", columns, rows, view=View(headings, shown))


def cost_table(comparison: Comparison) -> Table:
    """Return the cost of each arm, in total and per point of AP."""
    columns = ("arm", "AP", "images", "boxes", "images seen in training", "training seconds")
    per_point = ("images per point", "boxes per point", "images seen per point")
    rows = []
    for arm, costs in mean_costs(comparison).items():
        ap = comparison.summary["arms"][arm]["figures"]["AP"]["mean"]
        spent = [costs[name] for name in ("num_images", "num_boxes", "images_seen")]
        each = (None if value is None or not ap else value / ap for value in spent)
        rows.append((arm, ap, *(_whole(value) for value in spent), costs["seconds"], *each))
    shown = [
        (str(row[0]), _one_decimal(row[1]), *(text(cell) for cell in row[2:5]), *(_rounded(c) for c in row[5:]))
        for row in rows
    ]
    names = (*columns, *per_point)
    dropped = all(row[5] is None for row in rows)  # not measured
    view = View(_without(names, 5) if dropped else names, tuple(_without(r, 5) if dropped else r for r in shown))
    caption = "Cost of each arm, in total and per point of AP"
    return Table("cost", caption, (*columns, *per_point), tuple(rows), view=view)


def kept_table(name: str, caption: str, heading: str, counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Return the counts of each value in the pool and in the subset."""
    rows = [(value, count["before"], count["after"], _share(count)) for value, count in counts.items()]
    shown = tuple((row[0], text(row[1]), text(row[2]), percent(row[3])) for row in rows)
    columns = (heading, "pool", "subset", "share")
    return Table(name, caption, columns, tuple(rows), view=View(columns, shown))


def reason_table(reasons: Sequence[tuple[str, str, int]]) -> Table:
    """Return the number of images by decision and reason."""
    columns = ("decision", "reason", "images")
    return Table("reasons", "Images by decision and reason", columns, tuple(reasons), names=2)


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> count_of(1, "label"), count_of(2000, "label")
        ('1 label', '2,000 labels')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def mean_and_std(figure: Mapping[str, Any]) -> str:
    """Return ``mean ± deviation``, or the mean alone for one seed."""
    if figure["mean"] is None:
        return ABSENT
    mean = f"{figure['mean']:.1f}"
    return mean if figure["std"] is None else f"{mean} ± {figure['std']:.1f}"


def percent(share: float | None) -> str:
    """Return a share in [0, 1] in percent."""
    return ABSENT if share is None else f"{100 * share:.0f} %"


def _or_below(value: float | None) -> float:
    return -1.0 if value is None else value


def _without(row: tuple[str, ...], column: int) -> tuple[str, ...]:
    return (*row[:column], *row[column + 1 :])


def _share(count: Mapping[str, int]) -> float | None:
    return count["after"] / count["before"] if count["before"] else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _one_decimal(cell: Cell) -> str:
    return f"{cell:.1f}" if isinstance(cell, (int, float)) else ABSENT


def _rounded(cell: Cell) -> str:
    if not isinstance(cell, (int, float)):
        return ABSENT
    return f"{cell:,.1f}" if cell < 10 else f"{cell:,.0f}"
