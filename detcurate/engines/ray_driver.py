"""The process that connects to Ray for the engine.

Ray's compiled code takes over SIGTERM, turns exceptions of signal handlers into its own errors, and sometimes crashes
at its end (seen with 2.60, see https://github.com/ray-project/ray/pull/61863). In a separate process none of this
affects the run, and all that Ray starts ends with the session of that process.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any

import ray
from ray.exceptions import RayError

from detcurate.config import RaySettings
from detcurate.engines.ray_messages import DONE, FAILURE, NEXT, READY, RESULT, UNITS, WARNING, WorkRequest, no_cluster
from detcurate.engines.ray_pool import BlockPool, PoolPlan
from detcurate.errors import ConfigError

_OBJECT_STORE_BYTES = 512 * 2**20  # of a cluster that is started here; Ray writes what exceeds it to disk
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _DisconnectedError(Exception):
    """The engine has closed its end, or is dead."""


def serve(engine: Connection, settings: RaySettings, address: str | None, num_cpus: int) -> None:
    """Connect to Ray, and distribute work until the engine disconnects.

    The variables that Ray reads when it is imported must be set before this process starts.

    Args:
        engine: Source of :class:`WorkRequest` and jobs, and target of pairs of a message kind and a value.
        settings: Number of workers and the resources of each.
        address: Address of the cluster; ``None`` for one that is started here and ends with this process.
        num_cpus: Number of CPUs of that one.
    """
    os.setsid()  # all that Ray starts belongs to this session
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    logging.getLogger("detcurate").addHandler(_LogHandler(engine))
    try:
        try:
            _connect(address, num_cpus)
        except ConfigError as error:
            _send(engine, FAILURE, error)
            return
        _send(engine, READY)
        while True:
            _distribute(engine, _receive(engine), settings)
    except _DisconnectedError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # a crash of Ray from here on has no effect
    ray.shutdown()


def _connect(address: str | None, num_cpus: int) -> None:
    if address is None:
        options: dict[str, Any] = {"num_cpus": num_cpus, "object_store_memory": _OBJECT_STORE_BYTES}
        options |= {"address": "local", "include_dashboard": False}
    else:
        options = {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise no_cluster(options["address"], error) from None


def _distribute(engine: Connection, request: WorkRequest, settings: RaySettings) -> None:
    try:
        plan = _plan(request, settings)
        with closing(BlockPool(request.function, plan, _ProgressBar(engine, request.desc, request.total))) as pool:
            for result in pool.results(_jobs(engine)):
                _send(engine, RESULT, result)
    except _DisconnectedError:
        raise
    except Exception as error:
        _send(engine, FAILURE, _portable(error))
    else:
        _send(engine, DONE)


def _jobs(engine: Connection) -> Iterator[Any]:
    while True:
        _send(engine, NEXT)
        has_job, job = _receive(engine)
        if not has_job:
            return
        yield job


def _plan(request: WorkRequest, settings: RaySettings) -> PoolPlan:
    """Return the plan: as many workers as the settings say, or as the cluster has room for."""
    found = ray.cluster_resources()
    resources = {
        "num_cpus": settings.cpus_per_worker,
        "num_gpus": settings.gpus_per_worker if request.on_gpu else 0.0,
    }
    room = found.get("CPU", 0.0) / settings.cpus_per_worker
    if request.on_gpu:
        if not found.get("GPU"):
            raise ConfigError(
                f"MODEL.DEVICE: the Ray cluster has no GPU (got cuda, {len(ray.nodes())} nodes). Set MODEL.DEVICE cpu, "
                "or add nodes with GPUs."
            )
        room = min(room, found["GPU"] / settings.gpus_per_worker)
    most = sys.maxsize if request.num_jobs is None else request.num_jobs
    num_workers = max(1, min(settings.num_workers or int(room), most))
    ahead = None if request.ahead is None else request.ahead * num_workers
    return PoolPlan(num_workers, resources, settings.max_deaths, ahead)


def _portable(error: Exception) -> Exception:
    """Return an error that can be pickled: the same, or one with its message."""
    if not isinstance(error, RayError):
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:  # of a class that does not pickle
            pass
    return RuntimeError(str(error))


def _send(engine: Connection, kind: str, value: Any = None) -> None:
    try:
        engine.send((kind, value))
    except ConnectionError:
        raise _DisconnectedError from None


def _receive(engine: Connection) -> Any:
    try:
        return engine.recv()
    except (EOFError, ConnectionError):
        raise _DisconnectedError from None


class _ProgressBar:
    """Forward progress to the bar of the engine."""

    def __init__(self, engine: Connection, desc: str, total: int) -> None:
        self._engine, self.desc, self.total, self.n = engine, desc, total, 0

    def update(self, amount: int) -> None:
        self.n += amount
        _send(self._engine, UNITS, amount)


class _LogHandler(logging.Handler):
    """Send log records to the engine."""

    def __init__(self, engine: Connection) -> None:
        super().__init__(logging.WARNING)
        self._engine = engine

    def emit(self, record: logging.LogRecord) -> None:
        _send(self._engine, WARNING, record.getMessage())
