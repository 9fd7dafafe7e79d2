"""Inference of the mode ``cluster``: detections of all members, with one decoding and resizing of each image."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.structures import ImageList, Instances

from detcurate.d2.infer.models import MemberModels
from detcurate.d2.infer.posteriors import posterior_form, predict_posteriors
from detcurate.d2.infer.worker import (
    Batch,
    Group,
    ModelKeeper,
    PredictionJob,
    make_shards,
    naming_member,
    predict_groups,
    write_shard_embeddings,
)
from detcurate.errors import ConfigError, PredictionError
from detcurate.predictions.shards import write_shard
from detcurate.structures import Detections


def pool_features(
    features: Mapping[str, torch.Tensor],
    images: ImageList,
    *,
    level: str | None = None,
    normalize: bool = False,
) -> np.ndarray:
    """Average a backbone's features over each image, without the padding of the batch.

    Zero images give zero rows. Equal images have equal rows, up to the rounding of a convolution in different batches.

    Args:
        features: Level -> (B, D_l, H, W), as returned by ``model.backbone``.
        images: The input of the backbone, B images.
        level: A name in ``features``, such as ``"p5"``; None concatenates the averages of all, in their order.
        normalize: Scale each row to length 1; a row of zeros is not changed.

    Returns:
        (B, D) float16, D the channels of the level, or of all together.

    Raises:
        ConfigError: ``level`` is not in ``features``.
        PredictionError: A value is NaN, infinite, or beyond float16 (65504).
    """
    if level is not None and level not in features:
        raise ConfigError(f"level: must be one of {', '.join(features)} (got {level!r}).")
    chosen = list(features.values()) if level is None else [features[level]]
    rows = torch.cat([_average(maps, images) for maps in chosen], dim=1)
    if normalize:
        rows = torch.nn.functional.normalize(rows, dim=1)
    embeddings: np.ndarray = rows.half().cpu().numpy()
    if not np.isfinite(embeddings).all():
        broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        raise PredictionError(
            f"embeddings: {len(broken)} of {len(embeddings)} rows are not finite in float16 (got NaN, infinity or "
            f"beyond 65504, first in image {broken[0]} of the batch). Normalize them, or exclude the member."
        )
    return embeddings


def _average(maps: torch.Tensor, images: ImageList) -> torch.Tensor:
    """(B, D) float32 means of (B, D, H, W) over the cells that begin inside each image."""
    height, width = maps.shape[-2:]
    padded_height, padded_width = images.tensor.shape[-2:]
    means = [
        # Rounded up: a cell counts if it begins inside the image, so that the smallest image has one.
        one[:, : -(-h * height // padded_height), : -(-w * width // padded_width)].float().mean(dim=(1, 2))
        for one, (h, w) in zip(maps, images.image_sizes, strict=True)
    ]
    return torch.stack(means) if means else maps.new_zeros(0, maps.shape[1])


def embed_images(
    batch: list[dict[str, Any]], images: ImageList, features: dict[str, torch.Tensor]
) -> dict[int, np.ndarray]:
    """Return the normalized embedding of each image of a batch, by ``image_id``; see :func:`pool_features`."""
    rows = pool_features(features, images, normalize=True)
    return {sample["image_id"]: row for sample, row in zip(batch, rows, strict=True)}


def predict_cluster(job: PredictionJob, progress: Callable[[int], None], keeper: ModelKeeper | None = None) -> None:
    """Predict the missing shards that no other process holds a lease on; return when all shards exist.

    Args:
        job: Members, images and destination.
        progress: Called with the number of images that this process has just predicted.
        keeper: Holds the models between calls.

    Raises:
        DatasetError: An image does not decode to the size of its record.
        EnsembleError: A member's file is missing, changed, or does not fit the config.
        PredictionError: A prediction is not finite, or the device's memory is too small for one image.
    """
    make_shards(job, functools.partial(_predict_shard, job, progress), keeper)


def _predict_shard(
    job: PredictionJob, progress: Callable[[int], None], models: MemberModels, number: int, batches: list[Batch]
) -> None:
    detections: list[Detections] = []
    embeddings: dict[int, np.ndarray] = {}
    for found, rows in predict_groups(models, batches, functools.partial(_predict, job, models), job, progress):
        detections += found
        embeddings.update(rows)
    if job.embeddings is not None:  # before the shard, which marks the images as complete
        write_shard_embeddings(job, number, embeddings)
    write_shard(job.shards[number], Detections.concatenate(detections), job.image_ids[list(job.rows(number))])


def _predict(
    job: PredictionJob, models: MemberModels, group: Group, batch: Batch
) -> tuple[list[Detections], dict[int, np.ndarray]]:
    """Return the detections of a group of members, and the embeddings if the first member is in the group."""
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
            f"CURATE.PREDICT.EMBEDDINGS: the detector has no backbone (got {type(model).__name__}). Set it to False."
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
