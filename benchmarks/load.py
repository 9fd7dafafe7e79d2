#!/usr/bin/env python
"""Measure time, memory, open files and temporary space of each stage after predict, for 500,000 images.

    python benchmarks/load.py --output benchmarks/results/load.md

Predictions, embeddings and labels are synthetic, in the formats of the stage ``predict``; there are no images. Each
stage runs as a command in a process of its own, sampled twice a second. Memory is the sum of the resident sets of its
processes; shared pages count in each of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from footer import footer
from report import finish, write_pool
from scoring import SHARD, make_shards

_ROOT = Path(__file__).resolve().parent.parent
_FEATURES, _RUNS, _PER_RUN = 128, 2, 5
_POLL_SECONDS = 0.5
STAGES: dict[str, tuple[str, ...]] = {
    "score": ("--only", "score"),
    "select": ("--only", "select"),
    "manifest": ("--only", "manifest"),
    "report": (),
}
SETTINGS = {
    "CURATE.PREDICT.SHARD_SIZE": str(SHARD),
    "CURATE.PREDICT.EMBEDDINGS": "True",
    "CURATE.SELECT.FRACTION": "0.1",
    "CURATE.SELECT.DUPLICATE_SIMILARITY": "0.98",
    "CURATE.SELECT.SEQUENCE_GAP": "3",
    "CURATE.SELECT.NOISE_FILTER": "queue",
    "CURATE.NUM_PROCESSES": "2",
}


@dataclass
class Watched:
    """Seconds of a stage, and its peaks of memory in GB, open files and temporary files in MB."""

    seconds: float = 0.0
    memory_gb: float = 0.0
    open_files: int = 0
    temporary_mb: float = 0.0


def make_run(output: Path, data: Path, num_images: int) -> None:
    """Write the OUTPUT_DIR of a run up to the predictions, and the pool's annotations."""
    from detcurate.ensemble.index import Member, write_index
    from detcurate.predictions.store import MEMBERS

    (data / "images").mkdir(parents=True)
    for folder in ("pool", "train", "predict"):
        (output / folder).mkdir(parents=True)
    members = [
        Member(run, 999 + 1000 * k, run, 1e-3, f"run-{run}/iter-{999 + 1000 * k:07d}.safetensors", f"{run}{k}" * 32)
        for run in range(_RUNS)
        for k in range(_PER_RUN)
    ]
    make_shards(output / "predict", num_images, [f"{member.file}@{member.sha256}" for member in members])
    for name in ("train.json", "val.json"):  # arms are not evaluated
        (data / name).unlink(missing_ok=True)
        (data / name).hardlink_to(output / "predict" / "labels.json")
    (output / "predict" / "labels.json").unlink()
    write_index(output / "train" / "ensemble.jsonl", members)
    write_pool(output, data, num_images, num_boxes=15 * num_images)
    finish(output, "train", "ensemble.jsonl", inputs=["pool"])
    embeddings = _write_embeddings(output / "predict", num_images)
    finish(output, "predict", MEMBERS, *embeddings, inputs=["pool", "train"])
    base = _ROOT / "configs" / "Base-CPU-Tiny.yaml"
    (data / "load.yaml").write_text(f'_BASE_: "{base}"\nDATASETS:\n  ROOT: "{data}"\nOUTPUT_DIR: "{output}"\n')
    (output / "detcurate.json").write_text('{"config_file": "load.yaml"}')


def _write_embeddings(directory: Path, num_images: int) -> list[str]:
    """Write embeddings of drives: neighbouring frames are similar, some of them near-duplicates."""
    from detcurate.predictions.shards import write_embeddings

    rng, names = np.random.default_rng(0), []
    for number, first in enumerate(range(0, num_images, SHARD)):
        ids = np.arange(first + 1, min(first + SHARD, num_images) + 1)
        drive = np.random.default_rng(first).normal(size=(1 + SHARD // 8, _FEATURES)).repeat(8, axis=0)[: len(ids)]
        rows = drive + rng.normal(size=drive.shape) * rng.uniform(0.02, 0.4, (len(ids), 1))
        names.append(f"embeddings/shard-{number:05d}.parquet")
        write_embeddings(directory / names[-1], ids, rows.astype(np.float16))
    return names


def watch(command: list[str], temporary: Path, log: Path) -> Watched:
    """Run a command and return the peaks of its processes.

    Raises:
        SystemExit: The command failed.
    """
    seen, start = Watched(), time.perf_counter()
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    with log.open("ab") as stream, subprocess.Popen(command, stdout=stream, stderr=stream, env=variables) as process:
        while process.poll() is None:
            family = _family(process.pid)
            seen.memory_gb = max(seen.memory_gb, sum(_resident_bytes(pid) for pid in family) / 1e9)
            seen.open_files = max(seen.open_files, sum(_open_files(pid) for pid in family))
            seen.temporary_mb = max(seen.temporary_mb, _bytes_below(temporary) / 1e6)
            time.sleep(_POLL_SECONDS)
    seen.seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return seen


def _family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, path.read_text().split())
            except OSError:
                continue
    return found


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _open_files(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:
            continue
    return total


def measure(folder: Path, num_images: int) -> dict[str, Watched]:
    """Write a run with ``num_images`` images, run its stages and return the measurements of each."""
    output, data, temporary = folder / "output", folder / "data", folder / "tmp"
    temporary.mkdir()
    make_run(output, data, num_images)
    curate = [sys.executable, str(_ROOT / "tools" / "curate.py")]
    settings = {**SETTINGS, "CURATE.SELECT.CLASS_MINIMUMS": f'("class 3={num_images // 6}",)'}
    overrides = [word for pair in settings.items() for word in pair]
    found = {}
    for name, options in STAGES.items():
        job = ["--config-file", str(data / "load.yaml"), *options, *overrides] if options else ["report", str(output)]
        found[name] = watch([*curate, *job], temporary, folder / "log.txt")
        left = [path for path in output.rglob(".*.partial")] + list(temporary.iterdir())
        if left:
            raise SystemExit(f"{name} left temporary files: {left[:3]}")
        print(f"{num_images:,} images, {name}: {found[name]}", file=sys.stderr)
    print((folder / "log.txt").read_text()[-3000:], file=sys.stderr)
    return found


def main() -> None:
    """Measure pools of two sizes, which shows what grows with the pool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, nargs="*", default=[100_000, 500_000], help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    lines = [
        "# Load",
        "",
        f"{_RUNS * _PER_RUN} members of {_RUNS} runs with some 28 detections an image each, 15 labels an image, drives "
        f"of 200 frames, {_FEATURES} features. A tenth is selected with near-duplicates, sequence gap, a minimum quota "
        "and the label-noise filter. Two worker processes with one thread each.",
        "",
        "| images | stage | seconds | peak GB, all processes | open files | temporary MB |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for num_images in arguments.pools:
        with tempfile.TemporaryDirectory() as name:
            for stage, seen in measure(Path(name), num_images).items():
                lines.append(
                    f"| {num_images:,} | {stage} | {seen.seconds:.0f} | {seen.memory_gb:.2f} | {seen.open_files} | "
                    f"{seen.temporary_mb:.0f} |"
                )
    lines += ["", *footer("python benchmarks/load.py", load=load)]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
