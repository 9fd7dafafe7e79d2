"""Strategies: which images of a scored pool to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from detcurate.errors import SelectionError
from detcurate.structures import ImageScores, Selection

Strategy = Callable[[ImageScores, int, int], np.ndarray]
"""From scores of I images, a budget K and a seed to the (K,) rows to keep, best first."""


def _top_n(scores: ImageScores, budget: int, seed: int) -> np.ndarray:
    """The highest image_score first; equal ones by image_id. Needs no seed."""
    return np.lexsort((scores.image_ids, -scores.image_score))[:budget]


def _random(scores: ImageScores, budget: int, seed: int) -> np.ndarray:
    """A uniform draw without replacement, by image_id: no image of it comes before another."""
    return np.sort(np.random.default_rng(seed).choice(len(scores), size=budget, replace=False))


STRATEGIES: Mapping[str, Strategy] = {"top_n": _top_n, "random": _random}


def select(scores: ImageScores, *, budget: int, strategy: str = "top_n", seed: int = 0) -> Selection:
    """Choose ``budget`` images of a scored pool; the same scores, budget and seed give the same selection.

    ``top_n`` takes the highest image_score first, ties by ascending image_id. ``random`` draws uniformly and lists
    the images by ascending image_id: the baseline that every other strategy has to beat.

    Args:
        scores: I images.
        budget: K in [1, I].
        strategy: a name in ``STRATEGIES``.
        seed: 0 or more; of no effect on ``top_n``.

    Returns:
        K images, best first, each with the strategy's name as the reason.

    Raises:
        SelectionError: The strategy has no such name, the budget is outside [1, I], or the seed is negative.

    Example:
        >>> scores = ImageScores(np.array([3, 5, 8, 9]), np.array([0.2, 0.7, 0.9, 0.7]), {})
        >>> select(scores, budget=3).image_ids.tolist()
        [8, 5, 9]
    """
    if strategy not in STRATEGIES:
        raise SelectionError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if not 1 <= budget <= len(scores):
        raise SelectionError(f"budget must be in [1, {len(scores)}], the images of the pool, got {budget}")
    if seed < 0:
        raise SelectionError(f"seed must be at least 0, got {seed}")
    rows = STRATEGIES[strategy](scores, budget, seed)
    return Selection(image_ids=scores.image_ids[rows], reasons=(strategy,) * budget)
