#!/usr/bin/env python
"""Inference of an ensemble: one pass for all members, against Detectron2's ``inference_on_dataset`` for each member.

A pool is rendered to JPEG and two runs are trained. Both sides use the same member files and images. Peak memory is
that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from footer import footer

REPOSITORY = Path(__file__).resolve().parent.parent


def train(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Render a pool and train an ensemble on it; return the command-line arguments of the config."""
    from detcurate.cli import main

    words = [
        *("--config-file", arguments.config_file, "OUTPUT_DIR", str(folder / "run"), "MODEL.DEVICE", arguments.device),
        *("CURATE.RENDER.NUM_IMAGES", str(arguments.num_images), "CURATE.RENDER.NUM_EVALUATION_IMAGES", "1"),
        *("CURATE.RENDER.WIDTH", "640", "CURATE.RENDER.HEIGHT", "400", "SOLVER.MAX_ITER", str(arguments.iterations)),
        *("CURATE.ENSEMBLE.NUM_RUNS", "2", "CURATE.ENSEMBLE.MEMBERS_PER_RUN", str(arguments.num_members // 2)),
        *arguments.opts,
    ]
    status = main([*words, "--until", "train"])
    if status:
        sys.exit(status)
    return words


def make_run(words: list[str]) -> Any:
    """Return the pipeline's run of a config."""
    from detcurate.config.declaration import load_config
    from detcurate.pipeline import Run

    return Run(load_config(Path(words[1]), words[2:]), Path(words[1]))


def one_by_one(words: list[str], folder: Path, threads: int) -> int:
    """Run Detectron2's test loader and ``inference_on_dataset`` once for every checkpoint; return the detections."""
    import torch
    from detectron2.data import DatasetCatalog, build_detection_test_loader
    from detectron2.evaluation import DatasetEvaluator, inference_on_dataset

    from detcurate.config.declaration import load_config_text
    from detcurate.d2.checkpoints import model_for_weights
    from detcurate.d2.train.data import detection_dicts
    from detcurate.ensemble.index import MEMBER_INDEX, read_index
    from detcurate.pipeline.training_jobs import training_config

    class Collector(DatasetEvaluator):
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def process(self, inputs: list[dict], outputs: list[dict]) -> None:
            self.rows += [(sample["image_id"], out["instances"].to("cpu")) for sample, out in zip(inputs, outputs)]  # noqa: B905

        def evaluate(self) -> dict:
            return {"num_detections": sum(len(instances) for _, instances in self.rows)}

    torch.set_num_threads(threads)
    logging.disable(logging.INFO)
    run = make_run(words)
    cfg = load_config_text(training_config(run))
    DatasetCatalog.register("pool", lambda: detection_dicts(run.pool, run.image_root("pool")))
    total = 0
    for member in read_index(run.directory("train") / MEMBER_INDEX):
        model = model_for_weights(cfg, run.directory("train") / member.file)
        loader = build_detection_test_loader(cfg, "pool", num_workers=cfg.DATALOADER.NUM_WORKERS)
        total += inference_on_dataset(model, loader, Collector())["num_detections"]
    return total


def one_pass(words: list[str], folder: Path, threads: int) -> int:
    """Run the stage ``predict`` on an empty directory; return the number of detections."""
    from detcurate.pipeline.stages.predict import predict_stage
    from detcurate.predictions.store import read_members, read_predictions

    shutil.rmtree(folder / "run" / "predict", ignore_errors=True)
    run = make_run(words)
    predict_stage(run).run()
    shards = read_predictions(run.directory("predict"), read_members(run.directory("predict")))
    return sum(len(detections) for detections, _ in shards)


def repeated_pool(words: list[str], folder: Path, threads: int) -> int:
    """Predict ``threads`` thousand images with two members in one process, repeating the pool's small images."""
    from detcurate.d2.infer.cluster import predict_cluster
    from detcurate.d2.infer.worker import PredictionJob
    from detcurate.ensemble.index import MEMBER_INDEX, read_index
    from detcurate.pipeline.training_jobs import training_config

    run, n = make_run([*words, "INPUT.MIN_SIZE_TEST", "64"]), 1_000 * threads
    directory = folder / f"repeated-{threads}"
    members = read_index(run.directory("train") / MEMBER_INDEX)[:2]
    names = [str(run.image_root("pool") / name) for name in run.pool.file_names]
    job = PredictionJob(
        config=training_config(run),
        members=tuple((run.directory("train") / member.file, member.sha256) for member in members),
        image_ids=np.arange(n),
        file_names=tuple(names[row % len(names)] for row in range(n)),
        sizes=np.column_stack((np.full(n, 640), np.full(n, 400))),
        num_classes=len(run.class_names),
        shard_size=64,
        batch_size=8,
        device=str(run.cfg.MODEL.DEVICE),
        directory=directory,
    )
    predict_cluster(job, lambda _: None)
    shutil.rmtree(directory)
    return n


def modes(words: list[str], folder: Path, threads: int) -> dict[str, float]:
    """Predict the same images in the three modes with one thread; return seconds an image and member of each.

    ``cluster`` and ``reference`` use the trained two-stage members. ``dense`` and a second ``cluster`` use as many
    members of a RetinaNet with the same backbone; it is untrained, which does not change the arithmetic.
    """
    import torch
    from detectron2.data import DatasetMapper
    from detectron2.modeling import build_model

    from detcurate.config.declaration import load_config_text
    from detcurate.d2.checkpoints import model_for_weights
    from detcurate.d2.infer.dense import DenseAccumulator, anchors_inside, dense_outputs
    from detcurate.d2.infer.posteriors import predict_posteriors
    from detcurate.d2.infer.reference import reference_predictions
    from detcurate.d2.train.data import detection_dicts
    from detcurate.ensemble.index import MEMBER_INDEX, read_index
    from detcurate.pipeline.training_jobs import training_config

    torch.set_num_threads(threads)
    run = make_run(words)
    cfg = load_config_text(training_config(run))
    num_classes, pool = len(run.class_names), run.pool
    records = detection_dicts(pool, run.image_root("pool"))[:64]
    mapper = DatasetMapper(cfg, is_train=False)
    samples = [mapper(record) for record in records]
    truth = {int(image_id): pool.boxes[pool.image_index == row] for row, image_id in enumerate(pool.image_ids.tolist())}
    batches = [samples[start : start + 8] for start in range(0, len(samples), 8)]
    two_stage = [
        model_for_weights(cfg, run.directory("train") / m.file)
        for m in read_index(run.directory("train") / MEMBER_INDEX)
    ]
    dense_cfg = cfg.clone()
    dense_cfg.defrost()
    dense_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    dense_cfg.MODEL.RETINANET.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    one_stage = []
    for seed in range(len(two_stage)):
        torch.manual_seed(seed)
        one_stage.append(build_model(dense_cfg).eval())

    def cluster(members: list[Any]) -> None:
        for batch in batches:
            for model in members:
                predict_posteriors(model, batch, num_classes)

    def reference() -> None:
        for batch in batches:
            boxes = [truth[sample["image_id"]] for sample in batch]
            for model in two_stage:
                images = model.preprocess_image(batch)
                features = model.backbone(images.tensor)
                reference_predictions(model, batch, boxes, images=images, features=features)

    def dense() -> None:
        for batch in batches:
            accumulator = DenseAccumulator(len(one_stage))
            for model in one_stage:
                images = model.preprocess_image(batch)
                features = model.backbone(images.tensor)
                outputs = dense_outputs(model, features, batch)
                accumulator.update(outputs.logits, outputs.centerness)
            accumulator.result().image_scores(inside=anchors_inside(model, images, features))

    work = {
        "two-stage, cluster": lambda: cluster(two_stage),
        "two-stage, reference on the labelled boxes": reference,
        "one-stage, cluster": lambda: cluster(one_stage),
        "one-stage, dense": dense,
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    with torch.inference_mode():
        for _ in range(4):  # the first repetition warms up
            for name, predict in work.items():
                begun = time.perf_counter()
                predict()
                seconds[name].append(time.perf_counter() - begun)
    passes = len(samples) * len(two_stage)
    return {name: statistics.median(times[1:]) / passes for name, times in seconds.items()}


WORK: dict[str, Callable[[list[str], Path, int], Any]] = {
    "one_by_one": one_by_one,
    "one_pass": one_pass,
    "repeated_pool": repeated_pool,
    "modes": modes,
}


def measure(name: str, words: list[str], folder: Path, threads: int = 1) -> dict[str, Any]:
    """Run one task in a separate process; return seconds, detections and peak memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads if name == "one_by_one" else 1)}
    described = json.dumps({"name": name, "words": words, "folder": str(folder), "threads": threads})
    command = [sys.executable, __file__, "--work", described]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return dict(json.loads(printed.splitlines()[-1]))


def do_work(described: str) -> None:
    """Run one task in this process and print its figures."""
    import resource

    work = json.loads(described)
    start = time.perf_counter()
    detections = WORK[work["name"]](work["words"], Path(work["folder"]), work["threads"])
    seconds = time.perf_counter() - start
    peak = max(resource.getrusage(scope).ru_maxrss for scope in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "detections": detections, "peak_gb": peak / 1e6}))


def report(arguments: argparse.Namespace) -> list[str]:
    """Measure everything and return the lines of the report."""
    load, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = train(folder, arguments)
        variants = [("one_by_one", threads) for threads in arguments.threads] + [("one_pass", 1)]
        figures: dict[tuple[str, int], list[dict[str, float]]] = {variant: [] for variant in variants}
        for _ in range(arguments.repeats):
            for variant in variants:
                figures[variant].append(measure(variant[0], words, folder, variant[1]))
                print(variant, figures[variant][-1], file=sys.stderr)
        costs = measure("modes", words, folder)["detections"]
        growth = [(size, measure("repeated_pool", words, folder, size)) for size in arguments.growth]
    ours = statistics.median(figure["seconds"] for figure in figures["one_pass", 1])
    for (name, threads), found in figures.items():
        seconds = sorted(figure["seconds"] for figure in found)
        label = f"`inference_on_dataset` for each member, {threads} threads" if name == "one_by_one" else "one pass"
        median = statistics.median(seconds)
        rows.append(
            f"| {label} | {median:.1f} | {seconds[0]:.1f} | {seconds[-1]:.1f} | {median / ours:.2f} | "
            f"{found[0]['detections']:,} | {max(figure['peak_gb'] for figure in found):.2f} |"
        )
    lines = [
        "# Inference of an ensemble",
        "",
        f"{arguments.num_members} members on {arguments.num_images} JPEG images of 640x400, "
        f"`{Path(arguments.config_file).name}`, {arguments.device}; from start to end, including loading of models and "
        "writing of files.",
        "",
        "| inference | median s | min s | max s | × one pass | detections | peak GB |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
    ]
    lines += [
        "Cost of an image and a member with one thread, without decoding.",
        "",
        "| mode | ms | × cluster of that detector |",
        "|---|---:|---:|",
    ]
    for name, cost in costs.items():
        lines.append(f"| {name} | {1000 * cost:.2f} | {cost / costs[name.split(',')[0] + ', cluster']:.2f} |")
    lines.append("")
    if growth:
        lines += [
            "Memory by size of the pool: 2 members, one process.",
            "",
            "| images | s | peak GB |",
            "|---:|---:|---:|",
        ]
        lines += [f"| {size * 1000:,} | {found['seconds']:.0f} | {found['peak_gb']:.3f} |" for size, found in growth]
        lines.append("")
    return [
        *lines,
        *footer(
            f"python benchmarks/ensemble_inference.py --repeats {arguments.repeats}", load=load, packages=("torch",)
        ),
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default=str(REPOSITORY / "configs" / "quickstart.yaml"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--num-members", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=200, help="of each of the two runs")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="of the one-by-one side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", type=int, nargs="*", default=[1, 20], help="thousands of images")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("opts", nargs="*", help="KEY VALUE")
    arguments = parser.parse_args()
    if arguments.work:
        do_work(arguments.work)
        return
    text = "\n".join(report(arguments)) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
