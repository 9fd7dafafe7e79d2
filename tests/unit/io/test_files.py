"""Atomic writes, digests, temporary files and full disks."""

import errno
import hashlib
import json
import os

import numpy as np
import pytest

from detcurate.errors import ConfigError
from detcurate.io import files


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_write_bytes_creates_folder(tmp_path):
    path = tmp_path / "a" / "b" / "data.bin"
    files.write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["data.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_interrupted_write_keeps_old_file(tmp_path):
    path = tmp_path / "data.bin"
    files.write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["data.bin"]


def test_new_file_appears_when_complete(tmp_path):
    path = tmp_path / "data.bin"
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"new"


def test_equal_values_give_equal_json(tmp_path):
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    files.write_json(first, {"b": np.int64(3), "a": [1.5, None]})
    files.write_json(second, {"a": [1.5, None], "b": 3})
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(first.read_bytes()) == {"a": [1.5, None], "b": 3}
    assert first.read_bytes().endswith(b"\n")


def test_sha256_of_file_and_json(tmp_path):
    path = tmp_path / "data.bin"
    data = bytes(range(256)) * 5_000  # more than one block
    path.write_bytes(data)
    assert files.sha256_file(path) == hashlib.sha256(data).hexdigest()
    assert files.sha256_json({"b": 1, "a": 2}) == files.sha256_json({"a": 2, "b": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})


def test_remove_temporaries_keeps_user_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".data.bin.x1.partial").touch()
    (tmp_path / "data.partial").touch()  # a user's own file
    files.remove_temporaries(tmp_path)
    assert names(tmp_path / "sub") == []
    assert names(tmp_path) == ["data.partial", "sub"]


def test_signal_during_creation_of_temporary_leaves_none(tmp_path, monkeypatch):
    close = os.close

    def interrupted(handle: int) -> None:
        close(handle)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "close", interrupted)
        files.write_bytes(tmp_path / "x", b"1")
    assert list(tmp_path.iterdir()) == []


def test_signal_during_removal_is_handled_by_discard_temporaries(tmp_path, monkeypatch):
    def interrupted(path, missing_ok):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files.Path, "unlink", interrupted)
        with files.temporary_beside(tmp_path / "x"):
            pass
    assert len(list(tmp_path.iterdir())) == 1
    files.discard_temporaries()
    assert list(tmp_path.iterdir()) == []


def test_missing_free_space_is_refused(tmp_path):
    files.require_free_space(tmp_path / "not" / "made" / "yet", 1)
    with pytest.raises(ConfigError, match="OUTPUT_DIR: .*1,000,000,000,000 MB"):
        files.require_free_space(tmp_path, 10**18)


def test_full_disk_is_recognised_as_cause():
    full = OSError(errno.ENOSPC, "No space left on device")
    assert files.is_disk_full(full)
    assert files.is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not files.is_disk_full(OSError(errno.EACCES, "Permission denied"))
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = full
    assert files.is_disk_full(wrapped)
    assert not files.is_disk_full(RuntimeError("cannot save"))
