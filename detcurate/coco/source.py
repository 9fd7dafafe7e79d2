"""The bytes of an annotation file: mapped into memory rather than read into it, checked, and cut into records."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import json
import mmap
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
from numba import njit

from detcurate.errors import DatasetError

ANNOTATIONS = "annotation file"

_PIECE = 4 << 20
_CHUNK = 64 << 20  # so much of a mapped file is in memory at a time, where it can be helped
_MAP_FROM = 32 << 20  # smaller files are read: a mapped file must not be truncated while it is in use
_BLOCK = 65_536
_STRING_OR_NOT_FINITE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b')
_GZIP_MAGIC = b"\x1f\x8b"
_MOST_DIGITS = 640  # int() may refuse longer ones
_MOST_NESTED = 200  # far above what any COCO file has, and far below what Python's readers can follow


@dataclass(frozen=True)
class Source:
    """The text of one annotation file.

    Args:
        path: The file, as it was named.
        sha256: Digest of the file's bytes, compressed or not.
        content: Its JSON text as UTF-8 bytes: decompressed, without a byte order mark.
        is_gzip: Whether the file is compressed.
        has_byte_order_mark: Whether the text began with one.
        kind: What the file is called in messages.
    """

    path: Path
    sha256: str
    content: memoryview
    is_gzip: bool
    has_byte_order_mark: bool
    kind: str = ANNOTATIONS

    def release(self) -> None:
        """Give the pages of a mapped file back to the system; they are read again when they are needed."""
        _release(self.content)

    def with_null_for_not_finite(self) -> tuple[Source, int]:
        """Return the text with ``null`` for each NaN and Infinity outside of strings, and how many there were."""
        count = 0

        def replace(match: re.Match[bytes]) -> bytes:
            nonlocal count
            if match[0].startswith(b'"'):
                return match[0]
            count += 1
            return b"null"

        content = _STRING_OR_NOT_FINITE.sub(replace, self.content)
        return dataclasses.replace(self, content=memoryview(content)), count


def open_source(path: Path, *, sha256: str | None = None, kind: str = ANNOTATIONS) -> Source:
    """Open an annotation file, or a JSON file of another kind, plain or gzip.

    Args:
        path: The file.
        sha256: The digest that it must have, when it was read before.
        kind: What the file is called in messages.

    Raises:
        DatasetError: The file cannot be read, is empty, is broken gzip, is not UTF-8, or has another digest.
    """
    data = _map(path, kind)
    is_gzip = bytes(data[:2]) == _GZIP_MAGIC
    digest, broken = _examine(data, check_utf8=not is_gzip)
    if sha256 is not None and digest != sha256:
        raise DatasetError(
            f"the {kind} must not change after it was read, got sha256 {digest[:12]}… for {sha256[:12]}… "
            f"({path}); run the same command again"
        )
    if is_gzip:
        data = memoryview(_decompress(path, data, kind))
        _, broken = _examine(data, check_utf8=True)
    if broken is not None:
        raise_broken_json(path, data, broken, "bytes that are not UTF-8", kind)
    marked = bytes(data[:3]) == codecs.BOM_UTF8
    content = data[3:] if marked else data
    if not bytes(content[:4096]).strip() and not bytes(content).strip():
        what = "a COCO dataset" if kind == ANNOTATIONS else "JSON"
        raise DatasetError(f"the {kind} must hold {what}, got an empty file ({path}); write it again")
    return Source(path, digest, content, is_gzip, marked, kind)


def decode_top_level(source: Source) -> dict[str, msgspec.Raw]:
    """Check the whole text's syntax and return each top-level key with its value, still as text.

    Raises:
        DatasetError: The text is not JSON (with line and column), not an object, or an object with a key twice.
    """
    try:
        top_level: dict[str, msgspec.Raw] = _decode(source, dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise DatasetError(
            f"the {source.kind} must be a COCO object with images, annotations and categories, got "
            f"{_got(error)} ({source.path}); export it as COCO detection JSON"
        ) from None
    _require_each_key_once(source, top_level)
    return top_level


def decode_list(source: Source, name: str) -> Records:
    """Check the whole text's syntax and find the elements of the list that it is.

    Args:
        source: The file.
        name: What the list is called in messages.

    Raises:
        DatasetError: The text is not JSON (with line and column), not a list, or nested more than 200 deep.
    """
    return find_records(source, name, {name: _decode(source, msgspec.Raw)})


@dataclass(frozen=True)
class Records:
    """The elements of one top-level list, by where their text stands.

    Args:
        name: The key of the list.
        source: The file.
        spans: (n, 2) int64, where in ``source.content`` each element begins and ends.
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
        """Return one element as Python's own JSON reader gives it, a number of very many digits as text."""
        return json.loads(self[position], parse_int=lambda text: int(text) if len(text) <= _MOST_DIGITS else text)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the records many at a time: the first, and the one after the last."""
        for start in range(0, len(self), _BLOCK):
            yield start, min(start + _BLOCK, len(self))
            self.source.release()

    def blocks(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the same with the text of each block."""
        for start, stop in self.ranges():
            yield start, stop, self.block(start, stop)

    def block(self, start: int, stop: int) -> bytes:
        """Return the text of neighbouring records as a JSON list."""
        text = self.source.content[self.spans[start, 0] : self.spans[stop - 1, 1]]
        return b"".join((b"[", text, b"]"))


def find_records(source: Source, name: str, top_level: dict[str, msgspec.Raw]) -> Records:
    """Find the elements of a top-level list.

    Raises:
        DatasetError: There is no such key, its value is not a list, or lists are nested in it more than 200 deep.
    """
    if name not in top_level:
        raise DatasetError(
            f"the {source.kind} must have the key {name!r}, got the keys {list(top_level)} ({source.path}); "
            "export it as COCO detection JSON"
        )
    text = memoryview(top_level[name])
    if bytes(text[:1]) != b"[":
        kind = _got_kind(top_level[name])
        raise DatasetError(f"{name} must be a list, got {kind} ({source.path}); export it as COCO detection JSON")
    spans, depth = _element_spans(np.frombuffer(text, np.uint8), source)
    if depth > _MOST_NESTED:
        raise_broken_json(source.path, source.content, _offset(source, text), "too many nested lists", source.kind)
    return Records(name, source, spans + _offset(source, text))


def raise_broken_json(path: Path, content: memoryview, offset: int, reason: str, kind: str = ANNOTATIONS) -> NoReturn:
    """Raise ``DatasetError`` with the line and column of a byte that should not be there."""
    before = bytes(content[:offset])
    line, column = before.count(b"\n") + 1, offset - before.rfind(b"\n")
    is_nan = re.match(rb"-?(NaN|Inf)", bytes(content[offset : offset + 4]))
    not_finite = "NaN and Infinity are not JSON: write null or drop the record, or set not_finite_number=repair"
    hint = not_finite if is_nan else "write it again"
    raise DatasetError(
        f"the {kind} must be valid JSON, got {reason} ({path}, line {line}, column {column}); {hint}"
    ) from None


def _decode(source: Source, kind: Any) -> Any:
    """Check the whole text's syntax; raises ``msgspec.ValidationError`` when it is JSON of another kind."""
    try:
        return msgspec.json.decode(source.content, type=kind)
    except msgspec.ValidationError:
        raise
    except RecursionError:
        raise_broken_json(source.path, source.content, 0, "too many nested lists", source.kind)
    except msgspec.DecodeError as error:
        found = re.search(r"\(byte (\d+)\)", str(error))
        end = len(source.content)
        if found is None:
            raise_broken_json(source.path, source.content, end, "an end before the JSON is complete", source.kind)
        reason = str(error)[: found.start()].removeprefix("JSON is malformed: ").strip()
        raise_broken_json(source.path, source.content, int(found[1]), reason, source.kind)


def _map(path: Path, kind: str) -> memoryview:
    try:
        with path.open("rb") as stream:
            if path.stat().st_size < _MAP_FROM:
                return memoryview(stream.read())
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"the {kind} must be readable, got {reason} ({path}); check the path") from error


def _release(data: memoryview) -> None:
    mapped = data.obj
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _examine(data: memoryview, *, check_utf8: bool) -> tuple[str, int | None]:
    """Return the digest of bytes and the offset of the first that is not UTF-8, in one pass.

    msgspec leaves the text of what it skips unchecked, and subsets copy it.
    """
    digest, decoder, broken = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), None
    for start in range(0, len(data), _PIECE):
        piece = bytes(data[start : start + _PIECE])
        if start % _CHUNK == 0:
            _release(data)
        digest.update(piece)
        pending = len(decoder.getstate()[0])
        if check_utf8 and broken is None and (pending or not piece.isascii()):
            try:
                decoder.decode(piece, final=start + _PIECE >= len(data))
            except UnicodeDecodeError as error:
                broken = start - pending + error.start
    return digest.hexdigest(), broken


def _decompress(path: Path, data: memoryview, kind: str) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"the {kind} must be whole gzip, got {error} ({path}); compress it again") from error


def _offset(source: Source, text: memoryview) -> int:
    start = np.frombuffer(source.content, np.uint8).ctypes.data
    return int(np.frombuffer(text, np.uint8).ctypes.data) - start


def _require_each_key_once(source: Source, top_level: dict[str, msgspec.Raw]) -> None:
    """Refuse a key that stands twice: a JSON reader would silently keep one of the two values."""
    spans = sorted((_offset(source, memoryview(raw)), len(memoryview(raw))) for raw in top_level.values())
    pieces, end = [], 0
    for start, length in spans:
        pieces.append(bytes(source.content[end:start]))
        end = start + length
    pieces.append(bytes(source.content[end:]))
    # Between the values stand keys, colons and commas; what was passed over stands there too.
    skeleton = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", b"".join(pieces))
    if skeleton.count(b":") != len(top_level):
        raise DatasetError(
            f"a top-level key must stand once, got one of {', '.join(top_level)} twice ({source.path}); "
            "join the two values"
        )


def _got(error: msgspec.ValidationError) -> str:
    return str(error).rpartition("got ")[2].replace("`", "")


def _got_kind(raw: msgspec.Raw) -> str:
    try:
        msgspec.json.decode(raw, type=list)
    except msgspec.ValidationError as error:
        return _got(error)
    return "list"


@njit(cache=True)
def _mark_elements(text, limit, spans, count, state):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Fill in where the elements of a JSON list begin and end, up to ``limit`` or until ``spans`` is full.

    ``state`` holds the next byte, the depth there, where the current element begins, and the greatest depth so far; the
    text is valid JSON that begins with [. Returns the number of elements.
    """
    i, depth, start, deepest = state
    while i < limit and count < len(spans):
        c = text[i]
        if c == 34:  # a string: on to its closing quote
            i += 1
            while text[i] != 34:
                i += 2 if text[i] == 92 else 1
        elif c == 44:
            if depth == 1:
                spans[count, 0], spans[count, 1] = start, i
                count, start = count + 1, i + 1
        elif c == 91 or c == 123:
            depth += 1
            deepest = max(deepest, depth)
        elif c == 93 or c == 125:
            depth -= 1
            if depth == 0:
                spans[count, 0], spans[count, 1] = start, i
                count += 1
        i += 1
    state[0], state[1], state[2], state[3] = i, depth, start, deepest
    return count


@njit(cache=True)
def _strip(text, spans):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Take the white space off both ends of each span, in place."""
    for row in range(len(spans)):
        start, stop = spans[row, 0], spans[row, 1]
        while start < stop and text[start] <= 32:
            start += 1
        while start < stop and text[stop - 1] <= 32:
            stop -= 1
        spans[row, 0], spans[row, 1] = start, stop


def _element_spans(text: np.ndarray, source: Source) -> tuple[np.ndarray, int]:
    """Return where each element of a JSON list begins and ends, (n, 2) int64, and how deep it is nested.

    The text is valid JSON and begins with [.
    """
    spans, count, state = np.empty((len(text) // 256 + 16, 2), np.int64), 0, np.array([1, 1, 1, 1], np.int64)
    while state[0] < len(text):
        if count == len(spans):
            spans = np.concatenate((spans, np.empty_like(spans)))
        count = _mark_elements(text, min(int(state[0]) + _CHUNK, len(text)), spans, count, state)
        source.release()
    _strip(text, spans[:count])
    is_empty = count == 1 and spans[0, 0] == spans[0, 1]
    return spans[: 0 if is_empty else count], int(state[3])
