"""The budget, the quotas and the columns that the stage ``select`` needs beside the scores."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from detcurate.coco.dataset import image_metadata
from detcurate.config import SelectSettings, parse_quota
from detcurate.errors import ConfigError, SelectionError
from detcurate.pipeline.context import Run
from detcurate.pipeline.image_similarity import (
    labelled_inputs,
    labelled_vectors,
    pool_hashes,
    read_pool_embeddings,
    vector_inputs,
)
from detcurate.score.label_errors import LABEL_ERRORS
from detcurate.select.compose import PoolColumns
from detcurate.select.filters import require_sequences
from detcurate.select.limits import Budget, Quota, box_budget, image_budget, resolve_budget, time_budget
from detcurate.select.strategies import BY_EMBEDDING
from detcurate.structures import ImageScores

_QUOTAS = "CURATE.SELECT.CLASS_MINIMUMS, CLASS_MAXIMUMS"
_METADATA_QUOTAS = "CURATE.SELECT.METADATA_MINIMUMS, METADATA_MAXIMUMS"


def requested_budget(settings: SelectSettings, boxes_per_image: np.ndarray) -> Budget:
    """Return the budget of the settings, for a pool with these numbers of boxes on its images."""
    if settings.num_boxes:
        return box_budget(boxes_per_image, num_boxes=settings.num_boxes)
    if settings.cost_seconds:
        return time_budget(
            boxes_per_image,
            seconds=settings.cost_seconds,
            seconds_per_image=settings.seconds_per_image,
            seconds_per_box=settings.seconds_per_box,
        )
    count = settings.num_images or None
    return image_budget(len(boxes_per_image), fraction=None if count else settings.fraction, count=count)


def planned_amount(settings: SelectSettings, num_images: int) -> str:
    """Return the budget as text, for a pool of which only the size is known.

    Raises:
        SelectionError: The pool is smaller than the budget in images.
    """
    if settings.num_boxes:
        return f"{settings.num_boxes:,} boxes"
    if settings.cost_seconds:
        return f"{settings.cost_seconds:,g} s of annotation"
    count = settings.num_images or None
    return f"{resolve_budget(num_images, fraction=None if count else settings.fraction, count=count):,}"


def require_selectable(run: Run, *, predicts: bool) -> None:
    """Check the settings of the selection before the first long stage.

    Args:
        run: The run.
        predicts: Whether the stage ``predict`` will run, and so decide whether embeddings exist.

    Raises:
        ConfigError: The strategy needs embeddings, and none will be stored.
        SelectionError: The budget exceeds the pool, a quota names an unknown class, field or value, or a sequence gap
            is set and no image has a sequence.
    """
    settings = run.settings.select
    if predicts and settings.strategy in BY_EMBEDDING and not run.settings.predict.embeddings:
        raise ConfigError(
            f"CURATE.PREDICT.EMBEDDINGS: must be True for CURATE.SELECT.STRATEGY {settings.strategy} (got False)."
        )
    if run.is_rendered:
        planned_amount(settings, run.settings.render.num_images)
        return
    requested_budget(settings, run.pool.boxes_per_image)
    requested_quotas(run, np.arange(len(run.pool)))
    if settings.sequence_gap:
        require_sequences(sequence_codes(run.pool.sequences), gap=settings.sequence_gap)


def column_inputs(run: Run) -> dict[str, str]:
    """Return the digests of the embeddings or images that the columns are computed from."""
    found = vector_inputs(run) if _needs_vectors(run) else {}
    return found | labelled_inputs(run) if run.settings.select.duplicate_similarity else found


def pool_columns(run: Run, scores: ImageScores) -> PoolColumns:
    """Return the columns that the settings need, in the order of the scores.

    Raises:
        SelectionError: The embeddings belong to another pool.
    """
    settings, rows = run.settings.select, run.pool.subset_rows(scores.image_ids)
    label_errors = [scores.components[name] for name in LABEL_ERRORS if name in scores.components]
    embeddings = hashes = None
    if _needs_vectors(run):
        embeddings = read_pool_embeddings(run, scores.image_ids)
        if embeddings is None and settings.strategy not in BY_EMBEDDING:
            hashes = pool_hashes(run, rows)
    return PoolColumns(
        label_error_score=np.maximum.reduce(label_errors) if label_errors and settings.noise_filter != "off" else None,
        embeddings=embeddings,
        hashes=hashes,
        labelled=labelled_vectors(run) if settings.duplicate_similarity else None,
        sequences=sequence_codes(run.pool.sequences)[rows] if settings.sequence_gap else None,
        frame_index=run.pool.frame_index[rows] if settings.sequence_gap else None,
        boxes_per_class=boxes_per_class(run)[rows] if settings.strategy == "stratified_random" else None,
    )


def sequence_codes(sequences: Sequence[str | None]) -> np.ndarray:
    """Return the number of each image's sequence, -1 for none: (I,) int64.

    Example:
        >>> sequence_codes(("b", None, "a", "b")).tolist()
        [1, -1, 0, 1]
    """
    number_of = {name: number for number, name in enumerate(sorted({name for name in sequences if name is not None}))}
    return np.array([-1 if name is None else number_of[name] for name in sequences], np.int64)


def requested_quotas(run: Run, rows: np.ndarray) -> tuple[list[Quota], list[Quota]]:
    """Return the minimum quotas, in the order in which they are filled, and the maximum quotas.

    Args:
        run: The run.
        rows: (n,) int64, the scored rows of the pool.

    Raises:
        SelectionError: A class, a metadata field or a metadata value does not exist.
    """
    settings = run.settings.select
    needs_metadata = settings.metadata_minimums or settings.metadata_maximums
    metadata = {"sequence": run.pool.sequences, **image_metadata(run.pool)} if needs_metadata else {}
    minimums = [_class_quota(run, text, rows) for text in settings.class_minimums]
    minimums += [_metadata_quota(metadata, text, rows) for text in settings.metadata_minimums]
    if settings.empty_minimum:
        empty = (run.pool.boxes_per_image[rows] == 0).astype(np.int64)
        minimums.append(Quota("empty images", empty, settings.empty_minimum))
    maximums = [_class_quota(run, text, rows) for text in settings.class_maximums]
    return minimums, maximums + [_metadata_quota(metadata, text, rows) for text in settings.metadata_maximums]


def _class_quota(run: Run, text: str, rows: np.ndarray) -> Quota:
    (name,), limit = parse_quota(text, num_names=1)
    names = run.pool.class_names
    if name not in names:
        raise SelectionError(f"{_QUOTAS}: no class of the pool has this name (got {text!r}). {_known(name, names)}")
    of_class = run.pool.image_index[run.pool.class_index == names.index(name)]
    return Quota(f"class {name}", np.bincount(of_class, minlength=len(run.pool))[rows], limit)


def _metadata_quota(metadata: Mapping[str, Sequence[object]], text: str, rows: np.ndarray) -> Quota:
    (field, value), limit = parse_quota(text, num_names=2)
    if field not in metadata:
        raise SelectionError(f"{_METADATA_QUOTAS}: no image has this field (got {text!r}). {_known(field, metadata)}")
    column = [None if entry is None else str(entry) for entry in metadata[field]]
    if value not in column:
        values = sorted({entry for entry in column if entry is not None})
        raise SelectionError(
            f"{_METADATA_QUOTAS}: {field} never has this value (got {text!r}). {_known(value, values)}"
        )
    holds = np.array([entry == value for entry in column], np.int64)
    return Quota(f"{field} {value}", holds[rows], limit)


def _known(name: str, names: Sequence[str] | Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    shown = ", ".join(list(names)[:12]) + (", …" if len(names) > 12 else "")
    return f"Known: {shown}" + (f" (did you mean {near[0]!r}?)." if near else ".")


def _needs_vectors(run: Run) -> bool:
    settings = run.settings.select
    return settings.strategy in BY_EMBEDDING or bool(settings.duplicate_similarity)


def boxes_per_class(run: Run) -> np.ndarray:
    """Return the number of boxes of each class on each image of the annotation file, (I, C) int32."""
    num_classes = len(run.pool.class_names)
    cells = run.pool.image_index * num_classes + run.pool.class_index
    counts = np.bincount(cells, minlength=len(run.pool) * num_classes).astype(np.int32)
    return counts.reshape(len(run.pool), num_classes)
