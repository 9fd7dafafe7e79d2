"""The content that a run exports: its relabel queue, or its subset with the validation images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from detcurate.errors import ConfigError
from detcurate.interop.export.content import Content, queue_rows
from detcurate.interop.export.relabel_queue import RELABEL_FILE, LabelError, read_label_errors, read_queue
from detcurate.pipeline.context import Run
from detcurate.pipeline.tables import read_selection

WHAT = ("relabel", "subset")


def queue_file(run: Run) -> Path:
    """Return the path of the relabel queue, compressed or not."""
    plain = run.directory("manifest") / RELABEL_FILE
    zipped = plain.with_name(f"{RELABEL_FILE}.gz")
    return zipped if zipped.is_file() else plain


def export_content(run: Run, what: str, *, limit: int = 0) -> Mapping[str, Content]:
    """Return the content to export: ``train``, and for a subset ``val``.

    Args:
        run: A run with the stage ``manifest`` finished.
        what: ``relabel``: images with possible label errors, highest score first. ``subset``: the selected images, best
            first, with their possible label errors.
        limit: The most images; 0 for all.

    Raises:
        PredictionError: The stage has not finished.
        DatasetError: The relabel queue does not exist or is empty.
        ConfigError: ``what`` or ``limit`` is invalid.
    """
    if what not in WHAT:
        raise ConfigError(f"what: must be one of {', '.join(WHAT)} (got {what!r}).")
    if limit < 0:
        raise ConfigError(f"limit: must be at least 0, where 0 means all images (got {limit}).")
    run.stage_metadata("manifest")
    root = run.image_root("pool")
    if what == "relabel":
        dataset, label_errors = read_queue(queue_file(run))
        rows = queue_rows(label_errors)
        kept, label_errors = _first(rows, label_errors, limit)
        return {"train": Content(dataset, root, label_errors, kept)}
    rows = run.pool.subset_rows(read_selection(run).image_ids)
    kept, label_errors = _first(rows, read_label_errors(queue_file(run), run.pool), limit)
    evaluation = run.evaluation
    val = Content(evaluation, run.image_root("evaluation"), (), np.arange(len(evaluation)))
    return {"train": Content(run.pool, root, label_errors, kept), "val": val}


def _first(
    rows: np.ndarray, label_errors: tuple[LabelError, ...], limit: int
) -> tuple[np.ndarray, tuple[LabelError, ...]]:
    kept = rows[:limit] if limit else rows
    names = set(kept.tolist())
    return kept, tuple(label_error for label_error in label_errors if label_error.image_row in names)
