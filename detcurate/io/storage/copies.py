"""Local copies of objects: a folder of bounded size, shared by any number of threads and processes.

A copy is named by the object's URL, size and version, so that a changed object is another copy. It is written beside
its place and then renamed; the size of what is found is checked. Room is made before a copy is written, the least
recently used first, under a lock of the folder, so that the bound holds whoever writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from detcurate.errors import StorageError
from detcurate.io.storage.client import StorageOptions
from detcurate.io.storage.locations import locate
from detcurate.io.storage.remote import Entry, RemotePath

_PARTIAL = ".partial"
_KEPT_SHARE = 0.9  # what is left when room is made, so that it is not made for each file
_STALE_SECONDS = 24 * 3600.0
_ANNOTATIONS_KEPT_SECONDS = 30 * 24 * 3600.0
_CATALOG = "bytes"


class LocalCopies:
    """Copies of images.

    Args:
        folder: Where; made when absent, readable by its owner alone.
        max_bytes: What the copies may take together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._locks = tuple(threading.Lock() for _ in range(64))

    def open(self, remote: RemotePath, entry: Entry) -> BinaryIO:
        """Open the copy of an object, which is made first where it is not there.

        Raises:
            FileNotFoundError: There is no such object any more.
            StorageError: It cannot be read as it was listed, or is larger than all copies may be.
        """
        name = _digest(f"{remote}\0{entry.size}\0{entry.tag}")
        path = self._folder / name[:2] / name[2:]
        with self._locks[int(name[:8], 16) % len(self._locks)]:  # one download a file
            return _open_whole(path, entry.size) or self._add(path, remote, entry)

    def _add(self, path: Path, remote: RemotePath, entry: Entry) -> BinaryIO:
        if entry.size > self._max_bytes:
            raise StorageError(
                f"CURATE.STORAGE.CACHE_GB must hold one image at least, got {self._max_bytes / 1e9:g} GB for "
                f"{entry.size / 1e9:g} GB ({remote}); raise it"
            )
        data = remote.read_bytes(entry)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._make_room(entry.size)
        temporary = path.with_name(f".{entry.size}-{uuid.uuid4().hex}{_PARTIAL}")
        try:
            with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream:
                stream.write(data)
            opened = temporary.open("rb")  # before another process can make room of it
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return opened

    def _make_room(self, size: int) -> None:
        """Add a size to what is used, once there is room for it."""
        with self._locked() as member_index:
            member_index.seek(0)
            text = member_index.read()
            used = int(text) if text.isdigit() else None
            if used is None or used + size > self._max_bytes:
                used = self._evict(int(self._max_bytes * _KEPT_SHARE) - size)
            member_index.seek(0)
            member_index.truncate()
            member_index.write(b"%d" % (used + size))
            member_index.flush()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self._folder / _CATALOG, os.O_CREAT | os.O_RDWR, 0o600)
        with os.fdopen(handle, "rb+") as member_index:
            fcntl.flock(member_index, fcntl.LOCK_EX)
            yield member_index

    def _evict(self, target: int) -> int:
        """Return what the copies take, once those used longest ago are gone and at most ``target`` bytes are left."""
        found, used, now = [], 0, time.time()
        for folder in os.scandir(self._folder):
            for file in os.scandir(folder) if folder.is_dir(follow_symlinks=False) else ():
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    is_partial = file.name.endswith(_PARTIAL)
                    if is_partial and status.st_mtime > now - _STALE_SECONDS:
                        used += int(file.name[1:].partition("-")[0])  # being written: it counts whole
                        continue
                    size = 0 if is_partial else status.st_size
                    used += size
                    found.append((0.0 if is_partial else status.st_mtime, file.path, size))
        for last_used, path, size in sorted(found):
            if used <= target and last_used:
                break
            Path(path).unlink(missing_ok=True)
            used -= size
        return used


def image_copies(options: StorageOptions) -> LocalCopies:
    """Return this process's copies of images for some options."""
    with _lock:
        key = (cache_folder(options), options.cache_bytes)
        if key not in _copies:
            _copies[key] = LocalCopies(key[0] / "images", key[1])
        return _copies[key]


def annotation_copy(remote: RemotePath) -> Path:
    """Return a local copy of an annotation file, as it is now; it keeps its name.

    Copies of annotation files do not count for the bound, for they are read again and again in a run; those that were
    not asked for in 30 days are removed.

    Raises:
        StorageError: It cannot be read.
        FileNotFoundError: There is no such object.
    """
    entry = remote.entry()
    folder = cache_folder(remote.options) / "annotations"
    path = folder / _digest(f"{remote}\0{entry.size}\0{entry.tag}")[:24] / remote.name
    if path.is_file() and path.stat().st_size == entry.size:
        os.utime(path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_unused(folder)
    temporary = path.with_name(f".{uuid.uuid4().hex}{_PARTIAL}")
    try:
        remote.download(temporary)
        if temporary.stat().st_size != entry.size:
            raise StorageError(f"{remote} must not change while it is read; run the same command again")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def local_file(text: str, *, name: str, options: StorageOptions | None = None) -> Path:
    """Return the file that a path or URL names; of an object in storage a local copy.

    Args:
        text: A path, or a URL without credentials.
        name: What it is called in messages.
        options: How object storage is asked.

    Raises:
        ConfigError: The URL cannot be used.
        StorageError: It cannot be read.
        FileNotFoundError: There is no such object.
    """
    place = locate(text, name=name, options=options)
    return place if isinstance(place, Path) else annotation_copy(place)


def cache_folder(options: StorageOptions) -> Path:
    """Return the folder of all copies: as set, or the user's own."""
    if options.cache is not None:
        return options.cache
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detcurate"


def _open_whole(path: Path, size: int) -> BinaryIO | None:
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return None
    if os.fstat(stream.fileno()).st_size == size:
        os.utime(stream.fileno())
        return stream
    stream.close()
    return None


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - _ANNOTATIONS_KEPT_SECONDS
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
                path.parent.rmdir()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_copies: dict[tuple[Path, int], LocalCopies] = {}
_lock = threading.Lock()


def _forget() -> None:
    """Begin anew in a forked process, where another thread's lock would never be given back."""
    global _lock
    _lock = threading.Lock()
    _copies.clear()


os.register_at_fork(after_in_child=_forget)
