"""Comparison of arms: means over training seeds, their deviation, and which differences are significant.

An arm is one of the compared training sets, such as the curated subset, a random subset or the full pool; each arm is
trained once per seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detcurate.errors import PredictionError
from detcurate.evaluate.bootstrap import paired_interval, student_t
from detcurate.evaluate.coco_eval import FIGURES, CocoFigures
from detcurate.evaluate.learning_curve import learning_curve
from detcurate.evaluate.summary import ABSENT, HEADINGS, curve_sentence, mean_and_std, signed, table

COMPARED, FIRST = "curated", ("random", "full")
"""The arm that is compared with every other one, and the arms that are listed first among those."""

TRAINING = ("num_images", "num_boxes", "iterations", "images_seen", "seconds")
"""Fields of a training record: the size of the training set, and the cost."""

Replicates = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
"""Arm -> ``figures`` and ``per_class`` -> name -> (B, S), percent, on B resampled sets, a column per seed."""


def summarise(
    results: Mapping[str, Sequence[CocoFigures]],
    replicates: Replicates | None = None,
    *,
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    curve_arms: Sequence[str] = (),
) -> dict[str, Any]:
    """Summarise each arm over its seeds, and pair the arm ``curated`` with every other one, seed by seed.

    The standard deviation of one seed is None. The mean of a figure that is NaN for any seed is None.

    Args:
        results: Arm -> one record per seed, in the same order of seeds for every arm; all on one evaluation set.
        replicates: Figures on the same resampled evaluation sets, for all arms or for none.
        training: Arm -> one training record per seed, with the keys ``TRAINING``.
        curve_arms: The random subsets that serve the learning curve only; requires ``training``.

    Returns:
        A JSON-serialisable dict:

        - ``arms``: arm -> ``num_seeds``, ``figures``, ``per_class`` and ``training`` (means over the seeds, None where
          one is unknown).
        - ``differences``: ``"curated - random"`` and so on, for arms with equally many seeds that are not in
          ``curve_arms`` -> ``num_seeds``, ``figures``, ``per_class`` and, with replicates, ``bootstrap`` of the AP.
        - ``learning_curve``, with ``curve_arms``: their names in ``arms``, and the result of
          :func:`detcurate.evaluate.learning_curve.learning_curve` for them, ``random``, ``full`` and ``curated``. Its
          ``equivalent`` also has ``boxes``, those of ``images``, and ``more_boxes``, their surplus in percent.

        A figure is ``mean``, ``std`` (sample, ddof 1), ``interval`` (half the width of the 95 % interval of the mean
        over the seeds, Student's t) and ``values``, all in percent. With replicates, that of a difference also has
        ``bootstrap``, the ends of its 95 % interval over seeds and images.

    Raises:
        PredictionError: An arm has no result, or the results are not of one evaluation set.
    """
    _validate_results(results)
    summary: dict[str, Any] = {
        "arms": {arm: _summarise_columns(_columns(figures)) for arm, figures in results.items()},
        "differences": {
            f"{COMPARED} - {other}": _difference(results, replicates, other)
            for other in _others(results)
            if other not in curve_arms and len(results[other]) == len(results[COMPARED])
        },
    }
    for arm, found in summary["arms"].items():
        found["training"] = _mean_training((training or {}).get(arm, ()))
    if curve_arms:
        summary["learning_curve"] = {"arms": list(curve_arms), **_curve(results, replicates, summary, curve_arms)}
    return summary


def markdown_table(summary: Mapping[str, Any], arm_info: Mapping[str, Mapping[str, Any]]) -> str:
    """Return two GitHub tables, arms by figure and classes by arm, and a sentence on the differences.

    Random subsets of a learning curve appear in the first table only; the equivalent of the curated images is the last
    sentence. Figures are ``mean ± standard deviation`` with one decimal, the mean alone for one seed. A difference is
    claimed only if both its 95 % intervals exclude 0: over the paired seeds, and over seeds and images.

    Args:
        summary: The result of :func:`summarise`; without arms both tables are empty.
        arm_info: Arm -> ``num_images`` and ``num_boxes`` of its training set; a missing value is shown as a dash.
    """
    arms = summary["arms"]
    figures = table(
        ["arm", "images", "boxes", "seeds", *(HEADINGS.get(name, name) for name in FIGURES)],
        [_arm_row(arm, arms[arm], arm_info.get(arm, {})) for arm in arms],
    )
    classes = next(iter(arms.values()))["per_class"] if arms else {}
    curve = summary.get("learning_curve")
    shown = [arm for arm in arms if not curve or arm not in curve["arms"]]
    per_class = table(
        ["AP of class", *shown],
        [[name, *(mean_and_std(arms[arm]["per_class"][name]) for arm in shown)] for name in classes],
    )
    worth = f"\n\n{curve_sentence(curve)}" if curve else ""
    return f"{figures}\n\n{per_class}\n\n{_sentence(summary)}{worth}\n"


def _others(results: Mapping[str, Any]) -> list[str]:
    """Return the arms that the curated one is compared with, those in ``FIRST`` first."""
    if COMPARED not in results:
        return []
    others = [arm for arm in results if arm != COMPARED]
    return sorted(others, key=lambda arm: FIRST.index(arm) if arm in FIRST else len(FIRST))


def _validate_results(results: Mapping[str, Sequence[CocoFigures]]) -> None:
    empty = [arm for arm, figures in results.items() if not figures]
    if empty:
        raise PredictionError(f"results: every arm needs at least one result (got none for {', '.join(empty)})")
    sets = {(f.num_images, f.num_boxes, tuple(f.per_class)) for figures in results.values() for f in figures}
    if len(sets) > 1:
        shown = "; ".join(f"{images} images, {boxes} boxes, {len(names)} classes" for images, boxes, names in sets)
        raise PredictionError(
            f"results: all arms need one evaluation set (got {shown}). Evaluate all arms on the same file."
        )


def _difference(
    results: Mapping[str, Sequence[CocoFigures]], replicates: Replicates | None, other: str
) -> dict[str, Any]:
    difference = _summarise_columns(_subtract(_columns(results[COMPARED]), _columns(results[other])))
    if replicates is None:
        return difference
    first, second = replicates[COMPARED], replicates[other]
    for part in ("figures", "per_class"):
        for name, figure in difference[part].items():
            ends = paired_interval(first[part][name], second[part][name])
            figure["bootstrap"] = [None if math.isnan(end) else end for end in ends]
    return {**difference, "bootstrap": difference["figures"]["AP"]["bootstrap"]}


def _mean_training(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in TRAINING:
        known = [record[name] for record in records if record.get(name) is not None]
        means[name] = float(np.mean(known)) if known and len(known) == len(records) else None
    return means


def _curve(
    results: Mapping[str, Sequence[CocoFigures]],
    replicates: Replicates | None,
    summary: Mapping[str, Any],
    curve_arms: Sequence[str],
) -> dict[str, Any]:
    arms = [arm for arm in results if arm in (COMPARED, *FIRST, *curve_arms)]
    training = {arm: summary["arms"][arm]["training"] for arm in arms}
    curve = learning_curve(
        {arm: round(training[arm]["num_images"]) for arm in arms},
        {arm: np.array([figures.AP for figures in results[arm]]) for arm in arms},
        None if replicates is None else {arm: replicates[arm]["figures"]["AP"] for arm in arms},
        subset=COMPARED,
    )
    if (found := curve["equivalent"]) and found["images"] is not None:
        largest = training[curve["points"][-1]["arm"]]
        found["boxes"] = found["images"] * largest["num_boxes"] / largest["num_images"]
        found["more_boxes"] = 100.0 * (found["boxes"] / training[COMPARED]["num_boxes"] - 1)
    return curve


def _columns(results: Sequence[CocoFigures]) -> dict[str, dict[str, list[float]]]:
    """Return figure -> one value per seed, for the overall figures and for the classes."""
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
    return {"mean": mean, "std": std, "interval": student_t(n - 1) * std / math.sqrt(n), "values": shown}


def _arm_row(arm: str, summary: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    counts = [ABSENT if info.get(key) is None else f"{info[key]:,.0f}" for key in ("num_images", "num_boxes")]
    figures = [mean_and_std(summary["figures"][name]) for name in FIGURES]
    return [arm, *counts, str(summary["num_seeds"]), *figures]


def _sentence(summary: Mapping[str, Any]) -> str:
    deviations = [arm["figures"]["AP"]["std"] for arm in summary["arms"].values()]
    known = [deviation for deviation in deviations if deviation is not None]
    seeds = f"Seeds of one arm deviate by up to {max(known):.1f} AP" if known else "The deviation over seeds is unknown"
    verdicts = [_verdict(pair, difference) for pair, difference in summary["differences"].items()]
    return "; ".join([seeds, *verdicts]) + "."


def _verdict(pair: str, difference: Mapping[str, Any]) -> str:
    """Describe one paired difference of AP; claim a gain or a loss only if its intervals exclude 0."""
    figure, num_seeds = difference["figures"]["AP"], difference["num_seeds"]
    seeds = f"{num_seeds} seed{'s' if num_seeds > 1 else ''}"
    if figure["mean"] is None:
        return f"{pair} is undefined: the evaluation set has no boxes"
    if figure["interval"] is None:
        return f"{pair} is {signed(figure['mean'])} AP: no difference can be claimed with {seeds}"
    low, high = figure["mean"] - figure["interval"], figure["mean"] + figure["interval"]
    text = f"{pair} is {signed(figure['mean'])} AP (95 % interval {signed(low)} to {signed(high)}"
    ends = difference.get("bootstrap") or [None, None]
    if ends[0] is not None:
        text += f" over the seeds, {signed(ends[0])} to {signed(ends[1])} over seeds and images"
        low, high = min(low, ends[0]), max(high, ends[1])  # both must exclude 0
    text += ")"
    if low <= 0 <= high:
        return f"{text}: no difference can be claimed with {seeds}"
    return f"{text}: a {'gain' if low > 0 else 'loss'} beyond the deviation of {seeds}"
