"""The stages that need no detector: scores, selection, manifest."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from detcurate.coco.croissant import write_croissant
from detcurate.coco.manifest import SUBSET_FILE, build_provenance, write_manifest
from detcurate.ensemble import LEDGER, read_ledger
from detcurate.errors import PredictionError
from detcurate.files import atomic_path, sha256_json
from detcurate.passes import read_members, read_predictions
from detcurate.pipeline.context import Run
from detcurate.pipeline.modes import predicted_mode, score_settings
from detcurate.pipeline.score_modes import score_densely, score_reference_shards
from detcurate.score.pool import score_box_correlation, score_images, score_objects
from detcurate.select.budget import resolve_budget
from detcurate.select.rank import select
from detcurate.stages import Stage, StageResult, output_digest
from detcurate.structures import ImageScores, ObjectScores, Selection

IMAGES, OBJECTS, SELECTION = "images.parquet", "objects.parquet", "selection.parquet"
_PACKAGES = ("numpy", "torch", "torchvision", "pycocotools", "pyarrow", "numba")
_CROWD_BIAS = 0.7


def score_stage(run: Run) -> Stage:
    """Build the stage ``score``."""
    mode = predicted_mode(run)
    settings = score_settings(run.settings, mode).model_dump(mode="json")
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "predict")}
    work = _score_densely if mode == "dense" else _score
    return Stage("score", run.directory("score"), settings, inputs, lambda: work(run))


def _score_densely(run: Run) -> StageResult:
    scores, summary, facts = score_densely(run)
    path = run.directory("score") / IMAGES
    _write_table(path, _image_columns(scores))
    return StageResult([path], summary, facts)


def _score(run: Run) -> StageResult:
    settings, directory = run.settings.score, run.directory("score")
    objects = _score_shards(run)
    scores = score_images(
        objects,
        run.usable_image_ids,
        aggregation=settings.aggregation,
        weights=dict(zip(settings.measures, settings.weights, strict=True)),
        normalization=settings.normalization,
    )
    _write_table(directory / OBJECTS, _object_columns(objects))
    _write_table(directory / IMAGES, _image_columns(scores))
    correlation = score_box_correlation(scores)
    empty = int((scores.components["num_objects"] == 0).sum())
    summary = (
        f"{len(objects):,} objects on {len(scores):,} images ({empty} without any); "
        f"rank correlation of score and object count {correlation:+.2f}"
    )
    if correlation > _CROWD_BIAS:
        summary += ": the score buys crowded images, consider CURATE.SCORE.AGGREGATION mean"
    outputs = [directory / OBJECTS, directory / IMAGES]
    return StageResult(outputs, summary, {"score_box_correlation": correlation, "images_without_objects": empty})


def _score_shards(run: Run) -> ObjectScores:
    if predicted_mode(run) == "reference":
        return score_reference_shards(run)
    settings = run.settings.score
    members = read_members(run.directory("predict"))
    parts, covered = [], []
    with tqdm(total=len(run.usable_image_ids), desc="score", unit="image", dynamic_ncols=True) as bar:
        for detections, image_ids in read_predictions(run.directory("predict"), members):
            parts.append(
                score_objects(
                    detections,
                    num_members=len(members),
                    measures=settings.measures,
                    iou_threshold=settings.iou_threshold,
                )
            )
            covered.append(image_ids)
            bar.update(len(image_ids))
    predicted = np.sort(np.concatenate(covered)) if covered else np.zeros(0, np.int64)
    if not np.array_equal(predicted, run.usable_image_ids):
        raise PredictionError(
            f"the predictions must cover the pool's {len(run.usable_image_ids)} images once each, got {len(predicted)} "
            f"({run.directory('predict')}); delete that directory and run the same command again"
        )
    return ObjectScores.concatenate(parts)


def select_stage(run: Run) -> Stage:
    """Build the stage ``select``."""
    settings = {**run.settings.select.model_dump(mode="json"), "seed": run.cfg.SEED}
    inputs = {"score": output_digest(run.marker("score"))}
    return Stage("select", run.directory("select"), settings, inputs, lambda: _select(run))


def budget(run: Run, num_images: int) -> int:
    """Return how many of ``num_images`` to keep."""
    settings = run.settings.select
    if settings.num_images:
        return resolve_budget(num_images, fraction=None, count=settings.num_images)
    return resolve_budget(num_images, fraction=settings.fraction, count=None)


def _select(run: Run) -> StageResult:
    scores = read_scores(run)
    selection = select(
        scores, budget=budget(run, len(scores)), strategy=run.settings.select.strategy, seed=run.cfg.SEED
    )
    path = run.directory("select") / SELECTION
    columns = {
        "rank": np.arange(1, len(selection) + 1),
        "image_id": selection.image_ids,
        "image_score": scores.image_score[np.searchsorted(scores.image_ids, selection.image_ids)],
        "reason": list(selection.reasons),
    }
    _write_table(path, columns)
    return StageResult([path], f"{len(selection):,} of {len(scores):,} images by {run.settings.select.strategy}")


def manifest_stage(run: Run) -> Stage:
    """Build the stage ``manifest``."""
    settings = {"detcurate": version("detcurate"), **run.settings.manifest.model_dump(mode="json")}
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "select")}
    inputs["history"] = sha256_json(_history(run))
    return Stage("manifest", run.directory("manifest"), settings, inputs, lambda: _write_manifest(run))


def _history(run: Run) -> dict[str, Any]:
    """Return the settings of the stages that led to the selection, as they were when those stages ran."""
    return {name: run.marker(name)["settings"] for name in ("pool", "train", "predict", "score", "select")}


def _write_manifest(run: Run) -> StageResult:
    selection = read_selection(run)
    members = read_ledger(run.directory("train") / LEDGER)
    settings, history = run.settings.select, _history(run)
    chosen = history["select"]  # as it was done, whatever the config says by now
    asked = {"images": chosen["num_images"]} if chosen["num_images"] else {"fraction": chosen["fraction"]}
    provenance = build_provenance(
        dataset=run.pool,
        image_ids=selection.image_ids,
        config_sha256=sha256_json(history),
        seed=chosen["seed"],
        strategy=chosen["strategy"],
        budget_asked=asked,
        members=[asdict(member) for member in members],
        scores_sha256=run.marker("score")["outputs"][IMAGES]["sha256"],
        versions=_versions(),
        seconds_per_image=settings.seconds_per_image,
        seconds_per_box=settings.seconds_per_box,
    )
    provenance = {**provenance, "settings": history, "quarantined": run.pool_facts["quarantined"]}
    directory = run.directory("manifest")
    written = write_manifest(
        directory, run.pool, selection.image_ids, provenance, compress=run.settings.manifest.compress
    )
    if run.settings.manifest.croissant:
        written.append(write_croissant(directory, provenance, written[0].name))
    spent = provenance["budget"]["spent"]
    summary = f"{spent['images']:,} images with {spent['boxes']:,} boxes: {written[0]}"
    return StageResult(written, summary)


def subset_file(run: Run) -> Path:
    """Return the manifest's annotation file."""
    return run.directory("manifest") / (SUBSET_FILE + (".gz" if run.settings.manifest.compress else ""))


def read_scores(run: Run) -> ImageScores:
    """Read ``scores/images.parquet``."""
    table = _read_table(run.directory("score") / IMAGES)
    components = {name: column for name, column in table.items() if name not in ("image_id", "image_score")}
    return ImageScores(table["image_id"], table["image_score"], components)


def read_selection(run: Run) -> Selection:
    """Read ``selection/selection.parquet``."""
    table = _read_table(run.directory("select") / SELECTION)
    return Selection(table["image_id"], tuple(table["reason"].tolist()))


def _image_columns(scores: ImageScores) -> dict[str, Any]:
    return {"image_id": scores.image_ids, "image_score": scores.image_score, **scores.components}


def _object_columns(objects: ObjectScores) -> dict[str, Any]:
    corners = {name: objects.boxes[:, axis] for axis, name in enumerate(("x1", "y1", "x2", "y2"))}
    return {
        "image_id": objects.image_ids,
        **corners,
        "class_index": objects.class_index,
        "confidence": objects.confidence,
        "num_fired": objects.num_fired,
        **objects.measures,
    }


def _write_table(path: Any, columns: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(dict(columns)), temporary, compression="zstd")


def _read_table(path: Any) -> dict[str, np.ndarray]:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise PredictionError(
            f"a table must be a whole Parquet file ({path}): {error}; delete it and run again"
        ) from error
    return {name: table[name].to_numpy() for name in table.column_names}


def _versions() -> dict[str, str]:
    versions = {"detcurate": version("detcurate"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
