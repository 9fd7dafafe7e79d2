"""The relabel queue of a run: the worst suspicions of ``score/objects.parquet``, with what the members see there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from detcurate.coco.dataset import CocoDataset
from detcurate.interop.export.relabel_queue import LABEL_ERROR_KINDS, RELABEL_FILE, LabelError, write_queue
from detcurate.io.storage import Location
from detcurate.pipeline.context import Run
from detcurate.pipeline.places import Places, batches, opened
from detcurate.pipeline.stage import output_digest
from detcurate.pipeline.stages.score import OBJECTS


@dataclass(frozen=True)
class Worst:
    """The most suspicious rows of the table of objects, worst first.

    Args:
        kind: (K,) int64, which of ``LABEL_ERROR_KINDS``.
        label_error_score: (K,) float64 in (0, 1].
        image_ids: (K,) int64.
        table_row: (K,) int64, the row in the table of objects.
        found: Kind -> how many rows of the whole table have any such suspicion.
    """

    kind: np.ndarray
    label_error_score: np.ndarray
    image_ids: np.ndarray
    table_row: np.ndarray
    found: Mapping[str, int]


def write_relabel(run: Run, selected_ids: np.ndarray) -> tuple[Path, dict[str, int]] | None:
    """Write ``manifest/relabel.json`` and return it with the number of suspicions of each kind.

    Args:
        run: The run, scored.
        selected_ids: (K,) int64, the images of the subset.

    Returns:
        None where no queue is asked for, or the scores have no suspicions: they were made in another mode than
        ``cluster``.
    """
    objects, limit = run.directory("score") / OBJECTS, run.settings.manifest.relabel_limit
    if not limit or not has_label_errors(objects):
        return None
    threshold = run.stage_metadata("score")["settings"].get("iou_threshold", run.settings.score.iou_threshold)
    label_errors, found = find_label_errors(
        objects, run.pool, limit=limit, iou_threshold=threshold, selected_ids=selected_ids
    )
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


def has_label_errors(objects: Location) -> bool:
    """Tell whether a table of objects is there and has the columns of suspicion."""
    if not objects.is_file():
        return False
    with opened(objects) as table:
        return set(LABEL_ERROR_KINDS) <= set(table.schema_arrow.names)


def find_label_errors(
    objects: Location, dataset: CocoDataset, *, limit: int, iou_threshold: float, selected_ids: np.ndarray
) -> tuple[list[LabelError], Mapping[str, int]]:
    """Find the worst suspicions and what the consensus says in each place.

    The table is read twice, a batch at a time: for the worst rows, then for all rows of their images. A swap for which
    no member votes is left out: there is nothing to tell an annotator.

    Args:
        objects: ``score/objects.parquet``.
        dataset: The pool that was scored.
        limit: At most so many, at least 1.
        iou_threshold: That of the association.
        selected_ids: (K,) int64, the images of the subset.

    Returns:
        The suspicions, worst first, ties by ``image_id`` and place in the table; how many each kind has in the table.

    Raises:
        PredictionError: The table cannot be read, or is about another pool.
    """
    worst = worst_rows(objects, limit=limit)
    places = Places.read(objects, dataset, np.unique(worst.image_ids), iou_threshold)
    selected = np.isin(worst.image_ids, selected_ids)
    label_errors = (
        places.label_error(
            LABEL_ERROR_KINDS[worst.kind[k]], float(worst.label_error_score[k]), int(worst.table_row[k]), selected[k]
        )
        for k in range(len(worst.kind))
    )
    return [label_error for label_error in label_errors if label_error is not None], worst.found


def worst_rows(objects: Location, *, limit: int) -> Worst:
    """Return the rows with the greatest suspicions, a row with two kinds twice; no suspicion gives none."""
    kept: list[tuple[np.ndarray, ...]] = []
    found = dict.fromkeys(LABEL_ERROR_KINDS, 0)
    row = waiting = 0
    for batch in batches(objects, ("image_id", *LABEL_ERROR_KINDS)):
        image_ids = batch["image_id"].to_numpy()
        for code, kind in enumerate(LABEL_ERROR_KINDS):
            values = pc.fill_null(batch[kind], 0).to_numpy(zero_copy_only=False).astype(np.float64)
            rows = np.flatnonzero(values > 0)
            found[kind] += len(rows)
            if len(rows):
                best = rows[np.argsort(-values[rows], kind="stable")[:limit]]
                kept.append((np.full(len(best), code), values[best], image_ids[best], row + best))
                waiting += len(best)
        row += batch.num_rows
        if waiting > 4 * limit:
            kept = [_first(kept, limit)]
            waiting = len(kept[0][0])
    kind_codes, label_error_score, rows_of_images, table_rows = _first(kept, limit)
    return Worst(kind_codes, label_error_score, rows_of_images, table_rows, found)


def _first(parts: Sequence[tuple[np.ndarray, ...]], limit: int) -> tuple[np.ndarray, ...]:
    if not parts:
        return (np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    kind, label_error_score, image_ids, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((kind, rows, image_ids, -label_error_score))[:limit]
    return kind[order], label_error_score[order], image_ids[order], rows[order]
