"""The engine of a Ray cluster: an existing one, or one of this machine alone that is started and ended here."""

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
from detcurate.io.workers import Progress, block_stop_signals, environment, kill_with_session

_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 10.0  # longest time to leave a cluster, or to end one that was started here
_AHEAD = 2  # blocks a worker that are started or whose results wait for their turn
_NONE = object()
_BAR: dict[str, Any] = {"dynamic_ncols": True, "mininterval": 0.5}
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Ray listens on all interfaces unless clusters are disabled; the token refuses other users of this machine.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}

_logger = logging.getLogger("detcurate")


class RayEngine:
    """Workers on a Ray cluster; a separate process connects to it, see ``ray_driver``.

    Args:
        settings: Number of workers and the resources of each.
        address: Address of the cluster; ``None`` for ``RAY_ADDRESS``, or else a cluster that is started when needed.
        num_cpus: Number of CPUs of a cluster that is started here.

    Raises:
        ConfigError: Ray is not installed, or no cluster runs at the address.
    """

    assigns_blocks = True

    def __init__(self, settings: RaySettings, *, address: str | None = None, num_cpus: int = 1) -> None:
        self._settings, self._num_cpus = settings, num_cpus
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._driver: tuple[BaseProcess, Connection] | None = None
        require_ray()
        if self._address is not None:
            _require_member(self._address)
            self._connected()  # a wrong address must fail now, not after hours of training

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
        request = WorkRequest(function, total, desc, on_gpu=on_gpu, num_jobs=len(jobs), ahead=None)
        return list(self._distribute(request, jobs, unit))

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
        """See :class:`~detcurate.engines.Engine`; two blocks a worker are started or wait for their turn."""
        request = WorkRequest(function, total, desc, on_gpu=False, num_jobs=None, ahead=_AHEAD)
        return self._distribute(request, jobs, unit)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._driver is not None:
            process, driver = self._driver
            driver.close()
            process.join(_CLOSE_SECONDS)
            self._kill_driver()

    def _kill_driver(self) -> None:
        """Kill the driver and all that it has started; an existing cluster then ends its workers itself."""
        if self._driver is not None:
            (process, driver), self._driver = self._driver, None
            kill_with_session(process)
            process.join()
            driver.close()

    def _distribute(self, request: WorkRequest, jobs: Iterable[Any], unit: str) -> Iterator[Any]:
        is_over, remaining = False, iter(jobs)
        try:
            with tqdm(total=request.total, desc=request.desc, unit=unit, file=sys.stderr, **_BAR) as bar:
                driver = self._connected()
                _send(driver, request)
                while not is_over:
                    kind, value = _receive(driver)
                    is_over = kind in (DONE, FAILURE)
                    if kind == NEXT:
                        job = next(remaining, _NONE)
                        _send(driver, (False, None) if job is _NONE else (True, job))
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
                self._kill_driver()

    def _connected(self) -> Connection:
        """Return the connection to the driver, and start the driver first where there is none."""
        if self._driver is None:
            from detcurate.engines.ray_driver import serve

            context = multiprocessing.get_context("spawn")
            here, there = context.Pipe()
            arguments = (there, self._settings, self._address, self._num_cpus)
            process = context.Process(target=serve, args=arguments, name="ray-driver", daemon=True)
            with environment(_environment(is_own=self._address is None)), block_stop_signals():
                process.start()
            there.close()
            self._driver = process, here
            try:
                kind, value = _receive(here)
                if kind == FAILURE:
                    raise value
            except BaseException:
                self._kill_driver()
                raise
        return self._driver[1]


def _send(driver: Connection, message: Any) -> None:
    with _name_end_of_driver():
        driver.send(message)


def _receive(driver: Connection) -> tuple[str, Any]:
    with _name_end_of_driver():
        kind, value = driver.recv()
    return kind, value


@contextmanager
def _name_end_of_driver() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise DetcurateError(
            "--engine ray: the process that is connected to Ray has ended early. Run the same command again to "
            "continue: finished work is kept."
        ) from error


def _environment(is_own: bool) -> dict[str, str]:
    """Return the variables that Ray reads when it is imported."""
    found = {name: os.environ.get(name, value) for name, value in _QUIET.items()}
    return found | {**_LOOPBACK, "RAY_AUTH_TOKEN": secrets.token_hex(32)} if is_own else found


def require_ray() -> None:
    """Raise ``ConfigError`` unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--engine ray: Ray is not installed. Run pip install 'detcurate[ray]'.")


def _require_member(address: str) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"--ray-address: Ray Client addresses are not supported (got {address}). Start the command on a node of "
            "the cluster, such as its head, and give host:port or auto."
        )
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():  # Ray itself retries for minutes
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise no_cluster(address, error) from error
