"""The process that is connected to Ray, on the engine's behalf.

Ray's compiled code takes over SIGTERM, turns what a handler raises into errors of its own, and now and then crashes
when it is left (seen with 2.60, as in https://github.com/ray-project/ray/pull/61863). In a process of its own all that
stays without effect on the run, and what was started for it ends with its session.
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

_OBJECT_STORE_BYTES = 512 * 2**20  # of a cluster that is started here; what does not fit is spilled to disk
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _HungUpError(Exception):
    """The engine has closed its end, or is dead."""


def serve(engine: Connection, settings: RaySettings, address: str | None, num_cpus: int) -> None:
    """Connect to Ray, and hand out what is asked for until the engine hangs up.

    What Ray reads of the environment when it is imported has to be there before this process is.

    Args:
        engine: Where :class:`Asked` and jobs come from, and where pairs of a word and a value go.
        settings: How many workers, and what each needs.
        address: Of the cluster; ``None`` for one that is started here and ends with this process.
        num_cpus: Of that one.
    """
    os.setsid()  # whatever Ray starts here is of this session
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    logging.getLogger("detcurate").addHandler(_Telling(engine))
    try:
        try:
            _connect(address, num_cpus)
        except ConfigError as error:
            _say(engine, FAILURE, error)
            return
        _say(engine, READY)
        while True:
            _hand_out(engine, _hear(engine), settings)
    except _HungUpError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # a crash from here on concerns nobody
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


def _hand_out(engine: Connection, requested: WorkRequest, settings: RaySettings) -> None:
    try:
        plan = _plan(requested, settings)
        with closing(BlockPool(requested.function, plan, _Bar(engine, requested.desc, requested.total))) as pool:
            for result in pool.results(_jobs(engine)):
                _say(engine, RESULT, result)
    except _HungUpError:
        raise
    except Exception as error:
        _say(engine, FAILURE, _portable(error))
    else:
        _say(engine, DONE)


def _jobs(engine: Connection) -> Iterator[Any]:
    while True:
        _say(engine, NEXT)
        is_one, job = _hear(engine)
        if not is_one:
            return
        yield job


def _plan(requested: WorkRequest, settings: RaySettings) -> PoolPlan:
    """Return how many workers the cluster has room for, unless the settings say how many."""
    found = ray.cluster_resources()
    resources = {
        "num_cpus": settings.cpus_per_worker,
        "num_gpus": settings.gpus_per_worker if requested.on_gpu else 0.0,
    }
    room = found.get("CPU", 0.0) / settings.cpus_per_worker
    if requested.on_gpu:
        if not found.get("GPU"):
            raise ConfigError(
                "MODEL.DEVICE must be one that the Ray cluster has, got cuda and no GPU in "
                f"{len(ray.nodes())} nodes; add MODEL.DEVICE cpu, or nodes with GPUs"
            )
        room = min(room, found["GPU"] / settings.gpus_per_worker)
    most = sys.maxsize if requested.num_jobs is None else requested.num_jobs
    num_workers = max(1, min(settings.num_workers or int(room), most))
    ahead = None if requested.ahead is None else requested.ahead * num_workers
    return PoolPlan(num_workers, resources, settings.max_deaths, ahead)


def _portable(error: Exception) -> Exception:
    """Return an error that the engine's process can read, in words where it could not be."""
    if not isinstance(error, RayError):
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:  # of a class that does not pickle
            pass
    return RuntimeError(str(error))


def _say(engine: Connection, word: str, value: Any = None) -> None:
    try:
        engine.send((word, value))
    except ConnectionError:
        raise _HungUpError from None


def _hear(engine: Connection) -> Any:
    try:
        return engine.recv()
    except (EOFError, ConnectionError):
        raise _HungUpError from None


class _Bar:
    """The engine's progress bar, as far as the pool needs one."""

    def __init__(self, engine: Connection, desc: str, total: int) -> None:
        self._engine, self.desc, self.total, self.n = engine, desc, total, 0

    def update(self, amount: int) -> None:
        self.n += amount
        _say(self._engine, UNITS, amount)


class _Telling(logging.Handler):
    """Sends what is logged to the engine."""

    def __init__(self, engine: Connection) -> None:
        super().__init__(logging.WARNING)
        self._engine = engine

    def emit(self, record: logging.LogRecord) -> None:
        _say(self._engine, WARNING, record.getMessage())
