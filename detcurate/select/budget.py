"""Budgets: what the subset may cost, as a number of images."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from detcurate.errors import SelectionError


def resolve_budget(num_images: int, *, fraction: float | None, count: int | None) -> int:
    """Turn a fraction of the pool, or a number of images, into a number of images.

    A fraction is rounded to the nearest image, a half up, and buys at least one. It is taken as the decimal that was
    written: 0.29 of 50 images is 14.5, so 15, although the nearest float to 0.29 lies below it.

    Args:
        num_images: I, the size of the pool, at least 1.
        fraction: in (0, 1], or None.
        count: in [1, I], or None.

    Returns:
        The number of images to select, in [1, I].

    Raises:
        SelectionError: Both or neither of the two are given, one is out of range, or the pool is empty.

    Example:
        >>> resolve_budget(600, fraction=0.5, count=None)
        300
        >>> resolve_budget(600, fraction=None, count=40)
        40
    """
    if num_images < 1:
        raise SelectionError(f"the pool must hold at least one image, got {num_images}; give a pool with images")
    if fraction is not None and count is None:
        if not 0 < fraction <= 1:
            raise SelectionError(f"fraction must be in (0, 1], got {fraction}; 0.5 keeps half of the pool")
        exact = Decimal(repr(float(fraction))) * num_images
        return max(1, int(exact.to_integral_value(rounding=ROUND_HALF_UP)))
    if count is not None and fraction is None:
        if count < 1:
            raise SelectionError(f"count must be at least 1, got {count}; give the number of images to keep")
        if count > num_images:
            raise SelectionError(
                f"count must be at most the pool's {num_images} images, got {count}; "
                "lower the count or give a larger pool"
            )
        return int(count)
    raise SelectionError(
        f"exactly one of fraction and count must be given, got fraction={fraction} and count={count}; leave one out"
    )
