"""``score/objects.parquet``: one row a cluster of the members' detections, and one a labelled box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detcurate.io.parquet import fixed_lists, matrix_of
from detcurate.pipeline.tables import IMAGE_ID, Column, Table, measure_columns
from detcurate.score.label_errors import LABEL_ERROR_MEANINGS, LABEL_ERRORS
from detcurate.score.measures import LABEL_MEASURES, MEASURES
from detcurate.structures import ObjectScores

CLUSTER, GROUND_TRUTH = "cluster", "ground_truth"
KINDS = (CLUSTER, GROUND_TRUTH)
SIDES = ("x1", "y1", "x2", "y2")
_CONSENSUS_SIDES = tuple(f"consensus_{side}" for side in SIDES)
_CONSENSUS = (*_CONSENSUS_SIDES, "consensus_class", "consensus_confidence", "consensus_votes")
SCORED = (
    IMAGE_ID,
    "annotation_id",
    *SIDES,
    "class_index",
    "confidence",
    "num_fired",
    "votes",
    *_CONSENSUS,
    *LABEL_ERRORS,
)
"""The columns that :func:`object_scores` reads."""

_NAMES = pa.dictionary(pa.int32(), pa.string())


class ObjectsTable(Table):
    """``score/objects.parquet``: one row an object, by image; clusters stand before labels. Absent in mode ``dense``.

    A column is null on rows that cannot have a value: measures of disagreement on labels, label measures on clusters,
    and the consensus where no cluster overlaps the label.
    """

    STAGE, FILE = "score", "objects.parquet"
    COLUMNS = (
        Column(IMAGE_ID, pa.int64(), "The image's id in the annotation file; ascending."),
        Column("kind", _NAMES, "`cluster` for detections of the members, `ground_truth` for a labelled box."),
        Column("annotation_id", pa.int64(), "The label; on a cluster the label that it overlaps most, or null."),
        Column("x1", pa.float32(), "Left side in pixels: of a cluster's mean box, or of the label."),
        Column("y1", pa.float32(), "Top side, likewise."),
        Column("x2", pa.float32(), "Right side, likewise."),
        Column("y2", pa.float32(), "Bottom side, likewise."),
        Column("class_index", pa.int32(), "The label's class, or the most probable class of the consensus, from 0."),
        Column("class_name", _NAMES, "The name of that class."),
        Column("confidence", pa.float32(), "The consensus probability of that class, in [0, 1]."),
        Column("num_fired", pa.int32(), "Members that detected the object."),
        Column("votes", pa.list_(pa.int16()), "Most probable class of each member; C is background, -1 no detection."),
        *(
            Column(name, pa.float32(), f"{text} side of the cluster that is compared with a label.", is_optional=True)
            for name, text in zip(_CONSENSUS_SIDES, ("Left", "Top", "Right", "Bottom"), strict=True)
        ),
        Column("consensus_class", pa.int32(), "The most probable class of that cluster.", is_optional=True),
        Column("consensus_confidence", pa.float32(), "The consensus probability of that class.", is_optional=True),
        Column(
            "consensus_votes",
            pa.int32(),
            "Number of members with that class as the most probable one.",
            is_optional=True,
        ),
        *measure_columns({**MEASURES, **LABEL_MEASURES}, pa.float32()),
        *(Column(name, pa.float32(), meaning, is_optional=True) for name, meaning in LABEL_ERROR_MEANINGS.items()),
    )

    def has_label_errors(self) -> bool:
        """Whether the file exists and has label-error scores, which only the mode ``cluster`` gives."""
        return self.exists() and set(LABEL_ERRORS) <= set(self.names())


def object_schema(class_names: Sequence[str], measures: Sequence[str], num_members: int) -> pa.Schema:
    """Return the schema of the table in the mode ``cluster``."""

    def nothing(names: Sequence[str], **consensus: Any) -> ObjectScores:
        return ObjectScores(
            image_ids=np.zeros(0, np.int64),
            boxes=np.zeros((0, 4), np.float32),
            num_fired=np.zeros(0, np.int64),
            class_index=np.zeros(0, np.int32),
            confidence=np.zeros(0),
            votes=np.zeros((0, num_members), np.int16),
            annotation_ids=np.zeros(0, np.int64),
            measures={name: np.zeros(0) for name in names},
            **consensus,
        )

    clusters = nothing([*(name for name in measures if name in MEASURES), "missing_label"])
    labels = nothing(
        [*(name for name in measures if name in LABEL_MEASURES), "wrong_class", "inaccurate_box"],
        consensus_boxes=np.zeros((0, 4), np.float32),
        consensus_class=np.zeros(0, np.int32),
        consensus_confidence=np.zeros(0),
        consensus_votes=np.zeros(0, np.int32),
    )
    return object_table(clusters, labels, class_names).schema


def object_table(clusters: ObjectScores, labels: ObjectScores, class_names: Sequence[str]) -> pa.Table:
    """Return the rows of some images in the mode ``cluster``, by image and clusters first.

    Args:
        clusters: G clusters of detections.
        labels: J labels, with their consensus.
        class_names: C texts.
    """
    order = np.argsort(np.concatenate((clusters.image_ids, labels.image_ids)), kind="stable")
    is_label = np.repeat([False, True], [len(clusters), len(labels)])
    columns = _own_columns(clusters, labels, class_names)
    columns["kind"] = _named(is_label, KINDS)
    columns |= _consensus_columns(len(clusters), labels)
    for name in (*MEASURES, *LABEL_MEASURES, *LABEL_ERRORS):
        if name in clusters.measures or name in labels.measures:
            owner, has_value = (labels, is_label) if name in labels.measures else (clusters, ~is_label)
            values = np.zeros(len(order), np.float32)
            values[has_value] = owner.measures[name]
            columns[name] = pa.array(values, mask=~has_value)
    return pa.table(columns).take(order)


def reference_table(objects: ObjectScores, is_truth: np.ndarray, class_names: Sequence[str]) -> pa.Table:
    """Return the rows of the mode ``reference``: every box, labelled or not, has the measures of disagreement."""
    columns = _own_columns(objects, None, class_names)
    columns["kind"] = _named(is_truth, KINDS)
    return pa.table(columns | {name: pa.array(values.astype(np.float32)) for name, values in objects.measures.items()})


def object_scores(rows: pa.Table) -> ObjectScores:
    """Return rows of the mode ``cluster`` as they were scored, with the label-error scores as measures.

    A label-error score that a row cannot have is 0. A cluster, and a label without one, has its own box as the
    consensus and the class -1.
    """
    votes = rows["votes"]
    boxes = np.column_stack([rows[side].to_numpy() for side in SIDES]).reshape(-1, 4)
    consensus = np.column_stack([_filled(rows[name], np.nan) for name in _CONSENSUS_SIDES]).reshape(-1, 4)
    return ObjectScores(
        image_ids=rows[IMAGE_ID].to_numpy(),
        boxes=boxes,
        num_fired=rows["num_fired"].to_numpy().astype(np.int64),
        class_index=rows["class_index"].to_numpy(),
        confidence=rows["confidence"].to_numpy().astype(np.float64),
        votes=matrix_of(votes, votes.type.list_size),
        annotation_ids=_filled(rows["annotation_id"], -1),
        measures={name: _filled(rows[name], 0).astype(np.float64) for name in LABEL_ERRORS},
        consensus_boxes=np.where(np.isnan(consensus), boxes, consensus),
        consensus_class=_filled(rows["consensus_class"], -1),
        consensus_confidence=_filled(rows["consensus_confidence"], 0).astype(np.float64),
        consensus_votes=_filled(rows["consensus_votes"], 0),
    )


def _filled(column: pa.ChunkedArray, value: float) -> np.ndarray:
    filled: np.ndarray = pc.fill_null(column, value).to_numpy()
    return filled


def _own_columns(objects: ObjectScores, others: ObjectScores | None, class_names: Sequence[str]) -> dict[str, pa.Array]:
    parts = [objects] if others is None else [objects, others]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    annotation_ids, boxes, class_index = joined("annotation_ids"), joined("boxes"), joined("class_index")
    return {
        IMAGE_ID: pa.array(joined("image_ids")),
        "kind": None,  # keeps its place; the caller sets it
        "annotation_id": pa.array(annotation_ids, mask=annotation_ids < 0),
        **{side: pa.array(boxes[:, axis].astype(np.float32)) for axis, side in enumerate(SIDES)},
        "class_index": pa.array(class_index),
        "class_name": _named(class_index, class_names),
        "confidence": pa.array(joined("confidence").astype(np.float32)),
        "num_fired": pa.array(joined("num_fired").astype(np.int32)),
        "votes": fixed_lists(joined("votes")),
    }


def _consensus_columns(num_clusters: int, labels: ObjectScores) -> dict[str, pa.Array]:
    """Return the columns of the consensus: null on the clusters' rows and on labels that no cluster overlaps."""
    if labels.consensus_boxes is None:
        return {}
    has_none = np.append(np.ones(num_clusters, np.bool_), np.asarray(labels.consensus_class) < 0)

    def column(values: Any, dtype: type) -> pa.Array:
        return pa.array(np.append(np.zeros(num_clusters, dtype), np.asarray(values).astype(dtype)), mask=has_none)

    sides = zip(_CONSENSUS_SIDES, labels.consensus_boxes.T, strict=True)
    return {
        **{name: column(values, np.float32) for name, values in sides},
        "consensus_class": column(labels.consensus_class, np.int32),
        "consensus_confidence": column(labels.consensus_confidence, np.float32),
        "consensus_votes": column(labels.consensus_votes, np.int32),
    }


def _named(codes: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(list(names), pa.string()))
