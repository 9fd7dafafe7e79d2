"""Two commands in one OUTPUT_DIR: the second is refused or waits; commands that only read are not held up."""

import os
import signal

import pytest
from helpers.harness import leftovers, state_of, wait_until


@pytest.fixture
def first(imported, tmp_path):
    """A run that has begun and is stopped by SIGSTOP; it is killed after the test."""
    output = imported.copy(tmp_path, without=imported.stages)
    running = imported.start(output)
    assert wait_until(lambda: any(output.glob("pool/images-train/*")), running)
    running.kill(signal.SIGSTOP, whole_group=True)
    yield output, running
    running.kill(signal.SIGCONT, whole_group=True)
    running.kill(signal.SIGKILL, whole_group=True)
    running.process.wait()


def test_second_run_is_refused_and_first_run_completes(imported, first, tmp_path):
    output, running = first
    before = sorted(output.rglob("*"))
    other = tmp_path / "other"
    other.mkdir()
    second = imported.start(output, log=other / "output.txt")
    assert second.wait() == 2
    assert "OUTPUT_DIR" in second.text
    assert f"process {running.process.pid} on {os.uname().nodename}" in second.text
    assert "--wait" in second.text
    assert sorted(output.rglob("*")) == before
    running.kill(signal.SIGCONT, whole_group=True)
    assert running.wait() == 0
    assert imported.manifest(output) == imported.manifest()
    assert leftovers(output) == []


@pytest.mark.faults
def test_second_run_with_wait_finds_all_stages_complete(imported, first, tmp_path):
    output, running = first
    second = imported.start(output, "--wait", log=tmp_path / "second.txt")
    assert wait_until(lambda: "waiting" in second.text, second)
    running.kill(signal.SIGCONT, whole_group=True)
    assert second.wait() == 0
    assert f"process {running.process.pid} on " in second.text.splitlines()[0]
    assert second.text.count("up to date") == len(imported.stages)
    assert running.process.poll() == 0


@pytest.mark.faults
@pytest.mark.parametrize("command", [("import", "other", "--member", "none.json"), ("--fresh",)])
def test_writing_command_during_run_is_refused(imported, first, tmp_path, command):
    output, running = first
    (tmp_path / "none.json").write_text("[]")
    arguments = [str(tmp_path / part) if part.endswith(".json") else part for part in command]
    named = arguments[0] == "import"
    second = imported.start(
        output, *([] if named else arguments), command=arguments if named else (), log=tmp_path / "s.txt", plain=named
    )
    assert second.wait() == 2
    assert f"process {running.process.pid} on " in second.text
    assert state_of(output, "pool") == "started"


@pytest.mark.faults
def test_report_and_dry_run_during_run_succeed(imported, tmp_path):
    output = imported.copy(tmp_path, without=("score", "select", "manifest"))
    running = imported.start(output)
    assert wait_until(lambda: state_of(output, "score") == "started", running)
    running.kill(signal.SIGSTOP, whole_group=True)
    try:
        for command, more in ((("report",), ()), ((), ("--dry-run",))):
            second = imported.start(output, *more, command=command, log=tmp_path / "s.txt", plain=bool(command))
            assert second.wait() == 0, second.text
        assert (output / "report" / "index.html").is_file()
    finally:
        running.kill(signal.SIGCONT, whole_group=True)
    assert running.wait() == 0, running.text
    assert imported.manifest(output) == imported.manifest()


def test_lock_of_killed_run_is_taken_over_and_logged(imported, tmp_path):
    output = imported.copy(tmp_path, without=imported.stages[3:])
    running = imported.start(output)
    assert wait_until((output / ".lock").exists, running)
    running.kill(signal.SIGKILL, whole_group=True)
    running.wait()
    assert (output / ".lock").exists()
    text = imported.finish(output)
    assert f"process {running.process.pid} on " in text
    assert leftovers(output) == []
