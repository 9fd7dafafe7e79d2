"""Two commands in one OUTPUT_DIR: the second is told of the first, or waits for it; what only reads is not held up."""

import os
import signal

import pytest
from helpers.harness import leftovers, state_of, wait_until

REFUSED = "detcurate: OUTPUT_DIR must be used by one run at a time, got the run of process {} on {} since "


@pytest.fixture
def first(imported, tmp_path):
    """A run that has begun, and is made to sleep; it is ended after the test."""
    output = imported.copy(tmp_path, without=imported.stages)
    running = imported.start(output)
    assert wait_until(lambda: any(output.glob("pool/images-train/*")), running)
    running.kill(signal.SIGSTOP, whole_group=True)
    yield output, running
    running.kill(signal.SIGCONT, whole_group=True)
    running.kill(signal.SIGKILL, whole_group=True)
    running.process.wait()


def test_the_second_run_refuses_changes_nothing_and_the_first_goes_on(imported, first, tmp_path):
    output, running = first
    before = sorted(output.rglob("*"))
    other = tmp_path / "other"
    other.mkdir()
    second = imported.start(output, said=other / "said.txt")
    assert second.wait() == 2
    assert REFUSED.format(running.process.pid, os.uname().nodename) in second.text
    assert "wait for its end, with --wait, or give another OUTPUT_DIR" in second.text
    assert sorted(output.rglob("*")) == before
    running.kill(signal.SIGCONT, whole_group=True)
    assert running.wait() == 0
    assert imported.manifest(output) == imported.manifest()
    assert leftovers(output) == []


@pytest.mark.faults
def test_the_second_run_waits_and_finds_all_done(imported, first, tmp_path):
    output, running = first
    second = imported.start(output, "--wait", said=tmp_path / "second.txt")
    assert wait_until(lambda: "waiting" in second.text, second)
    running.kill(signal.SIGCONT, whole_group=True)
    assert second.wait() == 0
    assert second.text.startswith(f"waiting   for the run of process {running.process.pid} on ")
    assert second.text.count("up to date") == len(imported.stages)
    assert running.process.poll() == 0


@pytest.mark.faults
@pytest.mark.parametrize("command", [("import-results", "other", "--member", "none.json"), ("--fresh",)])
def test_what_writes_there_is_refused(imported, first, tmp_path, command):
    output, _ = first
    (tmp_path / "none.json").write_text("[]")
    words = [str(tmp_path / word) if word.endswith(".json") else word for word in command]
    named = words[0] == "import-results"
    second = imported.start(
        output, *([] if named else words), command=words if named else (), said=tmp_path / "s.txt", plain=named
    )
    assert second.wait() == 2
    assert "one run at a time" in second.text
    assert state_of(output, "pool") == "started"


@pytest.mark.faults
def test_a_report_and_a_dry_run_are_made_meanwhile(imported, tmp_path):
    output = imported.copy(tmp_path, without=("score", "select", "manifest"))
    running = imported.start(output)
    assert wait_until(lambda: state_of(output, "score") == "started", running)
    running.kill(signal.SIGSTOP, whole_group=True)
    try:
        for command, more in ((("report",), ()), ((), ("--dry-run",))):
            second = imported.start(output, *more, command=command, said=tmp_path / "s.txt", plain=bool(command))
            assert second.wait() == 0, second.text
        assert (output / "report" / "index.html").is_file()
    finally:
        running.kill(signal.SIGCONT, whole_group=True)
    assert running.wait() == 0, running.text
    assert imported.manifest(output) == imported.manifest()


def test_a_run_that_was_killed_leaves_a_lock_that_is_taken_over_with_a_word(imported, tmp_path):
    output = imported.copy(tmp_path, without=imported.stages[3:])
    running = imported.start(output)
    assert wait_until((output / ".lock").exists, running)
    running.kill(signal.SIGKILL, whole_group=True)
    running.wait()
    assert (output / ".lock").exists()
    text = imported.finish(output)
    assert f"the lock  of the run of process {running.process.pid} on " in text
    assert "is taken over: it has ended without giving it back" in text
    assert leftovers(output) == []
