"""The ground truth of some images of an annotation file, as scoring wants it."""

from __future__ import annotations

import numpy as np

from detcurate.coco.dataset import CocoDataset
from detcurate.structures import Labels


def image_labels(dataset: CocoDataset, image_ids: np.ndarray) -> Labels:
    """Return the boxes of the images named, image by image in the order given; no id gives no row.

    Args:
        dataset: The annotation file.
        image_ids: (K,) integers, unique.

    Raises:
        SelectionError: An id is not an image of this file, or is named twice.
    """
    rows = dataset.subset_rows(image_ids)
    first = np.searchsorted(dataset.image_index, rows, side="left")
    counts = np.searchsorted(dataset.image_index, rows, side="right") - first
    begins = np.cumsum(counts) - counts
    annotations = np.arange(counts.sum()) + np.repeat(first - begins, counts)
    return Labels(
        image_ids=np.repeat(np.asarray(image_ids, np.int64), counts),
        annotation_ids=dataset.annotation_ids[annotations],
        boxes=dataset.boxes[annotations],
        class_index=dataset.class_index[annotations],
        iscrowd=dataset.iscrowd[annotations],
    )
