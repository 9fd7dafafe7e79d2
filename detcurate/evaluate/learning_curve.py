"""Learning curve of random subsets: a fitted power law, and the number of random images that equals a subset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detcurate.errors import PredictionError
from detcurate.evaluate.bootstrap import student_t

MIN_SIZES = 3
"""The fewest different subset sizes: a power law has three parameters."""

_EXPONENTS = np.geomspace(1e-3, 10.0, 121)  # from a logarithm to a step
_BEST_AP = 100.0


@dataclass(frozen=True)
class PowerLaw:
    """AP of ``num_images`` random images: ``asymptote - scale * num_images ** -exponent``, in percent.

    Args:
        asymptote: The AP that the curve approaches, at most 100.
        scale: 0 or more. A curve that does not rise has 0, and the mean AP as ``asymptote``.
        exponent: Above 0; 0 where ``scale`` is.
        smallest: The smallest measured number of images.
        largest: The largest measured number of images.
        rmse: Root of the mean squared distance of the points from the curve, in AP percent.

    Source:
        Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically" (arXiv 1712.00409): the error is a
        power of the number of samples plus an irreducible part.
    """

    asymptote: float
    scale: float
    exponent: float
    smallest: int
    largest: int
    rmse: float

    def ap(self, num_images: np.ndarray | float) -> np.ndarray:
        """Return the AP at the given numbers of images, all above 0."""
        return np.asarray(self.asymptote - self.scale * np.power(num_images, -self.exponent))


def fit_power_law(num_images: np.ndarray, ap: np.ndarray) -> PowerLaw:
    """Fit a power law to the AP of random subsets by least squares over all points.

    A flat or falling curve is fitted by its mean. For a given exponent the law is linear in the other two parameters,
    so the search is one-dimensional (variable projection).

    Args:
        num_images: (K,) integers of at least 1, the size of each subset; at least three different sizes.
        ap: (K, S) AP in [0, 100], a column a seed.

    Raises:
        PredictionError: The shapes do not match, a value is out of range, or there are too few sizes.

    Source:
        Golub and Pereyra 1973, variable projection; ``scipy.optimize.elementwise.find_minimum`` for the exponent.

    Example:
        >>> sizes = np.array([100, 200, 400, 800])
        >>> law = fit_power_law(sizes, 60 - 300 * sizes[:, None] ** -0.5)
        >>> round(law.asymptote, 2), round(law.scale, 2), round(law.exponent, 3)
        (60.0, 300.0, 0.5)
    """
    _validate(num_images, ap)
    top, rise, exponent = (float(column[0]) for column in fit_laws(num_images, ap.mean(axis=1)[None]))
    smallest, largest = int(num_images.min()), int(num_images.max())
    fitted = top - rise * np.power(num_images / smallest, -exponent)
    return PowerLaw(
        asymptote=top,
        scale=rise * smallest**exponent,
        exponent=exponent,
        smallest=smallest,
        largest=largest,
        rmse=float(np.sqrt(np.mean((ap - fitted[:, None]) ** 2))),
    )


def equivalent_images(law: PowerLaw, ap: float) -> float:
    """Return the number of random images that reaches an AP, within the measured sizes.

    Args:
        law: Of random subsets.
        ap: In [0, 100].

    Returns:
        A number in [``law.smallest``, ``law.largest``]; ``inf`` when the AP is above the curve, 0 when it is below. A
        flat curve gives ``inf`` or 0.

    Example:
        >>> law = PowerLaw(asymptote=60.0, scale=300.0, exponent=0.5, smallest=100, largest=800, rmse=0.0)
        >>> equivalent_images(law, 45.0), equivalent_images(law, 59.0), equivalent_images(law, 20.0)
        (400.0, inf, 0.0)
    """
    column = np.array([law.asymptote]), np.array([law.scale * law.smallest**-law.exponent]), np.array([law.exponent])
    return float(invert_laws(*column, np.array([ap]), law.smallest, law.largest)[0])


def _validate(num_images: np.ndarray, ap: np.ndarray) -> None:
    if num_images.ndim != 1 or ap.ndim != 2 or len(ap) != len(num_images) or not ap.shape[1]:
        raise PredictionError(f"ap must have shape ({len(num_images)}, seeds), one row per size (got {ap.shape})")
    if num_images.size and num_images.min() < 1:
        raise PredictionError(f"num_images must be at least 1 (got {num_images.min()})")
    if len(np.unique(num_images)) < MIN_SIZES:
        raise PredictionError(
            f"CURATE.RETRAIN.CURVE_FRACTIONS: a learning curve needs at least {MIN_SIZES} different numbers of images "
            f"(got {sorted(set(num_images.tolist()))}). Add fractions."
        )
    if not ((ap >= 0) & (ap <= _BEST_AP)).all():
        raise PredictionError(f"ap must be in [0, 100] (got {ap[~((ap >= 0) & (ap <= _BEST_AP))][0]})")


def fit_laws(num_images: np.ndarray, ap: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit R curves at once.

    Args:
        num_images: (K,) as of :func:`fit_power_law`.
        ap: (R, K) in [0, 100].

    Returns:
        The asymptote, the rise to it from the smallest size, and the exponent, (R,) each.
    """
    from scipy.optimize.elementwise import find_minimum  # imported late: only the report needs it

    ratio, logs = np.log(num_images / num_images.min()), np.log(_EXPONENTS)

    def error_of(log_exponent: np.ndarray, *columns: np.ndarray) -> np.ndarray:
        return _solve(ratio, np.stack(columns, axis=-1), np.exp(log_exponent)[..., None])[2][..., 0]

    # The error may have several minima: the grid finds the bracket of the lowest one.
    _, _, error = _solve(ratio, ap, np.broadcast_to(_EXPONENTS, (len(ap), len(_EXPONENTS))))
    middle, step = logs[error.argmin(axis=1)], logs[1] - logs[0]
    found = find_minimum(error_of, (middle - step, middle, middle + step), args=tuple(ap.T))
    # Without success there is no minimum between the ends: the error still falls at a bound of the exponent.
    log_exponent = np.clip(np.where(found.success, found.x, middle), logs[0], logs[-1])
    top, rise, _ = (part[:, 0] for part in _solve(ratio, ap, np.exp(log_exponent)[:, None]))
    return top, rise, np.where(rise > 0, np.exp(log_exponent), 0.0)


def _solve(ratio: np.ndarray, ap: np.ndarray, exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the least-squares asymptote and rise for (R, X) exponents, and the squared error, (R, X) each."""
    x = np.exp(-exponents[..., None] * ratio)  # (R, X, K), 1 at the smallest size and falling
    y = ap[:, None, :]
    centred = x - x.mean(axis=2, keepdims=True)
    rise = np.maximum(-(centred * y).sum(axis=2) / (centred**2).sum(axis=2), 0.0)
    top = y.mean(axis=2) + rise * x.mean(axis=2)
    bounded = ((_BEST_AP - y) * x).sum(axis=2) / (x**2).sum(axis=2)  # least squares with the asymptote fixed at 100
    rise, top = np.where(top > _BEST_AP, bounded, rise), np.minimum(top, _BEST_AP)
    return top, rise, ((y - top[..., None] + rise[..., None] * x) ** 2).sum(axis=2)


def invert_laws(
    top: np.ndarray, rise: np.ndarray, exponent: np.ndarray, ap: np.ndarray, smallest: int, largest: int
) -> np.ndarray:
    """Return :func:`equivalent_images` of (R,) ``ap`` for the R laws of :func:`fit_laws`."""
    below_top = (ap < top) & (rise > 0)
    missing = np.where(below_top, top - ap, 1.0)
    logarithm = np.log(np.where(below_top, rise, 1.0) / missing) / np.where(below_top, exponent, 1.0)
    reach = math.log(largest / smallest)
    slack = 1e-9  # tolerance for an AP exactly at an end of the curve
    inside = smallest * np.exp(np.clip(logarithm, 0.0, reach))
    images = np.where(logarithm > reach + slack, np.inf, np.where(logarithm < -slack, 0.0, inside))
    # A flat curve reaches its mean AP with the fewest images, and a higher AP with no number of images.
    return np.where(below_top, images, np.where((rise == 0) & (ap <= top), 0.0, np.inf))


_DRAWS, _GRID, _ROUNDING = 1000, 400, 1e-9


def learning_curve(
    num_images: Mapping[str, int],
    ap: Mapping[str, np.ndarray],
    replicates: Mapping[str, np.ndarray] | None = None,
    *,
    subset: str = "curated",
) -> dict[str, Any]:
    """Fit the learning curve of random subsets, and find the number of random images that equals a subset.

    Args:
        num_images: Arm -> number of training images; all but ``subset`` are random subsets, or the whole pool.
        ap: Arm -> (S,) AP, the seeds in the same order.
        replicates: Arm -> (B, S) AP on resampled evaluation sets, or None.
        subset: The arm to compare with the curve; it may be absent.

    Returns:
        A JSON-serialisable dict:

        - ``points``: the arms of the curve by size.
        - ``fit``: the fields of :class:`PowerLaw`, or None with the reason in ``why_not``.
        - ``equivalent``: None without the arm ``subset``. Otherwise its ``num_images`` and ``ap``; ``images``, the
          equal number of random images; ``where``, which is ``within``, ``above`` or ``below`` the measured curve
          (``images`` is None for the last two) or ``flat``; ``more``, the surplus of ``images`` over ``num_images`` in
          percent, that of the largest or smallest size where ``images`` is None; ``interval``, two ends with
          ``images``, ``where`` and ``more`` (None for one seed); ``num_seeds``.
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
        # The union of both intervals: a difference too is claimed only where both exclude 0.
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
    """Return the bootstrap percentile interval of :func:`equivalent_images`.

    Each draw resamples the training seeds, takes the next resampled evaluation set, and fits the law again; all subsets
    share seeds and images in a draw. With few seeds the interval is too narrow.

    Args:
        num_images: (K,) the size of each random subset.
        ap: (K, B, S) AP of each on B resampled evaluation sets, one column per seed.
        subset_ap: (B, S) AP of the compared subset, on the same sets and with the same seeds.
        level: Confidence level, in (0, 1).
        seed: Seed of the draw of training seeds.

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

    It contains the sizes at which subset and curve do not differ significantly. The standard error of the difference is
    the jackknife's: the law is fitted again without each seed.

    Args:
        num_images: (K,) the size of each random subset.
        ap: (K, S) AP of each, one column per seed.
        subset_ap: (S,) AP of the compared subset with the same seeds; at least two.

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
    half = student_t(num_seeds - 1) * np.sqrt((num_seeds - 1) * differences[1:].var(axis=0)) + _ROUNDING
    possible = np.flatnonzero(np.abs(differences[0]) <= half)
    if not len(possible):  # the curve rises, so the subset is beyond one of its ends
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
