"""Finished runs of the whole job that test modules share, and the smallest config of it."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from helpers import REPOSITORY

from detcurate.cli import main
from detcurate.pipeline.context import STAGES
from detcurate.synthetic import SyntheticConfig, write_dataset

CURATE = REPOSITORY / "tools" / "curate.py"
RETINANET = (
    "MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", "('p2','p3','p4','p5','p6')",
    "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RETINANET.PRIOR_PROB", "0.3",
)  # fmt: skip
"""Overrides that replace the two-stage detector of the tiny config by a one-stage one, for the mode ``dense``."""

DENSE = (*RETINANET, "CURATE.PREDICT.MODE", "dense")

Made = TypeVar("Made")


def write_tiny_config(folder: Path) -> tuple[Path, Path]:
    """Write the smallest config of the whole job into a folder; return the file and its ``OUTPUT_DIR``.

    26 pool images and 7 evaluation images of 96x64 are rendered; 2 runs of 4 iterations give 2 members each. One
    process does all work, because a worker takes seconds to import torch.
    """
    output, config = folder / "output", folder / "tiny.yaml"
    config.write_text(
        f"""
_BASE_: "{REPOSITORY / "configs" / "Base-CPU-Tiny.yaml"}"
OUTPUT_DIR: "{output}"
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
SOLVER: {{MAX_ITER: 4, IMS_PER_BATCH: 2, WARMUP_ITERS: 0, CHECKPOINT_PERIOD: 1}}
MODEL: {{ROI_HEADS: {{SCORE_THRESH_TEST: 0.01}}}}
CURATE:
  NUM_PROCESSES: 1
  RENDER: {{NUM_IMAGES: 26, NUM_EVALUATION_IMAGES: 7, WIDTH: 96, HEIGHT: 64}}
  ENSEMBLE: {{NUM_RUNS: 2, MEMBERS_PER_RUN: 2, LAST_FRACTION: 0.5}}
  PREDICT: {{SHARD_SIZE: 5, BATCH_SIZE: 3}}
  RETRAIN: {{NUM_SEEDS: 2}}
"""
    )
    return config, output


@dataclass(frozen=True)
class SharedRun:
    """A finished run that a whole test session reads and no test changes.

    Args:
        config: Its config.
        output: Its ``OUTPUT_DIR``.
        words: Overrides that every command on it needs.
        printed: Standard output of the command that made it.
    """

    config: Path
    output: Path
    words: tuple[str, ...] = ()
    printed: str = ""

    def copy(self, folder: Path, until: str = STAGES[-1]) -> tuple[Path, Path]:
        """Copy the stages up to one into a folder, with a config of its own; return the config and ``OUTPUT_DIR``."""
        folder.mkdir(parents=True, exist_ok=True)
        config, output = write_tiny_config(folder)
        later = set(STAGES[STAGES.index(until) + 1 :])
        shutil.copytree(self.output, output, ignore=lambda at, _: later if Path(at) == self.output else ())
        return config, output


def share(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """Make something once a test session, and give it to all workers of pytest-xdist.

    Args:
        factory: Of the session.
        name: Of the folder, in the session's base directory.
        make: Called with the empty folder by the first worker that needs it; the others wait. Returns paths and text.
    """
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"shared-{name}"
    made = folder.with_suffix(".pickle")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            made.write_bytes(pickle.dumps(make(folder)))
        return pickle.loads(made.read_bytes())


def run_whole_job(folder: Path) -> SharedRun:
    """Run the whole job as a user does: 2 runs of 2 members, and 3 arms of 2 seeds."""
    config, output = write_tiny_config(folder)
    command = [sys.executable, CURATE, "--config-file", config]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return SharedRun(config, output, (), finished.stdout)


def run_one_stage_detector(folder: Path) -> SharedRun:
    """Run the job up to the manifest with a RetinaNet, in the mode ``dense`` and with embeddings."""
    config, output = write_tiny_config(folder)
    words = (*DENSE, "CURATE.PREDICT.EMBEDDINGS", "True")
    assert main(["--config-file", str(config), "--until", "manifest", *words]) == 0
    return SharedRun(config, output, words)


def run_on_own_files(folder: Path) -> tuple[Path, Path, Path, tuple[object, ...]]:
    """Run the job up to the manifest on a pool in files; return config, ``OUTPUT_DIR``, pool and overrides.

    The same overrides with another ``DATASETS.ROOT`` are the same job on other storage.
    """
    config, output = write_tiny_config(folder)
    data = folder / "data"
    for name, num_images in (("train", 26), ("val", 7)):
        scenes = SyntheticConfig.clean(num_images=num_images, width=96, height=64, seed=num_images)
        write_dataset(data, scenes, name=name)
    words = (
        "CURATE.RENDER.NUM_IMAGES", 0, "CURATE.POOL.IMAGE_ROOT", "images-train",
        "CURATE.EVALUATION.IMAGE_ROOT", "images-val", "CURATE.SELECT.DUPLICATE_SIMILARITY", 0.9,
    )  # fmt: skip
    more = ("DATASETS.ROOT", data)
    assert main(["--config-file", str(config), "--until", "manifest", *map(str, (*words, *more))]) == 0
    return config, output, data, words
