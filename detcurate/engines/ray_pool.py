"""Distribute blocks of work to Ray actors, one block at a time each; another actor repeats the block of a dead one.

Ray's own retries are off, so that a block that kills every worker is named instead of repeated for ever. A block may
run twice, and must then give the same output.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from detcurate.engines.ray_messages import FAILURE, RESULT, UNITS
from detcurate.errors import ConfigError, DetcurateError
from detcurate.version import __version__

_POLL_SECONDS = 0.5
_REPORT_SECONDS = 0.5  # between two reports of a worker's progress
_REMIND_SECONDS, _PLACE_SECONDS = 30.0, 600.0

_logger = logging.getLogger("detcurate")


@dataclass(frozen=True)
class PoolPlan:
    """Number of workers and the resources of each.

    Args:
        num_workers: Largest number of blocks in work at a time.
        resources: Resources of one worker as ``ray.remote`` takes them: ``num_cpus``, ``num_gpus``.
        max_deaths: Number of workers that may die at one block before the run fails.
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
    """The actors of a cluster and the blocks that they work on.

    Args:
        function: See :class:`BlockWorker`.
        plan: Number of workers and the resources of each.
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
            DetcurateError: A job raised it; or too many workers died at one block, or no worker could be placed.
        """
        waiting: Iterator[_Block] = (_Block(number, job) for number, job in enumerate(jobs))
        first = next(waiting, None)
        if first is None:
            return
        waiting = itertools.chain([first], waiting)
        for _ in range(self._plan.num_workers):
            self._start()
        next_number, is_all_assigned = 0, False
        while True:
            while next_number in self._done:
                yield self._done.pop(next_number)
                next_number += 1
            is_all_assigned = self._assign(waiting, next_number) or is_all_assigned
            if is_all_assigned and not (self._busy or self._again or self._done):
                return
            self._process_message()

    def close(self) -> None:
        """End all workers."""
        workers = [*self._starting.values(), *self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in workers:
            _end(worker)

    def _assign(self, waiting: Iterator[_Block], next_number: int) -> bool:
        """Assign blocks to idle workers, those of dead workers first; return whether no block is left."""
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

    def _process_message(self) -> None:
        ready, _ = ray.wait([*self._starting, *self._busy], num_returns=1, timeout=_POLL_SECONDS)
        for found in ready:
            if found in self._starting:
                self._started(found)
            else:
                self._receive(found)
        if not (self._busy or self._idle):
            self._require_placement()

    def _receive(self, stream: Any) -> None:
        worker, block = self._busy[stream]
        try:
            kind, value = ray.get(next(stream))
        except RayTaskError as error:
            if not _is_out_of_memory(error.cause):
                raise _failure_of(error) from None
            self._replace_worker(stream, "out of memory")
        except (RayError, StopIteration) as error:
            self._replace_worker(stream, _reason(error))
        else:
            if kind == UNITS:
                # A block that runs again reports the same units twice.
                self._bar.update(min(value, self._bar.total - self._bar.n))
            if kind == RESULT:
                del self._busy[stream]
                self._idle.append(worker)
                self._done[block.number] = value

    def _replace_worker(self, stream: Any, reason: str) -> None:
        worker, block = self._busy.pop(stream)
        _end(worker)
        block.deaths += 1
        if block.deaths >= self._plan.max_deaths:
            raise DetcurateError(
                f"{self._bar.desc}: {block.deaths} workers died at {block.name} (got {reason}). Check the images of "
                "this block, lower CURATE.PREDICT.BATCH_SIZE or the number of workers a node, or raise "
                "CURATE.RAY.MAX_DEATHS, and run the same command again: finished work is kept."
            )
        _logger.warning("%s: a worker died at %s (%s); another repeats it", self._bar.desc, block.name, reason)
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
                    f"{self._bar.desc}: no worker can start (got {_reason(error)}). Install the same Python, detcurate "
                    "and Detectron2 on every node, and make sure that its memory holds the members."
                ) from error
            self._start()
            return
        if version != __version__:
            _end(worker)
            raise ConfigError(f"detcurate: a node has another version (got {version}). Install {__version__} on all.")
        self._failed_starts = 0
        self._idle.append(worker)

    def _require_placement(self) -> None:
        """Warn when no worker can be placed, and fail after ten minutes."""
        waited = time.monotonic() - max(worker.since for worker in self._starting.values())
        if waited < _REMIND_SECONDS:
            return
        needs = ", ".join(f"{name} {value:g}" for name, value in self._plan.resources.items())
        if waited > _PLACE_SECONDS:
            raise DetcurateError(
                f"{self._bar.desc}: no worker has started on the cluster (got none in {_PLACE_SECONDS:.0f} s, each "
                f"needs {needs}). Add nodes, or lower the resources under CURATE.RAY."
            )
        if time.monotonic() - self._reminded > _REMIND_SECONDS:
            self._reminded = time.monotonic()
            _logger.warning("%s: no worker has started yet (each needs %s); waiting", self._bar.desc, needs)


class BlockWorker:
    """A Ray actor that calls one function for one block after another.

    Args:
        function: Called as ``function(job, progress)``; it may keep state between blocks.
        folder: The driver's current folder, for relative paths.
    """

    def __init__(self, function: Callable[[Any, Callable[[int], None]], Any], folder: Path) -> None:
        self._function = function
        if folder.is_dir():  # a node without it fails when it opens a relative path
            os.chdir(folder)

    def describe(self) -> tuple[str, str]:
        """Return the node's id and its version of detcurate."""
        return str(ray.get_runtime_context().get_node_id()), __version__

    def work(self, job: Any) -> Iterator[tuple[str, Any]]:
        """Yield finished units of work twice a second, and the result at the end."""
        messages: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        threading.Thread(target=self._run, args=(job, messages), daemon=True).start()
        units, since = 0, time.monotonic()
        while True:
            kind, value = messages.get()
            units += value if kind == UNITS else 0
            if units and (kind != UNITS or time.monotonic() - since >= _REPORT_SECONDS):
                yield UNITS, units
                units, since = 0, time.monotonic()
            if kind == FAILURE:
                raise value
            if kind == RESULT:
                yield RESULT, value
                return

    def _run(self, job: Any, messages: SimpleQueue[tuple[str, Any]]) -> None:
        try:
            messages.put((RESULT, self._function(job, lambda amount: messages.put((UNITS, amount)))))
        except BaseException as error:
            messages.put((FAILURE, error))


def _failure_of(error: RayTaskError) -> BaseException:
    """Return an error that a user can fix as it was raised; any other with the worker's traceback."""
    return error.cause if isinstance(error.cause, DetcurateError | OSError) else error


def _is_out_of_memory(cause: BaseException) -> bool:
    """Return whether a worker ran out of memory; torch on a CPU has no class for it, only a message."""
    return isinstance(cause, MemoryError) or "can't allocate memory" in str(cause)


def _reason(error: BaseException) -> str:
    if isinstance(error, OutOfMemoryError):
        return "out of memory"
    lines = [line.strip() for line in str(error).split("Worker exit detail")[0].splitlines() if line.strip()]
    # The first line says where the error was raised, the last one which error.
    return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))[:400] or type(error).__name__


def _end(worker: _Worker) -> None:
    with contextlib.suppress(RayError, ValueError):
        ray.kill(worker.actor)
