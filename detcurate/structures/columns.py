"""Validate columns; the errors name the column, the constraint and the value."""

from __future__ import annotations

import numpy as np

from detcurate.errors import DetcurateError, PredictionError, SelectionError

_KINDS = {"i": "an integer", "f": "a floating", "b": "a boolean"}


def validate_column(
    owner: str,
    name: str,
    values: np.ndarray,
    shape: tuple[int | str, ...],
    kind: str,
    error: type[DetcurateError],
) -> None:
    """Check one column's rank, fixed lengths, kind (a key of ``_KINDS``) and, for floats, that all are finite."""
    expected = "(" + ", ".join(str(length) for length in shape) + ("," if len(shape) == 1 else "") + ")"
    fits = values.ndim == len(shape) and all(
        isinstance(length, str) or length == actual for length, actual in zip(shape, values.shape, strict=True)
    )
    if not fits:
        raise error(f"{owner}.{name}: wrong shape (got {values.shape}). It must be {expected}.")
    if values.dtype.kind != kind:
        raise error(f"{owner}.{name}: wrong dtype (got {values.dtype}). It must be {_KINDS[kind]} array.")
    if kind == "f" and not np.isfinite(values).all():
        num_bad = int((~np.isfinite(values)).sum())
        raise error(f"{owner}.{name}: not finite (got {num_bad} NaN or infinite values).")


def validate_ascending(name: str, image_ids: np.ndarray) -> None:
    """Raise ``SelectionError`` if the ids of a pool are not ascending and unique."""
    falls = np.flatnonzero(image_ids[1:] <= image_ids[:-1])
    if len(falls):
        before, after = image_ids[falls[0] : falls[0] + 2].tolist()
        raise SelectionError(
            f"{name}: not ascending and unique (got {after} after {before}). Sort the ids of the pool."
        )


def validate_rows(
    owner: str, name: str, fits: np.ndarray, values: np.ndarray, constraint: str, ids: np.ndarray
) -> None:
    """Raise ``PredictionError`` with the first row that violates the constraint of a column, and its image."""
    if not fits.all():
        row = int(np.argmin(fits))
        raise PredictionError(
            f"{owner}.{name}: must {constraint} (got {values[row].tolist()} in row {row}, image_id {ids[row]}, and "
            f"{int((~fits).sum())} such rows in total). Drop or fix these rows where they are created."
        )
