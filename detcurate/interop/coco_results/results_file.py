"""One results file: every record checked, and the detections of any images of the pool read from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detcurate.coco.annotations import decode_list
from detcurate.coco.text import Records, Source, decode_top_level, open_source
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
    """The records of one file that are kept, by where they stand; those records are read when they are asked for.

    Args:
        records: Of the file.
        pool: What they name.
        form: What the records say, one of ``score``, ``softmax`` and ``sigmoid``; ``None`` when there are none.
        image_rows: (K,) int64 ascending, the image of each record that is kept, as its row in ``pool.image_ids``.
        positions: (K,) int64, where in the file's list it stands; those of one image best first.
        counts: How many records there are, and how many of them were left out, and why.
    """

    records: Records
    pool: PoolIndex
    form: str | None
    image_rows: np.ndarray
    positions: np.ndarray
    counts: dict[str, int]

    @property
    def sha256(self) -> str:
        """Of the file's bytes."""
        return self.records.source.sha256

    def detections(self, first: int, last: int, *, posterior_form: str = SOFTMAX) -> Detections:
        """Return what is kept of the images from row ``first`` to before row ``last``, as of member 0.

        Args:
            first: A row of ``pool.image_ids``.
            last: Likewise.
            posterior_form: Of the result when there is no record.
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
    """Return the form that a file's posteriors have: a score alone makes one distribution with the background."""
    return SOFTMAX if form == SCORE else form


def read_results(path: Path, pool: PoolIndex, *, score_threshold: float = 0.05, max_per_image: int = 100) -> Results:
    """Check a COCO results file, plain or gzip, and find the records that are kept of it.

    Boxes are cut off at the edges of their image. Left out, and counted, are detections on images in quarantine, those
    without area inside the image, those below the floor, and those beyond the best of an image. A list without records
    gives no detections.

    Args:
        path: The file: one list of ``image_id``, ``category_id``, ``bbox`` (xywh, px), ``score`` and, in all records or
            in none, ``class_probs`` (C values, one a class on its own, or C + 1 that sum to 1, the background last).
        pool: What the records may name.
        score_threshold: The least score, in [0, 1].
        max_per_image: The most detections of an image; 0 for no limit.

    Raises:
        DatasetError: The file cannot be read, is not JSON (with line and column), or is not a list.
        PredictionError: Records cannot be used; a first example of each kind is named, with position and image.
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
    # With null in their place the records can be told apart, and the first that has one be named.
    source, _ = source.with_null_for_not_finite()
    return decode_list(source, "results")


def _require_list(source: Source) -> None:
    if bytes(source.content[:4096]).lstrip()[:1] in (b"[", b""):
        return
    got = "a value that is no list"
    if bytes(source.content[:4096]).lstrip()[:1] == b"{":
        got = f"an object with the keys {', '.join(list(decode_top_level(source))[:5]) or '(none)'}"
    raise DatasetError(
        f"the {_KIND} must be a list of detections, got {got} ({source.path}); name the file with a detector's "
        "answers, not the annotations"
    )


def _kept(
    start: int, columns: Columns, score_threshold: float, counts: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the image rows, scores and positions of the records that are kept of a block, and count the others."""
    is_wanted = columns.image_rows != IGNORED
    with_area = is_wanted & columns.has_area
    kept = with_area & (columns.scores >= score_threshold)
    counts["quarantined"] += int((~is_wanted).sum())
    counts["without_area"] += int((is_wanted & ~with_area).sum())
    counts["below_threshold"] += int((with_area & ~kept).sum())
    counts["cut"] += int((kept & columns.is_cut).sum())
    rows = np.flatnonzero(kept)
    return columns.image_rows[rows], columns.scores[rows].astype(np.float32), start + rows


def _best_first(rows: np.ndarray, scores: np.ndarray, max_per_image: int) -> np.ndarray:
    """Return the order by image and descending score, those beyond the best of an image left out."""
    order = np.lexsort((-scores, rows))  # stable: equal scores stay in the order of the file
    if not max_per_image or not len(order):
        return order
    ordered = rows[order]
    begins = np.searchsorted(ordered, ordered)
    return order[np.arange(len(order)) - begins < max_per_image]
