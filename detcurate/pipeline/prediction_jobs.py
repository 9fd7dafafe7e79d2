"""Jobs of the stages that predict: the settings that predictions depend on, shards, devices and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from detcurate.io.files import remove_temporaries, sha256_json
from detcurate.io.storage import Location, image_files
from detcurate.pipeline.context import Run
from detcurate.pipeline.stage import output_digest
from detcurate.pipeline.training_jobs import require_device, training_config, training_settings
from detcurate.predictions.shards import shard_path
from detcurate.predictions.store import MEMBERS, PredictionSet, prepare_folder, prepare_prediction_sets

EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class Preparation:
    """Creates the folders of predictions; a process that joins a run waits for them instead.

    Args:
        prediction_sets: Replaces ``prepare_prediction_sets``.
        folder: Replaces ``prepare_folder``.
    """

    prediction_sets: Callable[..., list[PredictionSet]] = prepare_prediction_sets
    folder: Callable[[Location, str], None] = prepare_folder


def inference_settings(run: Run) -> dict[str, Any]:
    """Return the settings that the predictions of a trained detector depend on."""
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
        # Without the mode: the detections of the modes cluster and reference are equal, and arms have no mode.
        "CURATE.PREDICT": run.settings.predict.model_dump(mode="json", exclude={"memory_gb", "mode", "results"}),
    }


def predictions_digest(run: Run, image_ids: np.ndarray) -> str:
    """Return a digest of all that detections on images depend on, except for the members."""
    # Not the whole config: predictions stay valid with another number of runs or processes.
    model = {key: value for key, value in training_settings(run).items() if key.startswith(("MODEL.", "INPUT."))}
    return sha256_json(
        {
            "settings": inference_settings(run),
            "model": model,
            "class_names": list(run.class_names),
            "pool": output_digest(run.stage_metadata("pool")),
            "images": sha256_json(image_ids.tolist()),
        }
    )


def count_shards(run: Run, image_ids: np.ndarray) -> int:
    """Return the number of shards of the images."""
    return -(-len(image_ids) // run.settings.predict.shard_size)


def prediction_job(
    run: Run,
    part: str,
    directory: Location,
    weights: Sequence[tuple[Path, str]],
    image_ids: np.ndarray,
    embeddings: Location | None = None,
) -> Any:
    """Return the job of running members on images of the ``"pool"`` or the ``"evaluation"``."""
    from detcurate.d2.infer.worker import PredictionJob

    settings, dataset = run.settings.predict, getattr(run, part)
    rows = dataset.subset_rows(image_ids)
    files = image_files(run.image_root(part), [dataset.file_names[row] for row in rows.tolist()])
    return PredictionJob(
        config=training_config(run),
        members=tuple(weights),
        image_ids=image_ids,
        file_names=tuple(str(file) for file in files),
        sizes=np.column_stack((dataset.widths[rows], dataset.heights[rows])),
        num_classes=len(run.class_names),
        shard_size=settings.shard_size,
        batch_size=settings.batch_size,
        device=str(run.cfg.MODEL.DEVICE),
        directory=directory,
        memory_gb=settings.memory_gb,
        precision=settings.precision,
        num_decoders=run.cfg.DATALOADER.NUM_WORKERS,
        embeddings=embeddings,
    )


def predict_detections(
    run: Run,
    part: str,
    directory: Location,
    weights: Mapping[str, tuple[Path, str]],
    image_ids: np.ndarray,
    preparation: Preparation,
    *,
    desc: str,
) -> list[Location]:
    """Predict detections with the members that have none yet, and return the files of all members' predictions.

    Args:
        run: The run.
        part: ``"pool"`` or ``"evaluation"``.
        directory: Holds the prediction sets.
        weights: A member's name -> its file and digest.
        image_ids: (I,) int64.
        preparation: Creates the folders of the prediction sets.
        desc: Label of the progress bar.
    """
    from detcurate.d2.infer.cluster import predict_cluster

    num_shards = count_shards(run, image_ids)
    prediction_sets = preparation.prediction_sets(
        directory, predictions_digest(run, image_ids), list(weights), num_shards=num_shards
    )
    embeddings = directory / EMBEDDINGS if run.settings.predict.embeddings and part == "pool" else None
    for found in prediction_sets:
        members = [weights[name] for name in found.members if name in weights]
        of_first = embeddings if found is prediction_sets[0] else None
        job = prediction_job(run, part, found.directory, members, image_ids, of_first)
        make_missing_shards(run, predict_cluster, job, desc=desc)
    folders = [found.directory for found in prediction_sets] + ([embeddings] if embeddings else [])
    shards = [shard_path(folder, number) for folder in folders for number in range(num_shards)]
    return [directory / MEMBERS, *(found.description for found in prediction_sets), *shards]


def make_missing_shards(
    run: Run,
    work: Callable[[Any, Callable[[int], None]], None],
    job: Any,
    *,
    desc: str,
    wrap: Callable[[Any], Any] = lambda job: job,
) -> None:
    """Predict the missing shards of a job: with one process a device, or in blocks that the engine distributes.

    Args:
        run: The run.
        work: Called in a process with ``wrap(job)`` of its device or of a block.
        job: From :func:`prediction_job`.
        desc: Label of the progress bar.
        wrap: Converts the job to the argument of ``work``.
    """
    missing = job.missing()
    if not missing:
        return
    total = sum(len(job.rows(number)) for number in missing)
    if run.engine.assigns_blocks:
        # A worker sees its own GPU only, as the first.
        job = replace(job, device="cuda") if job.device.startswith("cuda") else job
        _hand_out(run, work, [wrap(job.block(shards)) for shards in _neighbours(run, missing)], desc, total)
        remove_temporaries(job.directory)  # of workers that died
        return
    require_device(run)
    jobs = [wrap(replace(job, device=device)) for device in prediction_devices(run)[: len(missing)]]
    run.engine.run(work, jobs, num_processes=len(jobs), total=total, desc=desc, unit="image")


def _hand_out(run: Run, work: Callable[..., None], blocks: list[Any], desc: str, total: int) -> None:
    from detcurate.d2.infer.worker import KeepingModels

    run.engine.run(
        KeepingModels(work),
        blocks,
        num_processes=run.settings.worker_processes,
        total=total,
        desc=desc,
        unit="image",
        on_gpu=str(run.cfg.MODEL.DEVICE).startswith("cuda"),
    )


def _neighbours(run: Run, missing: Sequence[int]) -> Iterator[range]:
    """Yield the consecutive shard numbers of one task of a worker."""
    first = 0
    for place in range(1, len(missing) + 1):
        is_end = place == len(missing) or missing[place] != missing[place - 1] + 1
        if is_end or place - first == run.settings.ray.shards_per_block:
            yield range(missing[first], missing[place - 1] + 1)
            first = place


def prediction_devices(run: Run) -> list[str]:
    """Return the device of each process that predicts: one process a GPU, or one a core."""
    device = str(run.cfg.MODEL.DEVICE)
    if device == "cpu":
        return ["cpu"] * run.settings.worker_processes
    num_gpus = run.distributed.get("num_gpus", 0)
    return [f"cuda:{number}" for number in range(num_gpus)] if device == "cuda" and num_gpus > 1 else [device]
