"""The members' answers on a set of images: an image is decoded and resized once for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import Instances
from torch import nn

from detcurate.d2 import backbones  # noqa: F401  registers the small backbone
from detcurate.d2.config import load_config_text
from detcurate.d2.posterior import predict_posteriors
from detcurate.d2.weights import model_for_weights
from detcurate.ensemble import verify_member
from detcurate.errors import DatasetError
from detcurate.predictions import write_shard
from detcurate.structures import Detections

_models: dict[tuple, list[nn.Module]] = {}


@dataclass(frozen=True)
class PredictionJob:
    """One shard: the images, and the members that are asked about them.

    Args:
        config: The whole config as YAML (``cfg.dump()``).
        members: The members' weights and digests, in the order of their numbers.
        records: Dataset dicts of the images.
        num_classes: C.
        batch_size: Images a forward pass.
        device: Such as ``"cpu"`` or ``"cuda:1"``.
        path: The shard's file.
    """

    config: str
    members: tuple[tuple[Path, str], ...]
    records: tuple[dict, ...]
    num_classes: int
    batch_size: int
    device: str
    path: Path


def predict_shard(job: PredictionJob, progress: Callable[[int], None]) -> None:
    """Predict one shard with every member and write it; a shard that is there already is left as it is."""
    if not job.path.exists():
        cfg = load_config_text(job.config)
        if job.device == "cpu":
            torch.set_num_threads(1)
        parts = [Detections.empty(job.num_classes)]
        models = _resident_models(cfg, job)
        for batch in _batches(cfg, job):
            parts += _predict_batch(models, batch, job.num_classes)
            progress(len(batch))
        image_ids = np.array([record["image_id"] for record in job.records], np.int64)
        write_shard(job.path, Detections.concatenate(parts), image_ids)
    else:
        progress(len(job.records))


def _resident_models(cfg: Any, job: PredictionJob) -> list[nn.Module]:
    """Return the members' models, built once a process and kept for its next shards."""
    key = (job.config, job.members, job.device)
    if key not in _models:
        _models.clear()
        local = cfg.clone()
        local.defrost()
        local.MODEL.DEVICE = job.device
        for path, sha256 in job.members:
            verify_member(path, sha256)
        _models[key] = [model_for_weights(local, path) for path, _ in job.members]
    return _models[key]


def _batches(cfg: Any, job: PredictionJob) -> Iterator[list[dict]]:
    """Yield batches of images of one shape, which therefore need no padding, whatever the batch size."""
    mapper = DatasetMapper(cfg, is_train=False)
    samples = []
    for record in job.records:
        try:
            samples.append(mapper(record))
        except Exception as error:
            raise DatasetError(
                f"an image must decode to the size of its record, got {error} "
                f"({record['file_name']}, image_id {record['image_id']}); it was readable when the pool was checked"
            ) from error
    samples.sort(key=lambda sample: tuple(sample["image"].shape))
    for _, same_shape in itertools.groupby(samples, key=lambda sample: tuple(sample["image"].shape)):
        group = list(same_shape)
        for start in range(0, len(group), job.batch_size):
            yield group[start : start + job.batch_size]


@torch.inference_mode()
def _predict_batch(models: list[nn.Module], batch: list[dict], num_classes: int) -> list[Detections]:
    parts = []
    for number, model in enumerate(models):
        for sample, instances in zip(batch, predict_posteriors(model, batch, num_classes), strict=True):
            parts.append(_to_detections(instances.to("cpu"), sample["image_id"], number))
    return parts


def _to_detections(instances: Instances, image_id: int, member: int) -> Detections:
    n = len(instances)
    return Detections(
        image_ids=np.full(n, image_id, np.int64),
        member=np.full(n, member, np.int32),
        boxes=instances.pred_boxes.tensor.float().numpy().reshape(n, 4),
        scores=instances.scores.float().numpy(),
        class_index=instances.pred_classes.numpy().astype(np.int32),
        class_probs=instances.class_probs.float().numpy(),
    )
