"""The store of image embeddings: one vector an image, for near-duplicates and diversity."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from detcurate.errors import PredictionError
from detcurate.parquet import DAMAGES, fixed_lists, matrix_of, read_table, write_table
from detcurate.storage import Location


def write_embeddings(path: Location, image_ids: np.ndarray, embeddings: np.ndarray) -> None:
    """Write one vector an image atomically, in the order given; equal input gives equal bytes.

    Args:
        path: The file.
        image_ids: (B,) int64, unique.
        embeddings: (B, D) float16, finite, D at least 1, row b for ``image_ids[b]``.

    Raises:
        PredictionError: The columns differ in length, have another shape, kind or precision, hold NaN or infinity, or
            an image is named twice.
    """
    _validate(image_ids, embeddings)
    columns = {"image_id": pa.array(image_ids.astype(np.int64)), "embedding": fixed_lists(embeddings)}
    write_table(path, columns, {"num_features": embeddings.shape[1]})


def read_embeddings(path: Location) -> tuple[np.ndarray, np.ndarray]:
    """Read what :func:`write_embeddings` wrote.

    Returns:
        (B,) int64 image_ids, and (B, D) float16 embeddings in the same order.

    Raises:
        PredictionError: The file is absent, truncated, damaged, or not one of embeddings.
    """
    try:
        table, described = read_table(path)
        image_ids: np.ndarray = table["image_id"].to_numpy()
        embeddings = matrix_of(table["embedding"], described["num_features"])
        _validate(image_ids, embeddings)
    except (PredictionError, *DAMAGES) as error:
        raise PredictionError(
            f"embeddings must be a whole Parquet file of one vector an image ({path}): {error}; "
            "delete it and run the same command again to compute them anew"
        ) from error
    return image_ids, embeddings


def _validate(image_ids: np.ndarray, embeddings: np.ndarray) -> None:
    """Check the two columns against each other, and that distances between the rows can be taken."""
    if image_ids.ndim != 1 or image_ids.dtype.kind != "i":
        raise PredictionError(
            f"image_ids must be (B,) integers, got shape {image_ids.shape} and dtype {image_ids.dtype}"
        )
    b = len(image_ids)
    if embeddings.ndim != 2 or embeddings.shape[0] != b or embeddings.shape[1] < 1 or embeddings.dtype != np.float16:
        raise PredictionError(
            f"embeddings must be float16 of shape ({b}, D), D at least 1, got {embeddings.dtype} of shape "
            f"{embeddings.shape}; give one row of `pool_features` an image"
        )
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise PredictionError(
            f"embeddings must be finite, got NaN or infinity in {int((~finite).sum())} rows "
            f"(image_id {image_ids[~finite][0]}); normalise them, or leave out the member that made them"
        )
    unique, counts = np.unique(image_ids, return_counts=True)
    if (counts > 1).any():
        raise PredictionError(f"image_ids must be unique, got image_id {unique[counts > 1][0]} more than once")
