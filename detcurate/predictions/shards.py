"""Parquet files of predictions: shards of detections, of reference boxes and of dense scores, and embeddings.

A shard is complete or absent. A shard of detections has a row a detection, one of reference boxes a row a box and
member, one of dense scores a row an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detcurate.errors import PredictionError
from detcurate.io.parquet import DAMAGES, fixed_lists, matrix_of, read_table, write_table
from detcurate.io.storage import Location, RemotePath
from detcurate.structures import Detections


def shard_path(directory: Location, index: int) -> Location:
    """Return the path of a shard."""
    return directory / f"shard-{index:05d}.parquet"


def missing_shards(directory: Location, num_shards: int) -> list[int]:
    """Return the numbers of the missing shards, ascending; object storage is listed once."""
    paths = [shard_path(directory, number) for number in range(num_shards)]
    if isinstance(directory, RemotePath):
        found = {path.name for path in directory.glob("shard-*.parquet")}
        return [number for number, path in enumerate(paths) if path.name not in found]
    return [number for number, path in enumerate(paths) if not path.exists()]


def write_shard(path: Location, detections: Detections, image_ids: np.ndarray) -> None:
    """Write a shard of detections atomically, rows sorted by image and member; each member's order, best first, stays.

    Args:
        path: The file.
        detections: Detections of all members on the shard's images; may be empty.
        image_ids: (I,) int64, the images of the shard, with or without detections.
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
    """Read a shard of detections.

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
        raise _damaged(path, "detections", error) from error
    return detections, image_ids


SOURCES = ("consensus", "ground_truth")
"""Source of a reference box: the members' consensus, or a label."""

DENSE_AGGREGATIONS = ("max", "top_k_mean", "sum")
"""Aggregations of the dense mode's mutual information, over all anchors and classes, into one number an image."""


@dataclass(frozen=True)
class References:
    """Predictions of E members for R reference boxes; boxes of an image are adjacent, its labels first.

    Args:
        image_ids: (R,) int64.
        is_truth: (R,) bool, whether the box is a label, not the members' consensus.
        given: (R, 4) float32, xyxy in pixels, clipped to the image: the reference box.
        boxes: (R, E, 4) float32, the box that each member predicts; may be empty, x1 = x2 or y1 = y2.
        class_probs: (R, E, C + 1) float32, rows sum to 1, background last.

    Raises:
        PredictionError: The columns differ in length, or there is no member or class.
    """

    image_ids: np.ndarray
    is_truth: np.ndarray
    given: np.ndarray
    boxes: np.ndarray
    class_probs: np.ndarray

    def __post_init__(self) -> None:
        r, e, columns = (*self.class_probs.shape, 0, 0, 0)[:3]
        shapes = {"image_ids": (r,), "is_truth": (r,), "given": (r, 4), "boxes": (r, e, 4)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise PredictionError(f"References.{name}: wrong shape (got {getattr(self, name).shape}, not {shape})")
        if self.class_probs.ndim != 3 or e < 1 or columns < 2:
            raise PredictionError(f"References.class_probs: not (R, E, C + 1) (got shape {self.class_probs.shape})")

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def index(self) -> np.ndarray:
        """(R,) int32: the number of each box on its image, from 0."""
        places = np.arange(len(self), dtype=np.int32)
        starts = np.flatnonzero(np.diff(self.image_ids, prepend=self.image_ids[:1] - 1))
        first: np.ndarray = places - np.repeat(places[starts], np.diff(starts, append=len(self)))
        return first


def write_references(path: Location, references: References, image_ids: np.ndarray) -> None:
    """Write a shard of reference boxes atomically, rows sorted by box and then member.

    Args:
        path: The file.
        references: R boxes; may be empty.
        image_ids: (B,) int64, the images of the shard, with or without boxes.
    """
    r, e, columns = references.class_probs.shape

    def repeated(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, e, axis=0)

    sources = pa.DictionaryArray.from_arrays(repeated(references.is_truth).astype(np.int8), list(SOURCES))
    table = {
        "image_id": pa.array(repeated(references.image_ids).astype(np.int64)),
        "reference": pa.array(repeated(references.index)),
        "member": pa.array(np.tile(np.arange(e, dtype=np.int32), r)),
        "source": sources,
        "reference_box": fixed_lists(repeated(references.given).astype(np.float32)),
        "box": fixed_lists(references.boxes.reshape(r * e, 4).astype(np.float32)),
        "class_probs": fixed_lists(references.class_probs.reshape(r * e, columns).astype(np.float32)),
    }
    described = {"image_ids": image_ids.astype(np.int64).tolist(), "num_members": e, "num_classes": columns - 1}
    write_table(path, table, described)


def read_references(path: Location) -> tuple[References, np.ndarray]:
    """Read a shard of reference boxes.

    Returns:
        The predictions, and the (B,) int64 ids of the images that it covers.

    Raises:
        PredictionError: The file is absent, truncated, damaged, or not a shard of reference boxes.
    """
    try:
        table, described = read_table(path)
        e, columns = described["num_members"], described["num_classes"] + 1
        if not np.array_equal(table["member"].to_numpy(), np.tile(np.arange(e), table.num_rows // e)):
            raise ValueError(f"not every box has a row of each of {e} members")
        references = References(
            image_ids=table["image_id"].to_numpy()[::e],
            is_truth=pc.equal(table["source"].cast(pa.string()), SOURCES[1]).to_numpy()[::e],
            given=matrix_of(table["reference_box"], 4)[::e],
            boxes=matrix_of(table["box"], 4).reshape(-1, e, 4),
            class_probs=matrix_of(table["class_probs"], columns).reshape(-1, e, columns),
        )
    except (*DAMAGES, PredictionError) as error:
        raise _damaged(path, "reference boxes", error) from error
    return references, np.asarray(described["image_ids"], np.int64)


def write_dense(path: Location, image_ids: np.ndarray, scores: Mapping[str, np.ndarray]) -> None:
    """Write a shard of dense scores atomically.

    Args:
        path: The file.
        image_ids: (B,) int64.
        scores: (B,) float64 for each name in ``DENSE_AGGREGATIONS``, nats.
    """
    columns = {_column(name): pa.array(scores[name].astype(np.float64)) for name in DENSE_AGGREGATIONS}
    write_table(path, {"image_id": pa.array(image_ids.astype(np.int64)), **columns}, {})


def read_dense(path: Location) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read a shard of dense scores.

    Returns:
        (B,) int64 image_ids, and (B,) float64 for each name in ``DENSE_AGGREGATIONS``.

    Raises:
        PredictionError: The file is absent, truncated, damaged, or not a shard of dense scores.
    """
    try:
        table, _ = read_table(path)
        return table["image_id"].to_numpy(), {name: table[_column(name)].to_numpy() for name in DENSE_AGGREGATIONS}
    except DAMAGES as error:
        raise _damaged(path, "dense scores", error) from error


def _column(aggregation: str) -> str:
    return f"mutual_information_{aggregation}"


def write_embeddings(path: Location, image_ids: np.ndarray, embeddings: np.ndarray) -> None:
    """Write one vector an image atomically, in the given order; equal input gives equal bytes.

    Args:
        path: The file.
        image_ids: (B,) int64, unique.
        embeddings: (B, D) float16, finite, D at least 1, row b for ``image_ids[b]``.

    Raises:
        PredictionError: The columns differ in length, have a wrong shape or dtype, hold NaN or infinity, or an image
            occurs twice.
    """
    _validate(image_ids, embeddings)
    columns = {"image_id": pa.array(image_ids.astype(np.int64)), "embedding": fixed_lists(embeddings)}
    write_table(path, columns, {"num_features": embeddings.shape[1]})


def read_embeddings(path: Location) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of :func:`write_embeddings`.

    Returns:
        (B,) int64 image_ids, and (B, D) float16 embeddings in the same order.

    Raises:
        PredictionError: The file is absent, truncated, damaged, or does not hold embeddings.
    """
    try:
        table, described = read_table(path)
        image_ids: np.ndarray = table["image_id"].to_numpy()
        embeddings = matrix_of(table["embedding"], described["num_features"])
        _validate(image_ids, embeddings)
    except (PredictionError, *DAMAGES) as error:
        raise _damaged(path, "embeddings", error) from error
    return image_ids, embeddings


def _validate(image_ids: np.ndarray, embeddings: np.ndarray) -> None:
    """Check both columns, so that distances between rows are defined."""
    if image_ids.ndim != 1 or image_ids.dtype.kind != "i":
        raise PredictionError(f"image_ids: not (B,) integers (got shape {image_ids.shape} and dtype {image_ids.dtype})")
    b = len(image_ids)
    if embeddings.ndim != 2 or embeddings.shape[0] != b or embeddings.shape[1] < 1 or embeddings.dtype != np.float16:
        raise PredictionError(
            f"embeddings: not float16 of shape ({b}, D), D at least 1 (got {embeddings.dtype} of shape "
            f"{embeddings.shape}). Give one row of `pool_features` an image."
        )
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise PredictionError(
            f"embeddings: NaN or infinity (got {int((~finite).sum())} rows, first image_id {image_ids[~finite][0]}). "
            "Normalise them, or exclude the member that computed them."
        )
    unique, counts = np.unique(image_ids, return_counts=True)
    if (counts > 1).any():
        raise PredictionError(f"image_ids: not unique (got image_id {unique[counts > 1][0]} more than once)")


def _damaged(path: Location, content: str, error: Exception) -> PredictionError:
    return PredictionError(
        f"{path}: damaged, or not a Parquet file of {content} (got {error}). Delete it and run the same command again "
        "to write it again."
    )
