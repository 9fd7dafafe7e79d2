"""Engines run the work of a stage: in processes of this machine or on a Ray cluster, with identical output bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from detcurate.config import CurateSettings
from detcurate.engines.ray_engine import RayEngine
from detcurate.io.workers import Progress, run_jobs, stream_jobs

Work = Callable[[Any, Progress], Any]


class Engine(Protocol):
    """The interface of an engine.

    ``function(job, progress)`` must be picklable, and so must its jobs and results. It may be called again for the same
    job when a machine is lost, and must then return the same. ``num_processes`` counts processes of this machine; a
    cluster has its own settings. With ``on_gpu`` each worker gets a GPU, or a part of one.
    """

    assigns_blocks: bool
    """Whether each worker is assigned blocks of shards; otherwise the workers lease shards in a shared folder."""

    def run(
        self,
        function: Work,
        jobs: Sequence[Any],
        *,
        num_processes: int,
        total: int,
        desc: str,
        unit: str,
        on_gpu: bool = False,
    ) -> list[Any]:
        """Return the results of all jobs, in their order; the first failure ends all."""

    def stream(
        self, function: Work, jobs: Iterable[Any], *, num_processes: int, total: int, desc: str, unit: str
    ) -> Iterator[Any]:
        """Yield the results in the order of the jobs, with few jobs and results in memory at a time."""

    def close(self) -> None:
        """Release what the engine has started."""


class LocalEngine:
    """Worker processes of this machine. It has no state, so that all runs share one instance."""

    assigns_blocks = False

    def run(
        self,
        function: Work,
        jobs: Sequence[Any],
        *,
        num_processes: int,
        total: int,
        desc: str,
        unit: str,
        on_gpu: bool = False,
    ) -> list[Any]:
        """See :func:`detcurate.io.workers.run_jobs`; a job that needs a GPU names it."""
        return run_jobs(function, jobs, num_processes=num_processes, total=total, desc=desc, unit=unit)

    def stream(
        self, function: Work, jobs: Iterable[Any], *, num_processes: int, total: int, desc: str, unit: str
    ) -> Iterator[Any]:
        """See :func:`detcurate.io.workers.stream_jobs`."""
        return stream_jobs(function, jobs, num_processes=num_processes, total=total, desc=desc, unit=unit)

    def close(self) -> None:
        """Do nothing: workers end with their jobs."""


LOCAL = LocalEngine()


def _local(settings: CurateSettings, address: str | None) -> Engine:
    return LOCAL


def _ray(settings: CurateSettings, address: str | None) -> Engine:
    return RayEngine(settings.ray, address=address, num_cpus=settings.worker_processes)


ENGINES: Mapping[str, Callable[[CurateSettings, str | None], Engine]] = {"local": _local, "ray": _ray}


def open_engine(name: str, settings: CurateSettings, *, address: str | None = None) -> Engine:
    """Return an engine; the caller closes it.

    Args:
        name: One of ``ENGINES``.
        settings: Settings under ``CURATE``.
        address: Address of the Ray cluster; ``None`` for ``RAY_ADDRESS``, or else a cluster that is started here.

    Raises:
        ConfigError: Ray is not installed, or no cluster runs at the address.
    """
    return ENGINES[name](settings, address)
