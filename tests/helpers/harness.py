"""Runs for fault tests: started like a user's command, each in its own session, and cleaned up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from helpers import REPOSITORY

from detcurate.cli import main
from detcurate.pipeline.context import STAGES

CURATE = REPOSITORY / "tools" / "curate.py"
MANIFEST = ("subset.json", "images.txt", "provenance.json", "relabel.json")
PATIENCE = 600.0  # timeout in seconds on a busy machine


@dataclass
class Running:
    """A running command and all processes that it has started."""

    process: subprocess.Popen
    log: Path

    @property
    def members(self) -> set[int]:
        """The living processes of its session."""
        return {pid for pid, session in _sessions() if session == self.process.pid}

    def kill(self, number: int, *, whole_group: bool = False) -> None:
        """Send a signal to the main process, or to its whole group like a terminal."""
        try:
            (os.killpg if whole_group else os.kill)(self.process.pid, number)
        except ProcessLookupError:
            pass

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the end and return the exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"no end within {seconds:g} s: {self.text}") from None

    def orphans(self, seconds: float) -> set[int]:
        """Return the processes of its session that remain after some seconds, and kill them."""
        end = time.monotonic() + seconds
        while self.members and time.monotonic() < end:
            time.sleep(0.02)
        left = self.members
        if left:
            os.killpg(self.process.pid, signal.SIGKILL)
        return left

    @property
    def text(self) -> str:
        """The output of both streams."""
        return self.log.read_text(errors="replace")


@dataclass(frozen=True)
class Pipeline:
    """A finished run, from which others are copied.

    Args:
        config: Its config.
        output: Its ``OUTPUT_DIR``.
        overrides: Overrides of the config.
        stages: Stages in order.
        seconds: Duration of each stage.
    """

    config: Path
    output: Path
    stages: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def copy(self, folder: Path, *, without: Sequence[str] = ()) -> Path:
        """Copy the finished run into a folder without the outputs of some stages; return the copy."""
        output = folder / "output"
        shutil.rmtree(output, ignore_errors=True)
        gone = set(without)
        shutil.copytree(self.output, output, ignore=lambda at, _: gone if Path(at) == self.output else ())
        return output

    def start(
        self,
        output: Path,
        *more: object,
        command: Sequence[object] = (),
        log: Path | None = None,
        plain: bool = False,
    ) -> Running:
        """Start all stages or another command on an ``OUTPUT_DIR``; ``plain`` omits the run's own overrides."""
        log = log or output.parent / "output.txt"
        arguments = [
            *command,
            "--config-file",
            self.config,
            *(() if plain else self.overrides),
            "OUTPUT_DIR",
            output,
            *more,
        ]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, str(CURATE), *map(str, arguments)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell lets background processes and their children ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        return Running(process, log)

    def finish(self, output: Path, *more: object) -> str:
        """Run all stages to the end and return the output."""
        running = self.start(output, *more)
        status = running.wait()
        assert status == 0, running.text
        return running.text

    def manifest(self, output: Path | None = None) -> dict[str, bytes]:
        """Return the files of a manifest."""
        return {name: ((output or self.output) / "manifest" / name).read_bytes() for name in MANIFEST}


def state_of(output: Path, stage: str) -> str:
    """Return the status in a stage's metadata: ``"started"``, ``"complete"``, or empty."""
    try:
        return str(orjson.loads((output / stage / "stage.json").read_bytes())["status"])
    except (OSError, orjson.JSONDecodeError, KeyError):
        return ""


def wait_until(condition: Callable[[], bool], running: Running, seconds: float = PATIENCE) -> bool:
    """Wait until a condition holds or the command has ended; return whether it holds."""
    end = time.monotonic() + seconds
    while not condition():
        if running.process.poll() is not None or time.monotonic() > end:
            return condition()
        time.sleep(0.002)
    return True


def leftovers(output: Path) -> list[str]:
    """Return files that no finished run leaves: temporary files, locks and leases."""
    found = [path for pattern in (".*.partial", ".*.lease*", ".*lock*", ".incoming") for path in output.rglob(pattern)]
    return sorted(str(path.relative_to(output)) for path in found)


def imported_pipeline(folder: Path) -> Pipeline:
    """Make a run on the predictions of three invented detectors for 26 rendered images."""
    config, output = folder / "imported.yaml", folder / "output"
    config.write_text(
        f"""
_BASE_: "{REPOSITORY / "configs" / "Base-CPU-Tiny.yaml"}"
OUTPUT_DIR: "{output}"
CURATE:
  NUM_PROCESSES: 2
  RENDER: {{NUM_IMAGES: 26, NUM_EVALUATION_IMAGES: 7, WIDTH: 96, HEIGHT: 64}}
  PREDICT: {{SHARD_SIZE: 5, RESULTS: "three"}}
"""
    )
    stages = ("pool", "train", "predict", "score", "select", "manifest")
    pipeline = Pipeline(config, output, stages, ("--until", "manifest"))
    options = ["--config-file", str(config), "CURATE.NUM_PROCESSES", "1"]
    # In this process: each command of its own would import everything again.
    assert main([*options, "--until", "pool", "CURATE.PREDICT.RESULTS", ""]) == 0
    pool = json.loads((output / "pool" / "train.json").read_text())
    members = [_predictions(pool, shift, folder / f"member-{shift}.json") for shift in (0, 1, 3)]
    arguments = [part for member in members for part in ("--member", str(member))]
    assert main(["import", "three", *arguments, "--config-file", str(config)]) == 0
    assert main([*options, *pipeline.overrides]) == 0
    return Pipeline(config, output, stages, pipeline.overrides, _stage_seconds(output))


def trained_pipeline(folder: Path, write_tiny_config: Callable[[Path], tuple[Path, Path]]) -> Pipeline:
    """Make a run of all stages: 2 trainings of 4 iterations, 4 members, 26 images, and 3 arms of 2 seeds."""
    config, output = write_tiny_config(folder)
    stages = tuple(stage for stage in STAGES if stage != "search")
    Pipeline(config, output, stages).finish(output)
    return Pipeline(config, output, stages, (), _stage_seconds(output))


def _predictions(pool: dict, shift: int, path: Path) -> Path:
    """Write a results file with every label, shifted, and with decreasing scores."""
    rows = [
        {
            "image_id": box["image_id"],
            "category_id": box["category_id"],
            "bbox": [box["bbox"][0] + shift * (box["id"] % 3), *box["bbox"][1:]],
            "score": 0.95 - 0.03 * ((box["id"] * (shift + 2)) % 25),
        }
        for box in pool["annotations"]
    ]
    path.write_text(json.dumps(rows))
    return path


def _stage_seconds(output: Path) -> dict[str, float]:
    """Return the duration of each stage from the times of the config, written first, and of the stage metadata."""
    seconds, before = {}, (output / "config.yaml").stat().st_mtime
    for stage in STAGES:
        stage_metadata = output / stage / "stage.json"
        if stage_metadata.is_file():
            end = stage_metadata.stat().st_mtime
            seconds[stage], before = end - before, end
    return seconds


def _sessions() -> list[tuple[int, int]]:
    """Return number and session of every living process."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                found.append((int(path.name), int(fields[3])))
    return found
