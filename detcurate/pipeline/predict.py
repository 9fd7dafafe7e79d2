"""The stages that ask detectors: the ensemble about the pool, and the retrained arms about the evaluation images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detcurate.d2.environment import require_detectron2
from detcurate.ensemble import LEDGER, read_ledger
from detcurate.evaluate.coco_eval import coco_figures
from detcurate.files import write_json
from detcurate.parallel import run_jobs
from detcurate.pipeline.context import Run
from detcurate.pipeline.train import require_device, training_config
from detcurate.predictions import read_shards, shard_path
from detcurate.stages import Stage, StageResult, output_digest
from detcurate.structures import Detections

FIGURES = "figures.json"


def inference_settings(run: Run) -> dict[str, Any]:
    """Return the settings that touch what a trained detector answers."""
    cfg = run.cfg
    return {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        "MODEL.RETINANET.SCORE_THRESH_TEST": cfg.MODEL.RETINANET.SCORE_THRESH_TEST,
        "MODEL.RETINANET.NMS_THRESH_TEST": cfg.MODEL.RETINANET.NMS_THRESH_TEST,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": cfg.MODEL.RPN.PRE_NMS_TOPK_TEST,
        "MODEL.RPN.POST_NMS_TOPK_TEST": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        "INPUT.MIN_SIZE_TEST": cfg.INPUT.MIN_SIZE_TEST,
        "INPUT.MAX_SIZE_TEST": cfg.INPUT.MAX_SIZE_TEST,
        "TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE,
        "CURATE.PREDICT": run.settings.predict.model_dump(mode="json"),
    }


def predict_stage(run: Run) -> Stage:
    """Build the stage ``predict``: every member on every image of the pool."""
    require_detectron2("the stage 'predict'")
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "train")}
    return Stage("predict", run.directory("predict"), inference_settings(run), inputs, lambda: _predict_pool(run))


def _predict_pool(run: Run) -> StageResult:
    ensemble = run.directory("train")
    members = read_ledger(ensemble / LEDGER)
    weights = [(ensemble / member.file, member.sha256) for member in members]
    paths = _predict(run, "pool", run.directory("predict"), weights, run.usable_image_ids, desc="predict pool")
    summary = f"{len(run.usable_image_ids):,} images by {len(members)} members in {len(paths)} shards"
    return StageResult(paths, summary, {"num_members": len(members)})


def evaluate_stage(run: Run) -> Stage:
    """Build the stage ``evaluate``: every retrained detector on the evaluation images."""
    require_detectron2("the stage 'evaluate'")
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "retrain")}
    return Stage("evaluate", run.directory("evaluate"), inference_settings(run), inputs, lambda: _evaluate(run))


def _evaluate(run: Run) -> StageResult:
    models = run.marker("retrain")["facts"]["models"]
    directory = run.directory("evaluate")
    weights = [(run.directory("retrain") / model["file"], model["sha256"]) for model in models]
    paths = _predict(run, "evaluation", directory, weights, run.evaluation.image_ids, desc="predict arms")
    detections = Detections.concatenate([shard for shard, _ in read_shards(directory)])
    rows = []
    for number, model in enumerate(models):
        figures = coco_figures(run.evaluation, detections.take(detections.member == number))
        rows.append({"arm": model["arm"], "seed": model["seed"], "figures": figures.to_dict()})
    path = directory / FIGURES
    write_json(path, rows)
    summary = f"{len(models)} detectors on {len(run.evaluation):,} images"
    return StageResult([path, *paths], summary)


def _predict(
    run: Run,
    part: str,
    directory: Path,
    weights: Sequence[tuple[Path, str]],
    image_ids: np.ndarray,
    *,
    desc: str,
) -> list[Path]:
    """Predict images with all the given weights as members, in shards, and return the shards' files."""
    from detcurate.d2.catalog import detection_dicts
    from detcurate.d2.runner import PredictionJob, predict_shard

    require_device(run)
    records = detection_dicts(getattr(run, part), run.image_root(part), image_ids)
    size = run.settings.predict.shard_size
    jobs = [
        PredictionJob(
            config=training_config(run),
            members=tuple(weights),
            records=tuple(records[start : start + size]),
            num_classes=len(run.class_names),
            batch_size=run.settings.predict.batch_size,
            device=str(run.cfg.MODEL.DEVICE),
            path=shard_path(directory, number),
        )
        for number, start in enumerate(range(0, len(records), size))
    ]
    num_processes = run.settings.worker_processes if run.cfg.MODEL.DEVICE == "cpu" else 1
    run_jobs(predict_shard, jobs, num_processes=num_processes, total=len(records), desc=desc, unit="image")
    return [job.path for job in jobs]
