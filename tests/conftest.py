"""Fixtures of all test modules."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from helpers import REPOSITORY, runs
from helpers.runs import SharedRun

from detcurate.cli import main

TIMES = int(os.environ.get("DETCURATE_EXAMPLES", "1"))
hypothesis.settings.register_profile("default", max_examples=30, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=30 * TIMES, deadline=None)
hypothesis.settings.load_profile("default" if TIMES == 1 else "thorough")


def require_detectron2() -> None:
    """Skip the test where Detectron2 is not installed."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The folder of the CamVid frames (train.json, val.json, images/); skips where this machine has none."""
    beside = REPOSITORY.parent / "shared" / "data" / "camvid"
    folder = Path(os.environ.get("DETCURATE_CAMVID", beside))
    if not (folder / "train.json").is_file():
        pytest.skip("no CamVid frames here; set DETCURATE_CAMVID to the folder that holds train.json")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> SharedRun:
    """The whole job of the tiny config, finished; trained once a session. Copy it before changing it."""
    require_detectron2()
    return runs.share(tmp_path_factory, "finished-run", runs.run_whole_job)


@pytest.fixture(scope="session")
def one_stage_run(tmp_path_factory: pytest.TempPathFactory) -> SharedRun:
    """The job of a one-stage detector up to the manifest, in the mode ``dense``. Copy it before changing it."""
    require_detectron2()
    return runs.share(tmp_path_factory, "one-stage-run", runs.run_one_stage_detector)


@pytest.fixture(scope="session")
def own_data_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, tuple[object, ...]]:
    """The job on a pool in files up to the manifest: config, ``OUTPUT_DIR``, pool, overrides. Copy before changing."""
    require_detectron2()
    return runs.share(tmp_path_factory, "own-data-run", runs.run_on_own_files)


@pytest.fixture(scope="session")
def write_tiny_config() -> Callable[[Path], tuple[Path, Path]]:
    """Return :func:`helpers.runs.write_tiny_config`."""
    return runs.write_tiny_config


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[[], tuple[Path, Path]]:
    """Return a function that writes the smallest config into this test's folder; see ``write_tiny_config``."""
    return lambda: runs.write_tiny_config(tmp_path)


@pytest.fixture
def done(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs the command line, expects exit status 0, and returns its standard output."""

    def run(*arguments: object) -> str:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs the command line, expects exit status 2, and returns its error message."""

    def run(*arguments: object) -> str:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # of argparse
            status = stop.code
        captured = capsys.readouterr()
        assert status == 2, captured.out
        assert "Traceback" not in captured.err
        return captured.err

    return run
