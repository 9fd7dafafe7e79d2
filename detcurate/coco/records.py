"""Locate the records of a COCO file: each element of its top-level lists as a position in the text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from detcurate.coco.text import CHUNK, Source, decode_as, offset_of, raise_broken_json
from detcurate.errors import DatasetError

_BLOCK = 65_536  # records
_ROOM = 65_536  # rows of the columns before the average length of a record is known
_MAX_DIGITS = 640  # int() may refuse longer numbers
_MAX_DEPTH = 200  # far above the depth of any COCO file, and far below the recursion limit of Python's readers
_SEPARATOR = re.compile(rb"[ \t\r\n]*[\[,]?[ \t\r\n]*")
_SCANNED_LISTS = frozenset(("images", "annotations", "categories"))  # their depth is checked when they are scanned

# Importing numba and loading a kernel from its cache takes as long as decoding this many bytes without it.
_COMPILED_FROM = 64 << 20
_COMPILED_FROM_IMPORTED = 4 << 20


def repays_compiled(num_bytes: int) -> bool:
    """Return whether a text is long enough for the compiled scanner to repay loading it."""
    return num_bytes >= (_COMPILED_FROM_IMPORTED if "numba" in sys.modules else _COMPILED_FROM)


@dataclass(frozen=True)
class Records:
    """The elements of one top-level list, as positions in the text.

    Args:
        name: The key of the list.
        source: The file.
        spans: (n, 2) int64, the begin and the end of each element in ``source.content``.
    """

    name: str
    source: Source
    spans: np.ndarray

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, position: int) -> bytes:
        start, stop = self.spans[position]
        return bytes(self.source.content[start:stop])

    def value(self, position: int) -> Any:
        """Return one element as decoded by Python's JSON reader, a number of very many digits as text."""
        return json.loads(self[position], parse_int=lambda text: int(text) if len(text) <= _MAX_DIGITS else text)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the positions in blocks: the first, and the one after the last."""
        for start in range(0, len(self), _BLOCK):
            yield start, min(start + _BLOCK, len(self))
            self.source.release()

    def blocks(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the blocks of :meth:`ranges` with their text as a JSON list."""
        for start, stop in self.ranges():
            yield start, stop, self.block(start, stop)

    def block(self, start: int, stop: int) -> bytes:
        """Return the text of neighbouring records as a JSON list."""
        text = self.source.content[self.spans[start, 0] : self.spans[stop - 1, 1]]
        return b"".join((b"[", text, b"]"))


def decode_top_level(source: Source) -> dict[str, msgspec.Raw]:
    """Check the syntax of the whole text and return each top-level key with its value as text.

    Raises:
        DatasetError: The text is not JSON (with line and column), not an object, or an object with a repeated key.
    """
    try:
        top_level: dict[str, msgspec.Raw] = decode_as(source, dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise DatasetError(
            f"{source.path}: the {source.kind} is not an object with images, annotations and categories (got "
            f"{_found_type(error)}). Export it as COCO detection JSON."
        ) from None
    _require_unique_keys(source, top_level)
    for key in top_level.keys() - _SCANNED_LISTS:
        _require_depth(source, memoryview(top_level[key]))
    return top_level


def _require_unique_keys(source: Source, top_level: dict[str, msgspec.Raw]) -> None:
    """Refuse a repeated key: a JSON reader would silently keep one of the values."""
    spans = sorted((offset_of(source, memoryview(raw)), len(memoryview(raw))) for raw in top_level.values())
    pieces, end = [], 0
    for start, length in spans:
        pieces.append(bytes(source.content[end:start]))
        end = start + length
    pieces.append(bytes(source.content[end:]))
    # Between the values are keys, colons, commas, and the values that the decoder discarded.
    skeleton = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", b"".join(pieces))
    if skeleton.count(b":") != len(top_level):
        raise DatasetError(
            f"{source.path}: a top-level key is repeated (got one of {', '.join(top_level)} twice). "
            "Join the two values."
        )


def find_records(source: Source, name: str, top_level: dict[str, msgspec.Raw]) -> Records:
    """Locate the elements of a top-level list.

    Args:
        source: The file.
        name: The key of the list.
        top_level: From :func:`decode_top_level`.

    Raises:
        DatasetError: The key is missing, its value is not a list, or lists are nested in it more than 200 deep.
    """
    if repays_compiled(len(source.content)):
        from detcurate.coco.json_scanner import find_elements

        return scan_list(source, name, top_level, find_elements, ())[0]
    text = _list_text(source, name, top_level)
    _require_depth(source, text)
    spans, at = [], 0
    for raw in msgspec.json.decode(text, type=list[msgspec.Raw]):
        start = _SEPARATOR.match(text, at).end()  # type: ignore[union-attr]
        at = start + len(memoryview(raw))
        spans.append((start, at))
    return Records(name, source, np.array(spans, np.int64).reshape(-1, 2) + offset_of(source, text))


def decode_list(source: Source, name: str) -> Records:
    """Check the syntax of a text that is a list and locate its elements.

    Args:
        source: The file.
        name: The name of the list in messages.

    Raises:
        DatasetError: The text is not JSON (with line and column), not a list, or nested more than 200 deep.
    """
    return find_records(source, name, {name: decode_as(source, msgspec.Raw)})


def scan_list(
    source: Source,
    name: str,
    top_level: dict[str, msgspec.Raw],
    scan: Callable[..., int],
    columns: Sequence[np.ndarray],
) -> tuple[Records, list[np.ndarray]]:
    """Locate the elements of a top-level list with a compiled scanner that fills columns on the way.

    Args:
        source: The file.
        name: The key of the list.
        top_level: From :func:`decode_top_level`.
        scan: A function like :func:`detcurate.coco.json_scanner.find_elements` that takes the columns after the spans.
        columns: Arrays of the columns' types and of any length.

    Returns:
        The records, and the columns with one row a record.

    Raises:
        DatasetError: As :func:`find_records`.
    """
    text = _list_text(source, name, top_level)
    characters, state, count = np.frombuffer(text, np.uint8), np.array([1, 1], np.int64), 0
    filled = _extend([np.empty((0, 2), np.int64), *columns], 0, _ROOM)
    while state[0] < len(text):
        if count == len(filled[0]):  # estimate the rows from the mean length so far; unused memory costs nothing
            expected = int(1.1 * count * len(text) / state[0])
            filled = _extend(filled, count, max(expected, count + count // 2 + 1))
        count = scan(characters, min(int(state[0]) + CHUNK, len(text)), state, count, *filled)
        source.release()
    _require_depth(source, text, int(state[1]))
    spans, *filled = (column[:count] for column in filled)
    spans += offset_of(source, text)
    return Records(name, source, spans), filled


def _extend(columns: Sequence[np.ndarray], count: int, length: int) -> list[np.ndarray]:
    """Return longer columns with the same first ``count`` rows."""
    longer = [np.empty((length, *column.shape[1:]), column.dtype) for column in columns]
    for new, old in zip(longer, columns, strict=True):
        new[:count] = old[:count]
    return longer


def _list_text(source: Source, name: str, top_level: dict[str, msgspec.Raw]) -> memoryview:
    if name not in top_level:
        raise DatasetError(
            f"{source.path}: the {source.kind} has no key {name!r} (got the keys {list(top_level)}). "
            "Export it as COCO detection JSON."
        )
    text = memoryview(top_level[name])
    if bytes(text[:1]) != b"[":
        raise DatasetError(
            f"{source.path}: {name} is not a list (got {_type_of(top_level[name])}). Export it as COCO detection JSON."
        )
    return text


def _type_of(raw: msgspec.Raw) -> str:
    """Return the JSON type of a text that is not a list."""
    try:
        msgspec.json.decode(raw, type=list)
    except msgspec.ValidationError as error:
        return _found_type(error)
    return "list"


def _found_type(error: msgspec.ValidationError) -> str:
    return str(error).rpartition("got ")[2].replace("`", "")


_NOT_MARKS = bytes(set(range(256)) - set(b'[]{}"'))


def nesting_depth(text: memoryview) -> int:
    """Return how deep the lists and objects of a valid JSON text are nested: 0 for a bare literal."""
    content = bytes(text)
    if b"\\" in content:
        content = re.sub(rb"\\.", b"", content, flags=re.DOTALL)
    marks = content.translate(None, _NOT_MARKS).replace(b'""', b"")
    if b'"' in marks:
        marks = re.sub(rb'"[^"]*"', b"", marks)
    characters = np.frombuffer(marks, np.uint8)
    opens = (characters == ord("[")) | (characters == ord("{"))
    return int(np.cumsum(np.where(opens, 1, -1)).max(initial=0))


def _require_depth(source: Source, text: memoryview, depth: int | None = None) -> None:
    """Raise ``DatasetError`` when a part of a text, of a ``depth`` that may be known, is nested more than 200 deep."""
    if depth is None and repays_compiled(len(text)):
        from detcurate.coco.json_scanner import after_value

        _, depth = after_value(np.frombuffer(text, np.uint8), 0)
    if depth is None:
        depth = nesting_depth(text)
    if depth > _MAX_DEPTH:
        raise_broken_json(source.path, source.content, offset_of(source, text), "too many nested lists", source.kind)
