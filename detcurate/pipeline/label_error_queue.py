"""The relabel queue: the rows of ``score/objects.parquet`` with the highest label-error scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detcurate.coco.dataset import CocoDataset
from detcurate.errors import PredictionError
from detcurate.interop.export.relabel_queue import LABEL_ERROR_KINDS, RELABEL_FILE, LabelError, write_queue
from detcurate.pipeline.context import Run
from detcurate.pipeline.object_table import SCORED, ObjectsTable, object_scores
from detcurate.pipeline.stage import output_digest
from detcurate.score.label_errors import corrections
from detcurate.structures import ObjectScores


@dataclass(frozen=True)
class WorstRows:
    """The K rows with the highest label-error scores, highest first; a row with two kinds stands twice.

    Args:
        kind: (K,) int64, the place in ``LABEL_ERROR_KINDS``.
        label_error_score: (K,) float64 in (0, 1].
        rows: K rows of the table of objects.
        found: Kind -> the number of rows in the whole table with a score above 0.
    """

    kind: np.ndarray
    label_error_score: np.ndarray
    rows: pa.Table
    found: Mapping[str, int]


def write_relabel(run: Run, selected_ids: np.ndarray) -> tuple[Path, dict[str, int]] | None:
    """Write ``manifest/relabel.json`` and return it with the number of listed label errors of each kind.

    Args:
        run: The run, scored.
        selected_ids: (K,) int64, the images of the subset.

    Returns:
        None if ``RELABEL_LIMIT`` is 0 or the pool was scored in a mode without label-error scores.
    """
    objects, limit = ObjectsTable.within(run.directory("score")), run.settings.manifest.relabel_limit
    if not limit or not objects.has_label_errors():
        return None
    label_errors, found = find_label_errors(objects, run.pool, limit=limit, selected_ids=selected_ids)
    listed = Counter(label_error.kind for label_error in label_errors)
    counts = {kind: listed[kind] for kind in LABEL_ERROR_KINDS}
    header = {
        "source": {"file_name": run.pool.path.name, "sha256": run.pool.sha256},
        "scores_sha256": output_digest(run.stage_metadata("score")),
        "limit": limit,
        "found": dict(found),
        "listed": counts,
    }
    path = run.directory("manifest") / (RELABEL_FILE + (".gz" if run.settings.manifest.compress else ""))
    write_queue(path, run.pool, label_errors, header)
    return path, counts


def find_label_errors(
    objects: ObjectsTable, dataset: CocoDataset, *, limit: int, selected_ids: np.ndarray
) -> tuple[list[LabelError], Mapping[str, int]]:
    """Return the rows with the highest label-error scores, each with the correction that the consensus proposes.

    A wrong class for which no member votes is omitted: there is no correction to propose.

    Args:
        objects: The table of the pool's objects.
        dataset: The pool that was scored.
        limit: The most rows, at least 1.
        selected_ids: (K,) int64, the images of the subset.

    Returns:
        The label errors, highest score first, ties by ``image_id`` and place in the table; and the number of rows of
        each kind in the whole table.

    Raises:
        PredictionError: The table cannot be read, or belongs to another pool.
    """
    worst = worst_rows(objects, limit=limit)
    if not len(worst.kind):
        return [], worst.found
    suspects = object_scores(worst.rows)
    proposed = corrections(suspects, worst.kind, num_classes=len(dataset.class_names))
    image_rows = _image_rows(objects, dataset, suspects.image_ids)
    is_missing = worst.kind == LABEL_ERROR_KINDS.index("missing_label")
    label_rows = _label_rows(objects, dataset, suspects, image_rows, ~is_missing)
    sizes = np.column_stack((dataset.widths, dataset.heights))[image_rows]
    boxes = proposed.boxes.clip(0, np.tile(sizes, 2))
    selected = np.isin(suspects.image_ids, selected_ids)
    label_errors = []
    for row in np.flatnonzero(proposed.class_index >= 0).tolist():
        x1, y1, x2, y2 = boxes[row].tolist()
        label_errors.append(
            LabelError(
                kind=LABEL_ERROR_KINDS[worst.kind[row]],
                label_error_score=float(worst.label_error_score[row]),
                image_row=int(image_rows[row]),
                label_row=int(label_rows[row]),
                box=(x1, y1, x2, y2),
                class_index=int(proposed.class_index[row]),
                score=float(proposed.score[row]),
                num_votes=int(proposed.num_votes[row]),
                num_members=suspects.votes.shape[1],
                is_selected=bool(selected[row]),
            )
        )
    return label_errors, worst.found


def worst_rows(objects: ObjectsTable, *, limit: int) -> WorstRows:
    """Return the rows with the highest label-error scores; the table is read once, a batch at a time."""
    parts: list[tuple[np.ndarray, ...]] = []
    tables: list[pa.Table] = []
    found = dict.fromkeys(LABEL_ERROR_KINDS, 0)
    first_row = num_kept = 0
    for batch in objects.batches(SCORED):
        places, image_ids = np.zeros(0, np.int64), batch["image_id"].to_numpy()
        for code, kind in enumerate(LABEL_ERROR_KINDS):
            values = pc.fill_null(batch[kind], 0).to_numpy().astype(np.float64)
            rows = np.flatnonzero(values > 0)
            found[kind] += len(rows)
            best = rows[np.argsort(-values[rows], kind="stable")[:limit]]
            places = np.append(places, best)
            parts.append((np.full(len(best), code), values[best], image_ids[best], first_row + best))
        tables.append(batch.take(pa.array(places)))
        num_kept += len(places)
        first_row += batch.num_rows
        if num_kept > 4 * limit:
            parts, tables = _worst(parts, tables, limit)
            num_kept = len(parts[0][0])
    if not tables:
        return WorstRows(np.zeros(0, np.int64), np.zeros(0), pa.table({}), found)
    [(kind_codes, scores, _, _)], [table] = _worst(parts, tables, limit)
    return WorstRows(kind_codes, scores, table, found)


def _worst(
    parts: Sequence[tuple[np.ndarray, ...]], tables: Sequence[pa.Table], limit: int
) -> tuple[list[tuple[np.ndarray, ...]], list[pa.Table]]:
    """Return one part and one table with the ``limit`` highest scores, ties by image, place and kind."""
    kind, score, image_ids, places = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((kind, places, image_ids, -score))[:limit]
    table = pa.concat_tables(tables).take(pa.array(order)).combine_chunks()
    return [(kind[order], score[order], image_ids[order], places[order])], [table]


def _image_rows(objects: ObjectsTable, dataset: CocoDataset, image_ids: np.ndarray) -> np.ndarray:
    unknown = image_ids[~np.isin(image_ids, dataset.image_ids)]
    if len(unknown):
        raise PredictionError(
            f"{objects.path}: belongs to another pool than {dataset.path} (got image_id {unknown[0]}). "
            "Run the stage score again."
        )
    unique, inverse = np.unique(image_ids, return_inverse=True)
    rows: np.ndarray = dataset.subset_rows(unique)[inverse]
    return rows


def _label_rows(
    objects: ObjectsTable, dataset: CocoDataset, suspects: ObjectScores, image_rows: np.ndarray, is_label: np.ndarray
) -> np.ndarray:
    """Return the row of each label in the dataset, -1 for clusters; labels with equal ids differ by class and box."""
    rows = np.full(len(suspects), -1)
    bounds = np.searchsorted(dataset.image_index, np.column_stack((image_rows, image_rows + 1)))
    for at in np.flatnonzero(is_label).tolist():
        of_image = np.arange(*bounds[at])
        same = (dataset.annotation_ids[of_image] == suspects.annotation_ids[at]) & ~dataset.iscrowd[of_image]
        same &= dataset.class_index[of_image] == suspects.class_index[at]
        same &= (dataset.boxes[of_image].astype(np.float32) == suspects.boxes[at]).all(axis=1)
        if not same.any():
            raise PredictionError(
                f"{objects.path}: belongs to other labels than {dataset.path} (got annotation_id "
                f"{suspects.annotation_ids[at]} on image_id {suspects.image_ids[at]}). Run the stage score again."
            )
        rows[at] = of_image[same][0]
    return rows
