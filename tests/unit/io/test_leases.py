"""Claims on shards: by one process at a time, given back, taken over from the dead."""

import multiprocessing
import os
import time

import orjson
import pytest

from detcurate.io.leases import ShardLeases

NAME = "shard-00003.parquet"


@pytest.fixture
def leases(tmp_path):
    with ShardLeases(tmp_path / "new", stale_seconds=5) as leases:
        yield leases


def claim_file(leases):
    return leases._path(NAME)


def test_one_holder_at_a_time(leases, tmp_path):
    with ShardLeases(tmp_path / "new") as other:
        assert leases.take(NAME)
        assert not other.take(NAME)
        assert other.take("another")
        leases.release(NAME)
        assert other.take(NAME)
        assert not leases.take(NAME)


def test_all_is_given_back_at_the_end(tmp_path):
    with ShardLeases(tmp_path) as leases:
        leases.take(NAME)
        leases.take("another")
    assert list(tmp_path.iterdir()) == []


def hold_and_die(directory):
    leases = ShardLeases(directory)
    leases.__enter__()
    leases.take(NAME)
    os._exit(1)


def test_a_dead_process_of_this_machine_is_recognised_at_once(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=hold_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert len(list(tmp_path.iterdir())) == 1
    with ShardLeases(tmp_path, stale_seconds=1_000) as leases:
        assert leases.take(NAME)


def test_a_number_that_is_used_again_is_another_process(leases, tmp_path):
    holder = {"host": orjson.loads(leases._identity)["host"], "pid": os.getpid(), "born": "long ago"}
    claim_file(leases).write_bytes(orjson.dumps(holder))
    assert leases.take(NAME)


def test_another_machine_is_believed_while_it_shows_life(leases):
    claim_file(leases).write_bytes(orjson.dumps({"host": "elsewhere", "pid": os.getpid(), "born": "1"}))
    assert not leases.take(NAME)
    past = time.time() - 60
    os.utime(claim_file(leases), (past, past))
    assert leases.take(NAME)


def test_a_claim_cut_short_grows_stale(leases):
    claim_file(leases).write_bytes(b"")
    assert not leases.take(NAME)
    past = time.time() - 60
    os.utime(claim_file(leases), (past, past))
    assert leases.take(NAME)


def test_a_holder_shows_life(leases):
    leases.take(NAME)
    past = time.time() - 60
    os.utime(claim_file(leases), (past, past))
    end = time.monotonic() + 30
    while time.time() - claim_file(leases).stat().st_mtime > 30 and time.monotonic() < end:
        time.sleep(0.05)
    assert time.time() - claim_file(leases).stat().st_mtime < 30


def test_a_claim_that_was_taken_over_is_not_taken_away(leases):
    leases.take(NAME)
    claim_file(leases).write_bytes(b"somebody else's")
    leases.release(NAME)
    assert claim_file(leases).read_bytes() == b"somebody else's"
