"""Worker processes: order of results, failures, and workers that die."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from detcurate.errors import DatasetError, DetcurateError
from detcurate.io.workers import run_jobs, stream_jobs

SECONDS = 20  # duration of a job that is not cancelled


def run(function, jobs, num_processes=2):
    return run_jobs(function, jobs, num_processes=num_processes, total=2 * len(jobs), desc="count", unit="step")


def square(job, progress):
    time.sleep(0.05 * (job % 3))  # later jobs end before earlier ones
    progress(1)
    progress(1)
    return job**2


def where(job, progress):
    return os.getpid(), os.environ.get("OMP_NUM_THREADS"), multiprocessing.current_process().name


def fail_at_three(job, progress):
    """Fail at job 3; other jobs leave a file at their end, which they should not reach."""
    number, folder = job
    if number == 3:
        raise DatasetError("boxes must be finite, got nan (x.json, image_id 7)")
    for _ in range(SECONDS * 20):
        time.sleep(0.05)
        progress(1)
    (folder / f"{number}.done").touch()


def kill_at_two(job, progress):
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(SECONDS * 20):
        time.sleep(0.05)
        progress(1)


def fail_or_sleep(job, progress):
    """Fail at job 0; other jobs do not notice the end within the grace period."""
    if job == 0:
        raise DatasetError("boxes must be finite, got nan (x.json, image_id 7)")
    time.sleep(SECONDS)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_results_are_in_order_of_jobs(num_processes):
    jobs = [5, 1, 9, 2, 8, 3, 7]
    assert run(square, jobs, num_processes) == [job**2 for job in jobs]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_stream_takes_jobs_as_needed(num_processes):
    taken = []

    def jobs():
        for job in range(12):
            taken.append(job)
            yield job

    results = stream_jobs(square, jobs(), num_processes=num_processes, total=24, desc="count", unit="step")
    assert next(results) == 0
    assert len(taken) <= 2 * num_processes + 1
    assert [0, *results] == [job**2 for job in range(12)]


def test_closed_stream_ends_workers():
    results = stream_jobs(square, range(50), num_processes=2, total=100, desc="count", unit="step")
    next(results)
    results.close()
    assert not multiprocessing.active_children()


def test_failure_of_later_job_ends_stream_at_once(tmp_path):
    start = time.monotonic()
    jobs = [(number, tmp_path) for number in (1, 3, 2)]
    with pytest.raises(DatasetError, match="image_id 7"):
        list(stream_jobs(fail_at_three, jobs, num_processes=2, total=100, desc="count", unit="step"))
    assert time.monotonic() - start < SECONDS
    assert not list(tmp_path.iterdir())


def test_no_jobs_give_no_results():
    assert run(square, [], 4) == []


@pytest.mark.parametrize(("num_processes", "num_jobs"), [(1, 3), (8, 1)])
def test_one_process_or_one_job_runs_in_this_process(num_processes, num_jobs):
    assert {pid for pid, *_ in run(where, list(range(num_jobs)), num_processes)} == {os.getpid()}


def test_workers_have_one_thread_and_keep_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    found = run(where, list(range(4)))
    assert os.getpid() not in {pid for pid, *_ in found}
    assert {threads for _, threads, _ in found} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ
    assert not multiprocessing.active_children()


def test_failure_is_raised_and_cancels_other_jobs(tmp_path):
    begin = time.monotonic()
    with pytest.raises(DatasetError, match="image_id 7"):
        run(fail_at_three, [(number, tmp_path) for number in (1, 3, 4, 5)])
    assert time.monotonic() - begin < SECONDS
    assert not list(Path(tmp_path).iterdir())
    assert not multiprocessing.active_children()


def test_sleeping_workers_are_killed_without_traceback(capfd):
    """There are more jobs than fit into the queue: some are cancelled while the workers are killed."""
    begin = time.monotonic()
    with pytest.raises(DatasetError, match="image_id 7"):
        run(fail_or_sleep, list(range(12)))
    assert time.monotonic() - begin < SECONDS / 2
    assert not multiprocessing.active_children()
    assert "Traceback" not in capfd.readouterr().err


def test_failure_in_this_process_is_raised_unchanged(tmp_path):
    with pytest.raises(DatasetError, match="image_id 7"):
        run(fail_at_three, [(3, tmp_path), (4, tmp_path)], 1)


def test_killed_worker_names_setting():
    begin = time.monotonic()
    with pytest.raises(DetcurateError, match="count: .*CURATE.NUM_PROCESSES"):
        run(kill_at_two, [1, 2, 3])
    assert time.monotonic() - begin < SECONDS
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_bar_counts_all_units(capsys, num_processes):
    run(square, [1, 2, 3, 4], num_processes)
    assert "8/8" in capsys.readouterr().err
