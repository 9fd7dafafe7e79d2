"""The bytes of a file: mapped into memory rather than read into it, and looked at once as a whole."""

from __future__ import annotations

import codecs
import hashlib
import mmap
import os
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from detcurate.errors import DatasetError

CHUNK = 64 << 20  # so much of a mapped file is in memory at a time, where it can be helped
_PIECE = 4 << 20
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
