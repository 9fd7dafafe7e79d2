"""Export to FiftyOne: a COCO file of the labels and one of the possible label errors, each loaded as a field."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from detcurate.interop.export.content import Content
from detcurate.interop.export.relabel_queue import QUEUE_KEYS, category_ids_of, label_error_records
from detcurate.io.files import write_bytes
from detcurate.manifest.write import write_subset

LABELS, LABEL_ERRORS = "labels.json", "label_errors.json"


def write_fiftyone(directory: Path, content: Content) -> list[Path]:
    """Write ``labels.json``, byte for byte, and ``label_errors.json``, with the consensus boxes and scores.

    Both files have the same categories.
    """
    dataset = content.dataset
    kept = {key: text for key, text in dataset.other_top_level.items() if key not in QUEUE_KEYS}
    labels = directory / LABELS
    write_subset(labels, dataclasses.replace(dataset, other_top_level=kept), dataset.image_ids[content.rows])
    if not content.label_errors:
        return [labels]
    categories = zip(category_ids_of(dataset), dataset.class_names, strict=True)
    images = np.unique(content.rows).tolist()
    value: dict[str, Any] = {
        "images": [
            {"id": dataset.original_id(row), "file_name": dataset.file_names[row], "width": int(dataset.widths[row]),
             "height": int(dataset.heights[row])}
            for row in images
        ],
        "annotations": label_error_records(dataset, content.label_errors),
        "categories": [{"id": key, "name": name} for key, name in categories],
    }  # fmt: skip
    label_errors = directory / LABEL_ERRORS
    write_bytes(label_errors, orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
    return [labels, label_errors]
