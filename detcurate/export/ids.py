"""Ids as the pool's own file has them, and ids that it has not used."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from detcurate.coco.dataset import CocoDataset
from detcurate.coco.source import Records

_LARGEST_EXACT_FLOAT = 2**53


def category_ids_of(dataset: CocoDataset) -> list[int | str]:
    """Return the file's category id of each class: C integers, or texts where the file has texts."""
    records: list[dict[str, Any]] = msgspec.json.decode(dataset.other_top_level["categories"])
    of_name = {record["name"]: record["id"] for record in records}
    return [of_name[name] for name in dataset.class_names]


def annotation_id_of(dataset: CocoDataset, annotations: Records, row: int) -> int | str | None:
    """Return the id that an annotation has where it is written again; None where its record has none.

    Args:
        dataset: The file.
        annotations: Its annotation records, from ``dataset.open()``.
        row: The annotation's row.
    """
    if "id" in dataset.patched and dataset.patched["id"][row]:
        return int(dataset.annotation_ids[row])
    key: int | str | None = annotations.value(int(dataset.annotation_positions[row])).get("id")
    return key


def free_ids(dataset: CocoDataset, count: int) -> list[int]:
    """Return ids that no annotation of the file has: above all of them, or the smallest where those are too large.

    A reader of floats would mix up ids above 2^53.
    """
    highest = max(int(dataset.annotation_ids.max(initial=0)), 0)
    if highest + count <= _LARGEST_EXACT_FLOAT:
        return list(range(highest + 1, highest + 1 + count))
    used = set(dataset.annotation_ids.tolist())
    return list(itertools.islice((number for number in itertools.count(1) if number not in used), count))
