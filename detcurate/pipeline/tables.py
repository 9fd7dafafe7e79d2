"""``score/objects.parquet``: one row a cluster of the members' detections, and one a ground-truth box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detcurate.errors import PredictionError
from detcurate.io.files import atomic_path
from detcurate.io.parquet import fixed_lists, readable, require_bounded
from detcurate.io.storage import Location
from detcurate.legacy import COLUMNS, renamed
from detcurate.pipeline.context import Run
from detcurate.score.label_errors import LABEL_ERRORS
from detcurate.score.measures import LABEL_MEASURES, MEASURES
from detcurate.structures import ObjectScores, Selection

KINDS = ("cluster", "ground_truth")
_SIDES = ("x1", "y1", "x2", "y2")


def object_schema(class_names: Sequence[str], measures: Sequence[str], num_members: int) -> pa.Schema:
    """Return the columns; docs/explanation/scoring.md says what they mean."""
    return _empty_table(class_names, measures, num_members).schema


def object_table(clusters: ObjectScores, labels: ObjectScores, class_names: Sequence[str]) -> pa.Table:
    """Return the rows of some images, by image and clusters first; what a row cannot have is null."""
    order = np.argsort(np.concatenate((clusters.image_ids, labels.image_ids)), kind="stable")
    is_label = np.repeat([False, True], [len(clusters), len(labels)])
    columns = _columns(ObjectScores.concatenate([_without_measures(part) for part in (clusters, labels)]), class_names)
    columns["kind"] = _named(is_label, KINDS)
    for name in (*MEASURES, *LABEL_MEASURES, *LABEL_ERRORS):
        if name in clusters.measures or name in labels.measures:
            owner, has_value = (labels, is_label) if name in labels.measures else (clusters, ~is_label)
            values = np.zeros(len(order), np.float32)
            values[has_value] = owner.measures[name]
            columns[name] = pa.array(values, mask=~has_value)
    return pa.table(columns).take(order)


def reference_table(objects: ObjectScores, is_truth: np.ndarray, class_names: Sequence[str]) -> pa.Table:
    """Return the rows of the mode ``reference``: every box, labelled or not, has the measures of disagreement."""
    columns = _columns(objects, class_names)
    columns["kind"] = _named(is_truth, KINDS)
    return pa.table(columns | {name: pa.array(values.astype(np.float32)) for name, values in objects.measures.items()})


def _columns(objects: ObjectScores, class_names: Sequence[str]) -> dict[str, pa.Array]:
    return {
        "image_id": pa.array(objects.image_ids),
        "kind": None,  # its place; the caller knows
        "annotation_id": pa.array(objects.annotation_ids, mask=objects.annotation_ids < 0),
        **{side: pa.array(objects.boxes[:, axis].astype(np.float32)) for axis, side in enumerate(_SIDES)},
        "class_index": pa.array(objects.class_index),
        "class_name": _named(objects.class_index, class_names),
        "confidence": pa.array(objects.confidence.astype(np.float32)),
        "num_fired": pa.array(objects.num_fired.astype(np.int32)),
        "votes": fixed_lists(objects.votes),
    }


def _without_measures(objects: ObjectScores) -> ObjectScores:
    return replace(objects, measures={}, consensus_boxes=None)


def _named(codes: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(list(names), pa.string()))


def _empty_table(class_names: Sequence[str], measures: Sequence[str], num_members: int) -> pa.Table:
    def nothing(names: Sequence[str]) -> ObjectScores:
        return ObjectScores(
            image_ids=np.zeros(0, np.int64),
            boxes=np.zeros((0, 4), np.float32),
            num_fired=np.zeros(0, np.int64),
            class_index=np.zeros(0, np.int32),
            confidence=np.zeros(0),
            votes=np.zeros((0, num_members), np.int16),
            annotation_ids=np.zeros(0, np.int64),
            measures={name: np.zeros(0) for name in names},
        )

    clusters = nothing([*(name for name in measures if name in MEASURES), "missing_label"])
    labels = nothing([*(name for name in measures if name in LABEL_MEASURES), "wrong_class", "inaccurate_box"])
    return object_table(clusters, labels, class_names)


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
        known = None
        if names is not None:
            known = [name for name in pq.read_schema(readable(path)).names if COLUMNS.get(name, name) in names]
        table = pq.read_table(readable(path), partitioning=None, columns=known)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PredictionError(
            f"a table must be a whole Parquet file ({path}): {error}; delete it and run again"
        ) from error
    return {renamed(name): table[name].to_numpy() for name in table.column_names}


SELECTION, REMOVED, RELABEL = "selection.parquet", "removed.parquet", "relabel.parquet"


def read_selection(run: Run) -> Selection:
    """Read ``select/selection.parquet``.

    Raises:
        PredictionError: The stage ``select`` has not finished.
    """
    run.stage_metadata("select")
    table = read_columns(run.directory("select") / SELECTION)
    return Selection(table["image_id"], tuple(table["reason"].tolist()))
