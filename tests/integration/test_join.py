# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""Processes that help a run that predicts: ``--join``, on 26 rendered images in 6 shards by 4 members."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

from helpers.runs import SharedRun

from detcurate.cli import main
from detcurate.pipeline.join import _while_files_vanish

NUM_SHARDS = 6


@pytest.fixture
def copied_to(tmp_path):
    """Return a function that copies a trained ensemble into this test's folder; it returns arguments and the copy."""

    def copied_to(name: str, run: SharedRun):
        config, output = run.copy(tmp_path / name, until="train")
        return ["--config-file", str(config), *run.words], output

    return copied_to


@pytest.fixture
def copied(copied_to, finished_run):
    """The arguments of a command on an OUTPUT_DIR of this test's own, and that directory."""
    return copied_to("x", finished_run)


def start(words, *more: str):
    command = [sys.executable, "-c", "import sys; from detcurate.cli import main; sys.exit(main())", *words, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def shards_of(output, folder):
    return {path.name: path.read_bytes() for path in (output / "predict" / folder).glob("shard-*")}


@pytest.mark.parametrize("mode", ["reference", "dense"])
def test_join_predicts_missing_shards(request, copied_to, tmp_path, mode):
    """The run is held up as soon as it has begun; the helper makes every shard but the one that the run is at.

    The mode reference has two rounds: the helper waits for the second too.
    """
    begun = request.getfixturevalue("one_stage_run" if mode == "dense" else "finished_run")
    words, output = copied_to("x", begun)
    words = [*words, "CURATE.PREDICT.MODE", mode]
    folders = ("set-00", "reference") if mode == "reference" else ("dense",)
    helper = start(words, "--join")
    run = start(words, "--until", "predict")
    try:
        wait_for(lambda: list((output / "predict" / folders[0]).glob(".*.lease")))
        os.kill(run.pid, signal.SIGSTOP)
        held = len(shards_of(output, folders[0])) + 1
        wait_for(lambda: len(shards_of(output, folders[0])) >= NUM_SHARDS - 1)
        assert held < NUM_SHARDS
        os.kill(run.pid, signal.SIGCONT)
        for process in (run, helper):
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in (run, helper):
            process.kill()
            process.wait()
    assert "all shards are complete" in said
    words, alone = copied_to("alone", begun)
    assert main([*words, "CURATE.PREDICT.MODE", mode, "--until", "predict"]) == 0
    for folder in folders:
        assert shards_of(output, folder) == shards_of(alone, folder)
        assert len(shards_of(alone, folder)) == NUM_SHARDS
    leftover = [path.name for path in (output / "predict").rglob(".*")]
    assert leftover == []


def test_join_writes_no_metadata_and_waits_for_same_settings(copied, refused, done):
    words, output = copied
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert "--join-wait" in refused(*words, "--join", "--join-wait", "0.1")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert main([*words, "--until", "predict"]) == 0
    assert "predict: complete" in done(*words, "--join")
    other = [*words, "CURATE.PREDICT.BATCH_SIZE", "2", "--join", "--join-wait", "0.1"]
    assert "--join-wait" in refused(*other)


def test_join_unsuitable_run_refused(copied, refused):
    words, _ = copied
    assert "CURATE.PREDICT.RESULTS" in refused(*words, "--join", "CURATE.PREDICT.RESULTS", "yolo")
    assert "CURATE.SEARCH.SCHEME" in refused(*words, "--join", "CURATE.SEARCH.SCHEME", "build_up")


def test_join_retries_after_removed_temporary_file():
    tries = [FileNotFoundError(2, "gone", ".shard-00001.parquet.x.partial"), None]

    def work():
        error = tries.pop(0)
        if error is not None:
            raise error
        return "done"

    assert _while_files_vanish(work) == "done"
    with pytest.raises(FileNotFoundError):
        _while_files_vanish(lambda: Path("absent").read_bytes())
