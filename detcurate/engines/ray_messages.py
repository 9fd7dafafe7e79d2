"""What the engine and the process that is connected to Ray say to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detcurate.errors import ConfigError

READY, NEXT, UNITS, RESULT, WARNING, FAILURE, DONE = "ready", "next", "units", "result", "warning", "failure", "done"
"""The driver's words, each with a value. After ``NEXT`` it wants ``(True, job)``, or ``(False, None)`` at the end."""


@dataclass(frozen=True)
class WorkRequest:
    """What the driver is asked to hand out.

    Args:
        function: Picklable; see :class:`~detcurate.engines.ray_worker.BlockWorker`.
        total: Units of work of all jobs.
        desc: What the bar says.
        on_gpu: Whether a worker needs a GPU.
        num_jobs: How many jobs there are, where that is known.
        ahead: Jobs a worker that are taken and whose results are not yet there; ``None`` for all of them.
    """

    function: Callable[[Any, Callable[[int], None]], Any]
    total: int
    desc: str
    on_gpu: bool
    num_jobs: int | None
    ahead: int | None


def no_cluster(address: str, error: BaseException) -> ConfigError:
    """Return the error for an address at which there is no cluster."""
    return ConfigError(
        f"--ray-address must be of a Ray cluster that runs, got {address}: {error}; `ray status` there tells more"
    )
