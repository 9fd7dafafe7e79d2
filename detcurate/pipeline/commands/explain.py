"""``detcurate explain``: the objects, scores, selection and neighbours of one image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from detcurate.errors import PredictionError, SelectionError
from detcurate.pipeline.context import Run
from detcurate.pipeline.image_similarity import read_pool_embeddings
from detcurate.pipeline.object_table import SIDES, ObjectsTable
from detcurate.pipeline.tables import RemovedTable, SelectionTable, read_scores
from detcurate.score.label_errors import LABEL_ERRORS
from detcurate.score.measures import LABEL_MEASURES, MEASURES
from detcurate.select.neighbours import unit_rows
from detcurate.structures import ImageScores

_MOST_NEIGHBOURS = 5


def explain_image(run: Run, name: str) -> dict[str, Any]:
    """Return the results of the stages up to ``select`` for one image.

    Args:
        run: The run; ``score`` must have finished.
        name: The image's id as in the annotation file.

    Returns:
        A JSON-able dict: ``image``, ``scores`` (each with value and rank in the pool), ``selection`` (None before the
        stage ``select``), ``objects`` (None in the mode ``dense``), ``neighbours``.

    Raises:
        SelectionError: The image is not in the pool, or is quarantined.
        PredictionError: The pool is not scored.
    """
    run.stage_metadata("score")
    scores = read_scores(run)
    row, at = _find(run, name, scores)
    decisions = _decisions(run)
    return {
        "image": _record(run, row),
        "scores": _ranked(scores, at),
        "selection": None if decisions is None else decisions[int(scores.image_ids[at])],
        "objects": _objects(run, int(scores.image_ids[at])),
        "neighbours": [
            {**_record(run, other), **found, **_decision_of(run, decisions, other)}
            for other, found in (*_same_sequence(run, row), *_similar_images(run, row, scores))
        ],
    }


def _find(run: Run, name: str, scores: ImageScores) -> tuple[int, int]:
    """Return the image's row in the pool and in the scores."""
    texts = {text: number for number, text in run.pool.text_ids.items()}
    number = texts.get(name)
    if number is None and name.isascii() and name.removeprefix("-").isdigit() and int(name) not in run.pool.text_ids:
        number = int(name)
    rows = np.zeros(0, np.int64) if number is None else np.flatnonzero(run.pool.image_ids == number)
    if not len(rows):
        raise SelectionError(f"IMAGE_ID: not an image of {run.pool.path} (got {name!r}). Pass an `id` of that file.")
    row = int(rows[0])
    at = int(np.searchsorted(scores.image_ids, run.pool.image_ids[row]))
    if at == len(scores) or scores.image_ids[at] != run.pool.image_ids[row]:
        raise SelectionError(f"IMAGE_ID: the image is quarantined and has no scores (got {name!r}).")
    return row, at


def _record(run: Run, row: int) -> dict[str, Any]:
    frame = int(run.pool.frame_index[row])
    return {
        "image_id": run.pool.original_id(row),
        "file_name": run.pool.file_names[row],
        "sequence": run.pool.sequences[row],
        "frame_index": None if frame < 0 else frame,
        "num_boxes": int(run.pool.boxes_per_image[row]),
    }


def _ranked(scores: ImageScores, at: int) -> dict[str, dict[str, float | int]]:
    """Return value and rank of each column, the highest value first; equal values share the best rank."""
    columns = {"image_score": scores.image_score, **scores.components}
    return {
        name: {"value": column[at].item(), "rank": 1 + int((column > column[at]).sum()), "of": len(scores)}
        for name, column in columns.items()
    }


def _decisions(run: Run) -> dict[int, dict[str, Any]] | None:
    """Return rank, reason and replacement of each image by id; None if the stage ``select`` has not finished."""
    try:
        run.stage_metadata("select")
    except PredictionError:
        return None
    taken, removed = SelectionTable.of(run).read(), RemovedTable.of(run).read()
    found: dict[int, dict[str, Any]] = {
        image_id: {"rank": rank, "reason": reason, "replaced_by": None}
        for image_id, rank, reason in zip(
            taken["image_id"].tolist(), taken["rank"].tolist(), taken["reason"].tolist(), strict=True
        )
    }
    for image_id, reason, replaced_by in zip(
        removed["image_id"].tolist(), removed["reason"].tolist(), removed["replaced_by"].tolist(), strict=True
    ):
        replacement = None if np.isnan(replaced_by) else _original_id(run, int(replaced_by))
        found[image_id] = {"rank": None, "reason": reason, "replaced_by": replacement}
    return found


def _decision_of(run: Run, decisions: Mapping[int, dict[str, Any]] | None, row: int) -> dict[str, Any]:
    unknown = {"rank": None, "reason": None}
    found = (decisions or {}).get(int(run.pool.image_ids[row]), unknown)
    return {name: found[name] for name in unknown}


def _original_id(run: Run, image_id: int) -> int | str:
    return run.pool.text_ids.get(image_id, image_id)


def _objects(run: Run, image_id: int) -> list[dict[str, Any]] | None:
    if ObjectsTable.FILE not in run.stage_metadata("score")["outputs"]:  # the mode dense has none
        return None
    rows = ObjectsTable.of(run).rows(np.array([image_id]))
    return [_object(row, run.class_names) for row in rows.to_pylist()]


def _object(row: dict[str, Any], class_names: tuple[str, ...]) -> dict[str, Any]:
    names = {-1: "missed", len(class_names): "background", **dict(enumerate(class_names))}
    votes: dict[str, int] = {}
    for vote in row["votes"]:
        votes[names[vote]] = votes.get(names[vote], 0) + 1
    own = ("kind", "annotation_id", "class_name", "confidence", "num_fired")
    measures = (*MEASURES, *LABEL_MEASURES, *LABEL_ERRORS)
    return {
        **{name: row[name] for name in own},
        "bbox_xyxy": [row[side] for side in SIDES],
        "votes": dict(sorted(votes.items(), key=lambda pair: (-pair[1], pair[0]))),
        "measures": {name: row[name] for name in measures if row.get(name) is not None},
    }


def _same_sequence(run: Run, row: int) -> list[tuple[int, dict[str, Any]]]:
    """Return the nearest frames of the same sequence with their distances."""
    sequence, frame = run.pool.sequences[row], int(run.pool.frame_index[row])
    if sequence is None or frame < 0:
        return []
    same = np.array([name == sequence for name in run.pool.sequences]) & (run.pool.frame_index >= 0)
    same[row] = False
    rows = np.flatnonzero(same)
    distance = run.pool.frame_index[rows] - frame
    nearest = np.lexsort((rows, np.abs(distance)))[:_MOST_NEIGHBOURS]
    return [(int(rows[at]), {"by": "sequence", "distance": int(distance[at])}) for at in nearest]


def _similar_images(run: Run, row: int, scores: ImageScores) -> list[tuple[int, dict[str, Any]]]:
    """Return the images with the most similar embeddings and their cosines; none without embeddings."""
    embeddings = read_pool_embeddings(run, scores.image_ids)
    if embeddings is None:
        return []
    units = unit_rows(embeddings)
    at = int(np.searchsorted(scores.image_ids, run.pool.image_ids[row]))
    cosines = units @ units[at]
    cosines[at] = -np.inf
    nearest = np.lexsort((scores.image_ids, -cosines))[: min(_MOST_NEIGHBOURS, len(scores) - 1)]
    rows = run.pool.subset_rows(scores.image_ids[nearest])
    return [
        (int(other), {"by": "embedding", "distance": round(float(cosines[index]), 4)})
        for other, index in zip(rows.tolist(), nearest.tolist(), strict=True)
    ]
