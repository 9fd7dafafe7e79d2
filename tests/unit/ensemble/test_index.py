"""Members of a run and their index, which stays valid after failures."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from detcurate.ensemble import index as ensemble
from detcurate.ensemble.index import Member, MemberWriter, member_iterations, read_index, verify_member, write_index
from detcurate.errors import ConfigError, EnsembleError


def schedule(max_iter, members, fraction, explicit=()):
    return member_iterations(max_iter, members_per_run=members, last_fraction=fraction, explicit=explicit)


def write(data):
    return lambda path: path.write_bytes(data)


@pytest.fixture
def writer(tmp_path):
    return MemberWriter(tmp_path, run=3, seed=17)


def files(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("max_iter", "members", "fraction", "expected"),
    [
        (1000, 5, 0.5, (599, 699, 799, 899, 999)),
        (1000, 1, 0.5, (999,)),
        (400, 4, 1.0, (99, 199, 299, 399)),
        (7, 7, 1.0, (0, 1, 2, 3, 4, 5, 6)),
        (1, 1, 0.01, (0,)),
        (10, 3, 0.8, (4, 6, 9)),  # 2 + 2.67, 5.33, 8 updates of 10
    ],
)
def test_last_fraction_matches_hand_computed(max_iter, members, fraction, expected):
    assert schedule(max_iter, members, fraction) == expected


def test_last_fraction_is_evenly_spaced_and_ends_with_last():
    for max_iter, members, fraction in itertools.product(
        (1, 2, 9, 97, 400, 90_000), range(1, 12), (0.01, 0.33, 0.5, 1)
    ):
        window = max(1, round(max_iter * fraction))
        if members > window:
            continue
        found = schedule(max_iter, members, fraction)
        assert len(found) == len(set(found)) == members
        assert found[-1] == max_iter - 1
        assert found[0] >= max_iter - window
        assert all(type(iteration) is int for iteration in found)
        gaps = np.diff((max_iter - window - 1, *found))
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


def test_explicit_iterations_are_sorted():
    assert schedule(10, 99, 0.5, explicit=(8, 0, 3)) == (0, 3, 8)


@pytest.mark.parametrize("explicit", [(0, 10), (-1, 4), (4, 4)])
def test_invalid_explicit_iterations_are_refused(explicit):
    with pytest.raises(ConfigError, match="^CURATE.ENSEMBLE.ITERATIONS: .*= 9") as error:
        schedule(10, 1, 0.5, explicit=explicit)
    assert str(list(explicit)) in str(error.value)


def test_more_members_than_iterations_are_refused():
    with pytest.raises(ConfigError, match="^CURATE.ENSEMBLE.MEMBERS_PER_RUN: .*5 iterations .*got 6"):
        schedule(10, 6, 0.5)


def test_save_writes_weights_and_index_line(writer, tmp_path):
    writer.save(11, 0.25, write(b"weights"))
    expected = Member(
        run=3, iteration=11, seed=17, lr=0.25, file="run-3/iter-0000011.safetensors",
        sha256=hashlib.sha256(b"weights").hexdigest(),
    )  # fmt: skip
    assert writer.members() == [expected]
    assert files(tmp_path) == ["run-3/iter-0000011.safetensors", "run-3/members.jsonl"]
    verify_member(tmp_path / expected.file, expected.sha256)


def test_save_twice_writes_once(writer, tmp_path):
    writer.save(4, 0.1, write(b"first"))
    writer.save(4, 0.9, write(b"second"))
    MemberWriter(tmp_path, run=3, seed=17).save(4, 0.9, write(b"third"))
    assert [(member.iteration, member.lr) for member in writer.members()] == [(4, 0.1)]
    assert (tmp_path / "run-3" / "iter-0000004.safetensors").read_bytes() == b"first"


def test_writers_of_two_runs_are_independent(writer, tmp_path):
    other = MemberWriter(tmp_path, run=5, seed=19, folder="seed-19")
    writer.save(4, 0.1, write(b"a"))
    other.save(4, 0.1, write(b"b"))
    assert [member.file for member in writer.members() + other.members()] == [
        "run-3/iter-0000004.safetensors",
        "seed-19/iter-0000004.safetensors",
    ]


def test_failed_save_leaves_nothing(writer, tmp_path):
    def fail(path):
        path.write_bytes(b"half of the w")
        raise OSError(28, "No space left on device")

    writer.save(1, 0.1, write(b"one"))
    before = files(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        writer.save(2, 0.1, fail)
    assert files(tmp_path) == before
    assert [member.iteration for member in writer.members()] == [1]
    writer.save(2, 0.1, write(b"two"))
    assert [member.iteration for member in writer.members()] == [1, 2]


def test_save_after_crash_before_index_replaces_file(writer, tmp_path, monkeypatch):
    writer.save(1, 0.1, write(b"one"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ensemble, "write_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        writer.save(2, 0.1, write(b"before the crash"))
    assert [member.iteration for member in writer.members()] == [1]
    writer.save(2, 0.1, write(b"after it"))
    last = writer.members()[-1]
    assert last.sha256 == hashlib.sha256(b"after it").hexdigest()
    verify_member(tmp_path / last.file, last.sha256)


def test_member_without_file_is_saved_again(writer, tmp_path):
    writer.save(1, 0.1, write(b"one"))
    writer.save(2, 0.1, write(b"two"))
    (tmp_path / "run-3" / "iter-0000001.safetensors").unlink()
    assert [member.iteration for member in writer.members()] == [2]
    writer.save(1, 0.1, write(b"one again"))
    assert [member.iteration for member in writer.members()] == [1, 2]
    assert len(read_index(tmp_path / "run-3" / "members.jsonl")) == 2


def test_index_round_trips_in_order(tmp_path):
    members = [
        Member(run, iteration, 17 + run, 0.1 / (1 + iteration), f"run-{run}/ä {iteration}", "0" * 64)
        for run, iteration in ((1, 2), (0, 30), (1, 1), (0, 4), (2, 0))
    ]
    path = tmp_path / "ensemble.jsonl"
    write_index(path, members)
    assert [(member.run, member.iteration) for member in read_index(path)] == [(0, 4), (0, 30), (1, 1), (1, 2), (2, 0)]
    assert sorted(map(dataclasses.astuple, read_index(path))) == sorted(map(dataclasses.astuple, members))
    write_index(path, [])
    assert read_index(path) == []


def test_invalid_index_is_refused(tmp_path):
    path = tmp_path / "ensemble.jsonl"
    with pytest.raises(EnsembleError, match="ensemble.jsonl: .*missing"):
        read_index(path)
    one = Member(0, 4, 17, 0.1, "run-0/x", "0" * 64)
    write_index(path, [one, dataclasses.replace(one, iteration=5)])
    whole = path.read_bytes()
    for wrong in (whole[:-9], whole + b"[1, 2]\n", whole + b'{"run": 1}\n', whole + b"\n", whole + b"7\n"):
        path.write_bytes(wrong)
        line = 2 if wrong == whole[:-9] else 3
        with pytest.raises(EnsembleError, match=f"ensemble.jsonl: line {line} "):
            read_index(path)
    path.write_bytes(whole + whole.splitlines(keepends=True)[0])
    with pytest.raises(EnsembleError, match="ensemble.jsonl: .*twice"):
        read_index(path)


def test_weights_that_differ_from_index_are_refused(tmp_path):
    path = tmp_path / "iter-0000004.safetensors"
    with pytest.raises(EnsembleError, match="0004.safetensors: .*missing"):
        verify_member(path, "0" * 64)
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    verify_member(path, digest)
    for wrong in (b"weight", b"weightr", b""):
        path.write_bytes(wrong)
        with pytest.raises(EnsembleError, match=f"0004.safetensors: .*{digest[:12]}…"):
            verify_member(path, digest)
