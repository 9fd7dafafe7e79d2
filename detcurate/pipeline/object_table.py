"""``scores/objects.parquet``: one row a cluster of the members' detections, and one a ground-truth box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from detcurate.parquet import fixed_lists
from detcurate.score.measures import LABEL_MEASURES, MEASURES
from detcurate.score.suspicion import SUSPICIONS
from detcurate.structures import ObjectScores

KINDS = ("cluster", "ground_truth")
_SIDES = ("x1", "y1", "x2", "y2")


def object_schema(class_names: Sequence[str], measures: Sequence[str], num_members: int) -> pa.Schema:
    """Return the columns; docs/scoring.md says what they mean."""
    return _empty_table(class_names, measures, num_members).schema


def object_table(
    clusters: ObjectScores, labels: ObjectScores, class_names: Sequence[str], measures: Sequence[str]
) -> pa.Table:
    """Return the rows of some images, by image and clusters first; what a row cannot have is null."""
    image_ids = np.concatenate((clusters.image_ids, labels.image_ids))
    order = np.argsort(image_ids, kind="stable")
    is_label = np.repeat([False, True], [len(clusters), len(labels)])[order]

    def joined(name: str) -> np.ndarray:
        column: np.ndarray = np.concatenate((getattr(clusters, name), getattr(labels, name)))[order]
        return column

    annotation_ids, class_index, boxes = joined("annotation_ids"), joined("class_index"), joined("boxes")
    columns = {
        "image_id": pa.array(image_ids[order]),
        "kind": _named(is_label.astype(np.int32), KINDS),
        "annotation_id": pa.array(annotation_ids, mask=annotation_ids < 0),
        **{side: pa.array(boxes[:, axis].astype(np.float32)) for axis, side in enumerate(_SIDES)},
        "class_index": pa.array(class_index),
        "class_name": _named(class_index, class_names),
        "confidence": pa.array(joined("confidence").astype(np.float32)),
        "num_fired": pa.array(joined("num_fired").astype(np.int32)),
        "votes": fixed_lists(joined("votes")),
    }
    for name in (*measures, *SUSPICIONS):
        values = np.zeros(len(order), np.float32)
        owner = labels if name in LABEL_MEASURES or name in labels.measures else clusters
        has_value = is_label == (owner is labels)
        values[has_value] = owner.measures[name][_rank_in_owner(order, has_value, owner is labels, len(clusters))]
        columns[name] = pa.array(values, mask=~has_value)
    return pa.table(columns)


def _rank_in_owner(order: np.ndarray, has_value: np.ndarray, is_label: bool, num_clusters: int) -> np.ndarray:
    rows: np.ndarray = order[has_value] - (num_clusters if is_label else 0)
    return rows


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

    clusters = nothing([*(name for name in measures if name in MEASURES), "overlooked"])
    labels = nothing([*(name for name in measures if name in LABEL_MEASURES), "swapped", "badly_located"])
    return object_table(clusters, labels, class_names, measures)
