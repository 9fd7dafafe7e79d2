"""Atomic writes, digests and free space; paths may be in object storage."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from detcurate.errors import ConfigError
from detcurate.io.storage import Location, RemotePath, published

TEMPORARY_SUFFIX = ".partial"
UMASK = os.umask(0o077)
os.umask(UMASK)  # can only be read by setting it, which is safe before other threads start
_NUM_REQUESTS = 16  # concurrent
_CHECKSUM = "sha256"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_being_written: set[Path] = set()


@contextmanager
def atomic_path(path: Location) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces ``path`` on success and is removed on failure.

    A reader sees the old file, the new file or none, never a part of one. The directory is created when absent. A file
    for object storage is written in a local folder and uploaded as one object.
    """
    if isinstance(path, RemotePath):
        with published(path) as temporary:
            yield temporary
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path) as temporary:
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            if temporary.stat().st_nlink == 1:  # a hard link shares the mode of its file
                temporary.chmod(0o666 & ~UMASK)  # the temporary file is private
            temporary.replace(path)
        except OSError as error:
            if error.filename is None:
                error.filename = str(path)  # a full disk names no file
            raise
        except Exception as error:
            number = _full_disk(error)
            if number is None:
                raise
            raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Give an empty private file in the same directory, and remove it at the end if it still exists.

    Its name is hidden and ends in ``TEMPORARY_SUFFIX``.
    """
    temporary = path.parent / f".{path.name.lstrip('.')}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    _being_written.add(temporary)  # before it exists: a signal may come in between
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        _being_written.discard(temporary)


def _full_disk(error: BaseException) -> int | None:
    """Return the error number of a full disk, also from libraries that state it in a message only."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _FULL:  # torch raises another error on top
            return found.errno
        for number in _FULL:
            if f"os error {number}" in str(found):  # safetensors
                return number
        found = found.__context__
    return None


def discard_temporaries() -> None:
    """Remove the temporary files of this process, before it ends without unwinding or after a signal."""
    for temporary in list(_being_written):
        temporary.unlink(missing_ok=True)


def write_bytes(path: Location, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Location, value: Any) -> None:
    """Write ``value`` as JSON atomically, indented with sorted keys, so that equal values give equal bytes."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    write_bytes(path, orjson.dumps(value, option=options))


def link_or_copy(source: Location, target: Location) -> None:
    """Create ``target`` atomically as a hard link to a file, or as a copy where the file system has no links."""
    with atomic_path(target) as temporary:
        if isinstance(source, RemotePath):
            source.download(temporary)
            return
        temporary.unlink()
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)


def sha256_file(path: Location) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    if isinstance(path, RemotePath):
        return path.sha256()
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of ``value`` as JSON with sorted keys, so that equal settings give equal digests."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def describe_files(directory: Location, paths: Iterable[Location]) -> dict[str, dict[str, Any]]:
    """Return the digest and size of files below a directory by relative name, in the given order.

    Raises:
        FileNotFoundError: A file is absent.
    """
    if isinstance(directory, Path):
        return {
            path.relative_to(directory).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in paths
            if isinstance(path, Path)
        }
    names = [path.relative_to(directory).as_posix() for path in paths if isinstance(path, RemotePath)]
    sizes = file_sizes(directory, names)
    with ThreadPoolExecutor(_NUM_REQUESTS) as pool:
        digests = pool.map(lambda name: sha256_file(directory / name), names)
        return {name: {"sha256": digest, "bytes": sizes[name]} for name, digest in zip(names, digests, strict=True)}


def file_sizes(directory: Location, names: Iterable[str]) -> dict[str, int]:
    """Return the sizes in bytes, by name, of the files below a directory that exist."""
    if isinstance(directory, RemotePath):
        found = directory.list_files()  # one request for a thousand files
        return {name: found[name].size for name in names if name in found}
    return {name: (directory / name).stat().st_size for name in names if (directory / name).is_file()}


def remove_tree(path: Location) -> None:
    """Remove a directory and its content."""
    if isinstance(path, RemotePath):
        path.remove_tree()
    else:
        shutil.rmtree(path)


def add_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its digest as ``"sha256"``, so that :func:`verify_checksum` finds a changed byte."""
    plain = orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
    return {**plain, _CHECKSUM: sha256_json(plain)}


def verify_checksum(data: bytes) -> dict[str, Any]:
    """Read a JSON object of :func:`add_checksum`; one without a digest, of an older version, is accepted.

    Raises:
        ValueError: It is not a JSON object, or differs from its digest.
    """
    value = orjson.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type(value).__name__}")
    checksum = value.pop(_CHECKSUM, None)
    if checksum is not None and checksum != sha256_json(value):
        raise ValueError("its content differs from its checksum")
    return value


def remove_temporaries(directory: Location) -> None:
    """Remove temporary files of killed processes below ``directory``; object storage never has any."""
    if isinstance(directory, RemotePath):
        return
    for leftover in directory.rglob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def is_temporary(path: str | Path) -> bool:
    """Return whether a path is a temporary file of :func:`atomic_path`."""
    return Path(path).name.endswith(TEMPORARY_SUFFIX)


def require_free_space(directory: Path, num_bytes: int) -> None:
    """Raise ``ConfigError`` when the disk of ``directory`` has less than ``num_bytes`` free."""
    existing = directory
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise ConfigError(
            f"OUTPUT_DIR: {directory} needs about {num_bytes / 1e6:,.0f} MB of free disk (got {free / 1e6:,.0f} MB). "
            "Free some space or give another OUTPUT_DIR."
        )


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error or one of its causes is a full disk or an exhausted quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        cause = cause.__cause__
    return False


def is_inaccessible(error: OSError) -> bool:
    """Return whether an error means missing permission, or a file where a folder should be or vice versa."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR)
