"""Where the work of a stage is done: in processes of this machine, or on a Ray cluster, to the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from detcurate.config import CurateSettings
from detcurate.engines.local import LocalEngine
from detcurate.engines.ray_engine import RayEngine

Progress = Callable[[int], None]


class Engine(Protocol):
    """What the pipeline asks of an engine.

    ``function(job, progress)`` is picklable, as are its jobs and results; it may be called again for the same job when
    a machine is lost, and must then give the same. ``num_processes`` is for this machine's own; a cluster's size is
    its own affair. With ``on_gpu`` a worker needs a GPU, or a part of one.
    """

    hands_out_blocks: bool
    """Whether each worker is given blocks of its own; else processes share a folder and claim what they make."""

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
        """Return the results of all jobs, in their order; the first failure ends all."""

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
        """Yield the results in the order of the jobs; few of either are in memory at a time."""

    def close(self) -> None:
        """Let go of what the engine has started."""


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
        settings: Those under ``CURATE``.
        address: Of the Ray cluster; ``None`` for that of ``RAY_ADDRESS``, or else one that is started here.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    return ENGINES[name](settings, address)
