"""Shards handed out by file: any number of processes work on one folder, and a dead one's shard is taken over.

A claim is a small file beside what is to be made. It only saves work: what is made is written atomically and is the
same whoever makes it, so that two processes on one shard, should it ever come to that, do no harm. Object storage
cannot make a file for one process alone, so the claims of what goes there are below ``OUTPUT_DIR``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from detcurate.files import sha256_json, write_bytes
from detcurate.storage import Location

_SUFFIX = ".claim"


def claims_folder(directory: Location, output_dir: Path) -> Path:
    """Return where the claims of what is made in a directory are: in it or, when that is elsewhere, in the cache."""
    return (
        directory if isinstance(directory, Path) else output_dir / "cache" / "claims" / sha256_json(str(directory))[:16]
    )


class NoClaims:
    """In place of claims, where each process was told which names are its own."""

    def __enter__(self) -> NoClaims:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def take(self, name: str) -> bool:
        """Return True."""
        return True

    def release(self, name: str) -> None:
        """Do nothing."""


class Claims:
    """The claims of one process in one folder.

    Args:
        directory: The folder.
        stale_seconds: A claim whose process does not show a sign of life for so long is taken over. On this machine
            a dead process is recognised at once.
    """

    def __init__(self, directory: Path, *, stale_seconds: float = 60.0) -> None:
        self._directory, self._stale_seconds = directory, stale_seconds
        self._held: set[Path] = set()
        self._identity = orjson.dumps({**identity(), "thread": id(self)})
        self._stopped = threading.Event()

    def __enter__(self) -> Claims:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._heart.join()
        for path in list(self._held):
            self._release(path)

    def take(self, name: str) -> bool:
        """Claim a name; return False when another process that lives has it."""
        path = self._path(name)
        if not (self._create(path) or (self._is_stale(path) and self._take_over(path))):
            return False
        self._held.add(path)
        return True

    def release(self, name: str) -> None:
        """Give a claimed name back."""
        self._release(self._path(name))

    def _path(self, name: str) -> Path:
        return self._directory / f".{name}{_SUFFIX}"

    def _create(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as stream:
            stream.write(self._identity)
        return True

    def _take_over(self, path: Path) -> bool:
        """Replace a stale claim by ours; of several that try, the last one to write keeps it."""
        write_bytes(path, self._identity)
        time.sleep(0.05)
        return _read(path) == self._identity

    def _is_stale(self, path: Path) -> bool:
        content = _read(path)
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return False  # released just now: whoever asks again finds the work done
        try:
            dead = is_dead(orjson.loads(content))
        except (orjson.JSONDecodeError, KeyError, TypeError):
            dead = None  # being written, or cut short by the end of its process: age tells
        return age > self._stale_seconds if dead is None else dead

    def _release(self, path: Path) -> None:
        self._held.discard(path)
        if _read(path) == self._identity:
            path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stopped.wait(self._stale_seconds / 4):
            for path in list(self._held):
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path)


def identity() -> dict[str, Any]:
    """Return what tells this process from every other: host, number, when it began, and where that number counts."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid()), "space": _space()}


def is_dead(holder: Mapping[str, Any]) -> bool | None:
    """Tell whether the process of an :func:`identity` has ended; None when that cannot be seen from here.

    Raises:
        KeyError: It is no identity.
        TypeError: Likewise.
    """
    # Containers may share a host's name, but not the numbers of its processes.
    if holder["host"] != socket.gethostname() or holder.get("space", _space()) != _space():
        return None
    return bool(_born(holder["pid"]) != holder["born"])


def remove_claims(directory: Path) -> None:
    """Remove the claims below ``directory``, when all that was claimed is made: those of the dead are left there."""
    for leftover in directory.rglob(f".*{_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _space() -> str:
    """Return a name of the kernel's boot and of the process numbers that are seen here; empty where none is told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _born(pid: int) -> str | None:
    """Return when a process of this machine began, so that a number used again is told apart; None when it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _is_alive(pid)
    return None if fields[0] == "Z" else fields[19]


def _is_alive(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
