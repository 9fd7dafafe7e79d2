"""The engine of one machine: worker processes, see :mod:`detcurate.io.workers`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from detcurate.io.workers import Progress, run_jobs, stream_jobs


class LocalEngine:
    """Worker processes of this machine; it holds nothing, so that one serves all runs."""

    hands_out_blocks = False

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
        """See :func:`detcurate.io.workers.run_jobs`; a job that needs a GPU names it."""
        return run_jobs(function, jobs, num_processes=num_processes, total=total, desc=desc, unit=unit)

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
        """See :func:`detcurate.io.workers.stream_jobs`."""
        return stream_jobs(function, jobs, num_processes=num_processes, total=total, desc=desc, unit=unit)

    def close(self) -> None:
        """Do nothing: workers end with their jobs."""
