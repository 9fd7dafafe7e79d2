"""The mode ``cluster``: where each member sees objects, an image decoded and resized once for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from detectron2.structures import Instances

from detcurate.d2.embeddings import embed_images
from detcurate.d2.members import MemberModels
from detcurate.d2.posterior import posterior_form, predict_posteriors
from detcurate.d2.shards import (
    Batch,
    Group,
    ModelKeeper,
    PredictionPass,
    ask_groups,
    make_shards,
    naming_member,
    write_shard_embeddings,
)
from detcurate.errors import PredictionError
from detcurate.predictions import write_shard
from detcurate.structures import Detections


def run_pass(job: PredictionPass, progress: Callable[[int], None], keeper: ModelKeeper | None = None) -> None:
    """Predict every shard that is not there yet and that no other process is at; return when all are there.

    Args:
        job: What to predict.
        progress: Called with the number of images that this process has just predicted.
        keeper: Of models that outlive this call.

    Raises:
        DatasetError: An image does not decode to the size of its record.
        EnsembleError: A member cannot be used.
        PredictionError: A member's answer is not finite, or the device's memory does not suffice for one image.
    """
    make_shards(job, functools.partial(_predict_shard, job, progress), keeper)


def _predict_shard(
    job: PredictionPass, progress: Callable[[int], None], models: MemberModels, number: int, batches: list[Batch]
) -> None:
    detections: list[Detections] = []
    embeddings: dict[int, np.ndarray] = {}
    for found, rows in ask_groups(models, batches, functools.partial(_ask, job, models), job, progress):
        detections += found
        embeddings.update(rows)
    if job.embeddings is not None:  # before the shard, which says that all is there
        write_shard_embeddings(job, number, embeddings)
    write_shard(job.shards[number], Detections.concatenate(detections), job.image_ids[list(job.rows(number))])


def _ask(
    job: PredictionPass, models: MemberModels, group: Group, batch: Batch
) -> tuple[list[Detections], dict[int, np.ndarray]]:
    """Return the detections of a group of members, and the embeddings when the first member is among them."""
    found: list[Detections] = []
    embeddings: dict[int, np.ndarray] = {}
    with models.inference():
        images = models.preprocess(batch)
        for number, model in group:
            features = None
            if number == 0 and job.embeddings is not None:
                images, features = _require_features(model, images)
                embeddings = embed_images(batch, images, features)
            with naming_member(job, number):
                outputs = predict_posteriors(model, batch, job.num_classes, images=images, features=features)
            form = posterior_form(model)
            found += [
                _to_detections(instances.to("cpu"), sample["image_id"], number, form)
                for sample, instances in zip(batch, outputs, strict=True)
            ]
    return found, embeddings


def _require_features(model: Any, images: Any) -> tuple[Any, Any]:
    if images is None:
        raise PredictionError(
            f"embeddings must come from a detector with a backbone, got a {type(model).__name__}; "
            "set CURATE.PREDICT.EMBEDDINGS False"
        )
    return images, model.backbone(images.tensor)


def _to_detections(instances: Instances, image_id: int, member: int, posterior_form: str) -> Detections:
    n = len(instances)
    return Detections(
        image_ids=np.full(n, image_id, np.int64),
        member=np.full(n, member, np.int32),
        boxes=instances.pred_boxes.tensor.float().numpy().reshape(n, 4),
        scores=instances.scores.float().numpy(),
        class_index=instances.pred_classes.numpy().astype(np.int32),
        class_probs=instances.class_probs.float().numpy(),
        posterior_form=posterior_form,
    )
