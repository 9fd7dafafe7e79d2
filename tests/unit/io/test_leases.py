"""Leases on shards and the lock of a folder: one holder at a time, released, taken over from the dead."""

import logging
import multiprocessing
import os
import threading
import time
from pathlib import Path

import orjson
import pytest

from detcurate.errors import ConfigError
from detcurate.io import leases as module
from detcurate.io.leases import LOCK, Leases, identity, locked, release_all, remove_leases, require_held, shard_lease

NAME = shard_lease("shard-00003.parquet")


@pytest.fixture
def leases(tmp_path):
    with Leases(tmp_path / "new", stale_seconds=5) as leases:
        yield leases


@pytest.fixture
def lease_file(leases, tmp_path):
    return tmp_path / "new" / NAME


@pytest.fixture
def logged(caplog, monkeypatch):
    """Return the log's messages, whether or not a command line has configured the logger before."""
    monkeypatch.setattr(logging.getLogger("detcurate"), "propagate", True)
    caplog.set_level(logging.INFO, "detcurate")
    return lambda: [record.getMessage() for record in caplog.records]


def write_lock(folder: Path, **changes: object) -> Path:
    """Write the lock of another run, which differs from this process in what is given."""
    path = folder / LOCK
    path.write_bytes(orjson.dumps({**identity(), "since": "2026-01-02T03:04:05+00:00", **changes}))
    return path


def make_old(path: Path, seconds: float) -> None:
    past = time.time() - seconds
    os.utime(path, (past, past))


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def run_process(function, *arguments: object, method="spawn"):
    process = multiprocessing.get_context(method).Process(target=function, args=arguments)
    process.start()
    process.join()
    return process


class TestLeases:
    def test_acquire_held_by_another_fails_until_released(self, leases, tmp_path):
        with Leases(tmp_path / "new") as other:
            assert leases.acquire(NAME)
            assert not other.acquire(NAME)
            assert other.acquire("another")
            leases.release(NAME)
            assert other.acquire(NAME)
            assert not leases.acquire(NAME)

    def test_acquire_twice_keeps_lease(self, leases, lease_file):
        assert leases.acquire(NAME)
        assert leases.acquire(NAME)
        assert leases.is_intact(NAME)

    def test_close_releases_all(self, tmp_path):
        with Leases(tmp_path) as leases:
            leases.acquire(NAME)
            leases.acquire("another")
        assert list(tmp_path.iterdir()) == []

    def test_acquire_from_dead_process_succeeds_at_once(self, tmp_path):
        run_process(acquire_and_die, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
        with Leases(tmp_path, stale_seconds=1_000) as leases:
            assert leases.acquire(NAME)
            assert leases.is_intact(NAME)

    def test_acquire_from_reused_process_number_succeeds(self, leases, lease_file):
        lease_file.write_bytes(orjson.dumps({**identity(), "born": "long ago"}))
        assert leases.acquire(NAME)

    @pytest.mark.parametrize(
        "content",
        [
            orjson.dumps({"host": "elsewhere", "pid": os.getpid(), "born": "1"}),
            orjson.dumps({**identity(), "space": "another container", "pid": 2**22 + 1}),
            b"",
            b'{"host": 7',
            b"[1]",
        ],
        ids=["other host", "other container", "empty", "cut short", "no object"],
    )
    def test_acquire_from_unknown_holder_waits_until_stale(self, leases, lease_file, content):
        lease_file.write_bytes(content)
        assert not leases.acquire(NAME)
        make_old(lease_file, 60)
        assert leases.acquire(NAME)
        assert leases.is_intact(NAME)

    def test_age_uses_clock_of_folder(self, leases, lease_file, monkeypatch):
        lease_file.write_bytes(orjson.dumps({"host": "elsewhere", "pid": 1, "born": "1"}))
        clock = time.time() + 10_000
        monkeypatch.setattr(time, "time", lambda: clock)
        assert not leases.acquire(NAME)

    def test_heartbeat_touches_held_lease(self, tmp_path):
        with Leases(tmp_path, stale_seconds=0.4) as leases:
            leases.acquire(NAME)
            make_old(tmp_path / NAME, 60)
            assert wait_until(lambda: time.time() - (tmp_path / NAME).stat().st_mtime < 30)

    def test_heartbeat_leaves_lease_of_other_holder_alone(self, tmp_path):
        with Leases(tmp_path, stale_seconds=0.1) as leases:
            leases.acquire(NAME)
            (tmp_path / NAME).write_bytes(b"other")
            make_old(tmp_path / NAME, 60)
            time.sleep(0.2)
            assert time.time() - (tmp_path / NAME).stat().st_mtime > 30

    def test_release_keeps_lease_that_was_taken_over(self, leases, lease_file):
        leases.acquire(NAME)
        lease_file.write_bytes(b"other")
        assert not leases.is_intact(NAME)
        leases.release(NAME)
        assert lease_file.read_bytes() == b"other"

    def test_acquire_interrupted_after_creation_is_released_at_close(self, tmp_path, monkeypatch):
        with pytest.raises(KeyboardInterrupt), Leases(tmp_path) as leases:
            create = leases._create

            def interrupted(path):
                create(path)
                raise KeyboardInterrupt

            monkeypatch.setattr(leases, "_create", interrupted)
            leases.acquire(NAME)
        assert list(tmp_path.iterdir()) == []

    def test_remove_leases_removes_new_and_old_names(self, tmp_path):
        (tmp_path / "set-00").mkdir()
        for name in (NAME, f"{NAME}.deciding", ".shard-00001.parquet.claim", "shard-00001.parquet"):
            (tmp_path / "set-00" / name).write_bytes(b"")
        remove_leases(tmp_path)
        assert [path.name for path in (tmp_path / "set-00").iterdir()] == ["shard-00001.parquet"]

    def test_acquire_ignores_claim_of_version_0_1(self, tmp_path):
        (tmp_path / ".shard-00003.parquet.claim").write_bytes(orjson.dumps(identity()))
        with Leases(tmp_path) as leases:
            assert leases.acquire(NAME)


def acquire_and_die(directory):
    leases = Leases(directory)
    leases.__enter__()
    leases.acquire(NAME)
    os._exit(1)


class TestLocked:
    def test_locked_names_holder_and_is_removed_after(self, tmp_path):
        folder = tmp_path / "new" / "deep"
        with locked(folder):
            holder = orjson.loads((folder / LOCK).read_bytes())
            assert holder.items() > identity().items()
            assert [path.name for path in folder.iterdir()] == [LOCK]
        assert list(folder.iterdir()) == []

    def test_locked_is_released_after_error(self, tmp_path):
        with pytest.raises(ZeroDivisionError), locked(tmp_path):
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == []

    def test_locked_twice_by_one_process_is_released_once(self, tmp_path):
        with locked(tmp_path):
            with locked(tmp_path):
                pass
            assert (tmp_path / LOCK).exists()
        assert not (tmp_path / LOCK).exists()

    def test_locked_by_another_process_is_refused_and_unchanged(self, tmp_path, other):
        pid, _ = other
        before = (tmp_path / LOCK).read_bytes()
        with pytest.raises(ConfigError, match=f"OUTPUT_DIR: .*process {pid} on {identity()['host']} since 2"):
            with locked(tmp_path):
                pass
        assert (tmp_path / LOCK).read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]

    def test_locked_with_wait_continues_after_other_process(self, tmp_path, other, logged):
        pid, ended = other
        threading.Timer(0.5, ended.set).start()
        begin = time.monotonic()
        with locked(tmp_path, wait=True):
            assert time.monotonic() - begin > 0.4
            assert orjson.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()
        [message] = logged()
        assert f"process {pid} on " in message

    def test_locked_by_dead_process_is_taken_over_and_logged(self, tmp_path, logged):
        process = run_process(lock_and_die, tmp_path)
        with locked(tmp_path):
            assert orjson.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()
        [message] = logged()
        assert f"process {process.pid} on " in message
        assert list(tmp_path.iterdir()) == []

    def test_locked_by_other_host_is_refused_until_stale(self, tmp_path):
        path = write_lock(tmp_path, host="elsewhere")
        with pytest.raises(ConfigError, match="OUTPUT_DIR: .* on elsewhere"), locked(tmp_path):
            pass
        make_old(path, 200)
        with locked(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_require_held_reports_lock_that_was_taken_over(self, tmp_path):
        with locked(tmp_path):
            require_held(tmp_path)
            write_lock(tmp_path, host="elsewhere", pid=77)
            with pytest.raises(ConfigError, match="OUTPUT_DIR: .*process 77 on elsewhere since"):
                require_held(tmp_path)
        assert (tmp_path / LOCK).exists()
        require_held(tmp_path / "never held")

    @pytest.mark.parametrize("is_stale", [False, True])
    def test_locked_by_many_at_once_is_held_by_one(self, tmp_path, is_stale):
        context = multiprocessing.get_context("fork")
        start, count, ended = context.Event(), context.Value("i", 0), context.Barrier(8)
        if is_stale:
            write_lock(tmp_path, born="long ago")
        arguments = (tmp_path, start, count, ended)
        processes = [context.Process(target=lock_if_free, args=arguments) for _ in range(8)]
        for process in processes:
            process.start()
        start.set()
        for process in processes:
            process.join()
        assert count.value == 1
        assert list(tmp_path.iterdir()) == []

    def test_locked_after_death_of_deciding_process_is_taken_over(self, tmp_path):
        write_lock(tmp_path, born="long ago")
        deciding = tmp_path / f"{LOCK}.deciding"
        deciding.touch()
        make_old(deciding, 60)
        with locked(tmp_path):
            assert orjson.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []

    def test_locked_in_folder_without_links_is_exclusive(self, tmp_path, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        with locked(tmp_path):
            monkeypatch.setattr(module, "_locks", {})  # as another process sees it
            with pytest.raises(ConfigError, match="OUTPUT_DIR"), locked(tmp_path):
                pass
            monkeypatch.undo()
        assert list(tmp_path.iterdir()) == []

    def test_release_all_removes_lock(self, tmp_path):
        with locked(tmp_path):
            release_all()
            assert list(tmp_path.iterdir()) == []


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock; gives its number and the event that ends it."""
    context = multiprocessing.get_context("spawn")
    held, ended = context.Event(), context.Event()
    process = context.Process(target=hold_lock, args=(tmp_path, held, ended))
    process.start()
    assert held.wait(60)
    yield process.pid, ended
    ended.set()
    process.join()


def hold_lock(folder, held, ended):
    with locked(folder):
        held.set()
        ended.wait(60)


def lock_and_die(folder):
    with locked(folder):
        os._exit(1)


def lock_if_free(folder, start, count, ended):
    start.wait(60)
    try:
        with locked(folder):
            with count.get_lock():
                count.value += 1
            ended.wait(60)  # until all others were refused
    except ConfigError:
        ended.wait(60)
