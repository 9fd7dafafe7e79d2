"""Local copies of objects: downloads in a folder of bounded size, and files on their way into object storage.

**Downloads.** A copy is named by the object's URL, size and version, so that a changed object is another copy. It is
written beside its place and then renamed; its size is checked whenever it is opened. Before a copy is written, the
least recently used ones are removed under a lock of the folder, so that the bound holds across threads and processes.

**Uploads.** A file is written in a private folder and then uploaded as one object.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
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
_LOCK = ".lock"


class LocalCopies:
    """Local copies of images.

    Args:
        folder: Created when absent, readable by its owner alone.
        max_bytes: Largest total size of the copies.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._locks = tuple(threading.Lock() for _ in range(64))

    def open(self, remote: RemotePath, entry: Entry) -> BinaryIO:
        """Open the copy of an object, and download it first where it is absent.

        Raises:
            FileNotFoundError: The object is absent by now.
            StorageError: It cannot be read, differs from ``entry``, or is larger than the bound of all copies.
        """
        name = _digest(f"{remote}\0{entry.size}\0{entry.tag}")
        path = self._folder / name[:2] / name[2:]
        with self._locks[int(name[:8], 16) % len(self._locks)]:  # one download a file
            return _open_whole(path, entry.size) or self._add(path, remote, entry)

    def _add(self, path: Path, remote: RemotePath, entry: Entry) -> BinaryIO:
        if entry.size > self._max_bytes:
            raise StorageError(
                f"CURATE.STORAGE.CACHE_GB: too small for one image (got {self._max_bytes / 1e9:g}, {remote} has "
                f"{entry.size / 1e9:g} GB). Raise it."
            )
        data = remote.read_bytes(entry)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._make_room(entry.size)
        temporary = path.with_name(f".{entry.size}-{uuid.uuid4().hex}{_PARTIAL}")
        try:
            with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream:
                stream.write(data)
            opened = temporary.open("rb")  # before another process can remove it
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return opened

    def _make_room(self, size: int) -> None:
        """Remove copies until ``size`` bytes fit, and record the new total."""
        with self._locked() as catalog:
            catalog.seek(0)
            text = catalog.read()
            used = int(text) if text.isdigit() else None
            if used is None or used + size > self._max_bytes:
                used = self._evict(int(self._max_bytes * _KEPT_SHARE) - size)
            catalog.seek(0)
            catalog.truncate()
            catalog.write(b"%d" % (used + size))
            catalog.flush()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self._folder / _CATALOG, os.O_CREAT | os.O_RDWR, 0o600)
        with os.fdopen(handle, "rb+") as catalog:
            fcntl.flock(catalog, fcntl.LOCK_EX)
            yield catalog

    def _evict(self, target: int) -> int:
        """Remove the copies used longest ago until at most ``target`` bytes are left; return the bytes left."""
        found, used, now = [], 0, time.time()
        for folder in os.scandir(self._folder):
            for file in os.scandir(folder) if folder.is_dir(follow_symlinks=False) else ():
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    is_partial = file.name.endswith(_PARTIAL)
                    if is_partial and status.st_mtime > now - _STALE_SECONDS:
                        used += int(file.name[1:].partition("-")[0])  # being written: counts with its final size
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
    """Return this process's copies of images for these options."""
    with _lock:
        key = (cache_folder(options), options.cache_bytes)
        if key not in _copies:
            _copies[key] = LocalCopies(key[0] / "images", key[1])
        return _copies[key]


def annotation_copy(remote: RemotePath) -> Path:
    """Return a local copy, with the same name, of the current version of an annotation file.

    These copies do not count towards the bound, since a run reads them many times; those unused for 30 days are
    removed.

    Raises:
        StorageError: It cannot be read.
        FileNotFoundError: The object is absent.
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
            raise StorageError(f"{remote}: the object changed while it was read. Run the same command again.")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def local_file(text: str, *, name: str, options: StorageOptions | None = None) -> Path:
    """Return the file that a path names, or a local copy of the object that a URL names.

    Args:
        text: A path, or a URL without credentials.
        name: Name of the setting or argument, for messages.
        options: Options of object storage.

    Raises:
        ConfigError: The URL cannot be used.
        StorageError: The object cannot be read.
        FileNotFoundError: The object is absent.
    """
    place = locate(text, name=name, options=options)
    return place if isinstance(place, Path) else annotation_copy(place)


def cache_folder(options: StorageOptions) -> Path:
    """Return the folder of all copies: as set, or the user's cache folder."""
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


@contextlib.contextmanager
def published(path: RemotePath) -> Iterator[Path]:
    """Give a temporary local path, and upload its content unless the block raises.

    Files that a killed process left are removed by the next call.

    Raises:
        StorageError: The file cannot be uploaded.
    """
    outgoing = cache_folder(path.options) / "outgoing"
    outgoing.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_abandoned(outgoing)
    folder = outgoing / uuid.uuid4().hex
    with _upload_lock(folder.with_suffix(_LOCK)):
        folder.mkdir(mode=0o700)
        try:
            temporary = folder / path.name
            temporary.touch(mode=0o600)
            yield temporary
            path.upload(temporary)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _upload_lock(lock: Path) -> Iterator[None]:
    """Hold a lock that the system releases when this process ends."""
    with os.fdopen(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _remove_abandoned(outgoing: Path) -> None:
    for folder in outgoing.iterdir():
        if folder.suffix == _LOCK:
            continue
        lock = folder.with_suffix(_LOCK)
        try:
            with lock.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
        except FileNotFoundError:  # finished meanwhile
            continue
        except BlockingIOError:  # in use
            continue


_copies: dict[tuple[Path, int], LocalCopies] = {}
_lock = threading.Lock()


def _reset_after_fork() -> None:
    """Replace a lock that another thread may hold."""
    global _lock
    _lock = threading.Lock()
    _copies.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
