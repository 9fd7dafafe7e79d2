"""One run at a time in an ``OUTPUT_DIR``: a lock by file, on any shared folder, that a dead run does not keep.

The file names its holder: host, process, since when. The holder touches it every few seconds. A holder that has ended
is recognised at once on its own machine, by the number and the start of its process, and by the age of its last sign
of life from any other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from detcurate.errors import ConfigError
from detcurate.io.files import sha256_json, temporary_beside, write_bytes
from detcurate.io.storage import Location

_SUFFIX = ".claim"


def leases_folder(directory: Location, output_dir: Path) -> Path:
    """Return where the claims of what is made in a directory are: in it or, when that is elsewhere, in the cache."""
    return (
        directory if isinstance(directory, Path) else output_dir / "cache" / "leases" / sha256_json(str(directory))[:16]
    )


class NoLeases:
    """In place of claims, where each process was told which names are its own."""

    def __enter__(self) -> NoLeases:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def take(self, name: str) -> bool:
        """Return True."""
        return True

    def release(self, name: str) -> None:
        """Do nothing."""


class ShardLeases:
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

    def __enter__(self) -> ShardLeases:
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
        return _read_claim(path) == self._identity

    def _is_stale(self, path: Path) -> bool:
        content = _read_claim(path)
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
        if _read_claim(path) == self._identity:
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


def remove_leases(directory: Path) -> None:
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


def _read_claim(path: Path) -> bytes:
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


LOCK = ".lock"
"""The file's name below the directory that is locked."""

STALE_SECONDS = 120.0
"""A holder on another machine that shows no sign of life for so long is taken for dead."""

_POLL_SECONDS = 0.5
_TAKE_OVER_SECONDS = 10.0  # what deciding about a dead holder takes at the very most

_logger = logging.getLogger("detcurate")
_held: dict[Path, _Held] = {}


@dataclass
class _Held:
    """A lock of this process: what stands in the file, and how many of its callers are inside."""

    content: bytes
    depth: int = 1
    stopped: threading.Event = field(default_factory=threading.Event)


@contextmanager
def locked(
    directory: Path, *, wait: bool = False, name: str = LOCK, stale_seconds: float = STALE_SECONDS
) -> Iterator[None]:
    """Hold the lock of a directory; one that this process holds already is held once more.

    Args:
        directory: Is made when absent.
        wait: Wait for another holder to end, instead of refusing.
        name: The lock's file, below the directory.
        stale_seconds: As ``STALE_SECONDS``.

    Raises:
        ConfigError: Another process holds it; its host, process and age are named.
    """
    path = directory.resolve() / name
    if path in _held:
        _held[path].depth += 1
    else:
        directory.mkdir(parents=True, exist_ok=True)
        _held[path] = _Held(_acquire(path, wait, stale_seconds))
        threading.Thread(target=_beat, args=(path, _held[path], stale_seconds / 8), daemon=True).start()
    try:
        yield
    finally:
        held = _held.get(path)  # none when all were given back
        if held is not None:
            held.depth -= 1
            if not held.depth:
                _release(path)


def require_held(directory: Path, *, name: str = LOCK) -> None:
    """Raise ``ConfigError`` when a lock of this process has been taken over, as one that slept for long may find."""
    path = directory.resolve() / name
    held = _held.get(path)
    if held is not None and _read(path) != held.content:
        raise ConfigError(
            f"OUTPUT_DIR must stay this run's own, got {_describe(_read(path))} in its place ({directory}): this "
            "process showed no sign of life for too long; run the same command again when that run has ended"
        )


def release_all() -> None:
    """Give back all locks of this process, for when it ends without unwinding."""
    for path in list(_held):
        _release(path)


def _acquire(path: Path, wait: bool, stale_seconds: float) -> bytes:
    """Take the lock and return what stands in it."""
    content = orjson.dumps({**identity(), "since": datetime.now(timezone.utc).isoformat(timespec="seconds")})
    try:
        _wait_for(path, content, wait, stale_seconds)
    except BaseException:  # a signal may come when the file is there and nobody knows of it yet
        if _read(path) == content:
            path.unlink(missing_ok=True)
        raise
    return content


def _wait_for(path: Path, content: bytes, wait: bool, stale_seconds: float) -> None:
    is_told = False
    while (now := _create(path, content)) is not None:
        if _is_stale(path, now, stale_seconds):
            if _take_over(path, content, stale_seconds):
                return
        elif (holder := _read(path)) and not wait:
            raise ConfigError(
                f"OUTPUT_DIR must be used by one run at a time, got {_describe(holder)} at work ({path.parent}); "
                "wait for its end, with --wait, or give another OUTPUT_DIR"
            )
        elif holder and not is_told:
            _logger.info("%-9s for %s (%s)", "waiting", _describe(holder), path.parent)
            is_told = True
        time.sleep(_POLL_SECONDS if wait else 0.01)


def _create(path: Path, content: bytes) -> float | None:
    """Create the lock with its content, or return the present time by the clock that dates this folder's files."""
    with temporary_beside(path) as mine:
        mine.write_bytes(content)
        try:
            path.hardlink_to(mine)  # with its content, or not at all
        except FileExistsError:
            return mine.stat().st_mtime
        except OSError:  # a folder without links
            return None if _create_empty(path, content) else mine.stat().st_mtime
        return None


def _create_empty(path: Path, content: bytes) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    return True


def _is_stale(path: Path, now: float, stale_seconds: float) -> bool:
    content = _read(path)
    try:
        age = now - path.stat().st_mtime
    except FileNotFoundError:
        return False  # given back just now
    try:
        dead = is_dead(orjson.loads(content))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        dead = None  # cut short or damaged: age tells
    return age > stale_seconds if dead is None else dead


def _take_over(path: Path, content: bytes, stale_seconds: float) -> bool:
    """Put our name in the place of a dead holder's; of several that try, one does."""
    deciding = path.with_name(f"{path.name}.deciding")
    now = _create(deciding, content)
    if now is not None:
        with contextlib.suppress(FileNotFoundError):
            if now - deciding.stat().st_mtime > _TAKE_OVER_SECONDS:  # who was deciding died of it
                deciding.unlink()
        return False
    try:
        before = _read(path)
        if not _is_stale(path, deciding.stat().st_mtime, stale_seconds):
            return False
        write_bytes(path, content)
        _logger.warning("%-9s of %s is taken over: it has ended without giving it back", "the lock", _describe(before))
        return True
    finally:
        deciding.unlink(missing_ok=True)


def _release(path: Path) -> None:
    held = _held.pop(path)
    held.stopped.set()
    with contextlib.suppress(OSError):  # the folder is gone, or cannot be written any more: it will grow stale
        if _read(path) == held.content:
            path.unlink()


def _beat(path: Path, held: _Held, seconds: float) -> None:
    while not held.stopped.wait(seconds):
        with contextlib.suppress(OSError):
            if _read(path) == held.content:
                os.utime(path)


def _describe(content: bytes) -> str:
    try:
        holder: dict[str, Any] = orjson.loads(content)
        return f"the run of process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "another run"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
