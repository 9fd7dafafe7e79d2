"""Jobs of the stages that train, for the ensemble and for arms: settings, config, checks, devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detcurate.errors import ConfigError
from detcurate.io.files import require_free_space
from detcurate.io.storage import is_url
from detcurate.io.workers import assign_gpus, run_jobs
from detcurate.pipeline.context import Run

COSINE_CYCLES = "WarmupCosineCyclesLR"  # of detcurate.d2.train.solver, which needs Detectron2 to import
_LEAST = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.BASE_LR": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "SOLVER.WARMUP_ITERS": 0,
    "DATALOADER.NUM_WORKERS": 0,
}
_FORMATS = ("BGR", "RGB", "L", "YUV-BT.601")  # the image formats of Detectron2
_HEURISTICS = "?matching_heuristics=True"  # an option that Detectron2's checkpointer reads from the name

# Trained weights do not depend on these.
_INFERENCE_KEYS = ("MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD")


def training_settings(run: Run) -> dict[str, Any]:
    """Return the settings that trained weights depend on, as flat JSON values."""
    kept = {}
    for tree in ("MODEL", "INPUT", "SOLVER", "DATALOADER"):
        for key, value in _flat(run.cfg[tree], tree).items():
            if key not in _INFERENCE_KEYS and "_TEST" not in key:
                kept[key] = value
    if run.cfg.SOLVER.LR_SCHEDULER_NAME == COSINE_CYCLES:
        kept["CURATE.ENSEMBLE.CYCLES"] = run.settings.ensemble.cycles
    train = run.settings.train.model_dump(mode="json", exclude={"gpus_per_run"})
    return {**kept, "SEED": run.cfg.SEED, "CURATE.TRAIN": train}


def training_job(
    run: Run,
    directory: Path,
    folder: str,
    number: int,
    seed: int,
    iterations: tuple[int, ...],
    *,
    max_iter: int | None = None,
) -> Any:
    """Return a job that trains on the whole pool, for ``max_iter`` iterations instead of the config's if given."""
    from detcurate.d2.train.job import Distributed, ImageSet, TrainingJob

    return TrainingJob(
        config=training_config(run, max_iter=max_iter),
        images=ImageSet(
            run.annotations("pool"),
            run.image_root("pool"),
            tuple(run.usable_image_ids.tolist()),
            tuple(run.policies.items()),
        ),
        directory=directory,
        folder=folder,
        run=number,
        seed=seed,
        iterations=iterations,
        distributed=Distributed(**run.distributed),
    )


def training_config(run: Run, augmentation: Mapping[str, Any] | None = None, *, max_iter: int | None = None) -> str:
    """Return the config as YAML with the pool's number of classes, and a run's augmentation in ``INPUT``.

    Args:
        run: The run.
        augmentation: Keys of ``INPUT`` and their values.
        max_iter: Length of the training instead of the config's; steps of the learning rate scale with it.
    """
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(run.class_names)
    if max_iter is not None:
        share = max_iter / cfg.SOLVER.MAX_ITER
        cfg.SOLVER.MAX_ITER = max_iter
        cfg.SOLVER.STEPS = tuple(max(1, round(step * share)) for step in cfg.SOLVER.STEPS)
    for key, value in (augmentation or {}).items():
        cfg.INPUT.merge_from_list([key, value])
    return str(cfg.dump())


def require_solver(run: Run) -> None:
    """Raise ``ConfigError`` if a training would fail at a value of ``SOLVER``, ``DATALOADER`` or ``INPUT``."""
    from detcurate.d2.train.solver import require_lr_schedule

    for key, least in _LEAST.items():
        tree, name = key.split(".")
        if run.cfg[tree][name] < least:
            raise ConfigError(f"{key}: must be at least {least} (got {run.cfg[tree][name]}).")
    if run.cfg.INPUT.FORMAT not in _FORMATS:
        raise ConfigError(f"INPUT.FORMAT: must be one of {', '.join(_FORMATS)} (got {run.cfg.INPUT.FORMAT!r}).")
    if not run.cfg.INPUT.MIN_SIZE_TRAIN:
        raise ConfigError("INPUT.MIN_SIZE_TRAIN: must hold at least one size (got none).")
    require_lr_schedule(run.cfg)


def require_model(run: Run) -> None:
    """Raise ``ConfigError`` if ``MODEL`` cannot be built, or ``MODEL.WEIGHTS`` is a URL with a secret."""
    weights = str(run.cfg.MODEL.WEIGHTS).removesuffix(_HEURISTICS)
    rest = weights.partition("://")[2]
    if is_url(weights) and ("@" in rest.partition("/")[0] or "?" in rest):
        raise ConfigError(
            f"MODEL.WEIGHTS: a URL must not have credentials or a query, which config.yaml would store (got one of "
            f"{weights.partition(':')[0]}://). Download the file and set its path."
        )
    weight_bytes(run)


def require_weights(run: Run) -> None:
    """Raise ``ConfigError`` if the file of the initial weights does not exist."""
    weights = str(run.cfg.MODEL.WEIGHTS).removesuffix(_HEURISTICS)
    if weights and not is_url(weights) and not Path(weights).is_file():
        raise ConfigError(
            f"MODEL.WEIGHTS: no such file (got {weights}). Fix the path, or leave it empty to train from scratch."
        )


def require_device(run: Run) -> None:
    """Raise ``ConfigError`` if this machine does not have the devices of ``MODEL.DEVICE`` or ``--num-gpus``."""
    import torch

    device, num_gpus = str(run.cfg.MODEL.DEVICE), run.distributed.get("num_gpus", 0)
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigError(f"MODEL.DEVICE: must be cpu or cuda (got {device!r}). Set MODEL.DEVICE cpu.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE: not available on this machine (got {device}). Set MODEL.DEVICE cpu.")
    if num_gpus > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus: this machine has {torch.cuda.device_count()} (got {num_gpus}).")
    if run.settings.train.gpus_per_run and run.distributed.get("num_machines", 1) > 1:
        raise ConfigError("CURATE.TRAIN.GPUS_PER_RUN: must be 0 with --num-machines above 1 (got 1).")


def weight_bytes(run: Run) -> int:
    """Return the size of one member's weights in bytes."""
    from detcurate.d2.checkpoints import model_bytes

    return int(model_bytes(training_config(run)))


def train_jobs(run: Run, jobs: list[Any], *, desc: str) -> None:
    """Train the jobs: in parallel on CPU cores or on one GPU each, otherwise one after the other."""
    from detcurate.d2.train.job import Distributed
    from detcurate.d2.train.trainer import train_run

    if not jobs:
        return
    require_device(run)
    require_weights(run)
    require_free_space(run.output_dir, sum(_disk_bytes(run, job) for job in jobs))
    num_processes = run.settings.worker_processes if run.cfg.MODEL.DEVICE == "cpu" else 1
    num_gpus = run.distributed.get("num_gpus", 0)
    if run.settings.train.gpus_per_run and num_gpus > 1:
        num_processes = num_gpus
        jobs = [
            dataclasses.replace(job, device=f"cuda:{gpu}", distributed=Distributed())
            for job, gpu in zip(jobs, assign_gpus(len(jobs), num_gpus), strict=True)
        ]
    total = sum(job.last_iteration + 1 for job in jobs)
    run_jobs(train_run, jobs, num_processes=num_processes, total=total, desc=desc, unit="iteration")


def _disk_bytes(run: Run, job: Any) -> int:
    whole: int = weight_bytes(run)
    members: int = (len(job.iterations) + len(job.windows)) * (whole if job.dtype == "fp32" else whole // 2)
    if job.max_bytes:
        members = min(members, job.max_bytes)
    copies = 3 + int(job.keep_last) + bool(job.windows)  # 3: the state to resume from has weights and AdamW's moments
    return members + whole * copies


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}.{key}"))
        else:
            flat[f"{prefix}.{key}"] = _json(value)
    return flat


def _json(value: Any) -> Any:
    """Return a value with lists instead of tuples at every depth, as read back from stage metadata."""
    return [_json(part) for part in value] if isinstance(value, list | tuple) else value
