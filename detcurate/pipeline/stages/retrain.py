"""The stage ``retrain``: train one detector for each arm and seed, with equal settings."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from detcurate.config import CurateSettings
from detcurate.config.declaration import require_detectron2
from detcurate.ensemble.index import RUN_INDEX, Member, read_index
from detcurate.io.files import sha256_file, sha256_json, write_bytes, write_json
from detcurate.pipeline.arms import Pool, arm_images, arm_inputs, trained_arms
from detcurate.pipeline.context import Run
from detcurate.pipeline.stage import Stage, StageResult, output_digest
from detcurate.pipeline.stages.manifest import subset_file
from detcurate.pipeline.stages.train import last_weights, run_weights
from detcurate.pipeline.training_jobs import train_jobs, training_job, training_settings

METRICS = "metrics.json"
"""The file that Detectron2 writes beside the members of a run, one line every 20 iterations."""


def training_seconds(directory: Path) -> float | None:
    """Return the seconds that the iterations of a run took, as measured by Detectron2.

    A line of the metrics covers the iterations since the previous line, at their median time. Iterations that were
    trained again after an interruption count once. Start-up, saving and loading weights are not included.

    Args:
        directory: The directory of the run.

    Returns:
        None if no iteration was timed; Detectron2 skips the first three.
    """
    path = directory / METRICS
    times: dict[int, float] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:  # the last line of a killed training may be cut
            continue
        if "time" in record:
            times[int(record["iteration"])] = float(record["time"])
    ends = sorted(times)
    return sum((end - before) * times[end] for before, end in zip([-1, *ends], ends, strict=False)) if ends else None


_REUSED, _REUSED_TEXT = "reused.txt", "the last weights of "
_TRAINED_ON = "job.json"


def retrain_stage(run: Run) -> Stage:
    """Return the stage ``retrain``."""
    require_detectron2("the stage 'retrain'")
    settings = {
        **training_settings(run),
        "CURATE.RETRAIN": run.settings.retrain.model_dump(mode="json"),
        "reuse_runs": run.settings.ensemble.num_runs,
        "pretrained": run.settings.search.scheme == "pretrain",
    }
    inputs = {
        "pool": output_digest(run.stage_metadata("pool")),
        "manifest": run.stage_metadata("manifest")["outputs"][subset_file(run).name]["sha256"],
        "ensemble": output_digest(run.stage_metadata("train")),
        **arm_inputs(run),
    }
    # Trained detectors stay valid when an arm, a seed or a point of the learning curve is added.
    return Stage("retrain", run.directory("retrain"), settings, inputs, lambda: _retrain(run), keeps_good_files=True)


def _retrain(run: Run) -> StageResult:
    pool = Pool(run)
    planned: list[Any] = []
    models: list[dict[str, Any]] = []
    arms = trained_arms(pool)
    for arm in arms:
        for seed in retrain_seeds(run.settings, run.cfg.SEED):
            images = np.sort(arm_images(pool, arm, seed))
            planned.append(_job(run, arm, images, seed))
            models.append({"arm": arm, "seed": seed, **_counts(run, images), **_cost(run, planned[-1])})
    _remove_other_models(run, planned)
    jobs = [job for job in planned if not _reuse(run, job)]
    reused = len(planned) - len(jobs)
    train_jobs(run, jobs, desc="retrain arms")
    outputs = []
    for model in models:
        member = _last_member(run, model)
        path = run.directory("retrain") / model["arm"] / member.file
        model.update(file=path.relative_to(run.directory("retrain")).as_posix(), sha256=member.sha256)
        model["seconds"] = training_seconds(_trained_in(run, path.parent))
        outputs.append(path)
    summary = f"trained {len(jobs)} detectors with equal {run.settings.retrain.equal}"
    if run.settings.search.scheme == "pretrain":
        summary += " from the weights of the ensemble's runs"
    if reused:
        summary += f"; reused {reused} runs of the ensemble for the arm full (same data, settings and seeds)"
    if twins := sorted(set(run.settings.retrain.all_arms) - set(arms)):
        summary += f"; skipped {', '.join(twins)}, which equals the arm random"
    return StageResult(outputs, summary, {"models": models})


def retrain_seeds(settings: CurateSettings, first: int) -> list[int]:
    """Return the training seeds; every arm uses the same ones, so that arms are compared seed by seed."""
    return [first + offset for offset in range(settings.retrain.num_seeds)]


def arm_iterations(run: Run, num_images: int) -> int:
    """Return the iterations of an arm with ``num_images`` images: equal iterations, or equal epochs."""
    if run.settings.retrain.equal == "iterations":
        return int(run.cfg.SOLVER.MAX_ITER)
    return max(1, round(int(run.cfg.SOLVER.MAX_ITER) * num_images / len(run.usable_image_ids)))


def _job(run: Run, arm: str, images: np.ndarray, seed: int) -> Any:
    iterations = arm_iterations(run, len(images))
    directory, folder, last = run.directory("retrain") / arm, f"seed-{seed}", (iterations - 1,)
    job = training_job(run, directory, folder, seed - run.cfg.SEED, seed, last, max_iter=iterations)
    chosen = dataclasses.replace(job.images, image_ids=tuple(images.tolist()))
    if arm == "curated":  # reads the manifest's file, as a user would
        chosen = dataclasses.replace(job.images, annotations=subset_file(run), image_ids=None)
    return dataclasses.replace(job, images=chosen, weights=_pretrained(run, seed))


def _remove_other_models(run: Run, jobs: Sequence[Any]) -> None:
    """Remove detectors of arms and seeds that are not configured, or that were trained differently.

    A digest beside each detector covers its settings, images, labels, seed, length and initial weights. Detectors that
    were copied from the ensemble are removed and copied again.
    """
    planned = {job.run_directory: _digest(run, job) for job in jobs}
    for path in run.directory("retrain").glob("*/*"):
        if path not in planned or planned[path] != _read_digest(path / _TRAINED_ON) or (path / _REUSED).exists():
            shutil.rmtree(path)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    for directory, digest in planned.items():
        write_json(directory / _TRAINED_ON, {"digest": digest})


def _digest(run: Run, job: Any) -> str:
    labels = run.stage_metadata("pool") if job.images.image_ids is not None else run.stage_metadata("manifest")
    return sha256_json(
        {
            "settings": training_settings(run),
            "labels": output_digest(labels),
            "images": None if job.images.image_ids is None else list(job.images.image_ids),
            "seed": job.seed,
            "last_iteration": job.last_iteration,
            "weights": sha256_file(job.weights) if job.weights else "",
        }
    )


def _read_digest(path: Path) -> str:
    try:
        return str(orjson.loads(path.read_bytes())["digest"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def _pretrained(run: Run, seed: int) -> Path | None:
    """Return the weights of the ensemble's run that an arm starts from; None without the scheme ``pretrain``."""
    if run.settings.search.scheme != "pretrain":
        return None
    return run_weights(run, (seed - run.cfg.SEED) % run.settings.ensemble.num_runs)[0]


def _reuse(run: Run, job: Any) -> bool:
    """Copy the last weights of an ensemble run for the arm ``full``: equal data, settings and seed give equal weights.

    Returns:
        Whether the weights were copied.
    """
    found = last_weights(run, job.seed) if job.directory.name == "full" and job.weights is None else None
    if found is None:
        return False
    path, last = found
    job.writer.save(last.iteration, last.lr, lambda target: shutil.copyfile(path, target))
    name = f"{run.directory('train').name}/run-{last.run}"
    write_bytes(job.run_directory / _REUSED, f"{_REUSED_TEXT}{name}\n".encode())
    return True


def _trained_in(run: Run, directory: Path) -> Path:
    """Return the directory of a model's training: its own, or that of the ensemble's run it was copied from."""
    reused = directory / _REUSED
    return run.output_dir / reused.read_text().strip().removeprefix(_REUSED_TEXT) if reused.is_file() else directory


def _last_member(run: Run, model: dict[str, Any]) -> Member:
    members = read_index(run.directory("retrain") / model["arm"] / f"seed-{model['seed']}" / RUN_INDEX)
    return next(member for member in members if member.iteration == model["iterations"] - 1)


def _counts(run: Run, image_ids: np.ndarray) -> dict[str, int]:
    boxes = run.pool.boxes_per_image[np.isin(run.pool.image_ids, image_ids)]
    return {"num_images": len(image_ids), "num_boxes": int(boxes.sum())}


def _cost(run: Run, job: Any) -> dict[str, int]:
    iterations = job.last_iteration + 1
    return {"iterations": iterations, "images_seen": iterations * run.cfg.SOLVER.IMS_PER_BATCH}
