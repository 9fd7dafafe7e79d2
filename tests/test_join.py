# ruff: noqa: E402  Detectron2 may be absent, and is asked for first
"""Processes that help a run that predicts: ``--join``, on 26 rendered images in 6 shards by 2 members."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

from detcurate.cli import main
from detcurate.pipeline.join import _while_files_vanish

WORDS = ["CURATE.ENSEMBLE.NUM_RUNS", "1", "CURATE.NUM_PROCESSES", "1"]
NUM_SHARDS = 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_tiny_config):
    config, output = write_tiny_config(tmp_path_factory.mktemp("trained"))
    assert main(["--config-file", str(config), "--until", "train", *WORDS]) == 0
    return config, output


@pytest.fixture
def copied(trained, tmp_path):
    """The words of a command on an OUTPUT_DIR of this test's own, and that directory."""
    config, output = trained
    shutil.copytree(output, tmp_path / "x")
    return ["--config-file", str(config), *WORDS, "OUTPUT_DIR", str(tmp_path / "x")], tmp_path / "x"


def start(words, *more: str):
    command = [sys.executable, "-c", "import sys; from detcurate.cli import main; sys.exit(main())", *words, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def shards_of(output, folder="pass-00"):
    return {path.name: path.read_bytes() for path in (output / "predictions" / folder).glob("shard-*")}


def test_a_helper_does_what_the_run_does_not(copied, trained, tmp_path):
    """The run is held up as soon as it has begun; the helper makes every shard but the one that the run is at.

    The mode reference has two rounds: the helper waits for the second too.
    """
    words, output = copied
    words = [*words, "CURATE.PREDICT.MODE", "reference"]
    helper = start(words, "--join")
    run = start(words, "--until", "predict")
    try:
        wait_for(lambda: list((output / "predictions" / "pass-00").glob(".*.claim")))
        os.kill(run.pid, signal.SIGSTOP)
        held = len(shards_of(output)) + 1
        wait_for(lambda: len(shards_of(output)) >= NUM_SHARDS - 1)
        assert held < NUM_SHARDS
        os.kill(run.pid, signal.SIGCONT)
        for process in (run, helper):
            said, _ = process.communicate(timeout=120)
            assert process.returncode == 0, said
    finally:
        for process in (run, helper):
            process.kill()
            process.wait()
    assert "all are there, some of them made here" in said
    alone = tmp_path / "alone"
    shutil.copytree(trained[1], alone)
    assert main([*words, "--until", "predict", "OUTPUT_DIR", str(alone)]) == 0
    for folder in ("pass-00", "reference"):
        assert shards_of(output, folder) == shards_of(alone, folder)
    assert len(shards_of(alone)) == NUM_SHARDS
    leftover = [path.name for path in (output / "predictions").rglob(".*")]
    assert leftover == []


def test_a_helper_writes_no_marker_and_waits_for_the_same_settings(copied, refused, done):
    words, output = copied
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert "must have begun to predict, with the same config" in refused(*words, "--join", "--join-wait", "0.1")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert main([*words, "--until", "predict"]) == 0
    assert "is complete; there is nothing to help with" in done(*words, "--join")
    other = [*words, "CURATE.PREDICT.BATCH_SIZE", "2", "--join", "--join-wait", "0.1"]
    assert "must have begun to predict, with the same config" in refused(*other)


def test_what_cannot_be_joined(copied, refused):
    words, _ = copied
    assert "CURATE.PREDICT.RESULTS must be empty with --join" in refused(
        *words, "--join", "CURATE.PREDICT.RESULTS", "yolo"
    )
    assert "SCHEME must not be build_up with --join" in refused(*words, "--join", "CURATE.SEARCH.SCHEME", "build_up")


def test_a_half_written_file_that_was_cleared_away_is_written_again():
    tries = [FileNotFoundError(2, "gone", ".shard-00001.parquet.x.partial"), None]

    def work():
        error = tries.pop(0)
        if error is not None:
            raise error
        return "done"

    assert _while_files_vanish(work) == "done"
    with pytest.raises(FileNotFoundError):
        _while_files_vanish(lambda: Path("absent").read_bytes())
