"""Measure time, memory and size of the report, on synthetic runs in the real formats.

    python benchmarks/report.py --output benchmarks/results/report.md

A run has annotations, scores with every measure, objects with votes, a selection with near-duplicates, label-noise
filter and minimum quotas, the manifest's provenance, and three arms of five seeds. The small run has predictions and
images too. Each report runs in a process of its own with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from footer import footer
from PIL import Image

_CLASSES, _MEMBERS, _BOXES, _CLUSTERS, _BLOCK, _SHARD = 10, 10, 15, 25, 512, 64
_WIDTH, _HEIGHT = 1280, 720
_FRAMES = 40
MEASURES = (
    *("mutual_information", "entropy", "expected_entropy", "variation_ratio", "vote_entropy", "margin"),
    *("iou_dispersion", "box_std", "existence_entropy", "missing_label", "error_count", "el2n", "forgetting"),
    *("low_confidence", "variability", "prediction_variance", "wrong_class", "inaccurate_box"),
)
_OF_LABELS = MEASURES[10:]


def make_run(output: Path, data: Path, num_images: int, *, has_images: bool) -> None:
    """Write the OUTPUT_DIR of a run, and its pool."""
    rng = np.random.default_rng(0)
    for folder in ("pool", "train", "predict", "score", "select", "manifest", "retrain", "evaluate"):
        (output / folder).mkdir(parents=True)
    (output / "config.yaml").write_text(
        f'OUTPUT_DIR: "{output}"\nDATASETS: {{ROOT: "{data}"}}\nCURATE: {{PREDICT: {{SHARD_SIZE: {_SHARD}}}}}\n'
    )
    boxes, classes = _labels(rng)
    _write_annotations(data / "train.json", boxes, classes, num_images)
    write_pool(output, data, num_images)
    ids = np.arange(1, num_images + 1)
    components = {name: np.round(rng.beta(2, 4, num_images), 6) for name in MEASURES}
    score = np.argsort(np.argsort(components["mutual_information"])) / num_images
    counts = {"num_objects": np.full(num_images, _CLUSTERS), "num_labels": np.full(num_images, _BOXES)}
    _write(output / "score" / "images.parquet", {"image_id": ids, "image_score": score, **components, **counts})
    _write_objects(output / "score" / "objects.parquet", boxes, classes, num_images)
    finish(output, "train", "ensemble.jsonl", inputs=["pool"], text="")
    _write_predictions(output, boxes, classes, num_images if has_images else 0)
    settings = {"measures": ["mutual_information", "iou_dispersion", "existence_entropy"], "aggregation": "top_k_mean"}
    finish(output, "score", "images.parquet", "objects.parquet", inputs=["pool"], settings=settings)
    _write_selection(output, ids, score, rng)
    _write_manifest(output, num_images)
    _write_arms(output, rng, num_images)
    if has_images:
        _write_images(data / "images", rng)


def _labels(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of one block of images, which every block repeats."""
    size = rng.uniform(20, 200, (_BLOCK, _BOXES, 2))
    corner = rng.uniform(0, 1, (_BLOCK, _BOXES, 2)) * (np.array([_WIDTH, _HEIGHT]) - size)
    return np.concatenate((corner, corner + size), axis=2).round(1), rng.integers(0, _CLASSES, (_BLOCK, _BOXES))


def _write_annotations(path: Path, boxes: np.ndarray, classes: np.ndarray, num_images: int) -> None:
    path.parent.mkdir(parents=True)
    xywh = np.concatenate((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), axis=2).round(1).tolist()
    with path.open("w") as stream:
        categories = ", ".join(f'{{"id": {c + 1}, "name": "class {c}"}}' for c in range(_CLASSES))
        stream.write(f'{{"categories": [{categories}], "images": [')
        for number in range(num_images):
            stream.write(
                f'{{"id": {number + 1}, "file_name": "{number % _FRAMES:03d}.jpg", "width": {_WIDTH}, '
                f'"height": {_HEIGHT}, "sequence": "drive-{number // 200}", "frame_index": {number % 200}}}'
                + (",\n" if number + 1 < num_images else "")
            )
        stream.write('], "annotations": [')
        for number in range(num_images):
            rows = (
                f'{{"id": {number * _BOXES + k + 1}, "image_id": {number + 1}, "category_id": {c + 1}, "bbox": {box}, '
                f'"area": {box[2] * box[3]:.1f}, "iscrowd": 0}}'
                for k, (box, c) in enumerate(zip(xywh[number % _BLOCK], classes[number % _BLOCK].tolist(), strict=True))
            )
            stream.write(",\n".join(rows) + (",\n" if number + 1 < num_images else ""))
        stream.write("]}")


def write_pool(output: Path, data: Path, num_images: int, *, num_boxes: int | None = None) -> None:
    """Write the outputs of the stage ``pool`` for an existing annotation file."""
    from detcurate.io.files import sha256_file

    counts = {"num_images": num_images, "num_boxes": num_boxes or num_images * _BOXES}
    facts = {
        "pool": {"annotations_sha256": sha256_file(data / "train.json"), **counts},
        "evaluation": {"annotations_sha256": "", "num_images": 1000, "num_boxes": 15000},
        "class_names": [f"class {c}" for c in range(_CLASSES)],
        "quarantined": [],
    }
    finish(output, "pool", "pool.json", text=json.dumps(facts))


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    pq.write_table(pa.table(columns), path, compression="zstd")


def _write_objects(path: Path, boxes: np.ndarray, classes: np.ndarray, num_images: int) -> None:
    """Write the table of objects as the stage does, one row group a block of images."""
    from detcurate.pipeline.object_table import object_table
    from detcurate.structures import ObjectScores

    rng = np.random.default_rng(1)

    def objects(per_image: int, names: tuple[str, ...], annotation_ids: np.ndarray) -> ObjectScores:
        n = _BLOCK * per_image
        of_class = np.resize(classes.reshape(-1), n).astype(np.int32)
        votes = np.where(rng.uniform(size=(n, _MEMBERS)) < 0.8, of_class[:, None], -1).astype(np.int16)
        return ObjectScores(
            image_ids=np.repeat(np.arange(1, _BLOCK + 1), per_image),
            boxes=np.resize(boxes.reshape(-1, 4), (n, 4)).astype(np.float32),
            num_fired=(votes >= 0).sum(axis=1),
            class_index=of_class,
            confidence=rng.uniform(0, 1, n),
            votes=votes,
            annotation_ids=annotation_ids,
            measures={name: rng.uniform(0, 1, n) for name in names},
        )

    clusters = objects(_CLUSTERS, MEASURES[:10], np.full(_BLOCK * _CLUSTERS, -1))
    labels = objects(_BOXES, _OF_LABELS, np.arange(1, _BLOCK * _BOXES + 1))
    table = object_table(clusters, labels, [f"class {c}" for c in range(_CLASSES)])
    ids = table["image_id"].to_numpy()
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for first in range(0, num_images, _BLOCK):
            block = table.set_column(0, "image_id", pa.array(ids + first))
            writer.write_table(block.filter(pa.array(ids + first <= num_images)))


def _write_predictions(output: Path, boxes: np.ndarray, classes: np.ndarray, num_images: int) -> None:
    """Write the members' detections; for 0 images, none, as if they were removed after scoring."""
    from detcurate.predictions.shards import shard_path, write_shard
    from detcurate.predictions.store import MEMBERS, prepare_prediction_sets
    from detcurate.structures import Detections

    if not num_images:
        (output / "predict").rmdir()
        return
    names, num_shards = [f"run-0/iter-{e:07d}" for e in range(_MEMBERS)], -(-num_images // _SHARD)
    [found] = prepare_prediction_sets(output / "predict", "0" * 64, names, num_shards=num_shards)
    rng, n = np.random.default_rng(2), _SHARD * _MEMBERS * _BOXES
    flat = np.tile(boxes[:_SHARD, None], (1, _MEMBERS, 1, 1)).reshape(-1, 4) + rng.normal(0, 3, (n, 4))
    flat[:, 2:] = np.maximum(flat[:, 2:], flat[:, :2] + 2)
    of_class = np.tile(classes[:_SHARD, None], (1, _MEMBERS, 1)).reshape(-1).astype(np.int32)
    scores = rng.uniform(0.05, 0.95, n).astype(np.float32)
    probs = np.zeros((n, _CLASSES + 1), np.float32)
    probs[np.arange(n), of_class], probs[:, -1] = scores, 1 - scores
    member = np.tile(np.repeat(np.arange(_MEMBERS, dtype=np.int32), _BOXES), _SHARD)
    for shard in range(num_shards):
        ids = np.arange(1, _SHARD + 1) + shard * _SHARD
        detections = Detections(
            np.repeat(ids, _MEMBERS * _BOXES), member, flat.astype(np.float32), scores, of_class, probs
        )
        write_shard(
            shard_path(found.directory, shard),
            detections.take(detections.image_ids <= num_images),
            ids[ids <= num_images],
        )
    finish(output, "predict", MEMBERS, inputs=["pool"])


def _write_selection(output: Path, ids: np.ndarray, score: np.ndarray, rng: np.random.Generator) -> None:
    order = np.argsort(-score)
    kept, gone = order[: len(ids) // 2], order[len(ids) // 2 :]
    reason = np.where(np.arange(len(kept)) < len(kept) // 20, "minimum class class 3=9000", "top_n")
    table = {"rank": np.arange(1, len(kept) + 1), "image_id": ids[kept], "image_score": score[kept], "reason": reason}
    _write(output / "select" / "selection.parquet", table)
    replaced_by = pa.array(ids[rng.choice(kept, len(gone))], mask=np.arange(len(gone)) % 3 > 0)
    reason = np.where(np.arange(len(gone)) % 3 > 0, "budget", "near_duplicate")
    table = {"image_id": ids[gone], "image_score": score[gone], "reason": reason, "replaced_by": replaced_by}
    _write(output / "select" / "removed.parquet", table)
    finish(output, "select", "selection.parquet", "removed.parquet", inputs=["pool", "score"])


def _write_manifest(output: Path, num_images: int) -> None:
    def half(count: int) -> dict[str, int]:
        return {"before": count, "after": count // 2}

    each = num_images * _BOXES // _CLASSES
    histograms = {
        "classes": {f"class {c}": half(each) for c in range(_CLASSES)},
        "box_size": {size: half(num_images * 5) for size in ("small", "medium", "large")},
        "sequence": {f"drive-{k}": half(200) for k in range(-(-num_images // 200))},
        **{f"field {k}": {f"value {v}": half(num_images // 6) for v in range(6)} for k in range(6)},
    }
    text = orjson.dumps({"histograms": histograms, "versions": {}}).decode()
    finish(output, "manifest", "provenance.json", inputs=["pool", "select"], text=text)


def _write_arms(output: Path, rng: np.random.Generator, num_images: int) -> None:
    models, rows, replicates = [], [], {}
    for arm, mean in (("curated", 41.0), ("random", 39.5), ("full", 40.0)):
        for seed in range(5):
            ap = float(mean + rng.normal(0, 0.4))
            size = num_images if arm == "full" else num_images // 2
            model = {"arm": arm, "seed": seed, "num_images": size, "num_boxes": size * _BOXES, "iterations": 90_000}
            models.append({**model, "images_seen": 1_440_000, "file": f"{arm}/seed-{seed}", "sha256": ""})
            figures = dict.fromkeys(("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"), ap)
            figures |= {"per_class": {f"class {c}": ap + c for c in range(_CLASSES)}, "num_images": 1000}
            rows.append({"arm": arm, "seed": seed, "figures": {**figures, "num_boxes": 15000}})
            names = [f"figures/{name}" for name in figures if name.startswith("AP")]
            names += [f"per_class/{name}" for name in figures["per_class"]]
            replicates |= {f"{arm}/seed-{seed}/{name}": ap + rng.normal(0, 0.5, 1000) for name in names}
    settings = {"CURATE.RETRAIN": {"equal": "iterations"}}
    finish(output, "retrain", inputs=["pool"], settings=settings, facts={"models": models})
    (output / "evaluate" / "figures.json").write_bytes(orjson.dumps(rows))
    _write(output / "evaluate" / "replicates.parquet", replicates)
    finish(output, "evaluate", "figures.json", "replicates.parquet", inputs=["pool", "retrain"])


def _write_images(folder: Path, rng: np.random.Generator) -> None:
    """Write frames as detailed as photographs, about 300 kB each."""
    folder.mkdir()
    for number in range(_FRAMES):
        coarse = rng.integers(0, 255, (45, 80, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:03d}.jpg", quality=90)


def finish(
    output: Path,
    folder: str,
    *names: str,
    inputs: list[str] | None = None,
    settings: dict[str, object] | None = None,
    facts: dict[str, object] | None = None,
    text: str | None = None,
) -> None:
    """Write the metadata of a finished stage, and its only file if ``text`` is given."""
    from detcurate.io.files import sha256_file, write_json
    from detcurate.pipeline.stage import output_digest, read_stage_metadata

    directory = output / folder
    if text is not None:
        (directory / names[0]).write_text(text)
    outputs = {
        name: {"sha256": sha256_file(directory / name), "bytes": (directory / name).stat().st_size} for name in names
    }
    digests = {name: output_digest(read_stage_metadata(output / name) or {}) for name in inputs or []}
    stage_metadata = {
        "stage": folder,
        "status": "complete",
        "digest": "",
        "settings": settings or {},
        "inputs": digests,
    }
    write_json(
        directory / "stage.json", {**stage_metadata, "outputs": outputs, "summary": "synthetic", "facts": facts or {}}
    )


def report(output: Path) -> None:
    """Write the report of a run; print seconds, peak memory in GB and the size of the page in MB."""
    from detcurate.cli import main

    start = time.perf_counter()
    status = main(["report", str(output), "--debug"])
    seconds = time.perf_counter() - start
    results = json.loads((output / "report" / "results.json").read_text())
    unfinished = {stage["name"] for stage in results["stages"] if stage["state"] != "complete"}
    if status or unfinished - {"predict"} or len(results["galleries"]) != 7:
        raise SystemExit(f"the report is incomplete: {unfinished} {results['missing']}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(seconds, peak, (output / "report" / "index.html").stat().st_size / 1e6)


def _measure(num_images: int, *, has_images: bool, repeats: int) -> list[tuple[float, float, float]]:
    """Write a run, and its report ``repeats`` times, each in a process of its own with one thread."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "output"
        make_run(output, Path(name) / "data", num_images, has_images=has_images)
        found = []
        for _ in range(repeats):
            command = [sys.executable, __file__, "--report", str(output)]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables).stdout
            seconds, peak, size = printed.split()[-3:]
            found.append((float(seconds), float(peak), float(size)))
            (output / "report" / "stage.json").unlink()
    return found


def main() -> None:
    """Measure a small and a large run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--large", type=int, default=500_000, help="images of the large pool (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.report)
        return
    load = os.getloadavg()[0]
    lines = [
        "# Reporting",
        "",
        f"{_BOXES} labels and {_CLUSTERS} clusters an image, {_MEMBERS} members, {_CLASSES} classes, 6 metadata "
        "fields, seven galleries. Each report in a process of its own with one thread; median and, in brackets, all.",
        "",
        "| pool | seconds | limit | peak GB | limit | index.html, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for num_images, has_images, limits in ((5_000, True, ("60", "1")), (arguments.large, False, ("180", "2"))):
        found = _measure(num_images, has_images=has_images, repeats=arguments.repeats)
        seconds = [row[0] for row in found]
        content = (
            "images of 1280×720 and predictions on disk" if has_images else "scores, without images and predictions"
        )
        shown = f"{np.median(seconds):.1f} ({', '.join(f'{one:.1f}' for one in seconds)})"
        peak, size = max(row[1] for row in found), max(row[2] for row in found)
        lines.append(
            f"| {num_images:,}, {content} | {shown} | ≤ {limits[0]} | {peak:.2f} | ≤ {limits[1]} | {size:.1f} |"
        )
        print(lines[-1], file=sys.stderr)
    lines += ["", *footer(f"python benchmarks/report.py --repeats {arguments.repeats}", load=load)]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
