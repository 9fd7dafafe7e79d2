"""Files on their way into object storage: made whole in a private local folder, then uploaded as one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from detcurate.io.storage.copies import cache_folder
from detcurate.io.storage.remote import RemotePath

_LOCK = ".lock"


@contextlib.contextmanager
def published(path: RemotePath) -> Iterator[Path]:
    """Give a temporary local path; on success its content is uploaded, on failure nothing is.

    What a killed process has left in its folder is removed by the next one.

    Raises:
        StorageError: It cannot be uploaded.
    """
    outgoing = cache_folder(path.options) / "outgoing"
    outgoing.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_abandoned(outgoing)
    folder = outgoing / uuid.uuid4().hex
    with _held(folder.with_suffix(_LOCK)):
        folder.mkdir(mode=0o700)
        try:
            temporary = folder / path.name
            temporary.touch(mode=0o600)
            yield temporary
            path.upload(temporary)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(lock: Path) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends."""
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
        except FileNotFoundError:  # done just now
            continue
        except BlockingIOError:  # at work
            continue
