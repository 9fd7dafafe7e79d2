"""What the report says of the pool, its scores and the selection, as columns by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from detcurate.coco.manifest import histograms
from detcurate.errors import DatasetError, PredictionError
from detcurate.pipeline.context import Run
from detcurate.pipeline.pool_columns import sequence_codes
from detcurate.pipeline.score import IMAGES
from detcurate.pipeline.selection import REMOVED, SELECTION
from detcurate.pipeline.tables import read_columns
from detcurate.report.picks import SUSPICIONS
from detcurate.report.records import Choice, Pool, Scores


def report_pool(run: Run) -> Pool:
    """Read the usable images of the pool.

    Raises:
        DatasetError: The annotation file cannot be read, or is not the one that the run began with.
    """
    known = run.pool_facts["pool"]["annotations_sha256"]
    if run.pool.sha256 != known:
        raise DatasetError(
            f"the annotation file must be the one that the run read, got a changed one ({run.pool.path})"
        )
    pool, rows = run.pool, run.pool.subset_rows(run.usable_image_ids)
    place = np.full(len(pool), -1, np.int32)
    place[rows] = np.arange(len(rows))
    box_row, box_side = place[pool.image_index], np.sqrt(pool.areas, dtype=np.float32)
    if len(rows) < len(pool):
        box_row, box_side = box_row[box_row >= 0], box_side[box_row >= 0]
    return Pool(
        image_ids=pool.image_ids[rows],
        num_boxes=pool.boxes_per_image[rows],
        sequence=sequence_codes(pool.sequences)[rows],
        sequence_names=tuple(sorted({name for name in pool.sequences if name is not None})),
        frame_index=pool.frame_index[rows],
        box_row=box_row,
        box_side=box_side,
        class_names=pool.class_names,
    )


def report_scores(run: Run, pool: Pool) -> Scores:
    """Read the scores of these images.

    Raises:
        PredictionError: The table is absent, damaged, or of other images.
    """
    settings = run.marker("score")["settings"]
    used, wanted = tuple(settings["measures"]), ("image_id", "image_score", *settings["measures"], *SUSPICIONS)
    columns = read_columns(run.directory("score") / IMAGES, wanted)
    image_ids, image_score = columns.pop("image_id"), columns.pop("image_score")
    if not np.array_equal(image_ids, pool.image_ids):
        raise PredictionError(f"the scores must be of the pool's {len(pool)} images, got {len(image_ids)}; score again")
    return Scores(image_score, columns, used, str(settings["aggregation"]))


def report_choice(run: Run, pool: Pool) -> Choice:
    """Read what became of these images.

    Raises:
        PredictionError: A table is absent, damaged, or of other images.
    """
    directory = run.directory("select")
    taken, gone = read_columns(directory / SELECTION), read_columns(directory / REMOVED)
    ids = np.concatenate((taken["image_id"], gone["image_id"]))
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], pool.image_ids):
        raise PredictionError(f"the selection must be from the pool's {len(pool)} images, got {len(ids)}; select again")
    encoded = pa.array([*taken["reason"].tolist(), *gone["reason"].tolist()], pa.string()).dictionary_encode()
    better = np.full(len(ids), np.nan)
    better[len(taken["image_id"]) :] = gone["because"].astype(np.float64)  # Parquet's null is read as NaN
    return Choice(
        rank=np.concatenate((taken["rank"], np.zeros(len(gone["image_id"]), np.int64)))[order],
        reason=encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)[order],
        reasons=tuple(encoded.dictionary.to_pylist()),
        because=_rows_of(pool.image_ids, better[order]),
    )


def report_histograms(run: Run, choice: Choice, provenance: dict[str, Any] | None) -> dict[str, Any]:
    """Return the counts before and after: those of the manifest, or counted anew where there is none."""
    if provenance is not None:
        return dict(provenance["histograms"])
    kept = np.zeros(len(run.pool), bool)
    kept[run.pool.subset_rows(run.usable_image_ids[choice.kept])] = True
    return histograms(run.pool, np.flatnonzero(kept), np.flatnonzero(kept[run.pool.image_index]))


def _rows_of(image_ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the row of each id, -1 where it is NaN."""
    known = np.isfinite(wanted)
    rows = np.full(len(wanted), -1, np.int64)
    rows[known] = np.searchsorted(image_ids, wanted[known].astype(np.int64)).clip(max=max(len(image_ids) - 1, 0))
    return rows
