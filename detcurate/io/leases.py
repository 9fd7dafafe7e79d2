"""Leases: files that give one process at a time the right to an ``OUTPUT_DIR`` or to a shard, on any shared folder.

A lease names its holder: host, process and start of the process. The holder touches the file every few seconds. A
holder that has ended is recognised at once on its own machine, by the number and the start of its process, and from
any other machine by the age of the file. Ages are measured with the clock that dates the folder's files, so that the
clocks of two machines need not agree.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from detcurate.errors import ConfigError
from detcurate.io.files import UMASK, sha256_json, temporary_beside, write_bytes
from detcurate.io.storage import Location

LOCK = ".lock"
"""Name of the file that locks a directory."""

LOCK_STALE_SECONDS, SHARD_STALE_SECONDS = 120.0, 60.0
"""Age at which a lease of another machine counts as abandoned."""

_SUFFIX = ".lease"
_LEFTOVERS = (f".*{_SUFFIX}*", ".*.claim")  # the second: version 0.1
_HEARTBEAT_SECONDS = 15.0
_DECISION_SECONDS = 10.0  # longest time that taking over a lease takes
_POLL_SECONDS, _RETRY_SECONDS = 0.5, 0.01

_logger = logging.getLogger("detcurate")


class Leases:
    """The leases of one holder in one directory, kept alive by a thread until the end of the ``with`` block.

    Args:
        directory: Where the lease files are; created when absent.
        stale_seconds: Age at which a lease of another machine counts as abandoned.
    """

    def __init__(self, directory: Path, *, stale_seconds: float = SHARD_STALE_SECONDS) -> None:
        self._directory, self._stale_seconds = directory, stale_seconds
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._content = orjson.dumps({**identity(), "since": since, "lease": secrets.token_hex(8)})
        self._held: set[Path] = set()
        self._closed = threading.Event()

    def __enter__(self) -> Leases:
        self._directory.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release all leases."""
        self._closed.set()
        for path in list(self._held):
            self.release(path.name)

    def acquire(self, name: str) -> bool:
        """Create the lease file ``name``, or take it over from a dead holder; return whether it is held now."""
        path = self._directory / name
        if path in self._held:
            return True
        self._held.add(path)  # first: a signal that comes right after the file is created must not leave it behind
        if self._create(path) or (self._is_stale(path) and self._take_over(path)):
            return True
        self._held.discard(path)
        return False

    def release(self, name: str) -> None:
        """Remove a lease file, unless another holder has taken it over."""
        path = self._directory / name
        self._held.discard(path)
        with contextlib.suppress(OSError):  # a folder that is gone or read-only by now: the lease grows stale
            if _read(path) == self._content:
                path.unlink()

    def is_intact(self, name: str) -> bool:
        """Return whether the lease file ``name`` still names this holder."""
        return _read(self._directory / name) == self._content

    def living_holder(self, name: str) -> bytes:
        """Return the content of a lease file; empty where there is none or its holder is dead."""
        path = self._directory / name
        return b"" if self._is_stale(path) else _read(path)

    def _create(self, path: Path) -> bool:
        if path.exists():
            return False
        with temporary_beside(path) as temporary:
            temporary.write_bytes(self._content)
            temporary.chmod(0o666 & ~UMASK)  # users who share the folder must be able to read the holder
            try:
                path.hardlink_to(temporary)  # atomic with its content, also on NFS
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                return _create_without_link(path, self._content)
        return True

    def _is_stale(self, path: Path) -> bool:
        is_dead = _is_dead(_read(path))
        if is_dead is not None:
            return is_dead
        with contextlib.suppress(FileNotFoundError):  # released meanwhile
            return self._age(path) > self._stale_seconds
        return False

    def _age(self, path: Path) -> float:
        """Return the seconds since a file was touched; both ends by the clock that dates this folder's files."""
        with temporary_beside(path) as probe:
            return probe.stat().st_mtime - path.stat().st_mtime

    def _take_over(self, path: Path) -> bool:
        """Replace the lease of a dead holder; of several processes that try, one succeeds."""
        deciding = path.with_name(f"{path.name}.deciding")
        if not self._create(deciding):
            with contextlib.suppress(FileNotFoundError):
                if self._age(deciding) > _DECISION_SECONDS:  # the process that was deciding died
                    deciding.unlink()
            return False
        try:
            previous = _read(path)
            if not self._is_stale(path):
                return False
            write_bytes(path, self._content)
            _logger.info("%s: taken over from %s, which ended without releasing it", path, _describe(previous))
            return True
        finally:
            deciding.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._closed.wait(min(_HEARTBEAT_SECONDS, self._stale_seconds / 4)):
            for path in list(self._held):
                with contextlib.suppress(OSError):
                    if _read(path) == self._content:
                        os.utime(path)


class NoLeases:
    """Stand in for :class:`Leases` where a process is assigned its shards and needs no lease."""

    def __enter__(self) -> NoLeases:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def acquire(self, name: str) -> bool:
        """Return True."""
        return True

    def release(self, name: str) -> None:
        """Do nothing."""


def shard_lease(shard: str) -> str:
    """Return the name of the lease file of a shard.

    Example:
        >>> shard_lease("shard-00007.parquet")
        '.shard-00007.parquet.lease'
    """
    return f".{shard}{_SUFFIX}"


def leases_folder(directory: Location, output_dir: Path) -> Path:
    """Return the folder of the leases on the shards of ``directory``: itself, or a cache folder for object storage."""
    if isinstance(directory, Path):
        return directory
    return output_dir / "cache" / "leases" / sha256_json(str(directory))[:16]


def remove_leases(directory: Path) -> None:
    """Remove the shard leases below ``directory`` that dead processes left; call it when every shard is complete."""
    for pattern in _LEFTOVERS:
        for path in directory.rglob(pattern):
            path.unlink(missing_ok=True)


@dataclass
class _Lock:
    leases: Leases
    depth: int = 1


_locks: dict[Path, _Lock] = {}


@contextmanager
def locked(
    directory: Path, *, wait: bool = False, name: str = LOCK, stale_seconds: float = LOCK_STALE_SECONDS
) -> Iterator[None]:
    """Hold the lock of a directory; a process may hold it several times.

    Args:
        directory: Created when absent.
        wait: Wait until another holder has ended, instead of refusing.
        name: Name of the lock file in the directory.
        stale_seconds: See ``LOCK_STALE_SECONDS``.

    Raises:
        ConfigError: Another process holds the lock; the message names its host, process and start.
    """
    path = directory.resolve() / name
    if path in _locks:
        _locks[path].depth += 1
    else:
        _acquire(path, wait, stale_seconds)
    try:
        yield
    finally:
        lock = _locks.get(path)  # absent after release_all()
        if lock is not None:
            lock.depth -= 1
            if not lock.depth:
                _release(path)


def require_held(directory: Path, *, name: str = LOCK) -> None:
    """Raise ``ConfigError`` when another process has taken over this process's lock, as after a long suspension."""
    lock = _locks.get(directory.resolve() / name)
    if lock is not None and not lock.leases.is_intact(name):
        raise ConfigError(
            f"OUTPUT_DIR: {_describe(_read(directory / name))} has taken over {directory}, because this process was "
            "suspended for too long. Run the same command again when that run has ended."
        )


def release_all() -> None:
    """Release all locks of this process, before it ends without unwinding."""
    for path in list(_locks):
        _release(path)


def _acquire(path: Path, wait: bool, stale_seconds: float) -> None:
    leases, is_logged = Leases(path.parent, stale_seconds=stale_seconds), False
    _locks[path] = _Lock(leases)
    try:
        leases.__enter__()
        while not leases.acquire(path.name):
            holder = leases.living_holder(path.name)
            if holder and not wait:
                raise ConfigError(
                    f"OUTPUT_DIR: {_describe(holder)} is using {path.parent}. Wait for its end with --wait, or give "
                    "another OUTPUT_DIR."
                )
            if holder and not is_logged:
                _logger.info("waiting for %s (%s)", _describe(holder), path.parent)
                is_logged = True
            time.sleep(_POLL_SECONDS if holder else _RETRY_SECONDS)
    except BaseException:
        _release(path)
        raise


def _release(path: Path) -> None:
    lock = _locks.pop(path, None)
    if lock is not None:
        lock.leases.close()


def identity() -> dict[str, Any]:
    """Return what identifies this process: host, number, start, and the namespace in which the number counts."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _start_of(os.getpid()), "space": _namespace()}


def _is_dead(content: bytes) -> bool | None:
    """Return whether the holder that a lease names has ended; None when that cannot be seen from here."""
    try:
        holder: Mapping[str, Any] = orjson.loads(content)
        # Containers may share a host's name, but not the numbers of its processes.
        if holder["host"] != socket.gethostname() or holder.get("space", _namespace()) != _namespace():
            return None
        return bool(_start_of(holder["pid"]) != holder["born"])
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):  # being written, cut short or damaged
        return None


def _describe(content: bytes) -> str:
    try:
        holder: Mapping[str, Any] = orjson.loads(content)
        return f"the run of process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "another run"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _create_without_link(path: Path, content: bytes) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    return True


def _namespace() -> str:
    """Return the kernel's boot id and the namespace of process numbers; empty where the system has none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """Return when a process of this machine began, since its number may be used again; None when it is dead."""
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
