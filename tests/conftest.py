"""Fixtures for every test module."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import REPOSITORY

from detcurate.cli import main
from detcurate.synthetic import SyntheticConfig, write_dataset


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The folder of the CamVid frames (train.json, val.json, images/), or a skip where this machine has none."""
    beside = REPOSITORY.parent / "shared" / "data" / "camvid"
    folder = Path(os.environ.get("DETCURATE_CAMVID", beside))
    if not (folder / "train.json").is_file():
        pytest.skip("no CamVid frames here; set DETCURATE_CAMVID to the folder that holds train.json")
    return folder


@pytest.fixture(scope="session")
def write_tiny_config() -> Callable[[Path], tuple[Path, Path]]:
    """Return a function that writes the smallest config of the whole job into a folder; it gives file and OUTPUT_DIR.

    26 pool images and 7 evaluation images of 96x64 are rendered; 2 runs of 4 iterations give 2 members each.
    """

    def write(folder: Path) -> tuple[Path, Path]:
        output, config = folder / "output", folder / "tiny.yaml"
        config.write_text(
            f"""
_BASE_: "{REPOSITORY / "configs" / "Base-CPU-Tiny.yaml"}"
OUTPUT_DIR: "{output}"
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
SOLVER: {{MAX_ITER: 4, IMS_PER_BATCH: 2, WARMUP_ITERS: 0, CHECKPOINT_PERIOD: 1}}
MODEL: {{ROI_HEADS: {{SCORE_THRESH_TEST: 0.01}}}}
CURATE:
  NUM_PROCESSES: 2
  RENDER: {{NUM_IMAGES: 26, NUM_EVALUATION_IMAGES: 7, WIDTH: 96, HEIGHT: 64}}
  ENSEMBLE: {{NUM_RUNS: 2, MEMBERS_PER_RUN: 2, LAST_FRACTION: 0.5}}
  PREDICT: {{SHARD_SIZE: 5, BATCH_SIZE: 3}}
  RETRAIN: {{NUM_SEEDS: 2}}
"""
        )
        return config, output

    return write


@pytest.fixture(scope="session")
def job_here(
    tmp_path_factory: pytest.TempPathFactory, write_tiny_config: Callable[[Path], tuple[Path, Path]]
) -> tuple[Path, Path, Path, tuple[object, ...]]:
    """A pool in files of this machine, and the job on it up to the manifest: config, OUTPUT_DIR, pool, words.

    The same words with other roots are the same job on other storage.
    """
    pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")
    folder = tmp_path_factory.mktemp("here")
    config, output = write_tiny_config(folder)
    data = folder / "data"
    for name, num_images in (("train", 26), ("val", 7)):
        scenes = SyntheticConfig.clean(num_images=num_images, width=96, height=64, seed=num_images)
        write_dataset(data, scenes, name=name)
    words = (
        "CURATE.RENDER.NUM_IMAGES", 0, "CURATE.POOL.IMAGE_ROOT", "images-train",
        "CURATE.EVALUATION.IMAGE_ROOT", "images-val", "CURATE.SELECT.DUPLICATE_SIMILARITY", 0.9,
    )  # fmt: skip
    more = ("DATASETS.ROOT", data, "CURATE.NUM_PROCESSES", 1)
    assert main(["--config-file", str(config), "--until", "manifest", *map(str, (*words, *more))]) == 0
    return config, output, data, words


@pytest.fixture
def tiny_config(
    write_tiny_config: Callable[[Path], tuple[Path, Path]], tmp_path: Path
) -> Callable[[], tuple[Path, Path]]:
    """Return a function that writes the smallest config into this test's folder; see ``write_tiny_config``."""
    return lambda: write_tiny_config(tmp_path)


@pytest.fixture
def done(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs the command line, expects exit status 0, and returns what it printed."""

    def run(*arguments: object) -> str:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs the command line, expects exit status 2, and returns its one message."""

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


@pytest.fixture(scope="session")
def train_tiny(
    tmp_path_factory: pytest.TempPathFactory, write_tiny_config: Callable[[Path], tuple[Path, Path]]
) -> Callable[..., tuple[Path, Path, list[str]]]:
    """Return a function that trains 2 members in a process of the smallest config, with more words to it.

    It gives the config, its OUTPUT_DIR and all of the words.
    """
    pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

    def train(*more: str) -> tuple[Path, Path, list[str]]:
        config, output = write_tiny_config(tmp_path_factory.mktemp("trained"))
        words = ["CURATE.ENSEMBLE.NUM_RUNS", "1", "CURATE.NUM_PROCESSES", "1", *more]
        assert main(["--config-file", str(config), "--until", "train", *words]) == 0
        return config, output, words

    return train
