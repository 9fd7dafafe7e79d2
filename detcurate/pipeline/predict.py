"""The stages that ask detectors: the ensemble about the pool, and the retrained arms about the evaluation images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detcurate.d2.environment import require_detectron2
from detcurate.ensemble import LEDGER, read_ledger
from detcurate.evaluate.coco_eval import coco_figures
from detcurate.files import sha256_json, write_json
from detcurate.parallel import run_jobs
from detcurate.passes import MEMBERS, Pass, prepare_passes, read_predictions
from detcurate.pipeline.context import Run
from detcurate.pipeline.imported import imported_predict_stage
from detcurate.pipeline.train import require_device, training_config, training_settings
from detcurate.predictions import shard_path
from detcurate.stages import Stage, StageResult, output_digest
from detcurate.structures import Detections

FIGURES, EMBEDDINGS = "figures.json", "embeddings"


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
        "CURATE.PREDICT": run.settings.predict.model_dump(mode="json", exclude={"memory_gb", "results"}),
    }


def predict_stage(run: Run) -> Stage:
    """Build the stage ``predict``: every member on every image of the pool, or the answers that were imported."""
    if run.settings.predict.results:
        return imported_predict_stage(run)
    require_detectron2("the stage 'predict'")
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "train")}
    return _stage(run, "predict", inputs, lambda: _predict_pool(run))


def evaluate_stage(run: Run) -> Stage:
    """Build the stage ``evaluate``: every retrained detector on the evaluation images."""
    require_detectron2("the stage 'evaluate'")
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "retrain")}
    return _stage(run, "evaluate", inputs, lambda: _evaluate(run))


def _stage(run: Run, name: str, inputs: dict[str, str], work: Callable[[], StageResult]) -> Stage:
    # A member that is new, or gone, leaves the others' answers good.
    return Stage(name, run.directory(name), inference_settings(run), inputs, work, keeps_good_files=True)


def _predict_pool(run: Run) -> StageResult:
    ensemble, directory = run.directory("train"), run.directory("predict")
    members = read_ledger(ensemble / LEDGER)
    weights = {f"{member.file}@{member.sha256}": (ensemble / member.file, member.sha256) for member in members}
    written = _predict(run, "pool", directory, weights, run.usable_image_ids, desc="predict pool")
    num_shards = -(-len(run.usable_image_ids) // run.settings.predict.shard_size)
    summary = f"{len(run.usable_image_ids):,} images by {len(members)} members in {num_shards} shards"
    return StageResult(written, summary, {"num_members": len(members)})


def _evaluate(run: Run) -> StageResult:
    models = run.marker("retrain")["facts"]["models"]
    directory = run.directory("evaluate")
    weights = {
        f"{model['file']}@{model['sha256']}": (run.directory("retrain") / model["file"], model["sha256"])
        for model in models
    }
    written = _predict(run, "evaluation", directory, weights, run.evaluation.image_ids, desc="predict arms")
    detections = Detections.concatenate([shard for shard, _ in read_predictions(directory, list(weights))])
    rows = []
    for number, model in enumerate(models):
        figures = coco_figures(run.evaluation, detections.take(detections.member == number))
        rows.append({"arm": model["arm"], "seed": model["seed"], "figures": figures.to_dict()})
    path = directory / FIGURES
    write_json(path, rows)
    summary = f"{len(models)} detectors on {len(run.evaluation):,} images"
    return StageResult([path, *written], summary)


def _predict(
    run: Run,
    part: str,
    directory: Path,
    weights: Mapping[str, tuple[Path, str]],
    image_ids: np.ndarray,
    *,
    desc: str,
) -> list[Path]:
    """Ask the members named about the images, those that have not answered yet; return the files with the answers."""
    settings = run.settings.predict
    # Not the whole config: another number of runs, or of processes, leaves the answers that are there good.
    model = {key: value for key, value in training_settings(run).items() if key.startswith(("MODEL.", "INPUT."))}
    digest = sha256_json(
        {
            "settings": inference_settings(run),
            "model": model,
            "class_names": list(run.class_names),
            "pool": output_digest(run.marker("pool")),
            "images": sha256_json(image_ids.tolist()),
        }
    )
    num_shards = -(-len(image_ids) // settings.shard_size)
    passes = prepare_passes(directory, digest, list(weights), num_shards=num_shards)
    embeddings = directory / EMBEDDINGS if settings.embeddings and part == "pool" else None
    for found in passes:
        asked = [weights[name] for name in found.members if name in weights]
        _run_pass(run, part, found, asked, image_ids, desc, embeddings if found is passes[0] else None)
    folders = [found.directory for found in passes] + ([embeddings] if embeddings else [])
    shards = [shard_path(folder, number) for folder in folders for number in range(num_shards)]
    return [directory / MEMBERS, *(found.description for found in passes), *shards]


def _run_pass(
    run: Run,
    part: str,
    found: Pass,
    weights: Sequence[tuple[Path, str]],
    image_ids: np.ndarray,
    desc: str,
    embeddings: Path | None,
) -> None:
    from detcurate.d2.runner import PredictionPass, run_pass

    settings, dataset, root = run.settings.predict, getattr(run, part), run.image_root(part)
    rows = dataset.subset_rows(image_ids)
    job = PredictionPass(
        config=training_config(run),
        members=tuple(weights),
        image_ids=image_ids,
        file_names=tuple(str(root / dataset.file_names[row]) for row in rows.tolist()),
        sizes=np.column_stack((dataset.widths[rows], dataset.heights[rows])),
        num_classes=len(run.class_names),
        shard_size=settings.shard_size,
        batch_size=settings.batch_size,
        device=str(run.cfg.MODEL.DEVICE),
        directory=found.directory,
        memory_gb=settings.memory_gb,
        precision=settings.precision,
        num_decoders=run.cfg.DATALOADER.NUM_WORKERS,
        embeddings=embeddings,
    )
    missing = [number for number, path in enumerate(job.shards) if not path.exists()]
    if not missing:
        return
    require_device(run)
    total = sum(len(job.records(number)) for number in missing)
    devices = prediction_devices(run)[: len(missing)]
    jobs = [replace(job, device=device) for device in devices]
    run_jobs(run_pass, jobs, num_processes=len(jobs), total=total, desc=desc, unit="image")


def prediction_devices(run: Run) -> list[str]:
    """Return the device of each process that predicts: one process a GPU, or one a core."""
    device = str(run.cfg.MODEL.DEVICE)
    if device == "cpu":
        return ["cpu"] * run.settings.worker_processes
    num_gpus = run.distributed.get("num_gpus", 0)
    return [f"cuda:{number}" for number in range(num_gpus)] if device == "cuda" and num_gpus > 1 else [device]
