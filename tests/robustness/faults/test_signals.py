"""Ctrl-C and SIGTERM: a run ends within five seconds at any moment, and keeps finished work."""

import os
import signal
import time

import pytest
from helpers.harness import leftovers, state_of, wait_until

from detcurate.cli.signals import INTERRUPTED

SECONDS = 5.0
STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143}
LAST_LINE = f"detcurate: {INTERRUPTED}"


def stop(running, number, *, whole_group=False):
    """Send a signal; return the exit status and the seconds until all processes ended."""
    begin = time.monotonic()
    running.kill(number, whole_group=whole_group)
    status = running.wait()
    orphans = running.orphans(3 * SECONDS)
    assert not orphans
    return status, time.monotonic() - begin


def check_stopped(running, output, number, found):
    status, seconds = found
    assert status == STATUSES[number], running.text
    check_left(running, output, seconds)


def check_left(running, output, seconds):
    assert running.text.splitlines()[-1].endswith(LAST_LINE)
    assert "Traceback" not in running.text
    assert leftovers(output) == []
    # On a busy machine the limit is scaled by the load.
    assert seconds < SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.mark.parametrize("number", STATUSES)
def test_signal_in_pool_stage_releases_lock_and_run_resumes(imported, tmp_path, number):
    output = imported.copy(tmp_path, without=imported.stages)
    running = imported.start(output)
    assert wait_until(lambda: any(output.glob("pool/images-train/*")), running)
    assert (output / ".lock").exists()
    check_stopped(running, output, number, stop(running, number))
    assert state_of(output, "pool") == "started"
    assert "pool: continues after an interruption" in imported.finish(output)
    assert imported.manifest(output) == imported.manifest()


def run_until(pipeline, output, stage, *more: object):
    """Start a run, and wait until a stage has started."""
    running = pipeline.start(output, *more)
    assert wait_until((output / ".lock").exists, running), running.text
    wait_until(lambda: state_of(output, stage) != "", running)
    return running


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "whole_group", "num_processes"),
    [(signal.SIGINT, True, 2), (signal.SIGTERM, False, 2), (signal.SIGINT, False, 1), (signal.SIGTERM, True, 1)],
)
def test_signal_in_every_stage_ends_run(trained, tmp_path, measured, number, whole_group, num_processes):
    for place, stage in enumerate(trained.stages):
        output = trained.copy(tmp_path, without=trained.stages[place:])
        for part in (0.1, 0.6):
            running = run_until(trained, output, stage, "CURATE.NUM_PROCESSES", num_processes)
            time.sleep(part * trained.seconds[stage])
            found = stop(running, number, whole_group=whole_group)
            if "\nreport:   " in running.text:  # the run ended before the signal
                continue
            measured("stop", stage, found[1])
            check_stopped(running, output, number, found)


@pytest.mark.faults
def test_second_ctrl_c_ends_run_at_once(trained, tmp_path, measured):
    output = trained.copy(tmp_path, without=trained.stages[1:])
    running = run_until(trained, output, "train", "CURATE.NUM_PROCESSES", 2)
    time.sleep(1.5)  # the workers are starting
    running.kill(signal.SIGINT)
    time.sleep(0.1)
    found = stop(running, signal.SIGINT)
    measured("second Ctrl-C", "train", found[1])
    # When Python is already exiting after the first signal, the second ends it by the default handler.
    assert found[0] in (STATUSES[signal.SIGINT], -signal.SIGINT), running.text
    check_left(running, output, found[1])
    assert found[1] < SECONDS / 2
