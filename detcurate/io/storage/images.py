"""Images on this machine or in object storage: sizes from one listing, bytes through the local copies.

A :class:`RemoteImage` carries the size and tag that the listing states, so that an image costs a single request.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from detcurate.io.storage.client import StorageOptions
from detcurate.io.storage.copies import image_copies
from detcurate.io.storage.locations import Location, is_url, locate
from detcurate.io.storage.remote import Entry, RemotePath

_STAMPED = re.compile(r"(.+)#(-?\d+)-([0-9a-f]+)", re.DOTALL)
_ABSENT = Entry(-1, 0)
_NUM_FETCHERS = 16
_MOST_AHEAD = 4096


@dataclass(frozen=True)
class RemoteImage:
    """An image in object storage, as listed. Its text, URL ``#`` size ``-`` tag, is a file name for Detectron2."""

    remote: RemotePath
    entry: Entry

    def __str__(self) -> str:
        return f"{self.remote}#{self.entry.size}-{self.entry.tag:x}"

    @property
    def name(self) -> str:
        """The last part of the object's name."""
        return self.remote.name

    def open(self) -> BinaryIO:
        """Open the local copy, and download it first where it is absent.

        Raises:
            FileNotFoundError: The object is absent, from the listing or by now.
            StorageError: It cannot be read, or differs from the listing.
        """
        if self.entry == _ABSENT:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self.remote))
        return image_copies(self.remote.options).open(self.remote, self.entry)

    @classmethod
    def parse(cls, text: str, options: StorageOptions) -> RemoteImage:
        """Return the image of a text; without size and tag it costs a further request.

        Raises:
            FileNotFoundError: The object is absent.
        """
        match = _STAMPED.fullmatch(text)
        remote = _path_of(match[1] if match else text, options)
        return cls(remote, Entry(int(match[2]), int(match[3], 16)) if match else remote.entry())


def image_statuses(root: Location, names: Sequence[str]) -> list[tuple[int, int]]:
    """Return, for each image, its size in bytes and a number that changes with its content; -1 and 0 where absent.

    On this machine the number is the time of the last change in ns; in object storage one listing states both.
    """
    if isinstance(root, Path):
        return [path_status(root / name) for name in names]
    return [root.listing.get(_key_below(root, name), _ABSENT) for name in names]


def image_files(root: Location, names: Sequence[str]) -> tuple[Path | RemoteImage, ...]:
    """Return an object that opens each image; one that the listing lacks fails when it is opened."""
    if isinstance(root, Path):
        return tuple(root / name for name in names)
    return tuple(
        RemoteImage(RemotePath(root.scheme, f"{root.key}/{key}", root.options), root.listing.get(key, _ABSENT))
        for key in (_key_below(root, name) for name in names)
    )


def image_source(file: Location | RemoteImage) -> contextlib.AbstractContextManager[Path | BinaryIO]:
    """Return a source for Pillow: the path of a local file, or the open local copy of an object."""
    if isinstance(file, Path):
        return contextlib.nullcontext(file)
    return (file if isinstance(file, RemoteImage) else RemoteImage(file, file.entry())).open()


def fetch_ahead(files: Iterable[object], options: StorageOptions | None = None) -> None:
    """Start to download images that will be opened soon; an error is raised when the image is opened.

    Args:
        files: Results of :func:`image_files`, or their texts; local files are skipped.
        options: Options of requests, for texts.
    """
    for file in files:
        if isinstance(file, str) and is_url(file):
            file = RemoteImage.parse(file, options or StorageOptions())
        if isinstance(file, RemoteImage):
            _fetchers().put(file)


def path_status(path: Path) -> tuple[int, int]:
    """Return the size in bytes and the time of the last change in ns of a file; -1 and 0 where it is absent."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a name that the file system cannot hold
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _key_below(root: RemotePath, name: str) -> str:
    try:
        path = root / name
    except ValueError:  # leads out of the root: no listing has such a name
        return f"../{name}"
    return path.key[len(root.key) + 1 :]


def _path_of(url: str, options: StorageOptions) -> RemotePath:
    """Return the location of a text that detcurate wrote; its key may hold characters that a user's URL may not."""
    scheme, _, key = url.partition("://")
    path = locate(f"{scheme}://bucket", options=options)
    if not isinstance(path, RemotePath):
        raise FileNotFoundError(url)
    return RemotePath(scheme, key, options)


class _Fetchers:
    """Daemon threads that download images."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[RemoteImage] = queue.Queue(_MOST_AHEAD)
        for _ in range(_NUM_FETCHERS):
            threading.Thread(target=self._fetch, daemon=True).start()

    def put(self, image: RemoteImage) -> None:
        if not self._waiting.full():  # other images are downloaded when they are opened
            self._waiting.put(image)

    def _fetch(self) -> None:
        while True:
            try:
                self._waiting.get().open().close()
            except Exception:  # noqa: S112  raised again when the image is opened
                continue


_started: dict[int, _Fetchers] = {}
_lock = threading.Lock()


def _fetchers() -> _Fetchers:
    with _lock:
        if not _started:
            _started[0] = _Fetchers()
        return _started[0]


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _started.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
