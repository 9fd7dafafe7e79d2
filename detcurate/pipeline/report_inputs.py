"""The report's input: states of the stages, and columns of the pool, its scores and the selection."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from detcurate.errors import ConfigError, DatasetError, PredictionError
from detcurate.manifest.write import histograms
from detcurate.pipeline.context import LOG, STAGES, Run, StageMetadata
from detcurate.pipeline.pool_columns import sequence_codes
from detcurate.pipeline.stage import damaged_outputs, output_digest, read_stage_metadata
from detcurate.pipeline.tables import ImagesTable, RemovedTable, SelectionTable
from detcurate.report.pictures import LABEL_ERRORS
from detcurate.report.report_data import Choice, Pool, Scores, StageState


def report_pool(run: Run) -> Pool:
    """Return the usable images of the pool.

    Raises:
        DatasetError: The annotation file cannot be read, or has changed since the stage ``pool``.
    """
    known = run.pool_facts["pool"]["annotations_sha256"]
    if run.pool.sha256 != known:
        raise DatasetError(f"{run.pool.path}: changed since the stage pool read it. Restore it, or run again.")
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
    """Return the scores of these images.

    Raises:
        PredictionError: The table is missing, damaged, or of other images.
    """
    settings = run.stage_metadata("score")["settings"]
    used = tuple(settings["measures"])
    columns = ImagesTable.of(run).read(("image_id", "image_score", *used, *LABEL_ERRORS))
    image_ids, image_score = columns.pop("image_id"), columns.pop("image_score")
    if not np.array_equal(image_ids, pool.image_ids):
        raise PredictionError(
            f"score/{ImagesTable.FILE}: not of the pool's {len(pool)} images (got {len(image_ids)}). "
            "Run the stage score again."
        )
    return Scores(image_score, columns, used, str(settings["aggregation"]))


def report_choice(run: Run, pool: Pool) -> Choice:
    """Return the selection from these images.

    Raises:
        PredictionError: A table is missing, damaged, or of other images.
    """
    selected, removed = SelectionTable.of(run).read(), RemovedTable.of(run).read()
    ids = np.concatenate((selected["image_id"], removed["image_id"]))
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], pool.image_ids):
        raise PredictionError(
            f"select/{SelectionTable.FILE}: not of the pool's {len(pool)} images (got {len(ids)}). "
            "Run the stage select again."
        )
    encoded = pa.array([*selected["reason"].tolist(), *removed["reason"].tolist()], pa.string()).dictionary_encode()
    better = np.full(len(ids), np.nan)
    better[len(selected["image_id"]) :] = removed["replaced_by"].astype(np.float64)  # Parquet's null is read as NaN
    return Choice(
        rank=np.concatenate((selected["rank"], np.zeros(len(removed["image_id"]), np.int64)))[order],
        reason=encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)[order],
        reasons=tuple(encoded.dictionary.to_pylist()),
        replaced_by=_rows_of(pool.image_ids, better[order]),
    )


def report_histograms(run: Run, choice: Choice, provenance: dict[str, Any] | None) -> dict[str, Any]:
    """Return the counts of the pool and the subset: from the manifest, or computed if it does not exist."""
    if provenance is not None:
        return dict(provenance["histograms"])
    kept = np.zeros(len(run.pool), bool)
    kept[run.pool.subset_rows(run.usable_image_ids[choice.kept])] = True
    return histograms(run.pool, np.flatnonzero(kept), np.flatnonzero(kept[run.pool.image_index]))


def _rows_of(image_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the row of each id, -1 for NaN."""
    known = np.isfinite(ids)
    rows = np.full(len(ids), -1, np.int64)
    rows[known] = np.searchsorted(image_ids, ids[known].astype(np.int64)).clip(max=max(len(image_ids) - 1, 0))
    return rows


_LAST = "report"
_NO_STAGE = "search"  # earlier rounds have stages of their own below it
_RENAMED = {"ensemble": "train"}  # name of an input -> stage
_STOPPED = re.compile(r" ERROR stopped: \w+: (.+)")


def stage_states(run: Run) -> tuple[StageState, ...]:
    """Return the state of every stage before the report, from the files alone.

    A stage is complete if it has finished, its files exist and its inputs are unchanged since. So results of an earlier
    selection are never shown beside a later one.
    """
    states: dict[str, StageState] = {}
    finished_stages: dict[str, StageMetadata] = {}
    for name in STAGES:
        if name not in (_LAST, _NO_STAGE):
            states[name] = _state(run, name, states, finished_stages)
    return tuple(states.values())


def completed(states: tuple[StageState, ...]) -> frozenset[str]:
    """Return the names of the complete stages."""
    return frozenset(stage.name for stage in states if stage.state == "complete")


def _state(run: Run, name: str, states: dict[str, StageState], finished_stages: dict[str, StageMetadata]) -> StageState:
    directory = run.directory(name)
    try:
        stage_metadata = read_stage_metadata(directory)
    except ConfigError as error:
        return StageState(name, "interrupted", str(error))
    if stage_metadata is None:
        return StageState(name, "absent", "not started")
    if stage_metadata["status"] != "complete":
        why = _stopped(run)
        return StageState(name, "interrupted", "stopped before its end" + (f": {why}" if why else ""))
    gone = damaged_outputs(directory, stage_metadata)
    for file, why in gone.items():
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        return StageState(name, "interrupted", f"{name}/{file}{more} {why}")
    finished_stages[name] = stage_metadata
    for before in _changed(stage_metadata, states, finished_stages):
        return StageState(name, "outdated", f"its input '{before}' has changed since")
    return StageState(name, "complete", stage_metadata["summary"])


def _stopped(run: Run) -> str:
    """Return the error that stopped the run, if it is the last line of the log."""
    try:
        lines = (run.output_dir / LOG).read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    except OSError:
        return ""
    found = _STOPPED.search(lines[-1]) if lines else None
    return found[1] if found else ""


def _changed(
    stage_metadata: StageMetadata, states: dict[str, StageState], finished_stages: dict[str, StageMetadata]
) -> list[str]:
    """Return the earlier stages with files that differ from those a stage used.

    Absent stages are ignored: predictions are large and may be removed after scoring.
    """
    found = []
    for key, digest in stage_metadata["inputs"].items():
        before = _RENAMED.get(key, key)
        if before not in states or states[before].state == "absent":
            continue
        if (
            before not in finished_stages
            or states[before].state != "complete"
            or not _is_of(digest, finished_stages[before])
        ):
            found.append(before)
    return found


def _is_of(digest: str, stage_metadata: StageMetadata) -> bool:
    return digest == output_digest(stage_metadata) or digest in {
        output["sha256"] for output in stage_metadata["outputs"].values()
    }
