"""Tables for people and their tools: plain Parquet, a column a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detcurate.errors import PredictionError
from detcurate.files import atomic_path
from detcurate.parquet import readable, require_bounded
from detcurate.storage import Location


def write_columns(path: Location, columns: Mapping[str, Any]) -> None:
    """Write columns of one length atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(dict(columns)), temporary, compression="zstd")


def read_columns(path: Location, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read what ``write_columns`` wrote: all columns, or those of the names that are there.

    Raises:
        PredictionError: The file is absent, truncated or no Parquet file.
    """
    try:
        require_bounded(path)
        known = None if names is None else [name for name in pq.read_schema(readable(path)).names if name in names]
        table = pq.read_table(readable(path), partitioning=None, columns=known)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PredictionError(
            f"a table must be a whole Parquet file ({path}): {error}; delete it and run again"
        ) from error
    return {name: table[name].to_numpy() for name in table.column_names}
