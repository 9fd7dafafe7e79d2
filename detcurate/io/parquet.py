"""Parquet files that are whole or refused: page checksums, and a description in the footer with its own digest."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from detcurate.io.files import atomic_path
from detcurate.io.storage import Location

_DESCRIPTION = b"detcurate"
_DESCRIPTION_SHA256 = b"detcurate.sha256"
_TYPES = "types"

DAMAGES = (OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError)
"""What reading a file that is absent, truncated, damaged or of another kind raises."""


def write_table(path: Location, columns: Mapping[str, pa.Array], description: Mapping[str, Any]) -> None:
    """Write columns of one length atomically, and a description with their number of rows and types in the footer."""
    table = pa.table(dict(columns))
    described = orjson.dumps({**description, "num_rows": table.num_rows, _TYPES: _types(table)})
    metadata = {_DESCRIPTION: described, _DESCRIPTION_SHA256: hashlib.sha256(described).hexdigest()}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd", write_page_checksum=True)


def readable(path: Location) -> Path | BinaryIO:
    """Return what a reader of Parquet takes for a table wherever it is; raises ``FileNotFoundError`` when it is not."""
    return path if isinstance(path, Path) else path.open()


def bounded(path: Location) -> Path | BinaryIO:
    """Return a table for a reader of Parquet, once :func:`require_bounded` has looked at it."""
    require_bounded(path)
    return readable(path)


def read_table(path: Location) -> tuple[pa.Table, dict[str, Any]]:
    """Read a file of :func:`write_table` and its description; raises one of ``DAMAGES``."""
    require_bounded(path)
    # Elsewhere as a whole: a table of this kind is a block of a few megabytes.
    source = path if isinstance(path, Path) else pa.BufferReader(path.read_bytes())
    table = pq.read_table(source, partitioning=None, page_checksum_verification=True)
    metadata = table.schema.metadata
    # The pages have checksums, the footer has none.
    if hashlib.sha256(metadata[_DESCRIPTION]).hexdigest().encode() != metadata[_DESCRIPTION_SHA256]:
        raise ValueError("its metadata are damaged")
    described = dict(orjson.loads(metadata[_DESCRIPTION]))
    if described["num_rows"] != table.num_rows:
        raise ValueError(f"it has {table.num_rows} rows, its metadata say {described['num_rows']}")
    types = _types(table)
    if described.pop(_TYPES, types) != types:  # an older file does not say
        raise ValueError("its columns are of other types than its metadata say")
    return table, described


def _types(table: pa.Table) -> dict[str, str]:
    """Return the type of each column; what Arrow calls the values of a list is left out, for Parquet calls it other."""
    return {field.name: _type(field.type) for field in table.schema}


def _type(kind: pa.DataType) -> str:
    if isinstance(kind, pa.FixedSizeListType):
        return f"{kind.value_type}[{kind.list_size}]"
    return str(kind)


def require_bounded(path: Location) -> None:
    """Raise ``ValueError`` where a table is to be much larger in memory than its file, as a bomb is.

    A column of one value for a thousand million rows takes some bytes on the disk. What is looked at is the footer.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with pq.ParquetFile(readable(path)) as file:
        # Not the columns of a group: Arrow ends the process where a damaged footer has fewer than its schema.
        footer, width = file.metadata, sum(_width(column.type) for column in file.schema_arrow)
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        num_rows = max(footer.num_rows, sum(group.num_rows for group in groups))
        num_bytes = max(width * num_rows, sum(group.total_byte_size for group in groups))
    size = path.stat().st_size if isinstance(path, Path) else path.entry().size
    most = max(_FREE_GROWTH, _MOST_GROWTH * size)
    if num_bytes > most:
        raise ValueError(f"it would take {num_bytes:,} bytes of memory, more than {most:,} for a file of its size")


def _width(kind: pa.DataType) -> int:
    """Return the least bytes that a value of a column takes in memory."""
    if isinstance(kind, pa.FixedSizeListType):
        return int(kind.list_size) * _width(kind.value_type)
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:  # of no fixed width
        return 8


_FREE_GROWTH, _MOST_GROWTH = 4 << 30, 100


def fixed_lists(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """Return the rows of a (N, D) matrix as a column of lists of D, of the matrix's own type."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])


def matrix_of(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """Return a column of lists of ``width`` as a (N, width) matrix."""
    flat: np.ndarray = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width)
