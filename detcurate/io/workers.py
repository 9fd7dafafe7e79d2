"""Worker processes for CPU work: one thread each, one progress bar for all, no orphan left behind."""

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
_NOTICE_SECONDS = 1.5  # what a worker's job is given to notice that it is to end: it notices at its next report
_KILL_SECONDS = 2.0  # after which a worker that is still there is killed
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_UNITS = struct.Struct("<q")
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
    # Bare pipes, no queue or event: those have locks, which a worker that is killed may hold for ever.
    (units, report), (told, tell) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    others = set(multiprocessing.active_children())
    with contextlib.ExitStack() as stack, _environment_of_workers():
        # Not as a context: that would shut it down a second time beside the first when a signal comes at the end.
        pool = ProcessPoolExecutor(num_processes, context, initializer=_start_worker, initargs=(report, told))
        for end in (units, report, told, tell):
            stack.callback(end.close)
        futures: deque[Future[Result]] = deque()
        waiting = iter(jobs)
        try:
            with signals_for_the_parent_alone():  # the first job starts the workers
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
            tell.close()
            killer = threading.Timer(_KILL_SECONDS, _kill, (set(multiprocessing.active_children()) - others,))
            stack.callback(killer.cancel)
            killer.start()
            # The pool itself cancels: it breaks over a job that others have cancelled when a worker dies.
            ending = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
            ending.start()
            stack.callback(ending.join)
            while ending.is_alive():  # a worker must be able to report in order to notice
                ending.join(_POLL_SECONDS)
                _drain(units, bar)


def kill_with_session(process: BaseProcess) -> None:
    """Kill a child at once and, where it leads a session of its own, what is left of that."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(path.name)) == process.pid:
                os.kill(int(path.name), signal.SIGKILL)
    process.kill()


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _wait_for_first(futures: Sequence[Future[Result]] | deque[Future[Result]], units: Connection, bar: Any) -> None:
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


def _drain(units: Connection, bar: Any) -> None:
    while units.poll():
        (amount,) = _UNITS.unpack(os.read(units.fileno(), _UNITS.size))
        bar.update(amount)


def _start_worker(report: Connection, told: Connection) -> None:
    """Prepare a worker: the parent alone answers signals; its word, and its death, end the worker."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _worker.update(report=report, told=told)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's word to end, or its death; give the job a moment to notice, then end."""
    parent = multiprocessing.parent_process()
    ended = [_worker["told"], *([parent.sentinel] if parent is not None else [])]
    found = multiprocessing.connection.wait(ended)
    if found == [_worker["told"]]:
        _worker["is_told"] = True
        multiprocessing.connection.wait(ended[1:], timeout=_NOTICE_SECONDS)
    discard_temporaries()
    _kill(multiprocessing.active_children())  # a loader's
    os._exit(1)


def _run_one(function: Callable[[Job, Progress], Result], job: Job) -> Result:
    return function(job, _report)


def _report(amount: int) -> None:
    if "is_told" in _worker:
        raise _Cancelled
    os.write(_worker["report"].fileno(), _UNITS.pack(amount))  # so few bytes are written as one


@contextmanager
def signals_for_the_parent_alone() -> Iterator[None]:
    """Let the workers that are started here be born deaf to what stops a run, which a terminal tells all at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment_of_workers() -> AbstractContextManager[None]:
    """Let the spawned processes inherit one thread each: two busy pools of OpenMP threads are far slower than one.

    And let multiprocessing's tracker, which removes the locks of a process that was ended, do so without a warning.
    """
    quiet = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), _QUIET_TRACKER)))
    return environment({**dict.fromkeys(_THREAD_VARIABLES, "1"), "PYTHONWARNINGS": quiet})


@contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started here."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
