"""Worker processes: the order of results, one failure for all, and a worker that dies."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from detcurate.errors import DatasetError, DetcurateError
from detcurate.io.workers import run_jobs, stream_jobs

SECONDS = 20  # what would be waited for when a failure did not cancel the others


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
    """Job 3 fails; the others work on, and say where they are at the end, which they should not reach."""
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


def fail_or_be_deaf(job, progress):
    """Job 0 fails; the others do not notice within the time that they have."""
    if job == 0:
        raise DatasetError("boxes must be finite, got nan (x.json, image_id 7)")
    time.sleep(SECONDS)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_results_have_the_order_of_the_jobs(num_processes):
    jobs = [5, 1, 9, 2, 8, 3, 7]
    assert run(square, jobs, num_processes) == [job**2 for job in jobs]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_stream_takes_jobs_as_they_are_needed(num_processes):
    taken = []

    def jobs():
        for job in range(12):
            taken.append(job)
            yield job

    results = stream_jobs(square, jobs(), num_processes=num_processes, total=24, desc="count", unit="step")
    assert next(results) == 0
    assert len(taken) <= 2 * num_processes + 1
    assert [0, *results] == [job**2 for job in range(12)]


def test_a_stream_that_is_left_ends_its_workers():
    results = stream_jobs(square, range(50), num_processes=2, total=100, desc="count", unit="step")
    next(results)
    results.close()
    assert not multiprocessing.active_children()


def test_a_failure_of_a_later_job_ends_a_stream_at_once(tmp_path):
    start = time.monotonic()
    jobs = [(number, tmp_path) for number in (1, 3, 2)]
    with pytest.raises(DatasetError, match="image_id 7"):
        list(stream_jobs(fail_at_three, jobs, num_processes=2, total=100, desc="count", unit="step"))
    assert time.monotonic() - start < SECONDS
    assert not list(tmp_path.iterdir())


def test_no_jobs_give_no_results():
    assert run(square, [], 4) == []


@pytest.mark.parametrize(("num_processes", "num_jobs"), [(1, 3), (8, 1)])
def test_one_process_or_one_job_runs_here(num_processes, num_jobs):
    assert {pid for pid, *_ in run(where, list(range(num_jobs)), num_processes)} == {os.getpid()}


def test_workers_are_elsewhere_with_one_thread_each_and_leave_the_environment_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    found = run(where, list(range(4)))
    assert os.getpid() not in {pid for pid, *_ in found}
    assert {threads for _, threads, _ in found} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ
    assert not multiprocessing.active_children()


def test_a_failure_is_raised_with_its_message_and_cancels_the_others(tmp_path):
    begin = time.monotonic()
    with pytest.raises(DatasetError, match=r"boxes must be finite, got nan \(x.json, image_id 7\)"):
        run(fail_at_three, [(number, tmp_path) for number in (1, 3, 4, 5)])
    assert time.monotonic() - begin < SECONDS
    assert not list(Path(tmp_path).iterdir())
    assert not multiprocessing.active_children()


def test_deaf_workers_are_ended_and_leave_no_word_of_it(capfd):
    """More jobs than fit into the workers' queue: some are cancelled while the workers are killed."""
    begin = time.monotonic()
    with pytest.raises(DatasetError, match="image_id 7"):
        run(fail_or_be_deaf, list(range(12)))
    assert time.monotonic() - begin < SECONDS / 2
    assert not multiprocessing.active_children()
    assert "Traceback" not in capfd.readouterr().err


def test_a_failure_here_is_raised_as_it_is(tmp_path):
    with pytest.raises(DatasetError, match="boxes must be finite"):
        run(fail_at_three, [(3, tmp_path), (4, tmp_path)], 1)


def test_a_killed_worker_is_an_error_that_a_user_understands():
    begin = time.monotonic()
    with pytest.raises(DetcurateError, match=r"a worker process of 'count' was killed, .*; lower CURATE.NUM_PROCESSES"):
        run(kill_at_two, [1, 2, 3])
    assert time.monotonic() - begin < SECONDS
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_bar_counts_every_unit(capsys, num_processes):
    run(square, [1, 2, 3, 4], num_processes)
    assert "8/8" in capsys.readouterr().err
