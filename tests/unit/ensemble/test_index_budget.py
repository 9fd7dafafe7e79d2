"""Kinds, dtypes and budgets of members; the index stays valid while members are removed."""

import json
from pathlib import Path

import pytest

from detcurate.ensemble import index as ensemble
from detcurate.ensemble.index import AVERAGE, CHECKPOINT, MemberWriter, ensemble_members, read_index, write_index
from detcurate.errors import EnsembleError


def write(path):
    path.write_bytes(b"0123456789")  # 10 bytes


def writer(directory, max_bytes=0, plan=(), **options: object):
    return MemberWriter(directory, run=1, seed=5, max_bytes=max_bytes, plan=[(i, CHECKPOINT) for i in plan], **options)


def iterations(found):
    return [member.iteration for member in found.members()]


def files(directory):
    return sorted(int(path.stem.split("-")[1]) for path in (directory / "run-1").glob("*.safetensors"))


def test_average_and_checkpoint_of_one_iteration_are_two_members(tmp_path):
    one = writer(tmp_path, dtype="bf16")
    for kind in (CHECKPOINT, AVERAGE, AVERAGE):
        one.save(7, 0.1, write, kind)
    assert [(m.iteration, m.kind, m.dtype, m.file) for m in one.members()] == [
        (7, "average", "bf16", "run-1/iter-0000007-average.safetensors"),
        (7, "checkpoint", "bf16", "run-1/iter-0000007.safetensors"),
    ]


def test_index_of_version_without_kind_and_dtype_is_read(tmp_path):
    path = tmp_path / "ensemble.jsonl"
    line = {"run": 0, "iteration": 4, "seed": 17, "lr": 0.1, "file": "run-0/x", "sha256": "0" * 64}
    path.write_text(json.dumps(line) + "\n")
    (member,) = read_index(path)
    assert (member.kind, member.dtype) == ("checkpoint", "fp32")
    write_index(path, [member])
    assert read_index(path) == [member]
    assert json.loads(path.read_text())["kind"] == "checkpoint"


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(EnsembleError, match="^dtype: .*'int8'"):
        writer(tmp_path, dtype="int8")


def test_budget_with_plan_keeps_evenly_spaced_members(tmp_path):
    plan = range(9, 100, 10)  # 10 members; 4 fit
    one = writer(tmp_path, max_bytes=45, plan=plan)
    for iteration in plan:
        one.save(iteration, 0.1, write)
        assert len(files(tmp_path)) <= 4
        assert files(tmp_path) == iterations(one)
    assert iterations(one) == [9, 39, 69, 99]
    assert one.is_complete()
    (tmp_path / "run-1" / "iter-0000039.safetensors").unlink()
    assert not one.is_complete()


def test_unfinished_plan_is_not_complete(tmp_path):
    one = writer(tmp_path, max_bytes=45, plan=(1, 2, 3, 4, 5))
    assert not one.is_complete()
    one.save(1, 0.1, write)
    assert not one.is_complete()


def test_budget_without_plan_removes_members_as_others_are_saved(tmp_path):
    one = writer(tmp_path, max_bytes=39)
    for iteration in range(20):
        one.save(iteration, 0.1, write)
        found = iterations(one)
        assert found[-1] == iteration
        assert found == files(tmp_path)
        assert len(found) == min(3, iteration + 1)
    assert found[0] == 0


def test_budget_of_one_keeps_last(tmp_path):
    one = writer(tmp_path, max_bytes=3, plan=(1, 2, 3, 4))
    for iteration in (1, 2, 3, 4):
        one.save(iteration, 0.1, write)
    assert iterations(one) == files(tmp_path) == [4]


def test_averages_and_checkpoints_share_budget(tmp_path):
    plan = [(i, kind) for i in (9, 19, 29) for kind in (CHECKPOINT, AVERAGE)]
    one = MemberWriter(tmp_path, run=1, seed=5, max_bytes=40, plan=plan)
    for iteration, kind in plan:
        one.save(iteration, 0.1, write, kind)
    assert len(one.members()) == 4
    assert one.members()[-1].key == (29, CHECKPOINT)


def test_index_line_is_removed_before_file(tmp_path, monkeypatch):
    one = writer(tmp_path, max_bytes=25)
    one.save(1, 0.1, write)
    one.save(2, 0.1, write)
    unlink = Path.unlink

    def crash(path, missing_ok=False):
        if path.name == "iter-0000002.safetensors":
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", crash)
        one.save(3, 0.1, write)
    assert files(tmp_path) == [1, 2, 3]
    assert iterations(one) == [1, 3]
    one.save(4, 0.1, write)  # the next one tidies up
    assert files(tmp_path) == iterations(one) == [1, 4]


def test_crash_before_removal_of_line_keeps_index_valid(tmp_path, monkeypatch):
    one = writer(tmp_path, max_bytes=25)
    one.save(1, 0.1, write)
    one.save(2, 0.1, write)
    calls = []

    def crash_at_second(path, members):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_index(path, members)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ensemble, "write_index", crash_at_second)
        one.save(3, 0.1, write)
    assert files(tmp_path) == iterations(one) == [1, 2, 3]


def test_ensemble_without_index_has_members_of_its_runs(tmp_path):
    for run in (1, 0):
        MemberWriter(tmp_path, run=run, seed=5).save(3, 0.1, write)
    assert [member.run for member in ensemble_members(tmp_path)] == [0, 1]
    write_index(tmp_path / "ensemble.jsonl", [])
    assert ensemble_members(tmp_path) == []
    with pytest.raises(EnsembleError, match="ensemble.jsonl: .*missing"):
        ensemble_members(tmp_path / "absent")
