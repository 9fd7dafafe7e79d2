"""What stands in the images of suspected labels: the objects, and which cluster speaks for which label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from detcurate.coco.dataset import CocoDataset, image_labels
from detcurate.errors import PredictionError
from detcurate.interop.export.relabel_queue import LabelError
from detcurate.io.parquet import bounded, matrix_of
from detcurate.io.storage import Location
from detcurate.score.kernels.cluster_sums import compare_clusters

_BATCH = 1 << 17  # objects read at a time
_SIDES = ("x1", "y1", "x2", "y2")
_DETAILS = ("image_id", "kind", *_SIDES, "class_index", "confidence", "votes")


@dataclass(frozen=True)
class Places:
    """All objects of the suspected images, and which cluster speaks for which label.

    Args:
        dataset: The pool.
        table_row: (n,) int64, ascending.
        image_row: (n,) int64, the row of each object's image in the pool.
        label_row: (n,) int64, of a label its row in the pool, of a cluster -1.
        own: (n,) int64, of a label the object that is the cluster speaking for it; -1 for none.
        boxes: (n, 4) float64, xyxy px, cut at the borders of the image.
        class_index: (n,) int64.
        confidence: (n,) float64.
        votes: (n, E) int16.
    """

    dataset: CocoDataset
    table_row: np.ndarray
    image_row: np.ndarray
    label_row: np.ndarray
    own: np.ndarray
    boxes: np.ndarray
    class_index: np.ndarray
    confidence: np.ndarray
    votes: np.ndarray

    @classmethod
    def read(cls, objects: Location, dataset: CocoDataset, image_ids: np.ndarray, iou_threshold: float) -> Places:
        """Read the objects of some images, by ascending id, and compare their clusters with the pool's labels."""
        table, table_row = _rows_of(objects, image_ids)
        of_image = table["image_id"].to_numpy()
        boxes = np.column_stack([table[side].to_numpy() for side in _SIDES]).reshape(-1, 4)
        confidence = table["confidence"].to_numpy().astype(np.float64)
        is_label = pc.equal(table["kind"].cast(pa.string()), "ground_truth").to_numpy(zero_copy_only=False)
        label_row, own = np.full(len(of_image), -1), np.full(len(of_image), -1)
        labels, clusters = np.flatnonzero(is_label), np.flatnonzero(~is_label)
        truth = image_labels(dataset, image_ids)
        rows, plain = _annotation_rows(dataset, image_ids), np.flatnonzero(~truth.iscrowd)
        if not np.array_equal(of_image[labels], truth.image_ids[plain]):
            raise PredictionError(
                f"the objects must be of the labels of {dataset.path}, got others ({objects}); score the pool again"
            )
        label_row[labels] = rows[plain]
        *_, speaking, _ = compare_clusters(
            np.searchsorted(of_image[clusters], np.append(image_ids, np.iinfo(np.int64).max)),
            np.searchsorted(truth.image_ids, np.append(image_ids, np.iinfo(np.int64).max)),
            np.ascontiguousarray(boxes[clusters], np.float32),
            confidence[clusters],
            truth.boxes.astype(np.float32),
            truth.iscrowd,
            float(iou_threshold),
        )
        own[labels] = np.append(clusters, -1)[speaking[plain]]
        image_row = dataset.subset_rows(image_ids)[np.searchsorted(image_ids, of_image)]
        sizes = np.column_stack((dataset.widths, dataset.heights))[image_row]
        return cls(
            dataset=dataset,
            table_row=table_row,
            image_row=image_row,
            label_row=label_row,
            own=own,
            boxes=boxes.astype(np.float64).clip(0, np.tile(sizes, 2)),
            class_index=table["class_index"].to_numpy(),
            confidence=confidence,
            votes=matrix_of(table["votes"], table.schema.field("votes").type.list_size),
        )

    def label_error(self, kind: str, label_error_score: float, table_row: int, is_selected: bool) -> LabelError | None:
        """Describe one suspicion; None for a swap for which no member votes."""
        at = int(np.searchsorted(self.table_row, table_row))
        place = at if kind == "missing_label" else int(self.own[at])
        seen = at if kind == "wrong_class" else place
        class_index = self._wrong_class_of(at, place) if kind == "wrong_class" else int(self.class_index[place])
        votes = int((self.votes[seen] == class_index).sum())
        if class_index < 0:
            return None
        is_consensus = place >= 0 and self.class_index[place] == class_index
        num_members = self.votes.shape[1]
        x1, y1, x2, y2 = self.boxes[place if place >= 0 else at].tolist()
        return LabelError(
            kind=kind,
            label_error_score=label_error_score,
            image_row=int(self.image_row[at]),
            label_row=int(self.label_row[at]),
            box=(x1, y1, x2, y2),
            class_index=class_index,
            score=float(self.confidence[place]) if is_consensus else votes / num_members,
            num_votes=votes,
            num_members=num_members,
            is_selected=bool(is_selected),
        )

    def _wrong_class_of(self, at: int, place: int) -> int:
        """Return the class other than the label's that most members vote for, -1 for none; ties as the consensus."""
        counts = np.bincount(self.votes[at][self.votes[at] >= 0], minlength=len(self.dataset.class_names))
        counts = counts[: len(self.dataset.class_names)]  # without the background
        counts[self.class_index[at]] = 0
        consensus = int(self.class_index[place]) if place >= 0 else -1
        if consensus >= 0 and counts[consensus] == counts.max() > 0:
            return consensus
        return int(counts.argmax()) if counts.max() > 0 else -1


def _annotation_rows(dataset: CocoDataset, image_ids: np.ndarray) -> np.ndarray:
    """Return the rows of the annotations of some images, as ``image_labels`` orders them."""
    rows = dataset.subset_rows(image_ids)
    bounds = np.searchsorted(dataset.image_index, np.column_stack((rows, rows + 1)))
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(first, stop) for first, stop in bounds.tolist())])


def _rows_of(objects: Location, image_ids: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """Return the rows of some images, by ascending id, and where they stand in the table."""
    parts, rows, first = [], [], 0
    for batch in batches(objects, _DETAILS):
        at = np.flatnonzero(np.isin(batch["image_id"].to_numpy(), image_ids))
        if len(at):
            parts.append(batch.take(pa.array(at)))
            rows.append(first + at)
        first += batch.num_rows
    if not parts:
        with opened(objects) as table:
            return table.schema_arrow.empty_table().select(_DETAILS), np.zeros(0, np.int64)
    return pa.Table.from_batches(parts).combine_chunks(), np.concatenate(rows)


def batches(objects: Location, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a table of objects, many rows at a time; raises ``PredictionError`` when it is damaged."""
    with opened(objects) as table:
        try:
            yield from table.iter_batches(batch_size=_BATCH, columns=list(columns))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _damaged(objects, error) from error


def opened(objects: Location) -> Any:
    """Open a table of objects; raises ``PredictionError`` when that is no whole Parquet file."""
    try:
        return pq.ParquetFile(bounded(objects))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(objects, error) from error


def _damaged(objects: Location, error: BaseException) -> PredictionError:
    return PredictionError(f"a table must be a whole Parquet file ({objects}): {error}; delete it and run again")
