"""Messages between the engine and the process that is connected to Ray.

The module stands alone, because the engine must not import Ray, and the other process must not import the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detcurate.errors import ConfigError

READY, NEXT, UNITS, RESULT, WARNING, FAILURE, DONE = "ready", "next", "units", "result", "warning", "failure", "done"
"""Kinds of the driver's messages, each with a value. ``NEXT`` requests ``(True, job)`` or ``(False, None)``."""


@dataclass(frozen=True)
class WorkRequest:
    """Work that the driver distributes.

    Args:
        function: Picklable; see :class:`~detcurate.engines.ray_pool.BlockWorker`.
        total: Units of work of all jobs.
        desc: Description in the progress bar.
        on_gpu: Whether a worker needs a GPU.
        num_jobs: Number of jobs, where it is known.
        ahead: Jobs a worker that are taken and have no result yet; ``None`` for all of them.
    """

    function: Callable[[Any, Callable[[int], None]], Any]
    total: int
    desc: str
    on_gpu: bool
    num_jobs: int | None
    ahead: int | None


def no_cluster(address: str, error: BaseException) -> ConfigError:
    """Return the error for an address without a cluster."""
    return ConfigError(
        f"--ray-address: no Ray cluster runs at {address} (got {error}). Check it with `ray status` on its head."
    )
