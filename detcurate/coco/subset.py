"""The text of a subset: its records copied word for word, in pieces, so that no more than one is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import orjson
from numba import njit

from detcurate.coco.dataset import CocoDataset, Opened
from detcurate.coco.source import Records
from detcurate.errors import SelectionError

_BLOCK = 8_192  # records; their text then stays in the processor's cache while it is digested and written


def kept_rows(dataset: CocoDataset, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the images named and those of their annotations, both ascending.

    Raises:
        SelectionError: No id is given, or one is not an image of the source or is named twice.
    """
    if not len(image_ids):
        raise SelectionError(f"image_ids must name at least one image of {dataset.path}, got none; raise the budget")
    kept = np.zeros(len(dataset), bool)
    kept[dataset.subset_rows(image_ids)] = True
    return np.flatnonzero(kept), np.flatnonzero(kept[dataset.image_index])


def subset_pieces(dataset: CocoDataset, image_ids: np.ndarray, opened: Opened | None = None) -> Iterator[Any]:
    """Yield the text of a subset in pieces, as bytes or as (n,) uint8.

    Args:
        dataset: The source.
        image_ids: (K,) integers, unique; at least one.
        opened: What ``dataset.open()`` gave, to save opening the file again.

    Raises:
        SelectionError: No id is given, or one is not an image of the source or is named twice.
        DatasetError: The source file was changed since it was read.
    """
    rows = dict(zip(("images", "annotations"), kept_rows(dataset, image_ids), strict=True))
    positions = {"images": dataset.image_positions, "annotations": dataset.annotation_positions}
    records = dict(zip(("images", "annotations"), opened or dataset.open(), strict=True))
    separator = b"{"
    for key, value in dataset.other_top_level.items():
        yield b"".join((separator, orjson.dumps(key), b": ", b"" if key in rows else value))
        if key in rows:
            kept = np.zeros(len(records[key]), bool)
            kept[positions[key][rows[key]]] = True
            yield from _list_pieces(dataset, records[key], np.flatnonzero(kept), _patches(dataset, key, rows[key]))
        separator = b",\n"
    yield b"}\n"


def _patches(dataset: CocoDataset, key: str, rows: np.ndarray) -> dict[int, int]:
    """Return position -> row of the records that are written anew in part."""
    if key != "annotations" or not dataset.patched:
        return {}
    rows = rows[np.any([mask[rows] for mask in dataset.patched.values()], axis=0)]
    return dict(zip(dataset.annotation_positions[rows].tolist(), rows.tolist(), strict=True))


def _list_pieces(
    dataset: CocoDataset, records: Records, positions: np.ndarray, patched: Mapping[int, int]
) -> Iterator[Any]:
    # One record a line, so that a diff of two subsets names images.
    text = np.frombuffer(records.source.content, np.uint8)
    separator = b"[\n"
    for start in range(0, len(positions), _BLOCK):
        block = positions[start : start + _BLOCK]
        yield separator
        if patched.keys().isdisjoint(block.tolist() if patched else ()):
            lengths = records.spans[block, 1] - records.spans[block, 0]
            joined = np.empty(lengths.sum() + 2 * len(block) - 2, np.uint8)
            join_records(text, records.spans, block, joined)
            yield joined
        else:
            yield b",\n".join(_patched(dataset, records, position, patched) for position in block.tolist())
        separator = b",\n"
        records.source.release()
    yield b"\n]" if len(positions) else b"[]"


def _patched(dataset: CocoDataset, records: Records, position: int, patched: Mapping[int, int]) -> bytes:
    """Return a record with some fields written anew, all others and the order of the keys as they are."""
    if position not in patched:
        return records[position]
    record: dict[str, Any] = msgspec.json.decode(records[position], type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**record, **dataset.annotation_patch(patched[position])})


@njit(cache=True)
def join_records(text, spans, positions, joined):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Copy records with a comma and a line break between.

    Args:
        text: (n,) uint8.
        spans: (R, 2) int64, where each record begins and ends.
        positions: (K,) int64, the records, K ≥ 1.
        joined: (sum of their lengths + 2 (K - 1),) uint8, filled in.
    """
    at = 0
    for k in range(len(positions)):
        if k > 0:
            joined[at], joined[at + 1] = 44, 10
            at += 2
        start, length = spans[positions[k], 0], spans[positions[k], 1] - spans[positions[k], 0]
        # Without a sign no place is counted from the end, so that many bytes can be copied at once.
        source, target = np.uint64(start), np.uint64(at)
        for i in range(np.uint64(length)):
            joined[target + i] = text[source + i]
        at += length
