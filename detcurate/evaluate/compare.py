"""The arms side by side: means over training seeds, their deviation, and what may be said of a difference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from detcurate.errors import PredictionError
from detcurate.evaluate.bootstrap import paired_interval
from detcurate.evaluate.coco_eval import FIGURES, CocoFigures

COMPARED, FIRST = "curated", ("random", "full")
"""The arm that is compared with every other one, and which of these come first."""

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom. With two seeds the factor is 12.7, not 2: to claim at
# two standard errors what two seeds show would be wrong three times in ten.
_T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_HEADINGS = {"AP_small": "AP_S", "AP_medium": "AP_M", "AP_large": "AP_L"}
_ABSENT = "–"


def summarise(
    results: Mapping[str, Sequence[CocoFigures]], replicates: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Summarise each arm over its seeds, and pair the arm ``curated`` with every other one, seed by seed.

    A standard deviation of one seed is None; a figure that is NaN for any seed has the mean None.

    Args:
        results: Arm -> one record a seed, the seeds in the same order in every arm; all on one evaluation set.
        replicates: Arm -> (B, S) AP of each seed on the same B resampled evaluation sets, of all arms or of none.

    Returns:
        A JSON-able dict: ``arms`` (arm -> ``num_seeds``, ``figures`` and ``per_class``) and ``differences``
        (``"curated - random"`` and so on, where both arms have the same number of seeds -> ``num_seeds``, ``figures``,
        ``per_class`` and, with replicates, ``bootstrap``, the ends of the 95 % interval of the difference of AP over
        seeds and images). A figure is ``mean``, ``std`` (sample, ddof 1), ``interval`` (half the width of the 95 %
        interval of the mean over the seeds, Student's t) and ``values``, all in AP percent.

    Raises:
        PredictionError: An arm has no result, or the results are not of one evaluation set.
    """
    _validate_results(results)
    differences = {}
    for other in _others(results):
        first, second = results[COMPARED], results[other]
        if len(first) == len(second):
            difference = _summarise_columns(_subtract(_columns(first), _columns(second)))
            if replicates is not None:
                ends = paired_interval(replicates[COMPARED], replicates[other])
                difference["bootstrap"] = [None if math.isnan(end) else end for end in ends]
            differences[f"{COMPARED} - {other}"] = difference
    return {
        "arms": {arm: _summarise_columns(_columns(figures)) for arm, figures in results.items()},
        "differences": differences,
    }


def markdown_table(summary: Mapping[str, Any], arm_info: Mapping[str, Mapping[str, Any]]) -> str:
    """Return two GitHub tables, arms by figure and classes by arm, and a sentence on what the seeds allow to say.

    Figures are ``mean ± standard deviation`` with one decimal, the mean alone for one seed. A difference is claimed
    only when its 95 % interval over the paired seeds leaves out 0, and so does the one over seeds and images.

    Args:
        summary: What :func:`summarise` returned; without arms both tables are empty.
        arm_info: Arm -> ``num_images`` and ``num_boxes`` of its training set; what is absent shows as a dash.
    """
    arms = summary["arms"]
    figures = _table(
        ["arm", "images", "boxes", "seeds", *(_HEADINGS.get(name, name) for name in FIGURES)],
        [_arm_row(arm, arms[arm], arm_info.get(arm, {})) for arm in arms],
    )
    classes = next(iter(arms.values()))["per_class"] if arms else {}
    per_class = _table(
        ["AP of class", *arms],
        [[name, *(_mean_and_std(arms[arm]["per_class"][name]) for arm in arms)] for name in classes],
    )
    return f"{figures}\n\n{per_class}\n\n{_sentence(summary)}\n"


def _others(results: Mapping[str, Any]) -> list[str]:
    """Return the arms that the curated one is compared with, those that everyone asks about first."""
    if COMPARED not in results:
        return []
    others = [arm for arm in results if arm != COMPARED]
    return sorted(others, key=lambda arm: FIRST.index(arm) if arm in FIRST else len(FIRST))


def _validate_results(results: Mapping[str, Sequence[CocoFigures]]) -> None:
    empty = [arm for arm, figures in results.items() if not figures]
    if empty:
        raise PredictionError(f"every arm must have at least one result, got none for {', '.join(empty)}")
    sets = {(f.num_images, f.num_boxes, tuple(f.per_class)) for figures in results.values() for f in figures}
    if len(sets) > 1:
        shown = "; ".join(f"{images} images, {boxes} boxes, {len(names)} classes" for images, boxes, names in sets)
        raise PredictionError(f"results must be of one evaluation set, got {shown}; evaluate all arms on the same file")


def _columns(results: Sequence[CocoFigures]) -> dict[str, dict[str, list[float]]]:
    """Return figure -> one value a seed, for the overall figures and for the classes."""
    return {
        "figures": {name: [getattr(result, name) for result in results] for name in FIGURES},
        "per_class": {name: [result.per_class[name] for result in results] for name in results[0].per_class},
    }


def _subtract(
    first: Mapping[str, Mapping[str, list[float]]], second: Mapping[str, Mapping[str, list[float]]]
) -> dict[str, dict[str, list[float]]]:
    return {
        part: {
            name: [a - b for a, b in zip(values, second[part][name], strict=True)]
            for name, values in first[part].items()
        }
        for part in first
    }


def _summarise_columns(columns: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    num_seeds = len(columns["figures"][FIGURES[0]])
    parts = {part: {name: _statistics(values) for name, values in named.items()} for part, named in columns.items()}
    return {"num_seeds": num_seeds, **parts}


def _statistics(values: list[float]) -> dict[str, Any]:
    shown = [None if math.isnan(value) else value for value in values]
    if None in shown:
        return {"mean": None, "std": None, "interval": None, "values": shown}
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return {"mean": mean, "std": None, "interval": None, "values": shown}
    std = float(np.std(values, ddof=1))
    return {"mean": mean, "std": std, "interval": _t_95(n - 1) * std / math.sqrt(n), "values": shown}


def _t_95(degrees_of_freedom: int) -> float:
    return _T_95[min(degrees_of_freedom, len(_T_95)) - 1]


def _arm_row(arm: str, summary: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    counts = [f"{info[key]:,}" if key in info else _ABSENT for key in ("num_images", "num_boxes")]
    figures = [_mean_and_std(summary["figures"][name]) for name in FIGURES]
    return [arm, *counts, str(summary["num_seeds"]), *figures]


def _mean_and_std(figure: Mapping[str, Any]) -> str:
    if figure["mean"] is None:
        return _ABSENT
    mean = f"{figure['mean']:.1f}"
    return mean if figure["std"] is None else f"{mean} ± {figure['std']:.1f}"


def _sentence(summary: Mapping[str, Any]) -> str:
    deviations = [arm["figures"]["AP"]["std"] for arm in summary["arms"].values()]
    known = [deviation for deviation in deviations if deviation is not None]
    seeds = f"Seeds of one arm deviate by up to {max(known):.1f} AP" if known else "The seeds' deviation is unknown"
    verdicts = [_verdict(pair, difference) for pair, difference in summary["differences"].items()]
    return "; ".join([seeds, *verdicts]) + "."


def _verdict(pair: str, difference: Mapping[str, Any]) -> str:
    """Say what one paired difference of AP shows, and claim nothing that its interval does not leave out."""
    figure, num_seeds = difference["figures"]["AP"], difference["num_seeds"]
    seeds = f"{num_seeds} seed{'s' if num_seeds > 1 else ''}"
    if figure["mean"] is None:
        return f"{pair} is not defined: the evaluation set has no boxes"
    if figure["interval"] is None:
        return f"{pair} is {_signed(figure['mean'])} AP: no difference can be claimed with {seeds}"
    low, high = figure["mean"] - figure["interval"], figure["mean"] + figure["interval"]
    text = f"{pair} is {_signed(figure['mean'])} AP (95 % interval {_signed(low)} to {_signed(high)}"
    ends = difference.get("bootstrap") or [None, None]
    if ends[0] is not None:
        text += f" over the seeds, {_signed(ends[0])} to {_signed(ends[1])} over seeds and images"
        low, high = min(low, ends[0]), max(high, ends[1])  # both have to leave out 0
    text += ")"
    if low <= 0 <= high:
        return f"{text}: no difference can be claimed with {seeds}"
    return f"{text}: a {'gain' if low > 0 else 'loss'} beyond the deviation of {seeds}"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # + 0.0 turns -0.0 into 0.0


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
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
    return " ".join(cell.split()).replace("|", "\\|")
