"""Worker processes for CPU work: one thread each, one progress bar for all, no orphan left behind."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from detcurate.errors import DetcurateError

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int], None]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_POLL_SECONDS = 0.2
_AHEAD = 2  # jobs a worker that are begun or done before their result is asked for


class _Cancelled(Exception):
    """Raised inside a worker when another job has failed."""


_worker: dict[str, Any] = {}


def run_jobs(
    function: Callable[[Job, Progress], Result],
    jobs: Sequence[Job],
    *,
    num_processes: int,
    total: int,
    desc: str,
    unit: str,
) -> list[Result]:
    """Run ``function(job, progress)`` for every job and return the results in the order of the jobs.

    With one process the jobs run here, one after another; else in spawned workers that have one thread each.
    The first failure cancels the rest (a worker notices at its next ``progress`` call) and is raised. Workers end
    by themselves when this process is killed.

    Args:
        function: A picklable function; it calls ``progress(n)`` after each ``n`` units of work.
        jobs: Picklable descriptions of the work; none gives no result.
        num_processes: How many workers at most, at least 1.
        total: Units of work of all jobs, for the progress bar.
        desc: What the bar says.
        unit: The unit of the bar's rate, such as ``"image"``.

    Raises:
        DetcurateError: A worker died without an exception (killed, out of memory).
    """
    with tqdm(total=total, desc=desc, unit=unit, dynamic_ncols=True, file=sys.stderr, mininterval=0.5) as bar:
        if min(num_processes, len(jobs)) <= 1:
            return [function(job, bar.update) for job in jobs]
        return list(_run_in_workers(function, jobs, min(num_processes, len(jobs)), bar, ahead=len(jobs)))


def stream_jobs(
    function: Callable[[Job, Progress], Result],
    jobs: Iterable[Job],
    *,
    num_processes: int,
    total: int,
    desc: str,
    unit: str,
) -> Iterator[Result]:
    """Do as :func:`run_jobs`, and yield each result in its turn; arguments and errors are those of that function.

    Jobs are taken from the iterable as they are needed, so that neither they nor the results are in memory at once.
    """
    with tqdm(total=total, desc=desc, unit=unit, dynamic_ncols=True, file=sys.stderr, mininterval=0.5) as bar:
        if num_processes <= 1:
            yield from (function(job, bar.update) for job in jobs)
        else:
            yield from _run_in_workers(function, jobs, num_processes, bar, ahead=_AHEAD * num_processes)


def assign_gpus(num_jobs: int, num_gpus: int) -> tuple[int, ...]:
    """Return the GPU of each job that needs one alone: the jobs take turns.

    Example:
        >>> assign_gpus(5, 2)
        (0, 1, 0, 1, 0)
    """
    return tuple(job % num_gpus for job in range(num_jobs))


def _run_in_workers(
    function: Callable[[Job, Progress], Result], jobs: Iterable[Job], num_processes: int, bar: Any, *, ahead: int
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    # A simple queue writes at once; one with a feeder thread may lose the last units of a job that has ended.
    units, abort = context.SimpleQueue(), context.Event()
    with (
        _one_thread_each(),
        ProcessPoolExecutor(num_processes, context, initializer=_start_worker, initargs=(units, abort)) as pool,
    ):
        futures: deque[Future[Result]] = deque()
        waiting = iter(jobs)
        try:
            futures.extend(pool.submit(_run_one, function, job) for job in itertools.islice(waiting, ahead))
            while futures:
                _wait_for_first(futures, units, bar)
                result = futures.popleft().result()
                futures.extend(pool.submit(_run_one, function, job) for job in itertools.islice(waiting, 1))
                yield result
        except BrokenProcessPool as error:
            raise DetcurateError(
                f"a worker process of '{bar.desc}' was killed, perhaps for want of memory; lower "
                "CURATE.NUM_PROCESSES or the batch size and run the same command again: finished work is kept"
            ) from error
        finally:
            abort.set()
            pending = {future for future in futures if not future.cancel()}
            while pending:  # a worker must be able to report in order to notice
                _, pending = wait(pending, timeout=_POLL_SECONDS)
                _drain(units, bar)


def _wait_for_first(futures: Sequence[Future[Result]] | deque[Future[Result]], units: Any, bar: Any) -> None:
    """Wait until the first of the jobs has ended; raise the failure of any of them at once."""
    while True:
        pending = [future for future in futures if not future.done()]
        for future in futures:
            if future.done():
                future.result()
        if futures[0].done():
            break
        wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        _drain(units, bar)
    _drain(units, bar)


def _drain(units: Any, bar: Any) -> None:
    while not units.empty():
        bar.update(units.get())


def _start_worker(units: Any, abort: Any) -> None:
    """Prepare a worker: the parent alone answers Ctrl-C, and the parent's death is the worker's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker.update(units=units, abort=abort)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_one(function: Callable[[Job, Progress], Result], job: Job) -> Result:
    return function(job, _report)


def _report(amount: int) -> None:
    if _worker["abort"].is_set():
        raise _Cancelled
    _worker["units"].put(amount)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let the spawned workers inherit one thread each: two busy pools of OpenMP threads are far slower than one."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
