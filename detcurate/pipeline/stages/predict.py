"""The stages ``predict`` (the ensemble on the pool) and ``evaluate`` (the retrained arms on the evaluation images)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from detcurate.config.declaration import require_detectron2
from detcurate.ensemble.index import MEMBER_INDEX, read_index
from detcurate.evaluate.bootstrap import image_weights, weighted_figures
from detcurate.evaluate.coco_eval import MatchTable, evaluate_coco
from detcurate.io.files import write_json
from detcurate.pipeline.context import Run
from detcurate.pipeline.image_similarity import copy_settings, predict_copies
from detcurate.pipeline.imported_members import imported_predict_stage
from detcurate.pipeline.prediction_jobs import (
    Preparation,
    count_shards,
    inference_settings,
    predict_detections,
)
from detcurate.pipeline.prediction_modes import prediction_mode
from detcurate.pipeline.stage import Stage, StageResult, output_digest
from detcurate.pipeline.tables import ReplicatesTable
from detcurate.predictions.store import read_predictions
from detcurate.structures import Detections

FIGURES = "figures.json"
"""COCO's figures of every detector, below ``evaluate/``."""

NUM_REPLICATES = 1000
"""The number of resampled evaluation sets for the confidence interval over seeds and images."""


def predict_stage(run: Run) -> Stage:
    """Return the stage ``predict``: every member on every image of the pool, or the imported predictions."""
    if run.settings.predict.results:
        return imported_predict_stage(run)
    require_detectron2("the stage 'predict'")
    inputs = {name: output_digest(run.stage_metadata(name)) for name in ("pool", "train")}
    settings = {**inference_settings(run), **prediction_mode(run.settings).settings(run.settings), **copy_settings(run)}
    return _stage(run, "predict", settings, inputs, lambda: predict_pool(run))


def evaluate_stage(run: Run) -> Stage:
    """Return the stage ``evaluate``: every retrained detector on the evaluation images."""
    require_detectron2("the stage 'evaluate'")
    inputs = {name: output_digest(run.stage_metadata(name)) for name in ("pool", "retrain")}
    settings = {**inference_settings(run), "replicates": [NUM_REPLICATES, "figures", "per_class"]}
    return _stage(run, "evaluate", settings, inputs, lambda: _evaluate(run))


def _stage(
    run: Run, name: str, settings: dict[str, Any], inputs: dict[str, str], work: Callable[[], StageResult]
) -> Stage:
    # Predictions of the other members stay valid when a member is added or removed.
    return Stage(name, run.directory(name), settings, inputs, work, keeps_good_files=True)


def predict_pool(run: Run, preparation: Preparation = Preparation()) -> StageResult:  # noqa: B008  it is frozen
    """Predict the pool with every member.

    Args:
        run: The run.
        preparation: Creates the folders of the predictions.
    """
    ensemble, mode = run.directory("train"), prediction_mode(run.settings)
    members = read_index(ensemble / MEMBER_INDEX)
    weights = {f"{member.file}@{member.sha256}": (ensemble / member.file, member.sha256) for member in members}
    written = mode.predict(run, weights, preparation)
    summary = (
        f"predicted {len(run.usable_image_ids):,} images with {len(members)} members "
        f"({count_shards(run, run.usable_image_ids)} shards)"
    )
    written += predict_copies(run, weights, preparation)
    if mode.settings(run.settings):
        summary += f", mode {mode.name}"
    return StageResult(written, summary, {"num_members": len(members)})


def _evaluate(run: Run) -> StageResult:
    models = run.stage_metadata("retrain")["facts"]["models"]
    directory = run.directory("evaluate")
    weights = {
        f"{model['file']}@{model['sha256']}": (run.directory("retrain") / model["file"], model["sha256"])
        for model in models
    }
    written = predict_detections(
        run, "evaluation", directory, weights, run.evaluation.image_ids, Preparation(), desc="predict arms"
    )
    detections = Detections.concatenate([shard for shard, _ in read_predictions(directory, list(weights))])
    resampled = image_weights(len(run.evaluation), NUM_REPLICATES)
    rows: list[dict[str, Any]] = []
    replicates: dict[str, np.ndarray] = {}
    for number, model in enumerate(models):
        figures, matches = evaluate_coco(run.evaluation, detections.take(detections.member == number))
        rows.append({"arm": model["arm"], "seed": model["seed"], "figures": figures.to_dict()})
        found = resampled_figures(matches, resampled, run.evaluation.class_names)
        replicates |= {f"{model['arm']}/seed-{model['seed']}/{name}": values for name, values in found.items()}
    write_json(directory / FIGURES, rows)
    written.append(ReplicatesTable.within(directory).write(replicates))
    summary = f"evaluated {len(models)} detectors on {len(run.evaluation):,} images"
    return StageResult([directory / FIGURES, *written], summary)


def resampled_figures(matches: MatchTable, weights: np.ndarray, class_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return a detector's figures on B resampled evaluation sets: ``figures/AP``, ``per_class/car``, … -> (B,)."""
    found = weighted_figures(matches, weights)
    classes = zip(class_names, found.pop("per_class").T, strict=True)
    return {f"figures/{name}": values for name, values in found.items()} | {
        f"per_class/{name}": values for name, values in classes
    }
