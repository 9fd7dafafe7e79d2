"""Blocks of work handed to Ray actors, one each; the block of an actor that dies is given to another.

Nothing is left to Ray's own retries: here it is known which block a worker died at, so that one that kills every
worker is named and does not go round for ever. A block may be done twice, and must then come out the same.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from detcurate.engines.ray_worker import RESULT, UNITS, BlockWorker
from detcurate.errors import ConfigError, DetcurateError
from detcurate.version import __version__

_POLL_SECONDS = 0.5  # between two looks for workers that find no place
_REMIND_SECONDS, _PLACE_SECONDS = 30.0, 600.0

_logger = logging.getLogger("detcurate")


@dataclass(frozen=True)
class PoolPlan:
    """How many workers there are, and what each needs.

    Args:
        num_workers: At most so many blocks are worked on at a time.
        resources: Of one worker, in the words of ``ray.remote``: ``num_cpus``, ``num_gpus``.
        max_deaths: Of workers at one block, before the run is given up.
        ahead: Blocks that are taken and whose results are not yet yielded; ``None`` for all of them.
    """

    num_workers: int
    resources: Mapping[str, float]
    max_deaths: int
    ahead: int | None


@dataclass(eq=False)
class _Block:
    number: int
    job: Any
    deaths: int = 0

    @property
    def name(self) -> str:
        return str(getattr(self.job, "name", f"job {self.number}"))


@dataclass(eq=False)
class _Worker:
    actor: Any
    since: float = field(default_factory=time.monotonic)


class BlockPool:
    """Actors, and who is at what.

    Args:
        function: See :class:`~detcurate.engines.ray_worker.BlockWorker`.
        plan: How many, and what each needs.
        bar: The progress bar.
    """

    def __init__(self, function: Callable[[Any, Callable[[int], None]], Any], plan: PoolPlan, bar: Any) -> None:
        self._plan, self._bar = plan, bar
        self._class = ray.remote(BlockWorker).options(
            max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **plan.resources
        )
        self._function = ray.put(function)  # once, whatever the number of workers
        self._starting: dict[Any, _Worker] = {}
        self._idle: list[_Worker] = []
        self._busy: dict[Any, tuple[_Worker, _Block]] = {}
        self._again: deque[_Block] = deque()
        self._done: dict[int, Any] = {}
        self._failed_starts, self._reminded = 0, 0.0

    def results(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in the order of the jobs, which are taken as they are needed.

        Raises:
            ConfigError: A node has another version of detcurate.
            DetcurateError: What a job raised; or workers died at one block again and again, or found no place.
        """
        waiting: Iterator[_Block] = (_Block(number, job) for number, job in enumerate(jobs))
        first = next(waiting, None)
        if first is None:
            return
        waiting = itertools.chain([first], waiting)
        for _ in range(self._plan.num_workers):
            self._start()
        next_number, is_all_given = 0, False
        while True:
            while next_number in self._done:
                yield self._done.pop(next_number)
                next_number += 1
            is_all_given = self._give(waiting, next_number) or is_all_given
            if is_all_given and not (self._busy or self._again or self._done):
                return
            self._listen()

    def close(self) -> None:
        """End all workers."""
        workers = [*self._starting.values(), *self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in workers:
            _end(worker)

    def _give(self, waiting: Iterator[_Block], next_number: int) -> bool:
        """Give blocks to the idle, those that were given before first; return whether none is left to be taken."""
        while self._idle:
            block = self._again.popleft() if self._again else None
            if block is None and self._has_room():
                block = next(waiting, None)
                if block is None:
                    return True
            if block is None:
                return False
            worker = self._idle.pop()
            self._busy[worker.actor.work.options(num_returns="streaming").remote(block.job)] = worker, block
        return False

    def _has_room(self) -> bool:
        taken = len(self._busy) + len(self._again) + len(self._done)
        return self._plan.ahead is None or taken < self._plan.ahead

    def _listen(self) -> None:
        ready, _ = ray.wait([*self._starting, *self._busy], num_returns=1, timeout=_POLL_SECONDS)
        for found in ready:
            if found in self._starting:
                self._started(found)
            else:
                self._heard(found)
        if not (self._busy or self._idle):
            self._require_place()

    def _heard(self, stream: Any) -> None:
        worker, block = self._busy[stream]
        try:
            kind, value = ray.get(next(stream))
        except RayTaskError as error:
            if not _is_out_of_memory(error.cause):
                raise _failure_of(error) from None
            self._lost(stream, "out of memory")
        except (RayError, StopIteration) as error:
            self._lost(stream, _reason(error))
        else:
            if kind == UNITS:
                # A block that is done again may tell the same units twice.
                self._bar.update(min(value, self._bar.total - self._bar.n))
            if kind == RESULT:
                del self._busy[stream]
                self._idle.append(worker)
                self._done[block.number] = value

    def _lost(self, stream: Any, reason: str) -> None:
        worker, block = self._busy.pop(stream)
        _end(worker)
        block.deaths += 1
        if block.deaths >= self._plan.max_deaths:
            raise DetcurateError(
                f"a block of '{self._bar.desc}' must not end its worker, got {block.deaths} workers that died at "
                f"{block.name}, the last so: {reason}; see whether its images are like the others, lower "
                "CURATE.PREDICT.BATCH_SIZE or the workers a node, or raise CURATE.RAY.MAX_DEATHS, and run the same "
                "command again: finished work is kept"
            )
        _logger.warning("a worker of '%s' died at %s (%s); another takes over", self._bar.desc, block.name, reason)
        self._again.append(block)
        self._start()

    def _start(self) -> None:
        worker = _Worker(self._class.remote(self._function, Path.cwd()))
        self._starting[worker.actor.describe.remote()] = worker

    def _started(self, reference: Any) -> None:
        worker = self._starting.pop(reference)
        try:
            _, version = ray.get(reference)
        except RayError as error:
            self._failed_starts += 1
            _end(worker)
            if self._failed_starts >= self._plan.max_deaths * self._plan.num_workers:
                raise DetcurateError(
                    f"a worker of '{self._bar.desc}' must start, got {_reason(error)}; every node needs the same "
                    "Python, detcurate and Detectron2 as this one, and memory for the members"
                ) from error
            self._start()
            return
        if version != __version__:
            _end(worker)
            raise ConfigError(f"every node must have detcurate {__version__}, got {version}; install the same on all")
        self._failed_starts = 0
        self._idle.append(worker)

    def _require_place(self) -> None:
        """Say that no worker finds a place, and give up after a while."""
        waited = time.monotonic() - max(worker.since for worker in self._starting.values())
        if waited < _REMIND_SECONDS:
            return
        needs = ", ".join(f"{name} {value:g}" for name, value in self._plan.resources.items())
        if waited > _PLACE_SECONDS:
            raise DetcurateError(
                f"a worker of '{self._bar.desc}' must find a place on the cluster and start, got none within "
                f"{_PLACE_SECONDS:.0f} s (it needs {needs}); add nodes, or lower what CURATE.RAY asks for"
            )
        if time.monotonic() - self._reminded > _REMIND_SECONDS:
            self._reminded = time.monotonic()
            _logger.warning("no worker of '%s' has started yet (each needs %s); waiting", self._bar.desc, needs)


def _failure_of(error: RayTaskError) -> BaseException:
    """Return what a user can mend as it was raised; a defect with the worker's traceback."""
    return error.cause if isinstance(error.cause, DetcurateError | OSError) else error


def _is_out_of_memory(cause: BaseException) -> bool:
    """Tell whether a worker had no memory left; torch on a CPU says so in words alone."""
    return isinstance(cause, MemoryError) or "can't allocate memory" in str(cause)


def _reason(error: BaseException) -> str:
    if isinstance(error, OutOfMemoryError):
        return "out of memory"
    lines = [line.strip() for line in str(error).split("Worker exit detail")[0].splitlines() if line.strip()]
    # The first line says that something was raised, the last one what.
    return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))[:400] or type(error).__name__


def _end(worker: _Worker) -> None:
    with contextlib.suppress(RayError, ValueError):
        ray.kill(worker.actor)
