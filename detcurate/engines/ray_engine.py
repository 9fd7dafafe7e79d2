"""The engine of a Ray cluster: one that is there, or one of this machine alone that is started and ended here."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tqdm import tqdm

from detcurate.config import RaySettings
from detcurate.engines.ray_messages import DONE, FAILURE, NEXT, RESULT, UNITS, WARNING, WorkRequest, no_cluster
from detcurate.errors import ConfigError, DetcurateError
from detcurate.io.workers import Progress, environment, kill_with_session, signals_for_the_parent_alone

_KNOCK_SECONDS = 5.0
_LEAVE_SECONDS = 10.0  # what leaving a cluster, or ending one that was started here, may take
_AHEAD = 2  # blocks a worker whose results wait for their turn
_NONE = object()
_BAR: dict[str, Any] = {"dynamic_ncols": True, "mininterval": 0.5}
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Ray listens on all interfaces, unless told that there is no cluster; and who knows no token is sent away.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}

_logger = logging.getLogger("detcurate")


class RayEngine:
    """Workers on a Ray cluster, to which a process of its own is connected, see ``ray_driver``.

    Args:
        settings: How many workers, and what each needs.
        address: Of the cluster; ``None`` for ``RAY_ADDRESS``, or else one that is started here when it is needed.
        num_cpus: Of a cluster that is started here.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """

    hands_out_blocks = True

    def __init__(self, settings: RaySettings, *, address: str | None = None, num_cpus: int = 1) -> None:
        self._settings, self._num_cpus = settings, num_cpus
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._driver: tuple[BaseProcess, Connection] | None = None
        require_ray()
        if self._address is not None:
            _require_member(self._address)
            self._connected()  # to be known now, not after hours of training

    def run(
        self,
        function: Callable[[Any, Progress], Any],
        jobs: Sequence[Any],
        *,
        num_processes: int,
        total: int,
        desc: str,
        unit: str,
        on_gpu: bool = False,
    ) -> list[Any]:
        """See :class:`~detcurate.engines.Engine`; the results are small."""
        requested = WorkRequest(function, total, desc, on_gpu=on_gpu, num_jobs=len(jobs), ahead=None)
        return list(self._hand_out(requested, jobs, unit))

    def stream(
        self,
        function: Callable[[Any, Progress], Any],
        jobs: Iterable[Any],
        *,
        num_processes: int,
        total: int,
        desc: str,
        unit: str,
    ) -> Iterator[Any]:
        """See :class:`~detcurate.engines.Engine`; two blocks a worker are begun or wait for their turn."""
        requested = WorkRequest(function, total, desc, on_gpu=False, num_jobs=None, ahead=_AHEAD)
        return self._hand_out(requested, jobs, unit)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._driver is not None:
            process, driver = self._driver
            driver.close()
            process.join(_LEAVE_SECONDS)
            self._abandon()

    def _abandon(self) -> None:
        """End the driver and what it has started, whatever it is at; a cluster notices, and ends its workers."""
        if self._driver is not None:
            (process, driver), self._driver = self._driver, None
            kill_with_session(process)
            process.join()
            driver.close()

    def _hand_out(self, requested: WorkRequest, jobs: Iterable[Any], unit: str) -> Iterator[Any]:
        is_over, waiting = False, iter(jobs)
        try:
            with tqdm(total=requested.total, desc=requested.desc, unit=unit, file=sys.stderr, **_BAR) as bar:
                driver = self._connected()
                _tell(driver, requested)
                while not is_over:
                    kind, value = _hear(driver)
                    is_over = kind in (DONE, FAILURE)
                    if kind == NEXT:
                        job = next(waiting, _NONE)
                        _tell(driver, (False, None) if job is _NONE else (True, job))
                    elif kind == UNITS:
                        bar.update(value)
                    elif kind == WARNING:
                        _logger.warning("%s", value)
                    elif kind == RESULT:
                        yield value
                    elif kind == FAILURE:
                        raise value
        finally:
            if not is_over:
                self._abandon()

    def _connected(self) -> Connection:
        """Return the way to the driver, which is started where there is none."""
        if self._driver is None:
            from detcurate.engines.ray_driver import serve

            context = multiprocessing.get_context("spawn")
            here, there = context.Pipe()
            arguments = (there, self._settings, self._address, self._num_cpus)
            process = context.Process(target=serve, args=arguments, name="ray-driver", daemon=True)
            with environment(_environment(is_own=self._address is None)), signals_for_the_parent_alone():
                process.start()
            there.close()
            self._driver = process, here
            try:
                kind, value = _hear(here)
                if kind == FAILURE:
                    raise value
            except BaseException:
                self._abandon()
                raise
        return self._driver[1]


def _tell(driver: Connection, what: Any) -> None:
    with _told_of_its_end():
        driver.send(what)


def _hear(driver: Connection) -> tuple[str, Any]:
    with _told_of_its_end():
        kind, value = driver.recv()
    return kind, value


@contextmanager
def _told_of_its_end() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise DetcurateError(
            "the process that is connected to Ray must live until all is done, got its end; give the same command "
            "again: finished work is kept"
        ) from error


def _environment(is_own: bool) -> dict[str, str]:
    """Return what Ray is to find in its environment, which it reads when it is imported."""
    found = {name: os.environ.get(name, value) for name, value in _QUIET.items()}
    return found | {**_LOOPBACK, "RAY_AUTH_TOKEN": secrets.token_hex(32)} if is_own else found


def require_ray() -> None:
    """Raise ``ConfigError`` unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray must be installed for --engine ray, got none; pip install 'detcurate[ray]'")


def _require_member(address: str) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"--ray-address must be of a cluster that this machine is a node of, as host:port or auto, got {address}; "
            "start the command on a node, such as the head"
        )
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():  # Ray itself goes on trying for minutes
        try:
            socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise no_cluster(address, error) from error
