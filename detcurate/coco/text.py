"""The text of an annotation file: opened, its syntax checked as a whole, its records by where they stand."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import io
import json
import mmap
import os
import re
import stat
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec
import numpy as np

from detcurate.coco.json_scanner import after_value
from detcurate.errors import DatasetError

CHUNK = 64 << 20  # so much of a mapped file is in memory at a time, where it can be helped
_VIEW_PIECE = 4 << 20
_MOST_PIPED = 1 << 30
_MAP_FROM = 32 << 20  # smaller files are read: a mapped file must not be truncated while it is in use


def map_file(path: Path, kind: str) -> memoryview:
    """Return a file's bytes, mapped when it is large; ``kind`` is what it is called in messages.

    Raises:
        DatasetError: It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):  # a pipe, or a device that never ends
                return memoryview(_read_all(stream))
            if status.st_size < _MAP_FROM:
                return memoryview(stream.read(_MAP_FROM))
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"the {kind} must be readable, got {reason} ({path}); check the path") from error


def _read_all(stream: BinaryIO) -> bytes:
    content = stream.read(_MOST_PIPED + 1)
    if len(content) > _MOST_PIPED:
        raise ValueError(f"more than {_MOST_PIPED:,} bytes from what is no regular file")
    return content


def release(data: memoryview) -> None:
    """Give the pages of a mapped file back to the system; they are read again when they are needed."""
    mapped = data.obj
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def begin_sha256(data: memoryview) -> Future[str]:
    """Return the digest of bytes to come, as 64 hexadecimal digits: of a mapped file in a thread of its own.

    Hashing a mapped file holds no lock of Python's, so that the file is read beside it.
    """
    digest: Future[str] = Future()
    if not isinstance(data.obj, mmap.mmap):
        digest.set_result(sha256(data))
        return digest
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
    digest = executor.submit(sha256, data)
    executor.shutdown(wait=False)  # no more work will come; the thread ends with what it has
    return digest


def sha256(data: memoryview) -> str:
    """Return the digest of bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for start in range(0, len(data), CHUNK):
        digest.update(data[start : start + CHUNK])
        release(data)
    return digest.hexdigest()


def first_not_utf8(data: memoryview) -> int | None:
    """Return the offset of the first byte that is not UTF-8.

    msgspec leaves the text of what it skips unchecked, and subsets copy it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(data), _VIEW_PIECE):
        piece = bytes(data[start : start + _VIEW_PIECE])
        if start % CHUNK == 0:
            release(data)
        pending = len(decoder.getstate()[0])
        if not pending and piece.isascii():
            continue
        try:
            decoder.decode(piece, final=start + _VIEW_PIECE >= len(data))
        except UnicodeDecodeError as error:
            return start - pending + error.start
    return None


ANNOTATIONS = "annotation file"

_BLOCK = 65_536
_PIECE = 4 << 20
_STRING_OR_NOT_FINITE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b')
_GZIP_MAGIC = b"\x1f\x8b"
_MOST_DIGITS = 640  # int() may refuse longer ones
_MOST_NESTED = 200  # far above what any COCO file has, and far below what Python's readers can follow
_MOST_GROWTH, _FREE_GROWTH = 200, 64 << 20
"""How much larger than its file a compressed text may be, and what it may have in any case: gzip can do 1,000 times."""


@dataclass(frozen=True)
class Source:
    """The text of one annotation file.

    Args:
        path: The file, as it was named.
        content: Its JSON text as UTF-8 bytes: decompressed, without a byte order mark.
        is_gzip: Whether the file is compressed.
        has_byte_order_mark: Whether the text began with one.
        digest: The digest of the file, when it is there.
        kind: What the file is called in messages.
    """

    path: Path
    content: memoryview
    is_gzip: bool
    has_byte_order_mark: bool
    digest: Future[str] = field(repr=False)
    kind: str = ANNOTATIONS

    @property
    def sha256(self) -> str:
        """Digest of the file's bytes, compressed or not; waits for it."""
        return self.digest.result()

    def release(self) -> None:
        """Give the pages of a mapped file back to the system; they are read again when they are needed."""
        release(self.content)

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
    """Open an annotation file, or another one of JSON, plain or gzip.

    Args:
        path: The file.
        sha256: The digest that it must have, when it was read before.
        kind: What the file is called in messages.

    Raises:
        DatasetError: The file cannot be read, is empty, is broken gzip, is not UTF-8, or has another digest.
    """
    data = map_file(path, kind)
    digest = begin_sha256(data)
    if sha256 is not None and digest.result() != sha256:
        raise DatasetError(
            f"the {kind} must not change after it was read, got sha256 {digest.result()[:12]}… for "
            f"{sha256[:12]}… ({path}); run the same command again"
        )
    is_gzip = bytes(data[:2]) == _GZIP_MAGIC
    if is_gzip:
        data = memoryview(_decompress(path, data, kind))
    broken = first_not_utf8(data) if sha256 is None else None  # the same bytes were looked at before
    if broken is not None:
        raise_broken_json(path, data, broken, "bytes that are not UTF-8", kind)
    marked = bytes(data[:3]) == codecs.BOM_UTF8
    content = data[3:] if marked else data
    if not bytes(content[:4096]).strip() and not bytes(content).strip():
        what = "a COCO dataset" if kind == ANNOTATIONS else "JSON"
        raise DatasetError(f"the {kind} must hold {what}, got an empty file ({path}); write it again")
    return Source(path, content, is_gzip, marked, digest, kind)


def decode_top_level(source: Source) -> dict[str, msgspec.Raw]:
    """Check the whole text's syntax and return each top-level key with its value, still as text.

    Raises:
        DatasetError: The text is not JSON (with line and column), not an object, or an object with a key twice.
    """
    try:
        top_level: dict[str, msgspec.Raw] = decode_as(source, dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise DatasetError(
            f"the {source.kind} must be a COCO object with images, annotations and categories, got "
            f"{_got(error)} ({source.path}); export it as COCO detection JSON"
        ) from None
    _require_each_key_once(source, top_level)
    for key in top_level.keys() - _WALKED:
        require_depth(source, memoryview(top_level[key]))
    return top_level


_WALKED = frozenset(("images", "annotations", "categories"))  # which are looked at on the way to their records


def require_depth(source: Source, text: memoryview, deepest: int | None = None) -> None:
    """Raise ``DatasetError`` when the lists in a part of a text are nested more than 200 deep."""
    if deepest is None:
        _, deepest = after_value(np.frombuffer(text, np.uint8), 0)
    if deepest > _MOST_NESTED:
        raise_broken_json(source.path, source.content, offset_of(source, text), "too many nested lists", source.kind)


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


def decode_as(source: Source, kind: Any) -> Any:
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


def raise_broken_json(path: Path, content: memoryview, offset: int, reason: str, kind: str = ANNOTATIONS) -> NoReturn:
    """Raise ``DatasetError`` with the line and column of a byte that should not be there."""
    before = bytes(content[:offset])
    line, column = before.count(b"\n") + 1, offset - before.rfind(b"\n")
    is_nan = re.match(rb"-?(NaN|Inf)", bytes(content[offset : offset + 4]))
    not_finite = "NaN and Infinity are not JSON: write null or drop the record, or set not_finite_number=repair"
    hint = not_finite if is_nan else "save it as UTF-8" if "UTF-8" in reason else "write it again"
    raise DatasetError(
        f"the {kind} must be valid JSON, got {reason} ({path}, line {line}, column {column}); {hint}"
    ) from None


def _decompress(path: Path, data: memoryview, kind: str) -> bytearray:
    most, text = max(_FREE_GROWTH, _MOST_GROWTH * len(data)), bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as zipped:
            while piece := zipped.read(_PIECE):
                text += piece
                if len(text) > most:
                    raise DatasetError(
                        f"the {kind} must grow at most {_MOST_GROWTH} times when unpacked, got {len(text):,} bytes and "
                        f"more from {len(data):,} ({path}); unpack it yourself if you trust its maker"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"the {kind} must be whole gzip, got {error} ({path}); compress it again") from error
    return text


def offset_of(source: Source, text: memoryview) -> int:
    """Return where a part of a source's text begins in it."""
    start = np.frombuffer(source.content, np.uint8).ctypes.data
    return int(np.frombuffer(text, np.uint8).ctypes.data) - start


def _require_each_key_once(source: Source, top_level: dict[str, msgspec.Raw]) -> None:
    """Refuse a key that stands twice: a JSON reader would silently keep one of the two values."""
    spans = sorted((offset_of(source, memoryview(raw)), len(memoryview(raw))) for raw in top_level.values())
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


def got_kind(raw: msgspec.Raw) -> str:
    """Return what kind of value a text holds that is no list."""
    try:
        msgspec.json.decode(raw, type=list)
    except msgspec.ValidationError as error:
        return _got(error)
    return "list"
