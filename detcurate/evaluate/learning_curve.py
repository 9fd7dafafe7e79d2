"""How many random images a subset is worth: the curve of random subsets read backwards, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from detcurate.errors import PredictionError
from detcurate.evaluate.power_law import PowerLaw, equivalent_images, fit_laws, fit_power_law, invert_laws
from detcurate.evaluate.student import t_95

_DRAWS, _GRID, _ROUNDING = 1000, 400, 1e-9


def learning_curve(
    num_images: Mapping[str, int],
    ap: Mapping[str, np.ndarray],
    replicates: Mapping[str, np.ndarray] | None = None,
    *,
    subset: str = "curated",
) -> dict[str, Any]:
    """Fit the learning curve of random subsets, and say how many random images a subset is worth.

    Args:
        num_images: Arm -> images that it was trained on; all but ``subset`` are random subsets, or the whole pool.
        ap: Arm -> (S,) AP, the seeds in the same order.
        replicates: Arm -> (B, S) AP on resampled evaluation sets; None where there are none.
        subset: The arm in question; it need not be there.

    Returns:
        JSON-able: ``points``, by size; ``fit``, the fields of :class:`PowerLaw`, and None with ``why_not`` where there
        can be none; ``equivalent``, None without the arm: ``num_images`` and ``ap`` of it, ``images``, ``where`` and
        ``more``, the ``interval`` of two such ends (None for one seed) and ``num_seeds``. ``where`` is ``within``
        what was measured, ``above`` or ``below`` it (no ``images`` then) or ``flat``; ``more`` is the surplus over
        ``num_images`` in percent, that of the largest or smallest size where ``images`` is beyond it.
    """
    arms = sorted((arm for arm in num_images if arm != subset), key=lambda arm: (num_images[arm], arm))
    points = [{"arm": arm, "num_images": num_images[arm], **_spread(ap[arm])} for arm in arms]
    sizes, curve = np.array([num_images[arm] for arm in arms], np.int64), [np.asarray(ap[arm], float) for arm in arms]
    found: dict[str, Any] = {"points": points, "fit": None, "why_not": None, "equivalent": None}
    try:
        law = fit_power_law(sizes, np.stack(curve) if curve else np.zeros((0, 1)))
    except PredictionError as error:
        return {**found, "why_not": str(error)}
    found["fit"] = {name: getattr(law, name) for name in PowerLaw.__dataclass_fields__}
    if subset not in ap or not np.isfinite(ap[subset]).all():
        return found
    own = np.asarray(ap[subset], float)
    ends: list[dict[str, Any]] | None = None
    if len(own) > 1:
        by_seed = student_interval(sizes, np.stack(curve), own)
        sets = {arm: np.tile(ap[arm], (_DRAWS, 1)) for arm in (*arms, subset)} if replicates is None else replicates
        drawn = bootstrap_interval(sizes, np.stack([sets[arm] for arm in arms]), sets[subset])
        # As a difference is claimed only where both intervals leave out 0, so here what either holds is possible.
        low, high = np.fmin(by_seed[0], drawn[0]), np.fmax(by_seed[1], drawn[1])
        ends = [_end(float(images), law, num_images[subset]) for images in (low, high)]
    images = equivalent_images(law, float(own.mean()))
    point = _end(images, law, num_images[subset]) if law.scale > 0 else {"images": None, "where": "flat", "more": None}
    found["equivalent"] = {
        "num_images": num_images[subset],
        "ap": float(own.mean()),
        **point,
        "interval": ends,
        "num_seeds": len(own),
    }
    return found


def bootstrap_interval(
    num_images: np.ndarray, ap: np.ndarray, subset_ap: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile interval of :func:`equivalent_images`: seeds are drawn again, and the law is fitted again.

    All subsets share seed and images in each draw. With few seeds it is narrower than it should be.

    Args:
        num_images: (K,) the size of each random subset.
        ap: (K, B, S) AP of each on B resampled evaluation sets, a column a seed.
        subset_ap: (B, S) of the subset in question, on the same sets and with the same seeds.
        level: in (0, 1).
        seed: of the draw of seeds.

    Returns:
        The two ends as :func:`equivalent_images` gives them; NaN where no draw has an AP.
    """
    replicates, num_seeds = subset_ap.shape
    drawn = np.random.default_rng(seed).integers(0, num_seeds, (replicates, num_seeds))
    means = np.stack([np.take_along_axis(part, drawn, axis=1).mean(axis=1) for part in (*ap, subset_ap)], axis=1)
    means = means[np.isfinite(means).all(axis=1)]
    if not len(means):
        return math.nan, math.nan
    found = invert_laws(
        *fit_laws(num_images, means[:, :-1]), means[:, -1], int(num_images.min()), int(num_images.max())
    )
    found.sort()
    tail = (1 - level) / 2 * (len(found) - 1)  # no interpolation: an end may be infinite
    return float(found[math.floor(tail)]), float(found[math.ceil(len(found) - 1 - tail)])


def student_interval(num_images: np.ndarray, ap: np.ndarray, subset_ap: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of :func:`equivalent_images` by Student's t over the seeds.

    It holds the sizes at which the subset and the curve do not differ by more than the seeds do: the standard error of
    their difference is the jackknife's, which leaves out one seed and fits the law again.

    Args:
        num_images: (K,) the size of each random subset.
        ap: (K, S) AP of each, a column a seed.
        subset_ap: (S,) of the subset in question, with the same seeds; two at least.

    Returns:
        The two ends as :func:`equivalent_images` gives them.

    Source:
        Fieller 1954 for an interval of an inverse; Tukey 1958, the jackknife.
    """
    num_seeds = len(subset_ap)
    without = np.array([np.delete(np.vstack([ap, subset_ap]), seed, axis=1).mean(axis=1) for seed in range(num_seeds)])
    means = np.vstack([np.append(ap.mean(axis=1), subset_ap.mean()), without])  # all seeds, then without each
    smallest, largest = int(num_images.min()), int(num_images.max())
    top, rise, exponent = fit_laws(num_images, means[:, :-1])
    best = invert_laws(top[:1], rise[:1], exponent[:1], means[:1, -1], smallest, largest)
    sizes = np.sort(np.append(np.geomspace(smallest, largest, _GRID), np.clip(best, smallest, largest)))
    curves = top[:, None] - rise[:, None] * (sizes / smallest) ** -exponent[:, None]
    differences = means[:, -1:] - curves
    half = t_95(num_seeds - 1) * np.sqrt((num_seeds - 1) * differences[1:].var(axis=0)) + _ROUNDING
    possible = np.flatnonzero(np.abs(differences[0]) <= half)
    if not len(possible):  # beyond one end, and the curve rises
        end = math.inf if differences[0, 0] > 0 else 0.0
        return end, end
    low = 0.0 if possible[0] == 0 else float(sizes[possible[0]])
    return low, math.inf if possible[-1] == len(sizes) - 1 else float(sizes[possible[-1]])


def _spread(values: np.ndarray) -> dict[str, Any]:
    shown = [float(value) if math.isfinite(value) else None for value in values]
    known = None not in shown
    std = float(np.std(values, ddof=1)) if known and len(shown) > 1 else None
    return {"mean": float(np.mean(values)) if known else None, "std": std, "values": shown}


def _end(images: float, law: PowerLaw, of: int) -> dict[str, Any]:
    where = "above" if math.isinf(images) else "below" if images == 0 else "within"
    edge = {"above": law.largest, "below": law.smallest, "within": images}[where]
    return {"images": images if where == "within" else None, "where": where, "more": 100.0 * (edge / of - 1)}
