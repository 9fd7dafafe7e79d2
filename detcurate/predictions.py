"""The store of predictions: Parquet shards, each a block of images with the detections of every member.

A shard is complete or absent. Its schema's metadata names the images it covers, so that an image on which no member
saw anything is told from one that was never shown to them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from detcurate.errors import PredictionError
from detcurate.parquet import DAMAGES, fixed_lists, matrix_of, read_table, write_table
from detcurate.storage import Location, RemotePath
from detcurate.structures import Detections


def shard_path(directory: Location, index: int) -> Location:
    """Return the file of a shard."""
    return directory / f"shard-{index:05d}.parquet"


def missing_shards(directory: Location, num_shards: int) -> list[int]:
    """Return the numbers of the shards that are not there, in order; elsewhere one listing tells."""
    paths = [shard_path(directory, number) for number in range(num_shards)]
    if isinstance(directory, RemotePath):
        found = {path.name for path in directory.glob("shard-*.parquet")}
        return [number for number, path in enumerate(paths) if path.name not in found]
    return [number for number, path in enumerate(paths) if not path.exists()]


def write_shard(path: Location, detections: Detections, image_ids: np.ndarray) -> None:
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
        "box": fixed_lists(rows.boxes.astype(np.float32)),
        "score": pa.array(rows.scores.astype(np.float32)),
        "class_index": pa.array(rows.class_index.astype(np.int32)),
        "class_probs": fixed_lists(rows.class_probs.astype(np.float32)),
    }
    description = {
        "image_ids": image_ids.astype(np.int64).tolist(),
        "num_classes": detections.num_classes,
        "posterior_form": detections.posterior_form,
    }
    write_table(path, columns, description)


def read_shard(path: Location) -> tuple[Detections, np.ndarray]:
    """Read one shard.

    Returns:
        The detections, and the (I,) int64 ids of the images that it covers.

    Raises:
        PredictionError: The file is absent, truncated, damaged, or not a shard.
    """
    try:
        table, described = read_table(path)
        detections = Detections(
            image_ids=table["image_id"].to_numpy(),
            member=table["member"].to_numpy(),
            boxes=matrix_of(table["box"], 4),
            scores=table["score"].to_numpy(),
            class_index=table["class_index"].to_numpy(),
            class_probs=matrix_of(table["class_probs"], described["num_classes"] + 1),
            posterior_form=described.get("posterior_form", "softmax"),  # the only form when shards did not name it
        )
        image_ids = np.asarray(described["image_ids"], np.int64)
    except (PredictionError, *DAMAGES) as error:
        raise PredictionError(
            f"a shard must be a whole Parquet file of detections ({path}): {error}; "
            "delete it and run the same command again to predict its images anew"
        ) from error
    return detections, image_ids
