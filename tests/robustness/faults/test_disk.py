"""Full, read-only and inaccessible disks: one message, no partial files, and the run resumes later."""

import contextlib
import errno
import os
import subprocess
from pathlib import Path

import pytest
from helpers.harness import leftovers

from detcurate.cli import main
from detcurate.io.files import sha256_file

STEP_KB = 20


@pytest.fixture
def disk(tmp_path):
    """A small disk, and a function that changes its size or makes it read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")

    def remount(option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)

    yield place, remount
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def run(imported, capsys):
    """Return a function that runs all stages in this process and returns the exit status and the last message."""

    def run(output, *more: object):
        arguments = [
            "--config-file",
            imported.config,
            *imported.overrides,
            "OUTPUT_DIR",
            output,
            "CURATE.NUM_PROCESSES",
            "1",
        ]
        status = main([*map(str, arguments), *map(str, more)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert "Logging error" not in captured.err
        lines = [line for line in captured.err.splitlines() if line.startswith("detcurate: ")]
        return status, lines[-1] if lines else ""

    return run


def used_kb(place):
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


def finished_files(output):
    return {path: sha256_file(path) for path in sorted(output.rglob("*")) if path.is_file() and path.name != "log.txt"}


def check_refused(found, text):
    status, message = found
    assert status == 2, found
    assert text in message, message


def test_full_disk_at_many_sizes_resumes_to_same_manifest(imported, run, disk, is_whole, measured):
    place, remount = disk
    output = imported.copy(place, without=imported.stages)
    empty, failures = used_kb(place), 0
    remount(f"size={empty + 4}k")
    found = run(output)
    step = STEP_KB if is_whole else 8 * STEP_KB
    while found[0]:
        check_refused(found, "detcurate: the disk is full (")
        assert str(output) in found[1]
        assert leftovers(output) == []
        failures += 1
        remount(f"size={empty + 4 + failures * step}k")
        found = run(output)
    assert imported.manifest(output) == imported.manifest()
    assert leftovers(output) == []
    assert failures > 1
    measured("full disk, resumed", "", failures)


def test_disk_without_inodes_is_reported(imported, run, disk):
    place, remount = disk
    output = imported.copy(place, without=("score", "select", "manifest"))
    free = os.statvfs(place)
    remount(f"nr_inodes={free.f_files - free.f_ffree + 2}")
    check_refused(run(output), "detcurate: the disk is full (")
    assert leftovers(output) == []
    remount("nr_inodes=10000")
    assert run(output)[0] == 0
    assert imported.manifest(output) == imported.manifest()


def test_read_only_output_is_reported(imported, run, disk, capsys):
    place, remount = disk
    output = imported.copy(place, without=("select", "manifest"))
    before = finished_files(output)
    remount("ro")
    check_refused(run(output), f"OUTPUT_DIR: {output} is not writable (Read-only file system)")
    assert run(output, "--dry-run")[0] == 0
    assert finished_files(output) == before
    remount("rw")
    assert run(output)[0] == 0
    assert imported.manifest(output) == imported.manifest()


@contextlib.contextmanager
def as_another_user():
    """Become the user nobody, who must respect file modes."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("stage", ["pool", "score", "manifest"])
def test_folder_of_other_user_is_reported(imported, run, tmp_path, stage):
    """The user owns OUTPUT_DIR except for the folder of one stage."""
    place = Path(os.path.realpath(tmp_path))
    output = imported.copy(place, without=imported.stages[imported.stages.index(stage) :])
    for path in (output, *output.rglob("*")):
        os.chown(path, 65534, 65534)
    for parent in (place, *list(place.parents)[:-1]):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    foreign = output / stage
    foreign.mkdir()
    foreign.chmod(0o555)
    imported.config.parent.chmod(0o755)
    imported.config.parent.parent.chmod(0o755)
    with as_another_user():
        check_refused(run(output), f"{foreign}")
    assert leftovers(output) == []
    os.chown(foreign, 65534, 65534)
    foreign.chmod(0o755)
    with as_another_user():
        assert run(output)[0] == 0
    assert imported.manifest(output) == imported.manifest()


class FailsOnce:
    """Wrap a function of ``os`` and fail at one call with an exhausted quota."""

    def __init__(self, function, at) -> None:
        self.function, self.left = function, at

    def __call__(self, *arguments: object, **options: object) -> object:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return self.function(*arguments, **options)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_exhausted_quota_resumes_to_same_manifest(imported, run, tmp_path, monkeypatch, name, is_whole, measured):
    """The test disk supports no quotas, so this error is raised by a wrapper at every call."""
    output, at, failures = imported.copy(tmp_path, without=imported.stages[1:]), 0, 0
    while True:
        at += 1 if is_whole else 11
        fails = FailsOnce(getattr(os, name), at)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails)
            found = run(output)
        if fails.left > 0:
            break
        check_refused(found, "detcurate: the disk is full (")
        assert str(output) in found[1]
        assert leftovers(output) == []
        failures += 1
        if not is_whole:
            continue
        before = output
        if failures % 10 == 0:  # from the beginning again, so that every call is reached
            output = imported.copy(before.parent, without=imported.stages[1:])
    assert found[0] == 0
    assert imported.manifest(output) == imported.manifest()
    assert failures > 1
    measured(f"quota at {name}, resumed", "", failures)


@pytest.mark.faults
def test_full_disk_while_weights_are_saved_is_reported(trained, disk, capsys, measured):
    place, remount = disk
    remount("size=200m")
    output = trained.copy(place, without=trained.stages[1:])
    empty, failures = used_kb(place), 0
    for room in range(1_000, 60_000, 4_000):
        remount(f"size={empty + room}k")
        running = trained.start(output, "--until", "train", "CURATE.NUM_PROCESSES", 1 + failures % 2)
        status = running.wait()
        if not status:
            break
        assert status == 2, running.text
        assert "Traceback" not in running.text
        last = running.text.splitlines()[-1]
        assert "detcurate: the disk is full (" in last or "MB of free disk" in last, running.text
        assert leftovers(output) == []
        failures += 1
    remount("size=200m")
    trained.finish(output, "--until", "manifest")
    assert trained.manifest(output) == trained.manifest()
    measured("full disk in training, resumed", "", failures)
