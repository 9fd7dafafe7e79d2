"""Checks of columns, and the errors that say which one breaks what."""

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
        isinstance(want, str) or want == got for want, got in zip(shape, values.shape, strict=True)
    )
    if not fits:
        raise error(f"{owner}.{name} must have shape {expected}, got {values.shape}")
    if values.dtype.kind != kind:
        raise error(f"{owner}.{name} must be {_KINDS[kind]} array, got dtype {values.dtype}")
    if kind == "f" and not np.isfinite(values).all():
        raise error(f"{owner}.{name} must be finite, got {int((~np.isfinite(values)).sum())} NaN or infinite values")


def validate_ascending(name: str, image_ids: np.ndarray) -> None:
    """Raise ``SelectionError`` when the ids of a pool are not ascending and unique."""
    falls = np.flatnonzero(image_ids[1:] <= image_ids[:-1])
    if len(falls):
        before, after = image_ids[falls[0] : falls[0] + 2].tolist()
        raise SelectionError(f"{name} must be ascending and unique, got {after} after {before}; sort the pool's ids")


def validate_rows(
    owner: str, name: str, fits: np.ndarray, values: np.ndarray, constraint: str, ids: np.ndarray
) -> None:
    """Raise with the first row that breaks a column's constraint, and the image it belongs to."""
    if not fits.all():
        row = int(np.argmin(fits))
        raise PredictionError(
            f"{owner}.{name} must {constraint}, got {values[row].tolist()} (row {row}, image_id {ids[row]}; "
            f"{int((~fits).sum())} such rows); drop or mend these rows where they are made"
        )
