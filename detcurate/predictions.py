"""The store of predictions: Parquet shards, each a block of images with the detections of every member.

A shard is complete or absent. Its schema's metadata names the images it covers, so that an image on which no member
saw anything is told from one that was never shown to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from detcurate.errors import PredictionError
from detcurate.files import atomic_path
from detcurate.structures import Detections

_METADATA = b"detcurate"
_METADATA_SHA256 = b"detcurate.sha256"


def shard_path(directory: Path, index: int) -> Path:
    """Return the file of a shard."""
    return directory / f"shard-{index:05d}.parquet"


def write_shard(path: Path, detections: Detections, image_ids: np.ndarray) -> None:
    """Write one shard atomically, rows sorted by image and member (a member's own order, best first, is kept).

    Args:
        path: The file.
        detections: Of all members on the shard's images; none is fine.
        image_ids: (I,) int64, the images that were predicted, with or without detections.
    """
    rows = detections.take(np.lexsort((detections.member, detections.image_ids)))
    columns = {
        "image_id": pa.array(rows.image_ids.astype(np.int64)),
        "member": pa.array(rows.member.astype(np.int32)),
        "box": _fixed_lists(rows.boxes),
        "score": pa.array(rows.scores.astype(np.float32)),
        "class_index": pa.array(rows.class_index.astype(np.int32)),
        "class_probs": _fixed_lists(rows.class_probs),
    }
    described = orjson.dumps(
        {
            "image_ids": image_ids.astype(np.int64).tolist(),
            "num_classes": detections.num_classes,
            "num_rows": len(detections),
        }
    )
    metadata = {_METADATA: described, _METADATA_SHA256: hashlib.sha256(described).hexdigest()}
    table = pa.table(columns).replace_schema_metadata(metadata)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_shard(path: Path) -> tuple[Detections, np.ndarray]:
    """Read one shard.

    Returns:
        The detections, and the (I,) int64 ids of the images that it covers.

    Raises:
        PredictionError: The file is absent, truncated, damaged, or not a shard.
    """
    try:
        table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
        described = _described(table)
        detections = Detections(
            image_ids=table["image_id"].to_numpy(),
            member=table["member"].to_numpy(),
            boxes=_matrix(table["box"], 4),
            scores=table["score"].to_numpy(),
            class_index=table["class_index"].to_numpy(),
            class_probs=_matrix(table["class_probs"], described["num_classes"] + 1),
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PredictionError(
            f"a shard must be a whole Parquet file of detections ({path}): {error}; "
            "delete it and run the same command again to predict its images anew"
        ) from error
    return detections, np.asarray(described["image_ids"], np.int64)


def read_shards(directory: Path) -> Iterator[tuple[Detections, np.ndarray]]:
    """Read the shards of a directory one after another, in order; see :func:`read_shard`."""
    for path in sorted(directory.glob("shard-*.parquet")):
        yield read_shard(path)


def _described(table: pa.Table) -> dict[str, Any]:
    """Return what the file's metadata says, after checking it: the pages have checksums, the footer has none."""
    metadata = table.schema.metadata
    if hashlib.sha256(metadata[_METADATA]).hexdigest().encode() != metadata[_METADATA_SHA256]:
        raise ValueError("its metadata are damaged")
    described = dict(orjson.loads(metadata[_METADATA]))
    if described["num_rows"] != table.num_rows:
        raise ValueError(f"it has {table.num_rows} rows, its metadata say {described['num_rows']}")
    return described


def _fixed_lists(matrix: np.ndarray) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(matrix, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def _matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    flat: np.ndarray = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width)
