"""Images, here or in object storage: what a listing says of them, and their bytes through the local copies.

An object is asked for by what the listing said of it: its size and a tag of its content go with its name, so that no
image costs a request of its own but the one that fetches it.
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
    """An image in object storage, as it was listed. As text it is URL, ``#``, size and tag: what Detectron2 opens."""

    remote: RemotePath
    entry: Entry

    def __str__(self) -> str:
        return f"{self.remote}#{self.entry.size}-{self.entry.tag:x}"

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self.remote.name

    def open(self) -> BinaryIO:
        """Open its local copy, which is made first where it is not there.

        Raises:
            FileNotFoundError: The listing has no such object, or it is gone.
            StorageError: It cannot be read as it was listed.
        """
        if self.entry == _ABSENT:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self.remote))
        return image_copies(self.remote.options).open(self.remote, self.entry)

    @classmethod
    def parse(cls, text: str, options: StorageOptions) -> RemoteImage:
        """Return the image that a text means; one without size and tag is looked up, with a request of its own.

        Raises:
            FileNotFoundError: There is no such object.
        """
        match = _STAMPED.fullmatch(text)
        remote = _path_of(match[1] if match else text, options)
        return cls(remote, Entry(int(match[2]), int(match[3], 16)) if match else remote.entry())


def image_statuses(root: Location, names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the size in bytes and a number that changes with the content, for each image; -1 and 0 where it is absent.

    Here the number is the time of the last change in ns; in object storage all come from one listing.
    """
    if isinstance(root, Path):
        return [path_status(root / name) for name in names]
    return [root.listing.get(_key_below(root, name), _ABSENT) for name in names]


def image_files(root: Location, names: Sequence[str]) -> tuple[Path | RemoteImage, ...]:
    """Return what opens each image; one that the listing lacks fails when it is opened."""
    if isinstance(root, Path):
        return tuple(root / name for name in names)
    return tuple(
        RemoteImage(RemotePath(root.scheme, f"{root.key}/{key}", root.options), root.listing.get(key, _ABSENT))
        for key in (_key_below(root, name) for name in names)
    )


def image_source(file: Location | RemoteImage) -> contextlib.AbstractContextManager[Path | BinaryIO]:
    """Return what Pillow opens: a file of this machine by its name, an object by its local copy, which stays open."""
    if isinstance(file, Path):
        return contextlib.nullcontext(file)
    return (file if isinstance(file, RemoteImage) else RemoteImage(file, file.entry())).open()


def fetch_ahead(files: Iterable[object], options: StorageOptions | None = None) -> None:
    """Begin to copy images that will be opened soon, many at a time; what fails is told when they are opened.

    Args:
        files: Of :func:`image_files`, or as text; those of this machine need no copy.
        options: How the storage is asked, for those that are text.
    """
    for file in files:
        if isinstance(file, str) and is_url(file):
            file = RemoteImage.parse(file, options or StorageOptions())
        if isinstance(file, RemoteImage):
            _fetchers().put(file)


def path_status(path: Path) -> tuple[int, int]:
    """Return the size in bytes and the time of the last change in ns of a file; -1 and 0 where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a name that the file system cannot hold
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _key_below(root: RemotePath, name: str) -> str:
    try:
        path = root / name
    except ValueError:  # it leads out of the root: nothing of that name is listed
        return f"../{name}"
    return path.key[len(root.key) + 1 :]


def _path_of(url: str, options: StorageOptions) -> RemotePath:
    """Return the place that one of our own texts means; a key may hold what a URL of a user's may not."""
    scheme, _, key = url.partition("://")
    path = locate(f"{scheme}://bucket", options=options)
    if not isinstance(path, RemotePath):
        raise FileNotFoundError(url)
    return RemotePath(scheme, key, options)


class _Fetchers:
    """Threads that end with the process, whatever they are at."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[RemoteImage] = queue.Queue(_MOST_AHEAD)
        for _ in range(_NUM_FETCHERS):
            threading.Thread(target=self._fetch, daemon=True).start()

    def put(self, image: RemoteImage) -> None:
        if not self._waiting.full():  # what is not fetched ahead is fetched when it is opened
            self._waiting.put(image)

    def _fetch(self) -> None:
        while True:
            try:
                self._waiting.get().open().close()
            except Exception:  # noqa: S112  told when it is opened
                continue


_started: dict[int, _Fetchers] = {}
_lock = threading.Lock()


def _fetchers() -> _Fetchers:
    with _lock:
        if not _started:
            _started[0] = _Fetchers()
        return _started[0]


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _started.clear()


os.register_at_fork(after_in_child=_forget)
