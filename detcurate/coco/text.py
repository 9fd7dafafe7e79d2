"""Read the text of a JSON file: map or decompress it, compute its digest, and check its encoding and syntax."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import io
import mmap
import os
import re
import stat
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec
import numpy as np

from detcurate.errors import DatasetError

ANNOTATIONS = "annotation file"
CHUNK = 64 << 20  # bytes of a mapped file that are resident at a time, where this can be controlled

_PIECE = 4 << 20
_MAX_PIPED = 1 << 30
_MAP_FROM = 32 << 20  # smaller files are read at once: a mapped file must not be truncated while it is in use
_MAX_GROWTH, _FREE_GROWTH = 200, 64 << 20
"""Largest ratio of text to compressed file, and a size that is always allowed: gzip can reach a ratio of 1,000."""

_STRING_OR_NOT_FINITE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b')
_GZIP_MAGIC = b"\x1f\x8b"


class NotFiniteNumberError(DatasetError):
    """The text holds NaN or Infinity, which are not JSON."""


def map_file(path: Path, kind: str) -> memoryview:
    """Return the bytes of a file, mapped when it is large; ``kind`` names it in messages.

    Raises:
        DatasetError: The file cannot be read.
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
        raise DatasetError(f"{path}: the {kind} cannot be read ({reason}). Check the path.") from error


def _read_all(stream: BinaryIO) -> bytes:
    content = stream.read(_MAX_PIPED + 1)
    if len(content) > _MAX_PIPED:
        raise ValueError(f"not a regular file, and more than {_MAX_PIPED:,} bytes")
    return content


def release(data: memoryview) -> None:
    """Return the pages of a mapped file to the system; they are read again on access."""
    mapped = data.obj
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def begin_sha256(data: memoryview) -> Future[str]:
    """Start computing the digest of bytes, as 64 hexadecimal digits; of a mapped file in a separate thread.

    Hashing a mapped file releases the interpreter lock, so that the file is parsed at the same time.
    """
    digest: Future[str] = Future()
    if not isinstance(data.obj, mmap.mmap):
        digest.set_result(sha256(data))
        return digest
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
    digest = executor.submit(sha256, data)
    executor.shutdown(wait=False)  # the thread ends with this one job
    return digest


def sha256(data: memoryview) -> str:
    """Return the digest of bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for start in range(0, len(data), CHUNK):
        digest.update(data[start : start + CHUNK])
        release(data)
    return digest.hexdigest()


def first_not_utf8(data: memoryview) -> int | None:
    """Return the offset of the first byte that is not UTF-8, or ``None``.

    msgspec does not check the text of values that it skips, and subsets copy them.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(data), _PIECE):
        piece = bytes(data[start : start + _PIECE])
        if start % CHUNK == 0:
            release(data)
        pending = len(decoder.getstate()[0])
        if not pending and piece.isascii():
            continue
        try:
            decoder.decode(piece, final=start + _PIECE >= len(data))
        except UnicodeDecodeError as error:
            return start - pending + error.start
    return None


@dataclass(frozen=True)
class Source:
    """The text of one annotation file.

    Args:
        path: The file, as the caller named it.
        content: Its JSON text as UTF-8 bytes: decompressed, without a byte order mark.
        is_gzip: Whether the file is compressed.
        has_byte_order_mark: Whether the text began with one.
        digest: The digest of the file, possibly still being computed.
        kind: The name of such a file in messages.
    """

    path: Path
    content: memoryview
    is_gzip: bool
    has_byte_order_mark: bool
    digest: Future[str] = field(repr=False)
    kind: str = ANNOTATIONS

    @property
    def sha256(self) -> str:
        """Digest of the file's bytes, compressed or not; waits until it is computed."""
        return self.digest.result()

    def release(self) -> None:
        """Return the pages of a mapped file to the system; they are read again on access."""
        release(self.content)

    def with_null_for_not_finite(self) -> tuple[Source, int]:
        """Return the text with ``null`` for each NaN and Infinity outside strings, and their number."""
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
    """Open an annotation file or another JSON file, plain or gzip.

    Args:
        path: The file.
        sha256: The digest that the file must have; given when it was read before.
        kind: The name of such a file in messages.

    Raises:
        DatasetError: The file cannot be read, is empty, is broken gzip, is not UTF-8, or has another digest.
    """
    data = map_file(path, kind)
    digest = begin_sha256(data)
    if sha256 is not None and digest.result() != sha256:
        raise DatasetError(
            f"{path}: the {kind} changed after it was read (got sha256 {digest.result()[:12]}… instead of "
            f"{sha256[:12]}…). Run the same command again."
        )
    is_gzip = bytes(data[:2]) == _GZIP_MAGIC
    if is_gzip:
        data = memoryview(_decompress(path, data, kind))
    broken = first_not_utf8(data) if sha256 is None else None  # equal digest: these bytes were checked before
    if broken is not None:
        raise_broken_json(path, data, broken, "bytes that are not UTF-8", kind, hint="Save it as UTF-8.")
    has_mark = bytes(data[:3]) == codecs.BOM_UTF8
    content = data[3:] if has_mark else data
    if not bytes(content[:4096]).strip() and not bytes(content).strip():
        raise DatasetError(f"{path}: the {kind} is empty. Write it again.")
    return Source(path, content, is_gzip, has_mark, digest, kind)


def _decompress(path: Path, data: memoryview, kind: str) -> bytearray:
    limit, text = max(_FREE_GROWTH, _MAX_GROWTH * len(data)), bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as zipped:
            while piece := zipped.read(_PIECE):
                text += piece
                if len(text) > limit:
                    raise DatasetError(
                        f"{path}: the {kind} grows more than {_MAX_GROWTH} times when decompressed (got at least "
                        f"{len(text):,} bytes from {len(data):,}). Decompress it yourself if you trust its source."
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: the {kind} is broken gzip ({error}). Compress it again.") from error
    return text


def decode_as(source: Source, kind: Any) -> Any:
    """Check the syntax of the whole text and decode it.

    Raises:
        msgspec.ValidationError: The text is JSON, but not of the type ``kind``.
        DatasetError: The text is not JSON.
    """
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


def raise_broken_json(
    path: Path,
    content: memoryview,
    offset: int,
    reason: str,
    kind: str = ANNOTATIONS,
    *,
    hint: str = "Write it again.",
) -> NoReturn:
    """Raise ``DatasetError`` with the line and column of the offending byte.

    Raises:
        NotFiniteNumberError: That byte begins NaN or Infinity.
        DatasetError: In all other cases.
    """
    before = bytes(content[:offset])
    line, column = before.count(b"\n") + 1, offset - before.rfind(b"\n")
    message = f"{path}: the {kind} is not valid JSON at line {line}, column {column} (got {reason})."
    if re.match(rb"-?(NaN|Inf)", bytes(content[offset : offset + 4])):
        remedy = "NaN and Infinity are not JSON: write null, drop the record, or set not_finite_number=repair."
        raise NotFiniteNumberError(f"{message} {remedy}") from None
    raise DatasetError(f"{message} {hint}") from None


def offset_of(source: Source, text: memoryview) -> int:
    """Return where a part of a source's text begins in it."""
    start = np.frombuffer(source.content, np.uint8).ctypes.data
    return int(np.frombuffer(text, np.uint8).ctypes.data) - start
