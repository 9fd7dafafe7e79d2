"""The layers of the pictures: labels, consensus and the members' own boxes, of a few images out of large tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from detcurate.parquet import bounded
from detcurate.passes import open_predictions, read_members
from detcurate.pipeline.context import Run
from detcurate.pipeline.score import OBJECTS
from detcurate.report.picks import SUSPICIONS
from detcurate.report.records import DrawnBox, Pool

SIDES = ("x1", "y1", "x2", "y2")
_LEAST_CONFIDENCE, _LEAST_VOTE = 0.3, 0.3
_MOST_CLUSTERS, _MOST_VOTES = 40, 200

Objects = Mapping[int, Sequence[Mapping[str, Any]]]
"""image_id -> its rows of the table of objects."""


def read_objects(run: Run, ids: np.ndarray) -> dict[int, list[dict[str, Any]]]:
    """Read the objects of some images, and no more of the table than the row groups that hold them."""
    path = run.directory("score") / OBJECTS
    if not path.is_file():  # the mode dense keeps no objects
        return {}
    found: dict[int, list[dict[str, Any]]] = {}
    with pq.ParquetFile(bounded(path)) as file:
        wanted = pa.array(ids)
        own = ("image_id", "kind", "annotation_id", *SIDES, "class_index", "confidence", "votes", *SUSPICIONS)
        columns = [name for name in own if name in file.schema_arrow.names]
        for group in range(file.metadata.num_row_groups):
            bounds = file.metadata.row_group(group).column(0).statistics
            if bounds is not None and bounds.has_min_max and not ((ids >= bounds.min) & (ids <= bounds.max)).any():
                continue
            table = file.read_row_group(group, columns=columns)
            table = table.filter(pc.is_in(table["image_id"], wanted))
            for row in table.to_pylist():
                found.setdefault(row["image_id"], []).append(row)
    return found


def read_votes(run: Run, pool: Pool, ids: np.ndarray) -> dict[int, list[DrawnBox]]:
    """Read the members' own boxes on some images; a shard is a block of images of one size, in the order of the ids."""
    directory = run.directory("predict")
    predictions = open_predictions(directory, read_members(directory))
    found: dict[int, list[DrawnBox]] = {}
    if not predictions.passes:  # the mode dense keeps no boxes
        return found
    size = len(predictions.read(0)[1])
    places = np.searchsorted(pool.image_ids, ids) // size
    for index in np.unique(places).tolist():
        detections, _ = predictions.read(int(index))
        rows = np.isin(detections.image_ids, ids) & (detections.scores >= _LEAST_VOTE)
        shown = detections.take(rows)
        for row in np.argsort(-shown.scores, kind="stable").tolist():
            boxes = found.setdefault(int(shown.image_ids[row]), [])
            if len(boxes) < _MOST_VOTES:
                xyxy = tuple(float(side) for side in shown.boxes[row])
                note = f"member {int(shown.member[row])}"
                boxes.append(DrawnBox(xyxy, int(shown.class_index[row]), float(shown.scores[row]), note))  # type: ignore[arg-type]
    return found


def truth_boxes(run: Run, at: int, rows: Sequence[Mapping[str, Any]]) -> tuple[DrawnBox, ...]:
    """Return the labels of the pool's row ``at``, with the votes that the image's objects hold for them."""
    first, last = np.searchsorted(run.pool.image_index, [at, at + 1])
    of_label = {row["annotation_id"]: vote_text(run, row["votes"]) for row in rows if row["kind"] == "ground_truth"}
    boxes = []
    for number in range(int(first), int(last)):
        note = "crowd region" if run.pool.iscrowd[number] else of_label.get(int(run.pool.annotation_ids[number]), "")
        xyxy = tuple(float(side) for side in run.pool.boxes[number])
        boxes.append(DrawnBox(xyxy, int(run.pool.class_index[number]), None, note))  # type: ignore[arg-type]
    return tuple(boxes)


def consensus_boxes(run: Run, rows: Sequence[Mapping[str, Any]]) -> tuple[DrawnBox, ...]:
    """Return the clusters that the members are confident of, the most confident first."""
    clusters = [row for row in rows if row["kind"] == "cluster" and row["confidence"] >= _LEAST_CONFIDENCE]
    clusters.sort(key=lambda row: -row["confidence"])
    return tuple(
        DrawnBox(sides_of(row), row["class_index"], row["confidence"], vote_text(run, row["votes"]))
        for row in clusters[:_MOST_CLUSTERS]
    )


def vote_text(run: Run, votes: Sequence[int]) -> str:
    """Return the members' votes in words, the most frequent first."""
    names = {-1: "no box", len(run.class_names): "background", **dict(enumerate(run.class_names))}
    counted = Counter(names[vote] for vote in votes)
    return ", ".join(f"{name} {count}" for name, count in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))


def sides_of(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return an object's box, xyxy px."""
    x1, y1, x2, y2 = (float(row[side]) for side in SIDES)
    return x1, y1, x2, y2
