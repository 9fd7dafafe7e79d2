"""A run to report on without Detectron2: real stages where possible, made-up predictions elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from detcurate.cli import main
from detcurate.coco.dataset import read_coco
from detcurate.ensemble.index import MEMBER_INDEX, Member, write_index
from detcurate.evaluate.bootstrap import image_weights
from detcurate.evaluate.coco_eval import evaluate_coco
from detcurate.io.files import sha256_file, write_json
from detcurate.pipeline.stage import output_digest, read_stage_metadata
from detcurate.pipeline.stages.predict import resampled_figures
from detcurate.pipeline.tables import ReplicatesTable
from detcurate.predictions.shards import shard_path, write_shard
from detcurate.predictions.store import MEMBERS, prepare_prediction_sets
from detcurate.structures import Detections

CLASSES = ("car", "truck", "cyclist", "sign")
IMAGES, EVALUATION, MEMBER_COUNT, SHARD, SIZE = 23, 7, 3, 5, (96, 64)


def write_pool(root: Path, name: str, *, classes=CLASSES, num_images=IMAGES, seed=0, file_name="{:03d}.png"):
    """Write ``<name>.json`` and its images: pairs look alike except for a bright box a label; every sixth is empty."""
    rng, annotations, images = np.random.default_rng(seed), [], []
    for number in range(num_images):
        coarse = np.random.default_rng((number + 1) // 2).integers(40, 120, (8, 12), np.uint8)
        pixels = np.repeat(np.kron(coarse, np.ones((8, 8), np.uint8))[..., None], 3, axis=2)
        for _ in range(number % 6):
            x, y = rng.integers(0, SIZE[0] - 30), rng.integers(0, SIZE[1] - 24)
            box = [int(x), int(y), int(rng.integers(8, 28)), int(rng.integers(8, 22))]
            pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 200
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": int(rng.integers(0, len(classes))) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        file = file_name.format(number)
        images.append(
            {
                "id": number + 1,
                "file_name": file,
                "width": SIZE[0],
                "height": SIZE[1],
                "sequence": f"drive-{number // 8}",
                "frame_index": number % 8,
                "weather": ("clear", "rain", "fog")[number % 3],
            }
        )
        path = root / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    categories = [{"id": index + 1, "name": text} for index, text in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(content))


def predicted(dataset, *, member: int, quality: float, num_classes: int, doubted: int = -1) -> Detections:
    """Return one detector's predictions: labels with noise that grows as its quality falls, some of them missed.

    The label in the row ``doubted`` is predicted at its place as another class.
    """
    rng, is_doubted = np.random.default_rng(100 + member), np.arange(dataset.num_boxes) == doubted
    rows = np.flatnonzero((rng.uniform(size=dataset.num_boxes) < 0.55 + 0.4 * quality) | is_doubted)
    count = len(rows)
    boxes = dataset.boxes[rows] + rng.normal(0, 5 * (1.05 - quality), (count, 4))
    low = np.minimum(boxes[:, :2], boxes[:, 2:] - 2)
    boxes = np.concatenate((low, np.maximum(boxes[:, 2:], low + 2)), axis=1).astype(np.float32)
    wrong = rng.uniform(size=count) < 0.4 * (1 - quality)
    classes = np.where(wrong, rng.integers(0, num_classes, count), dataset.class_index[rows]).astype(np.int32)
    classes[rows == doubted] = (dataset.class_index[doubted] + 1) % num_classes
    boxes[rows == doubted] = dataset.boxes[doubted]
    scores = rng.uniform(0.4, 0.95, count).astype(np.float32)
    scores[rows == doubted] = 0.95
    probs = np.zeros((count, num_classes + 1), np.float32)
    probs[np.arange(count), classes] = scores
    probs[:, -1] = 1 - scores
    return Detections(
        image_ids=dataset.image_ids[dataset.image_index[rows]],
        member=np.full(count, member, np.int32),
        boxes=boxes,
        scores=scores,
        class_index=classes,
        class_probs=probs,
    )


def finish(directory: Path, *names: str, inputs=None, settings=None, facts=None, summary="made up"):
    """Write the metadata of a finished stage with these outputs."""
    outputs = {
        name: {"sha256": sha256_file(directory / name), "bytes": (directory / name).stat().st_size} for name in names
    }
    stage_metadata = {"stage": directory.name, "status": "complete", "digest": "made up", "settings": settings or {}}
    stage_metadata |= {"inputs": inputs or {}, "outputs": outputs, "summary": summary, "facts": facts or {}}
    write_json(directory / "stage.json", stage_metadata)


def digest(directory: Path) -> str:
    return output_digest(read_stage_metadata(directory))


def write_run(
    folder: Path,
    *,
    classes=CLASSES,
    seeds=2,
    qualities=(("curated", 0.8), ("random", 0.5), ("full", 0.7)),
    select=(),
    evaluated=True,
    file_name="{:03d}.png",
) -> tuple[Path, Path]:
    """Write the OUTPUT_DIR of a run and return its config and that folder; ``qualities`` are those of the arms."""
    folder.mkdir(parents=True, exist_ok=True)
    data, output, config = folder / "data", folder / "output", folder / "small.yaml"
    write_pool(data, "train", classes=classes, file_name=file_name)
    write_pool(data, "val", classes=classes, num_images=EVALUATION, seed=1, file_name="val/{:03d}.png")
    config.write_text(
        f'OUTPUT_DIR: "{output}"\nDATASETS: {{ROOT: "{data}"}}\n'
        f"CURATE: {{NUM_PROCESSES: 1, PREDICT: {{SHARD_SIZE: {SHARD}}}, RETRAIN: {{NUM_SEEDS: {seeds}}}}}\n"
    )
    words = ["--config-file", str(config), *map(str, select)]
    assert main([*words, "--until", "pool"]) == 0
    pool = read_coco(data / "train.json")
    write_predictions(output, pool, len(classes))
    for stage in ("score", "select"):
        assert main([*words, "--only", stage]) == 0
    if evaluated:
        assert main([*words, "--only", "manifest"]) == 0
        write_evaluation(output, read_coco(data / "val.json"), pool, dict(qualities), seeds, len(classes))
    return config, output


def write_predictions(output: Path, pool, num_classes: int) -> None:
    """Write the stages ``train`` and ``predict``."""
    names = [f"run-0/iter-{member:07d}.safetensors" for member in range(MEMBER_COUNT)]
    members = [Member(0, number, 0, 0.1, name, "0" * 64) for number, name in enumerate(names)]
    ensemble, predictions = output / "train", output / "predict"
    ensemble.mkdir()
    write_index(ensemble / MEMBER_INDEX, members)
    finish(ensemble, MEMBER_INDEX, inputs={"pool": digest(output / "pool")})
    num_shards = -(-len(pool) // SHARD)
    [found] = prepare_prediction_sets(predictions, "0" * 64, names, num_shards=num_shards)
    detections = Detections.concatenate(
        [predicted(pool, member=e, quality=0.75, num_classes=num_classes, doubted=7) for e in range(MEMBER_COUNT)]
    )
    for shard in range(num_shards):
        ids = pool.image_ids[shard * SHARD : (shard + 1) * SHARD]
        write_shard(shard_path(found.directory, shard), detections.take(np.isin(detections.image_ids, ids)), ids)
    shards = [f"set-00/shard-{number:05d}.parquet" for number in range(num_shards)]
    inputs = {"pool": digest(output / "pool"), "train": digest(ensemble)}
    finish(predictions, MEMBERS, *shards, inputs=inputs)


def write_evaluation(output: Path, evaluation, pool, qualities, seeds: int, num_classes: int) -> None:
    """Write the stages ``retrain`` and ``evaluate``, with real figures of made-up predictions."""
    kept = json.loads((output / "manifest" / "provenance.json").read_text())["subset"]
    retrain, directory = output / "retrain", output / "evaluate"
    models, rows, replicates = [], [], {}
    weights = image_weights(len(evaluation), 40)
    for number, (arm, quality) in enumerate(qualities.items()):
        images, boxes = kept["num_images"], kept["num_boxes"]
        if arm == "full":
            images, boxes = len(pool), pool.num_boxes
        for seed in range(seeds):
            model = {"arm": arm, "seed": seed, "num_images": images, "num_boxes": boxes, "iterations": 40}
            models.append({**model, "images_seen": 80, "file": f"{arm}/seed-{seed}", "sha256": "0" * 64})
            found = predicted(evaluation, member=10 * number + seed, quality=quality, num_classes=num_classes)
            figures, matches = evaluate_coco(evaluation, found)
            rows.append({"arm": arm, "seed": seed, "figures": figures.to_dict()})
            found = resampled_figures(matches, weights, evaluation.class_names)
            replicates |= {f"{arm}/seed-{seed}/{name}": values for name, values in found.items()}
    inputs = {"pool": digest(output / "pool"), "ensemble": digest(output / "train")}
    inputs["manifest"] = read_stage_metadata(output / "manifest")["outputs"]["subset.json"]["sha256"]
    finish(retrain, inputs=inputs, settings={"CURATE.RETRAIN": {"equal": "iterations"}}, facts={"models": models})
    write_json(directory / "figures.json", rows)
    ReplicatesTable.within(directory).write(replicates)
    inputs = {"pool": digest(output / "pool"), "retrain": digest(retrain)}
    finish(directory, "figures.json", "replicates.parquet", inputs=inputs)


def results_of(output: Path) -> dict:
    return json.loads((output / "report" / "results.json").read_text())
