"""What the image records say beyond COCO: weather, time of day, whatever a team keeps there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from detcurate.coco.dataset import CocoDataset, Opened

_OWN = ("id", "file_name", "width", "height", "sequence", "frame_index")
_SCALARS = (str, int, float, bool)

Value = str | int | float | bool | None


def image_metadata(dataset: CocoDataset, opened: Opened | None = None) -> dict[str, list[Value]]:
    """Return the fields of the image records that COCO and detcurate have no column for.

    Nested objects are flattened with dots (``attributes.weather``); lists are left out. A pool without such fields
    gives no column.

    Args:
        dataset: The pool.
        opened: What ``dataset.open()`` gave, to save opening the file again.

    Returns:
        Name -> I values, aligned with ``image_ids``; None where an image has no such field. By name.

    Raises:
        DatasetError: The file was changed since it was read.
    """
    images, _ = opened or dataset.open()
    row_of = np.full(len(images), -1, np.int64)
    row_of[dataset.image_positions] = np.arange(len(dataset))
    columns: dict[str, list[Value]] = {}
    decoder = msgspec.json.Decoder(list[Any])
    for start, stop, text in images.blocks():
        try:
            records = decoder.decode(text)
        except msgspec.ValidationError:  # a number too large for it, somewhere
            records = [images.value(position) for position in range(start, stop)]
        for position, record in enumerate(records, start=start):
            row = int(row_of[position])
            if row < 0:
                continue
            for name, value in _scalars(record):
                if name not in columns:  # not setdefault: it would make a column for every value
                    columns[name] = [None] * len(dataset)
                columns[name][row] = value
    return dict(sorted(columns.items()))


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in record.items():
        if not prefix and key in _OWN:
            continue
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}.")
        elif isinstance(value, _SCALARS):
            yield f"{prefix}{key}", value
