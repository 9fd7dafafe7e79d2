"""Parquet files that are complete or refused: checksums of pages, and a description with a digest in the footer."""

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
"""Errors of reading a file that is absent, truncated, damaged or of another kind."""

_FREE_BYTES, _MAX_GROWTH = 4 << 30, 100


def write_table(path: Location, columns: Mapping[str, pa.Array], description: Mapping[str, Any]) -> None:
    """Write columns of equal length atomically; the footer describes their number of rows and types."""
    table = pa.table(dict(columns))
    described = orjson.dumps({**description, "num_rows": table.num_rows, _TYPES: _types(table)})
    metadata = {_DESCRIPTION: described, _DESCRIPTION_SHA256: hashlib.sha256(described).hexdigest()}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd", write_page_checksum=True)


def readable(path: Location) -> Path | BinaryIO:
    """Return a source for a reader of Parquet; raise ``FileNotFoundError`` when the file is absent."""
    return path if isinstance(path, Path) else path.open()


def bounded(path: Location) -> Path | BinaryIO:
    """Return a source for a reader of Parquet after :func:`require_bounded`."""
    require_bounded(path)
    return readable(path)


def read_table(path: Location) -> tuple[pa.Table, dict[str, Any]]:
    """Read a file of :func:`write_table` and its description; raise one of ``DAMAGES``."""
    require_bounded(path)
    # Objects are read completely: a table of this kind has a few megabytes.
    source = path if isinstance(path, Path) else pa.BufferReader(path.read_bytes())
    table = pq.read_table(source, partitioning=None, page_checksum_verification=True)
    metadata = table.schema.metadata
    # The pages have checksums, the footer has none.
    if hashlib.sha256(metadata[_DESCRIPTION]).hexdigest().encode() != metadata[_DESCRIPTION_SHA256]:
        raise ValueError("its metadata is damaged")
    described = dict(orjson.loads(metadata[_DESCRIPTION]))
    if described["num_rows"] != table.num_rows:
        raise ValueError(f"it has {table.num_rows} rows, its metadata states {described['num_rows']}")
    types = _types(table)
    if described.pop(_TYPES, types) != types:  # absent in files of older versions
        raise ValueError("the types of its columns differ from its metadata")
    return table, described


def _types(table: pa.Table) -> dict[str, str]:
    """Return the type of each column, without the name of a list's values, which Arrow and Parquet name differently."""
    return {field.name: _type(field.type) for field in table.schema}


def _type(kind: pa.DataType) -> str:
    if isinstance(kind, pa.FixedSizeListType):
        return f"{kind.value_type}[{kind.list_size}]"
    return str(kind)


def require_bounded(path: Location) -> None:
    """Raise ``ValueError`` when the footer announces a table that is much larger in memory than its file.

    A column with one value in a thousand million rows takes a few bytes on disk (a decompression bomb).
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with pq.ParquetFile(readable(path)) as file:
        # Not the columns of a group: Arrow aborts when a damaged footer has fewer columns than its schema.
        footer, width = file.metadata, sum(_width(column.type) for column in file.schema_arrow)
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        num_rows = max(footer.num_rows, sum(group.num_rows for group in groups))
        num_bytes = max(width * num_rows, sum(group.total_byte_size for group in groups))
    size = path.stat().st_size if isinstance(path, Path) else path.entry().size
    limit = max(_FREE_BYTES, _MAX_GROWTH * size)
    if num_bytes > limit:
        raise ValueError(f"it needs {num_bytes:,} bytes of memory, more than {limit:,} for a file of its size")


def _width(kind: pa.DataType) -> int:
    """Return the smallest number of bytes of a value in memory."""
    if isinstance(kind, pa.FixedSizeListType):
        return int(kind.list_size) * _width(kind.value_type)
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:  # variable width
        return 8


def fixed_lists(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """Return the rows of a (N, D) matrix as a column of lists of D values, with the dtype of the matrix."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])


def matrix_of(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """Return a column of lists of ``width`` as a (N, width) matrix."""
    flat: np.ndarray = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width)
