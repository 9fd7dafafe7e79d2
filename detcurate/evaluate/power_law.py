"""A power law through the AP of random subsets, and its inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detcurate.errors import PredictionError

MIN_SIZES = 3
"""A power law has three unknowns."""

_EXPONENTS = np.geomspace(1e-3, 10.0, 121)  # from a logarithm to a step
_ZOOMS, _ZOOM_POINTS = 14, 9
_BEST_AP = 100.0


@dataclass(frozen=True)
class PowerLaw:
    """AP of ``num_images`` random images: ``asymptote - scale * num_images ** -exponent``, in percent.

    Args:
        asymptote: What no number of images goes beyond, at most 100.
        scale: 0 or more; 0 for a curve that does not rise, whose ``asymptote`` is the mean.
        exponent: Above 0; 0 where ``scale`` is.
        smallest: The smallest number of images that was measured.
        largest: The largest.
        rmse: Root of the mean squared distance of the points from the curve, in AP percent.

    Source:
        Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically" (arXiv 1712.00409): the error is a
        power of the number of samples plus what cannot be reduced.
    """

    asymptote: float
    scale: float
    exponent: float
    smallest: int
    largest: int
    rmse: float

    def ap(self, num_images: np.ndarray | float) -> np.ndarray:
        """Return the AP of numbers of images above 0."""
        return np.asarray(self.asymptote - self.scale * np.power(num_images, -self.exponent))


def fit_power_law(num_images: np.ndarray, ap: np.ndarray) -> PowerLaw:
    """Fit a power law to the AP of random subsets by least squares over all points.

    A curve that is flat or falls gives its mean. For a given exponent the law is linear in the other two, so the search
    goes along one line only.

    Args:
        num_images: (K,) integers of at least 1, the size of each subset; three different ones at least.
        ap: (K, S) AP in [0, 100], a column a seed.

    Raises:
        PredictionError: The shapes do not go together, a value is out of range, or there are too few sizes.

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
    """Return how many random images give an AP, within what was measured.

    Args:
        law: Of random subsets.
        ap: In [0, 100].

    Returns:
        In [``law.smallest``, ``law.largest``]; ``inf`` for more than the largest, or than any number, and 0 for fewer
        than the smallest. Of a flat curve it is one of these two.

    Example:
        >>> law = PowerLaw(asymptote=60.0, scale=300.0, exponent=0.5, smallest=100, largest=800, rmse=0.0)
        >>> equivalent_images(law, 45.0), equivalent_images(law, 59.0), equivalent_images(law, 20.0)
        (400.0, inf, 0.0)
    """
    column = np.array([law.asymptote]), np.array([law.scale * law.smallest**-law.exponent]), np.array([law.exponent])
    return float(invert_laws(*column, np.array([ap]), law.smallest, law.largest)[0])


def _validate(num_images: np.ndarray, ap: np.ndarray) -> None:
    if num_images.ndim != 1 or ap.ndim != 2 or len(ap) != len(num_images) or not ap.shape[1]:
        raise PredictionError(f"ap must have shape ({len(num_images)}, seeds), a row a size, got {ap.shape}")
    if num_images.size and num_images.min() < 1:
        raise PredictionError(f"num_images must be at least 1, got {num_images.min()}")
    if len(np.unique(num_images)) < MIN_SIZES:
        raise PredictionError(
            f"a learning curve must have at least {MIN_SIZES} different numbers of images, got "
            f"{sorted(set(num_images.tolist()))}; add fractions to CURATE.RETRAIN.CURVE_FRACTIONS"
        )
    if not ((ap >= 0) & (ap <= _BEST_AP)).all():
        raise PredictionError(f"ap must be in [0, 100], got {ap[~((ap >= 0) & (ap <= _BEST_AP))][0]}")


def fit_laws(num_images: np.ndarray, ap: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit R curves at once.

    Args:
        num_images: (K,) as of :func:`fit_power_law`.
        ap: (R, K) in [0, 100].

    Returns:
        The asymptote, the rise to it from the smallest size, and the exponent, (R,) each.
    """
    ratio = np.log(num_images / num_images.min())
    exponents = np.broadcast_to(_EXPONENTS, (len(ap), len(_EXPONENTS)))
    steps = np.log(_EXPONENTS[1] / _EXPONENTS[0]) * np.linspace(-1, 1, _ZOOM_POINTS)
    for zoom in range(_ZOOMS):
        top, rise, error = _solve(ratio, ap, exponents)
        best = np.take_along_axis(exponents, error.argmin(axis=1)[:, None], axis=1)
        exponents = np.clip(best * np.exp(steps * (2.0 / (_ZOOM_POINTS - 1)) ** zoom), *_EXPONENTS[[0, -1]])
    top, rise, _ = (part[:, 0] for part in _solve(ratio, ap, best))
    return top, rise, np.where(rise > 0, best[:, 0], 0.0)


def _solve(ratio: np.ndarray, ap: np.ndarray, exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the best asymptote and rise, (R, X), of each of (R, X) exponents, and their squared error."""
    x = np.exp(-exponents[..., None] * ratio)  # (R, X, K), 1 at the smallest size and falling
    y = ap[:, None, :]
    centred = x - x.mean(axis=2, keepdims=True)
    rise = np.maximum(-(centred * y).sum(axis=2) / (centred**2).sum(axis=2), 0.0)
    top = y.mean(axis=2) + rise * x.mean(axis=2)
    bounded = ((_BEST_AP - y) * x).sum(axis=2) / (x**2).sum(axis=2)  # the best rise to an asymptote of 100
    rise, top = np.where(top > _BEST_AP, bounded, rise), np.minimum(top, _BEST_AP)
    return top, rise, ((y - top[..., None] + rise[..., None] * x) ** 2).sum(axis=2)


def invert_laws(
    top: np.ndarray, rise: np.ndarray, exponent: np.ndarray, ap: np.ndarray, smallest: int, largest: int
) -> np.ndarray:
    """Return what :func:`equivalent_images` does for (R,) ``ap`` and the laws of :func:`fit_laws`."""
    below_top = (ap < top) & (rise > 0)
    missing = np.where(below_top, top - ap, 1.0)
    logarithm = np.log(np.where(below_top, rise, 1.0) / missing) / np.where(below_top, exponent, 1.0)
    reach = math.log(largest / smallest)
    slack = 1e-9  # what rounding does to an AP that lies on the curve's end
    inside = smallest * np.exp(np.clip(logarithm, 0.0, reach))
    images = np.where(logarithm > reach + slack, np.inf, np.where(logarithm < -slack, 0.0, inside))
    # A flat curve gives its one AP with the fewest images, and more than that with none.
    return np.where(below_top, images, np.where((rise == 0) & (ap <= top), 0.0, np.inf))
