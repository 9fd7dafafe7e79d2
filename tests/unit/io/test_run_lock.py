"""One run at a time in a folder: the second is told who is there, and a dead one's lock is taken over."""

import logging
import multiprocessing
import os
import threading
import time
from pathlib import Path

import orjson
import pytest

from detcurate.errors import ConfigError
from detcurate.io import leases as lock
from detcurate.io.leases import LOCK, identity, locked, release_all, require_held

WORDS = r"OUTPUT_DIR must be used by one run at a time, got the run of process {} on {} since 2\S+ at work \(.*\); wait"


def write_lock(folder: Path, **changes: object) -> Path:
    """Write the lock of another run, which differs from this process in what is given."""
    path = folder / LOCK
    path.write_bytes(orjson.dumps({**identity(), "since": "2026-01-02T03:04:05+00:00", **changes}))
    return path


def hold(folder, held, ended):
    with locked(folder):
        held.set()
        ended.wait(60)


def hold_and_die(folder):
    with locked(folder):
        os._exit(1)


@pytest.fixture
def said(caplog, monkeypatch):
    """Return what was said, whether or not a command line has taken the logger before."""
    monkeypatch.setattr(logging.getLogger("detcurate"), "propagate", True)
    caplog.set_level(logging.INFO, "detcurate")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock; gives its number and what ends it."""
    context = multiprocessing.get_context("spawn")
    held, ended = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, held, ended))
    process.start()
    assert held.wait(60)
    yield process.pid, ended
    ended.set()
    process.join()


def test_it_names_the_holder_while_held_and_is_gone_after(tmp_path):
    folder = tmp_path / "new" / "deep"
    with locked(folder):
        holder = orjson.loads((folder / LOCK).read_bytes())
        assert holder.items() > identity().items()
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert list(folder.iterdir()) == []


def test_it_is_given_back_after_an_error_too(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_one_process_may_hold_it_twice(tmp_path):
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_another_run_is_named_and_nothing_is_changed(tmp_path, other):
    pid, _ = other
    before = (tmp_path / LOCK).read_bytes()
    with pytest.raises(ConfigError, match=WORDS.format(pid, identity()["host"])), locked(tmp_path):
        pass
    assert (tmp_path / LOCK).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_it_can_be_waited_for(tmp_path, other, said):
    pid, ended = other
    threading.Timer(1.0, ended.set).start()
    begin = time.monotonic()
    with locked(tmp_path, wait=True):
        assert time.monotonic() - begin > 0.9
        assert orjson.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()
    [text] = said()
    assert text.startswith(f"waiting   for the run of process {pid} on ")


def test_a_dead_process_of_this_machine_is_recognised_at_once(tmp_path, said):
    process = multiprocessing.get_context("spawn").Process(target=hold_and_die, args=(tmp_path,))
    process.start()
    process.join()
    with locked(tmp_path):
        assert orjson.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()
    [text] = said()
    assert f"of the run of process {process.pid} on " in text
    assert text.endswith("is taken over: it has ended without giving it back")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"space": "another container", "pid": 2**22 + 1, "born": "1"}, {"pid": None}]
)
def test_what_cannot_be_seen_from_here_is_believed_while_it_shows_life(tmp_path, changes):
    """A container may share this host's name, but a process of its own is not looked for among ours."""
    path = write_lock(tmp_path, **changes)
    if "pid" in changes and changes["pid"] is None:
        path.write_bytes(b'{"host": 7')  # cut short
    with pytest.raises(ConfigError, match="one run at a time"), locked(tmp_path):
        pass
    past = time.time() - 200
    os.utime(path, (past, past))
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_used_again_is_another_process(tmp_path):
    write_lock(tmp_path, born="long ago")
    with locked(tmp_path):
        assert b"long ago" not in (tmp_path / LOCK).read_bytes()


def test_a_holder_shows_life(tmp_path):
    with locked(tmp_path, stale_seconds=2):
        past = time.time() - 60
        os.utime(tmp_path / LOCK, (past, past))
        end = time.monotonic() + 30
        while time.time() - (tmp_path / LOCK).stat().st_mtime > 30 and time.monotonic() < end:
            time.sleep(0.05)
        assert time.time() - (tmp_path / LOCK).stat().st_mtime < 30


def test_a_lock_that_was_taken_over_is_noticed_and_not_taken_away(tmp_path):
    with locked(tmp_path):
        require_held(tmp_path)
        write_lock(tmp_path, host="elsewhere", pid=77)
        with pytest.raises(ConfigError, match="must stay this run's own, got the run of process 77 on elsewhere since"):
            require_held(tmp_path)
    assert (tmp_path / LOCK).exists()
    require_held(tmp_path / "never held")


def take(folder, start, count):
    start.wait(60)
    try:
        with locked(folder):
            with count.get_lock():
                count.value += 1
            time.sleep(1.5)
    except ConfigError:
        pass


@pytest.mark.parametrize("is_stale", [False, True])
def test_of_many_at_once_one_gets_it(tmp_path, is_stale):
    context = multiprocessing.get_context("fork")
    start, count = context.Event(), context.Value("i", 0)
    if is_stale:
        write_lock(tmp_path, born="long ago")
    processes = [context.Process(target=take, args=(tmp_path, start, count)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert count.value == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_links(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with locked(tmp_path):
        monkeypatch.setattr(lock, "_held", {})  # as another process sees it
        with pytest.raises(ConfigError, match="one run at a time"), locked(tmp_path):
            pass
        monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_all_can_be_given_back_at_once(tmp_path):
    with locked(tmp_path):
        release_all()
        assert list(tmp_path.iterdir()) == []
