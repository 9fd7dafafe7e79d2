#!/usr/bin/env python
"""Measure scoring on one thread beside other libraries on the same boxes, and whole pools in worker processes.

The other libraries do a different job: ``weighted_boxes_fusion`` merges the members' boxes without votes, posteriors or
measures; cleanlab's ObjectLab compares one set of predictions with labels. They are the alternatives for an ensemble's
boxes. Install both with ``pip install -e .[bench]``; absent ones are skipped. Peak memory is the largest resident set
of any process.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from footer import footer

from detcurate.structures import Detections

_CLASSES = 10
_SEEN, _STRAYS = 0.9, 3  # how often a member sees an object, and the boxes of its own it adds to an image
_OBJECTS = 28
_SIZE = np.array([1280.0, 720.0])
SHARD = 512


def make_pool(num_images: int, num_members: int, seed: int = 0) -> tuple[Detections, np.ndarray, np.ndarray]:
    """Return detections, and the objects' boxes (I, O, 4) and classes (I, O): ~28 detections a member and image."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.1, 0.9, (num_images, _OBJECTS, 2)) * _SIZE
    size = np.exp(rng.normal(4.0, 0.6, (num_images, _OBJECTS, 1))) * rng.uniform(0.6, 1.6, (num_images, _OBJECTS, 2))
    classes = rng.integers(0, _CLASSES, (num_images, _OBJECTS))
    image, member, item = (
        axis.ravel() for axis in np.indices((num_images, num_members, _OBJECTS + _STRAYS), dtype=np.int32)
    )
    is_stray = item >= _OBJECTS
    kept = is_stray | (rng.random(len(item), np.float32) < _SEEN)
    image, member, item, is_stray = image[kept], member[kept], item[kept] % _OBJECTS, is_stray[kept]
    n = len(image)
    sizes = size[image, item] * np.exp(rng.normal(0, 0.07, (n, 2)))
    centres = centre[image, item] + rng.normal(0, 0.04, (n, 2)) * sizes
    centres[is_stray] = rng.uniform(0.1, 0.9, (int(is_stray.sum()), 2)) * _SIZE
    logits = rng.normal(0, 1, (n, _CLASSES + 1)).astype(np.float32)
    logits[np.arange(n), classes[image, item]] += np.where(is_stray, 0.5, 3.5)
    class_probs = np.exp(logits)
    class_probs /= class_probs.sum(axis=1, keepdims=True)
    detections = Detections(
        image_ids=image.astype(np.int64) + 1,
        member=member,
        boxes=np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1).astype(np.float32),
        scores=class_probs[:, :-1].max(axis=1),
        class_index=class_probs[:, :-1].argmax(axis=1).astype(np.int32),
        class_probs=class_probs,
    )
    return detections, np.concatenate((centre - size / 2, centre + size / 2), axis=2), classes


def score(num_images: int, num_members: int, association: str = "sequential") -> Callable[[], object]:
    """``score_objects``: association, and all measures of the clusters."""
    from detcurate.score.measures import MEASURES
    from detcurate.score.scoring import score_objects

    detections, _, _ = make_pool(num_images, num_members)
    names = tuple(MEASURES)
    score_objects(detections, num_members=num_members, measures=names, association=association)  # load the kernels
    return lambda: score_objects(detections, num_members=num_members, measures=names, association=association)


def score_with_labels(num_images: int, num_members: int) -> Callable[[], object]:
    """``score_labelled_objects``: the same, the measures that use labels, and the label-error scores."""
    from detcurate.score.measures import available_measures
    from detcurate.score.scoring import score_labelled_objects

    detections, boxes, classes = make_pool(num_images, num_members)
    labels = _labels(boxes, classes)

    def run() -> object:
        return score_labelled_objects(
            detections, labels, num_members=num_members, measures=available_measures(num_members)
        )

    run()
    return run


def _labels(boxes: np.ndarray, classes: np.ndarray) -> object:
    from detcurate.structures import Labels

    n = classes.size
    return Labels(
        image_ids=np.repeat(np.arange(1, len(classes) + 1), classes.shape[1]),
        annotation_ids=np.arange(1, n + 1),
        boxes=boxes.reshape(-1, 4),
        class_index=classes.reshape(-1),
        iscrowd=np.zeros(n, np.bool_),
    )


def fuse(num_images: int, num_members: int) -> Callable[[], object]:
    """``ensemble_boxes.weighted_boxes_fusion``, image by image."""
    from ensemble_boxes import weighted_boxes_fusion

    detections, _, _ = make_pool(num_images, num_members)
    scale = np.tile(_SIZE, 2)
    images = []
    for image_id in range(1, num_images + 1):
        rows = [
            detections.take((detections.image_ids == image_id) & (detections.member == e)) for e in range(num_members)
        ]
        boxes = [np.clip(part.boxes / scale, 0, 1) for part in rows]
        images.append((boxes, [part.scores for part in rows], [part.class_index for part in rows]))
    return lambda: [weighted_boxes_fusion(*image, iou_thr=0.5) for image in images]


def cleanlab(num_images: int, num_members: int) -> Callable[[], object]:
    """``cleanlab.object_detection.rank.get_label_quality_scores`` of all members' boxes taken for one detector's."""
    from cleanlab.object_detection.rank import get_label_quality_scores

    detections, boxes, classes = make_pool(num_images, num_members)
    labels = [{"bboxes": boxes[i].astype(np.float32), "labels": classes[i]} for i in range(num_images)]
    predictions = []
    for image_id in range(1, num_images + 1):
        rows = detections.take(detections.image_ids == image_id)
        by_class = [rows.take(rows.class_index == c) for c in range(_CLASSES)]
        predictions.append(
            np.array([np.column_stack((part.boxes, part.scores)) for part in by_class] + [None], dtype=object)[:-1]
        )
    return lambda: get_label_quality_scores(labels, predictions, verbose=False)


WORK: dict[str, tuple[Callable[..., Callable[[], object]], dict[str, object], int]] = {
    "detcurate, 10 members": (score, {"num_members": 10}, 2000),
    "detcurate, 10 members, optimal": (score, {"num_members": 10, "association": "optimal"}, 2000),
    "detcurate with labels, 10 members": (score_with_labels, {"num_members": 10}, 2000),
    "weighted_boxes_fusion, 10 members": (fuse, {"num_members": 10}, 60),
    "cleanlab, 10 members": (cleanlab, {"num_members": 10}, 60),
    "detcurate, 100 members": (score, {"num_members": 100}, 200),
    "weighted_boxes_fusion, 100 members": (fuse, {"num_members": 100}, 6),
}


NEEDS = {fuse: "ensemble_boxes", cleanlab: "cleanlab"}


def first_call() -> float:
    """Return the seconds of the first call in a process without compiled kernels."""
    with tempfile.TemporaryDirectory() as cache:
        return _measure(["--first"], NUMBA_CACHE_DIR=cache)[0]


def make_shards(folder: Path, num_images: int, names: Sequence[str]) -> None:
    """Write a store of predictions and the annotation file: 50 different shards again and again, with ids of their own.

    The annotation file holds the objects that the detections are jittered copies of, on drives of 200 frames.

    Args:
        folder: Where to; the annotation file is ``labels.json``.
        num_images: How many.
        names: Of the members.
    """
    from detcurate.predictions.shards import shard_path, write_shard
    from detcurate.predictions.store import prepare_prediction_sets

    num_shards = -(-num_images // SHARD)
    [found] = prepare_prediction_sets(folder, "0" * 64, names, num_shards=num_shards)
    originals = [make_pool(SHARD, len(names), seed) for seed in range(min(num_shards, 50))]
    with (folder / "labels.json").open("w") as stream:
        categories = ", ".join(f'{{"id": {c + 1}, "name": "class {c}"}}' for c in range(_CLASSES))
        stream.write(f'{{"categories": [{categories}], "images": [')
        rows = (
            f'{{"id": {i + 1}, "file_name": "{i}.jpg", "width": 1280, "height": 720, '
            f'"sequence": "drive-{i // 200}", "frame_index": {i % 200}}}'
            for i in range(num_images)
        )
        stream.write(",\n".join(rows) + '], "annotations": [')
        for shard in range(num_shards):
            detections, boxes, classes = originals[shard % len(originals)]
            first, size = shard * SHARD, min(SHARD, num_images - shard * SHARD)
            rows_of_shard = detections.take(detections.image_ids <= size)
            moved = replace(rows_of_shard, image_ids=rows_of_shard.image_ids + first)
            write_shard(shard_path(found.directory, shard), moved, np.arange(1, size + 1) + first)
            stream.write(",\n" if shard else "")
            stream.write(",\n".join(_annotations(boxes[:size, :15], classes[:size, :15], first)))
        stream.write("]}")


def _annotations(boxes: np.ndarray, classes: np.ndarray, first: int) -> list[str]:
    xywh = np.round(np.concatenate((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), axis=2), 1).reshape(-1, 4)
    category, per_image = classes.reshape(-1).tolist(), classes.shape[1]
    return [
        f'{{"id": {first * per_image + k + 1}, "image_id": {first + k // per_image + 1}, "category_id": '
        f'{category[k] + 1}, "bbox": {box}, "area": {box[2] * box[3]:.1f}, "iscrowd": 0}}'
        for k, box in enumerate(xywh.tolist())
    ]


def score_store(folder: Path) -> tuple[float, float]:
    """Score a store as the stage does; return seconds, the annotation file already read, and peak memory in GB."""
    from detcurate.coco.dataset import read_coco
    from detcurate.config import ScoreSettings
    from detcurate.pipeline.pool_scoring import score_predictions
    from detcurate.pipeline.tables import ImagesTable
    from detcurate.predictions.store import open_predictions, read_members
    from detcurate.score.scoring import combine_images

    dataset = read_coco(folder / "labels.json")
    members, settings = read_members(folder), ScoreSettings()
    start = time.perf_counter()
    components, _ = score_predictions(
        open_predictions(folder, members),
        dataset,
        dataset.image_ids,
        settings=settings,
        shard_size=SHARD,
        trajectories=[list(range(len(members)))],
        objects_path=folder / "objects.parquet",
        num_processes=2,
    )
    weights = dict(zip(settings.measures, settings.weights, strict=True))
    scores = combine_images(dataset.image_ids, components, weights=weights)
    ImagesTable.within(folder).write_scores(scores)
    seconds = time.perf_counter() - start
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return seconds, peak / 1e6


def _measure(arguments: list[str], **environment: str) -> tuple[float, float]:
    """Run this file in a process of its own with one thread, and return the two numbers that it prints."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **environment}
    command = [sys.executable, __file__, *arguments]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables).stdout
    first, second = printed.split()[-2:]
    return float(first), float(second)


def side_by_side(repeats: int) -> list[str]:
    """Measure each piece of work in turn, and return a table."""
    figures: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name in WORK:
            package = NEEDS.get(WORK[name][0])
            if package and importlib.util.find_spec(package) is None:
                print(f"{name}: left out, {package} is not installed", file=sys.stderr)
                continue
            seconds, num_images = _measure(["--work", name])
            figures.setdefault(name, []).append(num_images / seconds)
            print(f"{name}: {num_images / seconds:,.1f} images/s", file=sys.stderr)
    lines = ["| what | images/s, median | min | max | ours is faster by |", "|---|---:|---:|---:|---:|"]
    for name, rates in figures.items():
        ours = figures[f"detcurate, {name.split(', ')[1]}"]
        ratio = statistics.median(ours) / statistics.median(rates)
        shown = "" if name.startswith("detcurate") else f"{ratio:,.0f} ×"
        lines.append(f"| {name} | {statistics.median(rates):,.1f} | {min(rates):,.1f} | {max(rates):,.1f} | {shown} |")
    return [*lines, ""]


def whole_pools(sizes: list[int], num_members: int) -> list[str]:
    """Score stores of several sizes, and return a table."""
    lines = [
        f"| images, {num_members} members each | seconds | images/s | peak GB of a process |",
        "|---|---:|---:|---:|",
    ]
    for num_images in sizes:
        with tempfile.TemporaryDirectory() as name:
            make_shards(Path(name), num_images, [f"run-0/iter-{e:07d}" for e in range(num_members)])
            seconds, peak = _measure(["--store", name])
        print(f"{num_images:,} images: {seconds:.1f} s, {peak:.2f} GB", file=sys.stderr)
        lines.append(f"| {num_images:,} | {seconds:.1f} | {num_images / seconds:,.0f} | {peak:.2f} |")
    return [*lines, ""]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--pools", type=int, nargs="*", default=[100_000, 500_000], help="(default: %(default)s)")
    parser.add_argument("--members", type=int, default=10, help="of the pools (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the tables there too")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        make, options, num_images = WORK[arguments.work]
        work = make(num_images=num_images, **options)
        start = time.perf_counter()
        work()
        print(time.perf_counter() - start, num_images)
    elif arguments.store:
        print(*score_store(arguments.store))
    elif arguments.first:
        start = time.perf_counter()
        score_with_labels(2, 3)
        print(time.perf_counter() - start, 0)
    else:
        load = os.getloadavg()[0]
        lines = [
            "# Scoring",
            "",
            "## One thread, ~28 detections a member, 10 classes",
            "",
            *side_by_side(arguments.repeats),
            f"First call, kernels compiled and cached: {first_call():.1f} s.",
            "",
            "## From Parquet shards to objects.parquet and images.parquet, two processes, labels included",
            "",
            *whole_pools(arguments.pools, arguments.members),
            *footer(f"python benchmarks/scoring.py --repeats {arguments.repeats}", load=load),
        ]
        text = "\n".join(lines) + "\n"
        print(text)
        if arguments.output:
            arguments.output.write_text(text)


if __name__ == "__main__":
    main()
