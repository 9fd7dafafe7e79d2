"""The stages that train: the ensemble, and later the arms that are compared."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from detcurate.config import CurateSettings
from detcurate.d2.environment import require_detectron2
from detcurate.ensemble import LEDGER, Member, member_iterations, read_ledger, write_ledger
from detcurate.errors import ConfigError
from detcurate.files import require_free_space, write_bytes
from detcurate.parallel import run_jobs
from detcurate.pipeline.choose import read_scores, read_selection, subset_file
from detcurate.pipeline.context import Run
from detcurate.select.rank import select
from detcurate.stages import Stage, StageResult, output_digest
from detcurate.structures import ImageScores

# Only inference reads these, so they do not touch what was trained.
_INFERENCE_KEYS = ("MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD")


def training_settings(run: Run) -> dict[str, Any]:
    """Return the settings that touch what a training gives, as flat JSON values."""
    kept = {}
    for tree in ("MODEL", "INPUT", "SOLVER", "DATALOADER"):
        for key, value in _flat(run.cfg[tree], tree).items():
            if key not in _INFERENCE_KEYS and "_TEST" not in key:
                kept[key] = value
    return {**kept, "SEED": run.cfg.SEED, "CURATE.TRAIN": run.settings.train.model_dump(mode="json")}


def ensemble_iterations(run: Run) -> tuple[int, ...]:
    """Return after which iterations of each run a member is saved."""
    ensemble = run.settings.ensemble
    return member_iterations(
        run.cfg.SOLVER.MAX_ITER,
        members_per_run=ensemble.members_per_run,
        last_fraction=ensemble.last_fraction,
        explicit=ensemble.iterations,
    )


def train_stage(run: Run) -> Stage:
    """Build the stage ``train``."""
    require_detectron2("the stage 'train'")
    settings = {**training_settings(run), "CURATE.ENSEMBLE": run.settings.ensemble.model_dump(mode="json")}
    inputs = {"pool": output_digest(run.marker("pool"))}
    return Stage("train", run.directory("train"), settings, inputs, lambda: _train_ensemble(run))


def _train_ensemble(run: Run) -> StageResult:
    directory = run.directory("train")
    jobs = [
        _job(run, directory, f"run-{number}", number, run.cfg.SEED + number, None, ensemble_iterations(run))
        for number in range(run.settings.ensemble.num_runs)
    ]
    _train(run, jobs, desc="train ensemble")
    members = [member for job in jobs for member in job.writer.members()]
    ledger = directory / LEDGER
    write_ledger(ledger, members)
    size = sum((directory / member.file).stat().st_size for member in members)
    summary = f"{len(members)} members from {len(jobs)} runs of {run.cfg.SOLVER.MAX_ITER:,} iterations, {_mega(size)}"
    return StageResult([ledger, *(directory / member.file for member in members)], summary)


def arm_images(run: Run, arm: str, seed: int, scores: ImageScores, curated: np.ndarray) -> np.ndarray:
    """Return the image ids that an arm trains on with a seed; the random arm draws anew for each seed.

    Args:
        run: The run.
        arm: ``"curated"``, ``"random"`` (as many images) or ``"full"``.
        seed: The training seed.
        scores: Of the pool.
        curated: (K,) int64, the selection.
    """
    if arm == "full":
        return run.usable_image_ids
    if arm == "random":
        return np.sort(select(scores, budget=len(curated), strategy="random", seed=seed).image_ids)
    return np.sort(curated)


def retrain_stage(run: Run) -> Stage:
    """Build the stage ``retrain``."""
    require_detectron2("the stage 'retrain'")
    settings = {
        **training_settings(run),
        "CURATE.RETRAIN": run.settings.retrain.model_dump(mode="json"),
        "reuse_runs": run.settings.ensemble.num_runs,
    }
    inputs = {
        "pool": output_digest(run.marker("pool")),
        "manifest": run.marker("manifest")["outputs"][subset_file(run).name]["sha256"],
        "ensemble": output_digest(run.marker("train")),
    }
    return Stage("retrain", run.directory("retrain"), settings, inputs, lambda: _retrain(run))


def _retrain(run: Run) -> StageResult:
    scores, curated = read_scores(run), read_selection(run).image_ids
    last = (run.cfg.SOLVER.MAX_ITER - 1,)
    jobs, reused = [], 0
    models: list[dict[str, Any]] = []
    for arm in run.settings.retrain.arms:
        for seed in retrain_seeds(run.settings, run.cfg.SEED):
            directory = run.directory("retrain") / arm
            images = arm_images(run, arm, seed, scores, curated)
            models.append({"arm": arm, "seed": seed, **_counts(run, images)})
            job = _job(run, directory, f"seed-{seed}", len(models) - 1, seed, (arm, images), last)
            if arm == "full" and seed - run.cfg.SEED < run.settings.ensemble.num_runs:
                _reuse(run, job, seed)
                reused += 1
            else:
                jobs.append(job)
    _train(run, jobs, desc="retrain arms")
    outputs = []
    for model in models:
        member = _last_member(run.directory("retrain") / model["arm"] / f"seed-{model['seed']}", last[0])
        path = run.directory("retrain") / model["arm"] / member.file
        model.update(file=path.relative_to(run.directory("retrain")).as_posix(), sha256=member.sha256)
        outputs.append(path)
    summary = f"{len(jobs)} detectors of {last[0] + 1:,} iterations trained"
    if reused:
        summary += f"; {reused} of the full arm are the ensemble's own runs (same data, settings and seeds)"
    return StageResult(outputs, summary, {"models": models})


def retrain_seeds(settings: CurateSettings, first: int) -> list[int]:
    """Return the training seeds of every arm: the same ones, so that arms are compared seed by seed."""
    return [first + offset for offset in range(settings.retrain.num_seeds)]


def _reuse(run: Run, job: Any, seed: int) -> None:
    """Take an ensemble run's last member for the full arm: the same data, settings and seed give the same weights."""
    ensemble = run.directory("train")
    last = max(
        (member for member in read_ledger(ensemble / LEDGER) if member.seed == seed),
        key=lambda member: member.iteration,
    )
    if last.iteration != job.iterations[-1]:
        raise ConfigError(
            f"CURATE.ENSEMBLE.ITERATIONS must hold the last one, {job.iterations[-1]}, got up to {last.iteration}; "
            "the full arm is the ensemble's own runs"
        )
    job.writer.save(last.iteration, last.lr, lambda path: shutil.copyfile(ensemble / last.file, path))
    write_bytes(job.run_directory / "reused.txt", f"the last member of {ensemble.name}/run-{last.run}\n".encode())


def _last_member(run_directory: Path, iteration: int) -> Member:
    return next(m for m in read_ledger(run_directory / "members.jsonl") if m.iteration == iteration)


def _job(
    run: Run,
    directory: Path,
    folder: str,
    number: int,
    seed: int,
    arm: tuple[str, np.ndarray] | None,
    iterations: tuple[int, ...],
) -> Any:
    from detcurate.d2.train import Distributed, ImageSet, TrainingJob

    annotations = run.annotations("pool")
    image_ids: tuple[int, ...] | None = tuple(run.usable_image_ids.tolist())
    if arm is not None and arm[0] == "curated":  # the manifest itself: what a user will train on
        annotations, image_ids = subset_file(run), None
    elif arm is not None:
        image_ids = tuple(arm[1].tolist())
    images = ImageSet(annotations, run.image_root("pool"), image_ids, tuple(run.policies.items()))
    return TrainingJob(
        config=training_config(run),
        images=images,
        directory=directory,
        folder=folder,
        run=number,
        seed=seed,
        iterations=iterations,
        distributed=Distributed(**run.distributed),
    )


def training_config(run: Run) -> str:
    """Return the config as YAML with the pool's number of classes in place of Detectron2's default."""
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(run.class_names)
    return str(cfg.dump())


def require_device(run: Run) -> None:
    """Raise ``ConfigError`` when ``MODEL.DEVICE`` or ``--num-gpus`` asks for what this machine does not have."""
    import torch

    device, num_gpus = str(run.cfg.MODEL.DEVICE), run.distributed.get("num_gpus", 0)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE must be one that this machine has, got {device}; add MODEL.DEVICE cpu")
    if num_gpus > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus must be at most the {torch.cuda.device_count()} here, got {num_gpus}")


def weight_bytes(run: Run) -> int:
    """Return the size of one member's weights in bytes, by building the model once."""
    from detcurate.d2.weights import model_bytes

    return model_bytes(training_config(run))


def _train(run: Run, jobs: list[Any], *, desc: str) -> None:
    from detcurate.d2.train import train_run

    if not jobs:
        return
    require_device(run)
    members = sum(len(job.iterations) for job in jobs)
    require_free_space(run.output_dir, weight_bytes(run) * (members + 3 * len(jobs)))  # 3: weights and AdamW's moments
    num_processes = run.settings.worker_processes if run.cfg.MODEL.DEVICE == "cpu" else 1
    total = len(jobs) * run.cfg.SOLVER.MAX_ITER
    run_jobs(train_run, jobs, num_processes=num_processes, total=total, desc=desc, unit="iteration")


def _counts(run: Run, image_ids: np.ndarray) -> dict[str, int]:
    boxes = run.pool.boxes_per_image[np.isin(run.pool.image_ids, image_ids)]
    return {"num_images": len(image_ids), "num_boxes": int(boxes.sum())}


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}.{key}"))
        else:
            flat[f"{prefix}.{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _mega(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
