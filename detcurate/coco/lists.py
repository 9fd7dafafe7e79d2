"""The top-level lists of an annotation file, cut into records in one walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from detcurate.coco.fast import find_elements
from detcurate.coco.mapped import CHUNK
from detcurate.coco.source import Records, Source, decode_as, got_kind, offset_of, require_depth
from detcurate.errors import DatasetError

_ROOM = 65_536  # records that there is room for before the length of a record is known


def find_records(source: Source, name: str, top_level: dict[str, msgspec.Raw]) -> Records:
    """Find the elements of a top-level list.

    Raises:
        DatasetError: There is no such key, its value is not a list, or lists are nested in it more than 200 deep.
    """
    return walk_list(source, name, top_level, find_elements, ())[0]


def decode_list(source: Source, name: str) -> Records:
    """Check the whole text's syntax and find the elements of the list that it is.

    Args:
        source: The file.
        name: What the list is called in messages.

    Raises:
        DatasetError: The text is not JSON (with line and column), not a list, or nested more than 200 deep.
    """
    return find_records(source, name, {name: decode_as(source, msgspec.Raw)})


def walk_list(
    source: Source,
    name: str,
    top_level: dict[str, msgspec.Raw],
    walk: Callable[..., int],
    columns: Sequence[np.ndarray],
) -> tuple[Records, list[np.ndarray]]:
    """Find the elements of a top-level list and fill columns on the way.

    Args:
        source: The file.
        name: The key of the list.
        top_level: From :func:`decode_top_level`.
        walk: A function like :func:`detcurate.coco.fast.find_elements` that takes the columns after the spans.
        columns: Arrays of the columns' types and of any length.

    Returns:
        The records, and the columns with one row a record.

    Raises:
        DatasetError: As :func:`find_records`.
    """
    text = _list_text(source, name, top_level)
    characters, state, count = np.frombuffer(text, np.uint8), np.array([1, 1], np.int64), 0
    filled = _longer([np.empty((0, 2), np.int64), *columns], 0, _ROOM)
    while state[0] < len(text):
        if count == len(filled[0]):  # as many as there will be if the others are as long; memory not used costs none
            expected = int(1.1 * count * len(text) / state[0])
            filled = _longer(filled, count, max(expected, count + count // 2 + 1))
        count = walk(characters, min(int(state[0]) + CHUNK, len(text)), state, count, *filled)
        source.release()
    require_depth(source, text, int(state[1]))
    spans, *filled = (column[:count] for column in filled)
    spans += offset_of(source, text)
    return Records(name, source, spans), filled


def _longer(columns: Sequence[np.ndarray], count: int, length: int) -> list[np.ndarray]:
    """Return columns with room for more rows, the first ``count`` filled."""
    longer = [np.empty((length, *column.shape[1:]), column.dtype) for column in columns]
    for new, old in zip(longer, columns, strict=True):
        new[:count] = old[:count]
    return longer


def _list_text(source: Source, name: str, top_level: dict[str, msgspec.Raw]) -> memoryview:
    if name not in top_level:
        raise DatasetError(
            f"the {source.kind} must have the key {name!r}, got the keys {list(top_level)} ({source.path}); "
            "export it as COCO detection JSON"
        )
    text = memoryview(top_level[name])
    if bytes(text[:1]) != b"[":
        kind = got_kind(top_level[name])
        raise DatasetError(f"{name} must be a list, got {kind} ({source.path}); export it as COCO detection JSON")
    return text
