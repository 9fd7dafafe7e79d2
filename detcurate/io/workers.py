"""Worker processes for CPU work: one thread each, one progress bar for all, no orphans."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from detcurate.errors import DetcurateError
from detcurate.io.files import discard_temporaries

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int], None]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_QUIET_TRACKER = "ignore::UserWarning:multiprocessing.resource_tracker"
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 1.5  # time for a worker's job to notice the end, at its next report
_KILL_SECONDS = 2.0  # after this time a remaining worker is killed
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_UNITS = struct.Struct("<q")
_AHEAD = 2  # jobs a worker that are started or finished before their result is needed


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

    With one process the jobs run in this one, otherwise in spawned workers with one thread each. The first failure
    is raised and cancels the rest, which notice at their next ``progress`` call. Workers end when this process is
    killed.

    Args:
        function: A picklable function; it calls ``progress(n)`` after each ``n`` units of work.
        jobs: Picklable descriptions of the work; may be empty.
        num_processes: Largest number of workers, at least 1.
        total: Units of work of all jobs, for the progress bar.
        desc: Description in the progress bar.
        unit: The unit of the bar's rate, such as ``"image"``.

    Raises:
        DetcurateError: A worker died without an exception, for instance out of memory.
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
    """Run jobs like :func:`run_jobs`, and yield the results in order.

    Jobs are taken from the iterable as they are needed, so that few jobs and results are in memory at a time.
    """
    with tqdm(total=total, desc=desc, unit=unit, dynamic_ncols=True, file=sys.stderr, mininterval=0.5) as bar:
        if num_processes <= 1:
            yield from (function(job, bar.update) for job in jobs)
        else:
            yield from _run_in_workers(function, jobs, num_processes, bar, ahead=_AHEAD * num_processes)


def assign_gpus(num_jobs: int, num_gpus: int) -> tuple[int, ...]:
    """Return the GPU of each job: the jobs are assigned in turn.

    Example:
        >>> assign_gpus(5, 2)
        (0, 1, 0, 1, 0)
    """
    return tuple(job % num_gpus for job in range(num_jobs))


def _run_in_workers(
    function: Callable[[Job, Progress], Result], jobs: Iterable[Job], num_processes: int, bar: Any, *, ahead: int
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    # Bare pipes instead of a queue or event: a killed worker may hold the locks of those for ever.
    (units, report), (ended, end) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    others = set(multiprocessing.active_children())
    with contextlib.ExitStack() as stack, _environment_of_workers():
        # No `with` block: a signal at the end would start a second shutdown beside the first.
        pool = ProcessPoolExecutor(num_processes, context, initializer=_start_worker, initargs=(report, ended))
        for pipe in (units, report, ended, end):
            stack.callback(pipe.close)
        futures: deque[Future[Result]] = deque()
        waiting = iter(jobs)
        try:
            with block_stop_signals():  # the first job starts the workers
                futures.extend(pool.submit(_run_one, function, job) for job in itertools.islice(waiting, ahead))
            while futures:
                _wait_for_first(futures, units, bar)
                result = futures.popleft().result()
                futures.extend(pool.submit(_run_one, function, job) for job in itertools.islice(waiting, 1))
                yield result
        except BrokenProcessPool as error:
            raise DetcurateError(
                f"{bar.desc}: a worker process was killed, possibly because memory ran out. Lower "
                "CURATE.NUM_PROCESSES or the batch size and run the same command again: finished work is kept."
            ) from error
        finally:
            end.close()
            killer = threading.Timer(_KILL_SECONDS, _kill, (set(multiprocessing.active_children()) - others,))
            stack.callback(killer.cancel)
            killer.start()
            # The pool must cancel its jobs itself: it fails when a worker dies and another has cancelled them.
            ending = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
            ending.start()
            stack.callback(ending.join)
            while ending.is_alive():  # a worker notices the end at a report, which needs a reader
                ending.join(_POLL_SECONDS)
                _drain(units, bar)


def kill_with_session(process: BaseProcess) -> None:
    """Kill a child and, where it leads a session, all processes of that session."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(path.name)) == process.pid:
                os.kill(int(path.name), signal.SIGKILL)
    process.kill()


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _wait_for_first(futures: Sequence[Future[Result]] | deque[Future[Result]], units: Connection, bar: Any) -> None:
    """Wait until the first job has ended; raise the failure of any job at once."""
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


def _drain(units: Connection, bar: Any) -> None:
    while units.poll():
        (amount,) = _UNITS.unpack(os.read(units.fileno(), _UNITS.size))
        bar.update(amount)


def _start_worker(report: Connection, ended: Connection) -> None:
    """Prepare a worker: ignore stop signals, and end with the parent or when it closes its pipe."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _worker.update(report=report, ended=ended)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the parent closes its pipe or dies; give the job time to notice, then end."""
    parent = multiprocessing.parent_process()
    ends = [_worker["ended"], *([parent.sentinel] if parent is not None else [])]
    found = multiprocessing.connection.wait(ends)
    if found == [_worker["ended"]]:
        _worker["is_ending"] = True
        multiprocessing.connection.wait(ends[1:], timeout=_GRACE_SECONDS)
    discard_temporaries()
    _kill(multiprocessing.active_children())  # of a data loader
    os._exit(1)


def _run_one(function: Callable[[Job, Progress], Result], job: Job) -> Result:
    return function(job, _report)


def _report(amount: int) -> None:
    if "is_ending" in _worker:
        raise _Cancelled
    os.write(_worker["report"].fileno(), _UNITS.pack(amount))  # a write of so few bytes is atomic


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM while spawning, so that only the parent handles them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment_of_workers() -> AbstractContextManager[None]:
    """Set the variables of spawned processes: one thread each, since two busy OpenMP pools are far slower than one.

    Also silence the warning of multiprocessing's resource tracker when it removes the locks of a killed process.
    """
    quiet = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), _QUIET_TRACKER)))
    return environment({**dict.fromkeys(_THREAD_VARIABLES, "1"), "PYTHONWARNINGS": quiet})


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that start inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
