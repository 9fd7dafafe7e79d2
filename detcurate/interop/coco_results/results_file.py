"""Check a results file, and load the detections of any images of the pool from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detcurate.coco.records import Records, decode_list, decode_top_level
from detcurate.coco.text import Source, open_source
from detcurate.errors import DatasetError
from detcurate.interop.coco_results.result_columns import (
    IGNORED,
    SCORE,
    SOFTMAX,
    Columns,
    Findings,
    PoolIndex,
    columns_of,
    decode_records,
)
from detcurate.structures import Detections

_KIND = "results file"


@dataclass(frozen=True)
class Results:
    """The positions of a file's kept records, which are loaded on demand.

    Args:
        records: The records of the file.
        pool: The images and categories that they may name.
        form: The form of the probabilities: ``score``, ``softmax`` or ``sigmoid``; ``None`` for a file without records.
        image_rows: (K,) int64 ascending, the row in ``pool.image_ids`` of each kept record.
        positions: (K,) int64, its position in the file's list; within an image by descending score.
        counts: Reason -> the number of records that were skipped for it; also ``records``, ``kept`` and ``cut``.
    """

    records: Records
    pool: PoolIndex
    form: str | None
    image_rows: np.ndarray
    positions: np.ndarray
    counts: dict[str, int]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file's bytes."""
        return self.records.source.sha256

    def detections(self, first: int, last: int, *, posterior_form: str = SOFTMAX) -> Detections:
        """Return the kept detections of the images in rows ``first`` to ``last - 1``, all of member 0.

        Args:
            first: A row of ``pool.image_ids``.
            last: The row after the last one.
            posterior_form: The form of the result when there is no record.
        """
        begin, end = np.searchsorted(self.image_rows, (first, last))
        positions = self.positions[begin:end]
        if self.form is None or not len(positions):
            return Detections.empty(self.pool.num_classes, posterior_form_of(self.form) or posterior_form)
        text = b"".join((b"[", b",".join([self.records[position] for position in positions.tolist()]), b"]"))
        columns = columns_of(decode_records(self.records, positions, text), self.pool)
        return Detections(
            image_ids=self.pool.image_ids[columns.image_rows],
            member=np.zeros(len(positions), np.int32),
            boxes=columns.boxes,
            scores=columns.scores.astype(np.float32),
            class_index=columns.class_index.astype(np.int32),
            class_probs=columns.posterior(self.form, self.pool.num_classes),
            posterior_form=posterior_form_of(self.form) or posterior_form,
        )


def posterior_form_of(form: str | None) -> str | None:
    """Return the form of a file's posteriors: a score alone gives a distribution over its class and the background."""
    return SOFTMAX if form == SCORE else form


def read_results(path: Path, pool: PoolIndex, *, score_threshold: float = 0.05, max_per_image: int = 100) -> Results:
    """Check a COCO results file, plain or gzip, and choose the records to keep.

    Boxes are clipped to their image. Detections on quarantined images, without area inside the image, below the score
    threshold, or beyond the limit per image are skipped and counted. An empty list gives no detections.

    Args:
        path: The file: one list of ``image_id``, ``category_id``, ``bbox`` (xywh, px), ``score`` and, in all records or
            in none, ``class_probs`` (C independent values, or C + 1 that sum to 1 with the background last).
        pool: The images and categories that the records may name.
        score_threshold: The minimum score, in [0, 1].
        max_per_image: The maximum number of detections per image, the highest scores first; 0 for no limit.

    Raises:
        DatasetError: The file cannot be read, is not JSON (with line and column), or is not a list.
        PredictionError: Records cannot be used; the first of each kind is named with its position and image.
    """
    records = _open(path)
    findings, parts = Findings(records, pool), []
    counts = {
        "records": len(records),
        "quarantined": 0,
        "without_area": 0,
        "below_threshold": 0,
        "beyond_best": 0,
        "cut": 0,
    }
    for start, stop, text in records.blocks():
        columns = columns_of(decode_records(records, range(start, stop), text), pool)
        findings.check(start, columns)
        parts.append(_kept(start, columns, score_threshold, counts))
    findings.raise_found()
    rows, scores, positions = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else _NOTHING
    order = _best_first(rows, scores, max_per_image)
    counts["beyond_best"] = len(rows) - len(order)
    counts["kept"] = len(order)
    return Results(records, pool, findings.form, rows[order], positions[order], counts)


_NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))


def _open(path: Path) -> Records:
    source = open_source(path, kind=_KIND)
    _require_list(source)
    try:
        return decode_list(source, "results")
    except DatasetError as error:
        if "NaN and Infinity" not in str(error):
            raise
    # With null in their place the file can be parsed, so that the first such record can be named.
    source, _ = source.with_null_for_not_finite()
    return decode_list(source, "results")


def _require_list(source: Source) -> None:
    if bytes(source.content[:4096]).lstrip()[:1] in (b"[", b""):
        return
    found = "a value that is not a list"
    if bytes(source.content[:4096]).lstrip()[:1] == b"{":
        found = f"an object with the keys {', '.join(list(decode_top_level(source))[:5]) or '(none)'}"
    raise DatasetError(
        f"{source.path}: not a list of detections (got {found}). Name the file with the predictions, not the "
        "annotations."
    )


def _kept(
    start: int, columns: Columns, score_threshold: float, counts: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the image rows, scores and positions of the kept records of a block, and count the others."""
    is_usable = columns.image_rows != IGNORED
    with_area = is_usable & columns.has_area
    kept = with_area & (columns.scores >= score_threshold)
    counts["quarantined"] += int((~is_usable).sum())
    counts["without_area"] += int((is_usable & ~with_area).sum())
    counts["below_threshold"] += int((with_area & ~kept).sum())
    counts["cut"] += int((kept & columns.is_cut).sum())
    rows = np.flatnonzero(kept)
    return columns.image_rows[rows], columns.scores[rows].astype(np.float32), start + rows


def _best_first(rows: np.ndarray, scores: np.ndarray, max_per_image: int) -> np.ndarray:
    """Return the order by image and descending score, without the records beyond the limit per image."""
    order = np.lexsort((-scores, rows))  # stable: equal scores stay in the order of the file
    if not max_per_image or not len(order):
        return order
    ordered = rows[order]
    begins = np.searchsorted(ordered, ordered)
    return order[np.arange(len(order)) - begins < max_per_image]
