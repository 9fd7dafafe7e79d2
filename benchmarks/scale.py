#!/usr/bin/env python
"""Predicting and scoring on 1, 2 and 4 Ray nodes simulated on one machine, beside local processes; and what it models.

Everything is real but the nodes: a pool is rendered to JPEG, an ensemble is trained, and each way starts from the same
member files and images. Nodes are ``ray.cluster_utils.Cluster``'s, of one CPU each, on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {  # Ray reads them when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # The engine's process imports this module too.
    "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]),
}

from clock import now
from footer import footer
from ray.cluster_utils import Cluster

from detcurate.cli import main as command_line
from detcurate.config import RaySettings
from detcurate.config.declaration import load_config, load_config_text
from detcurate.engines import LOCAL
from detcurate.engines.ray_engine import RayEngine
from detcurate.pipeline import Run, run_pipeline
from detcurate.pipeline.training_jobs import training_config

NUM_EMPTY_JOBS = 500
# Faster R-CNN R50-FPN 3x on a V100, detectron2/MODEL_ZOO.md: not measured here, where there is no GPU.
GPU_SECONDS = 0.038
POOL_IMAGES, POOL_MEMBERS, GPUS = 500_000, 100, (8, 64)


@contextlib.contextmanager
def nodes(number: int) -> Iterator[str]:
    """Give the address of a cluster of nodes with one CPU each."""
    options = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    try:
        for _ in range(number - 1):
            cluster.add_node(**options)
        yield cluster.address
    finally:
        cluster.shutdown()


def train(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Render a pool and train an ensemble on it; return the command-line words of the config."""
    words = [
        *("CURATE.RENDER.NUM_IMAGES", str(arguments.num_images), "CURATE.RENDER.NUM_EVALUATION_IMAGES", "1"),
        *("CURATE.RENDER.WIDTH", "640", "CURATE.RENDER.HEIGHT", "400", "SOLVER.MAX_ITER", "40"),
        *("CURATE.ENSEMBLE.NUM_RUNS", "2", "CURATE.ENSEMBLE.MEMBERS_PER_RUN", str(arguments.num_members // 2)),
        *("CURATE.PREDICT.SHARD_SIZE", "16", "CURATE.RAY.SHARDS_PER_BLOCK", "2"),
    ]
    command = ["--config-file", arguments.config_file, "--until", "train", "OUTPUT_DIR", str(folder / "run"), *words]
    if command_line(command):
        sys.exit(2)
    return words


def timed_pass(folder: Path, words: list[str], arguments: argparse.Namespace, engine: Any, processes: int) -> Any:
    """Predict and score a copy of the run; return the seconds of each and the digests of what was written."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "run", copy)
    config, more = Path(arguments.config_file), ["OUTPUT_DIR", str(copy), "CURATE.NUM_PROCESSES", str(processes)]
    run = Run(load_config(config, [*words, *more]), config, engine=engine)
    seconds = []
    for stage in ("predict", "score"):
        begun = time.perf_counter()
        run_pipeline(run, only=stage)
        seconds.append(time.perf_counter() - begun)
    print(type(engine).__name__, processes, seconds, file=sys.stderr)
    written = {stage: run.stage_metadata(stage)["outputs"] for stage in ("predict", "score")}
    return seconds, written


def compare(folder: Path, words: list[str], arguments: argparse.Namespace) -> tuple[list[str], dict[str, float]]:
    """Time each way, the ways in turn; return the rows, and seconds by what was timed."""
    ways: dict[str, list[list[float]]] = {}
    starts: list[float] = []
    handing: list[float] = []
    expected = None
    for _ in range(arguments.repeats):
        for number in (1, 2):
            seconds, written = timed_pass(folder, words, arguments, LOCAL, number)
            ways.setdefault(f"local, {number} processes", []).append(seconds)
            expected = expected or written
            require_equal(written, expected)
        for number in (1, 2, 4):
            begun = time.perf_counter()
            with nodes(number) as address, contextlib.closing(RayEngine(RaySettings(), address=address)) as engine:
                starts.append(time.perf_counter() - begun)
                seconds, written = timed_pass(folder, words, arguments, engine, 1)
                if number == 2:
                    handing.append(empty_jobs(engine))
            ways.setdefault(f"Ray, {number} nodes", []).append(seconds)
            require_equal(written, expected)
    base = [statistics.median(one[stage] for one in ways["local, 2 processes"]) for stage in (0, 1)]
    rows = []
    for name, found in ways.items():
        cells = []
        for stage in (0, 1):
            times = sorted(one[stage] for one in found)
            median = statistics.median(times)
            cells += [f"{median:.1f} ({times[0]:.1f}–{times[-1]:.1f})", f"{arguments.num_images / median:.1f}"]
            cells.append(f"{median / base[stage]:.2f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows, {"start": statistics.median(starts), "block": statistics.median(handing)}


def require_equal(written: Any, expected: Any) -> None:
    """Stop when an engine wrote other bytes than the first."""
    if written != expected:
        sys.exit("the engines must write the same bytes, got others")


def empty_jobs(engine: RayEngine) -> float:
    """Return the seconds that a block costs beside its work, on workers that are there: from its end to the next's."""
    ends = engine.run(
        now, list(range(NUM_EMPTY_JOBS)), num_processes=1, total=NUM_EMPTY_JOBS, desc="empty", unit="block"
    )
    return (max(ends) - min(ends)) / (NUM_EMPTY_JOBS - 1)


def parts(folder: Path, words: list[str], arguments: argparse.Namespace) -> dict[str, float]:
    """Time, in this process, what an image costs: decoding, a member's answer, writing; and the bytes it leaves."""
    from detectron2.data import DatasetMapper

    from detcurate.d2.infer.cluster import predict_cluster
    from detcurate.ensemble.index import MEMBER_INDEX, read_index
    from detcurate.pipeline.prediction_jobs import prediction_job
    from detcurate.predictions.shards import read_shard, write_shard

    config = Path(arguments.config_file)
    run = Run(load_config(config, [*words, "OUTPUT_DIR", str(folder / "run")]), config)
    ensemble = run.directory("train")
    members = [(ensemble / one.file, one.sha256) for one in read_index(ensemble / MEMBER_INDEX)]
    job = prediction_job(run, "pool", folder / "parts", members, run.usable_image_ids)
    mapper = DatasetMapper(load_config_text(training_config(run)), is_train=False)
    begun = time.perf_counter()
    for number in range(len(job.shards)):
        for record in job.records(number):
            mapper(record)
    decode = (time.perf_counter() - begun) / arguments.num_images
    begun = time.perf_counter()
    predict_cluster(job, lambda amount: None)
    whole = (time.perf_counter() - begun) / arguments.num_images
    write = 0.0
    for path in job.shards:
        detections, image_ids = read_shard(path)
        begun = time.perf_counter()
        write_shard(folder / "again.parquet", detections, image_ids)
        write += time.perf_counter() - begun
    write /= arguments.num_images
    size = sum(path.stat().st_size for path in job.shards) / arguments.num_images / len(members)
    return {"decode": decode, "forward": (whole - decode - write) / len(members), "write": write, "bytes": size}


def model(found: dict[str, float], members: int, score: float) -> list[str]:
    """Return the lines of the model: seconds, linear in images, members and blocks, divided among the workers."""
    write, score_one = found["write"] / members, score / members
    lines = [
        "| GPUs | decoding, h | members, h | writing, h | handing out, h | predict, h | score, h |",
        "|---:" * 7 + "|",
    ]
    for gpus in GPUS:
        share = POOL_IMAGES / gpus / 3600
        terms = [
            share * found["decode"],
            share * POOL_MEMBERS * GPU_SECONDS,
            share * POOL_MEMBERS * write,
            POOL_IMAGES / 256 * found["block"] / 3600,  # by one driver, however many workers
        ]
        scoring = share * POOL_MEMBERS * score_one
        cells = [*terms, sum(terms), scoring]
        lines.append(f"| {gpus} | " + " | ".join(f"{cell:,.2f}" for cell in cells) + " |")
    return lines


def report(arguments: argparse.Namespace) -> list[str]:
    """Measure everything and return the lines of the report."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = train(folder, arguments)
        rows, found = compare(folder, words, arguments)
        found |= parts(folder, words, arguments)
    alone = next(row for row in rows if row.startswith("| local, 1"))
    score = 1 / float(alone.split("|")[6])
    of_pool = POOL_IMAGES * POOL_MEMBERS * found["bytes"] / 1e9
    return [
        "# Scale-out",
        "",
        f"{arguments.num_members} members on {arguments.num_images} JPEG images of 640x400, `quickstart.yaml`, CPU; "
        f"median (least–most) of {arguments.repeats} times, the ways in turn. A node has one CPU; the machine has "
        f"{os.cpu_count()}, so 4 nodes cannot be faster than {os.cpu_count()}. Every way wrote the same bytes, which "
        "the benchmark requires. Worker processes and actors are started within the time, torch and models included; "
        "one process alone starts none. Up to 512 images are one block of the stage score: of that, starting is all "
        "there is.",
        "",
        "| way | predict, s | images/s | × local 2 | score, s | images/s | × local 2 |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        "## Inputs of the model, measured here",
        "",
        "| what | value |",
        "|---|---:|",
        f"| decoding and resizing an image, one core | {1e3 * found['decode']:.2f} ms |",
        f"| a member's answer about an image, the tiny detector, one core | {1e3 * found['forward']:.2f} ms |",
        f"| writing, an image and member | {1e3 * found['write'] / arguments.num_members:.3f} ms |",
        f"| scoring, an image and member, one core | {1e3 * score / arguments.num_members:.3f} ms |",
        f"| a shard's bytes, an image and member | {found['bytes']:,.0f} |",
        f"| handing out a block to Ray workers that are there | {1e3 * found['block']:.2f} ms |",
        f"| starting a simulated cluster and connecting | {found['start']:.1f} s |",
        "",
        f"## A model, not a measurement: {POOL_IMAGES:,} images, {POOL_MEMBERS} members",
        "",
        "Linear in images, members and blocks, divided among the workers; what it says of GPUs is not measured. "
        f"Assumed: a member's answer takes {1e3 * GPU_SECONDS:.0f} ms on a GPU (Faster R-CNN R50-FPN on a V100, from "
        "Detectron2's model zoo), one core a GPU decodes, writes and scores, a block has 256 images, storage keeps up.",
        "",
        *model(found, arguments.num_members, score),
        "",
        f"Its shards take {of_pool:,.0f} GB at the measured bytes an image and member.",
        "",
        *footer(
            f"python benchmarks/scale.py --num-images {arguments.num_images} --repeats {arguments.repeats}",
            load=load,
            note="virtual",
            packages=("torch", "ray"),
        ),
    ]


def main() -> None:
    """Print the report, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", default=str(Path(__file__).resolve().parent.parent / "configs/quickstart.yaml")
    )
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--num-members", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = report(arguments)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
