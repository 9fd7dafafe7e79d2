"""Files that are either whole or absent: atomic writes, digests, the free-space check."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from detcurate.errors import ConfigError

_TEMPORARY_SUFFIX = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed.

    A reader sees the old file, the new file or none, never a part of one. The directory is made when absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY_SUFFIX)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp makes the file readable by its owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` atomically, indented and with sorted keys, so that equal values are equal bytes."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    write_bytes(path, orjson.dumps(value, option=options))


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file at ``target`` too, atomically: as a hard link, or as a copy where the disk has no links."""
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of ``value`` as canonical JSON (sorted keys), so that equal settings are equal digests."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def remove_temporaries(directory: Path) -> None:
    """Remove what a killed writer left half written below ``directory``."""
    for leftover in directory.rglob(f".*{_TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def is_temporary(path: str | Path) -> bool:
    """Tell whether a path is one that :func:`atomic_path` gives."""
    return Path(path).name.endswith(_TEMPORARY_SUFFIX)


def require_free_space(directory: Path, num_bytes: int) -> None:
    """Raise ``ConfigError`` when the disk that holds ``directory`` has less than ``num_bytes`` left."""
    existing = directory
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise ConfigError(
            f"OUTPUT_DIR must have about {num_bytes / 1e6:,.0f} MB of free disk, got {free / 1e6:,.0f} MB "
            f"({directory}); free some space or give another OUTPUT_DIR"
        )


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, or what caused it, is a full disk or an exhausted quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        cause = cause.__cause__
    return False


def is_inaccessible(error: OSError) -> bool:
    """Tell whether an error is a file or folder that may not be read or written."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
