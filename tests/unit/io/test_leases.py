"""Claims on shards: by one process at a time, given back, taken over from the dead."""

import multiprocessing
import os
import time

import orjson
import pytest

from detcurate.io.leases import Claims

NAME = "shard-00003.parquet"


@pytest.fixture
def claims(tmp_path):
    with Claims(tmp_path / "new", stale_seconds=5) as claims:
        yield claims


def claim_file(claims):
    return claims._path(NAME)


def test_one_holder_at_a_time(claims, tmp_path):
    with Claims(tmp_path / "new") as other:
        assert claims.take(NAME)
        assert not other.take(NAME)
        assert other.take("another")
        claims.release(NAME)
        assert other.take(NAME)
        assert not claims.take(NAME)


def test_all_is_given_back_at_the_end(tmp_path):
    with Claims(tmp_path) as claims:
        claims.take(NAME)
        claims.take("another")
    assert list(tmp_path.iterdir()) == []


def hold_and_die(directory):
    claims = Claims(directory)
    claims.__enter__()
    claims.take(NAME)
    os._exit(1)


def test_a_dead_process_of_this_machine_is_recognised_at_once(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=hold_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert len(list(tmp_path.iterdir())) == 1
    with Claims(tmp_path, stale_seconds=1_000) as claims:
        assert claims.take(NAME)


def test_a_number_that_is_used_again_is_another_process(claims, tmp_path):
    holder = {"host": orjson.loads(claims._identity)["host"], "pid": os.getpid(), "born": "long ago"}
    claim_file(claims).write_bytes(orjson.dumps(holder))
    assert claims.take(NAME)


def test_another_machine_is_believed_while_it_shows_life(claims):
    claim_file(claims).write_bytes(orjson.dumps({"host": "elsewhere", "pid": os.getpid(), "born": "1"}))
    assert not claims.take(NAME)
    past = time.time() - 60
    os.utime(claim_file(claims), (past, past))
    assert claims.take(NAME)


def test_a_claim_cut_short_grows_stale(claims):
    claim_file(claims).write_bytes(b"")
    assert not claims.take(NAME)
    past = time.time() - 60
    os.utime(claim_file(claims), (past, past))
    assert claims.take(NAME)


def test_a_holder_shows_life(claims):
    claims.take(NAME)
    past = time.time() - 60
    os.utime(claim_file(claims), (past, past))
    end = time.monotonic() + 30
    while time.time() - claim_file(claims).stat().st_mtime > 30 and time.monotonic() < end:
        time.sleep(0.05)
    assert time.time() - claim_file(claims).stat().st_mtime < 30


def test_a_claim_that_was_taken_over_is_not_taken_away(claims):
    claims.take(NAME)
    claim_file(claims).write_bytes(b"somebody else's")
    claims.release(NAME)
    assert claim_file(claims).read_bytes() == b"somebody else's"
