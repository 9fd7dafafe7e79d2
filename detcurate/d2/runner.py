"""The members' answers on a set of images: an image is decoded and resized once for all of them."""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import Instances

from detcurate.claims import Claims
from detcurate.d2 import backbones  # noqa: F401  registers the small backbone
from detcurate.d2.config import load_config_text
from detcurate.d2.embeddings import pool_features
from detcurate.d2.members import MemberModels
from detcurate.d2.posterior import posterior_form, predict_posteriors
from detcurate.embeddings import write_embeddings
from detcurate.errors import DatasetError, PredictionError
from detcurate.predictions import shard_path, write_shard
from detcurate.structures import Detections

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class PredictionPass:
    """Some members on some images, as one process sees it; any number of processes may work on one ``directory``.

    Args:
        config: The whole config as YAML (``cfg.dump()``).
        members: The members' weights and digests, in the order of their numbers.
        image_ids: (I,) int64.
        file_names: I paths.
        sizes: (I, 2) int64, the width and height that the records state, px.
        num_classes: C.
        shard_size: Images a shard.
        batch_size: Images a forward pass; halved when a GPU's memory does not suffice.
        device: Such as ``"cpu"`` or ``"cuda:1"``.
        directory: Where the shards go.
        memory_gb: What the members' weights may take on the device.
        precision: ``"fp32"`` or ``"bf16"``.
        num_decoders: Threads that decode the next shard meanwhile; 0 decodes in between.
        embeddings: Where the images' embeddings by the first member go, in shards likewise; None for none.
    """

    config: str
    members: tuple[tuple[Path, str], ...]
    image_ids: np.ndarray
    file_names: tuple[str, ...]
    sizes: np.ndarray
    num_classes: int
    shard_size: int
    batch_size: int
    device: str
    directory: Path
    memory_gb: float = 8.0
    precision: str = "fp32"
    num_decoders: int = 0
    embeddings: Path | None = None

    @property
    def shards(self) -> list[Path]:
        """The files of all shards, in order."""
        return [shard_path(self.directory, number) for number in range(-(-len(self.image_ids) // self.shard_size))]

    def records(self, shard: int) -> list[dict[str, Any]]:
        """Return Detectron2's dataset dicts of one shard's images, without labels."""
        rows = range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.image_ids)))
        return [
            {
                "file_name": self.file_names[row],
                "image_id": int(self.image_ids[row]),
                "width": int(self.sizes[row, 0]),
                "height": int(self.sizes[row, 1]),
            }
            for row in rows
        ]


def run_pass(job: PredictionPass, progress: Callable[[int], None]) -> None:
    """Predict every shard that is not there yet and that no other process is at; return when all are there.

    Args:
        job: What to predict.
        progress: Called with the number of images that this process has just predicted.

    Raises:
        DatasetError: An image does not decode to the size of its record.
        EnsembleError: A member cannot be used.
        PredictionError: A member's answer is not finite, or the device's memory does not suffice for one image.
    """
    if job.device == "cpu":
        torch.set_num_threads(1)
    cfg = load_config_text(job.config).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = job.device
    models: list[MemberModels] = []  # built for the first shard that there is to do

    def predict(number: int, batches: list[list[dict]]) -> None:
        if not models:
            models.append(MemberModels(cfg, job.members, memory_gb=job.memory_gb, precision=job.precision))
        _predict_shard(models[0], job, number, batches, progress)

    with Claims(job.directory) as claims:
        while not all(path.exists() for path in job.shards):
            if not _sweep(job, claims, cfg, predict):
                time.sleep(_POLL_SECONDS)  # the rest is in others' hands: they finish it, or their claims grow stale


def _sweep(job: PredictionPass, claims: Claims, cfg: Any, predict: Callable[[int, list[list[dict]]], None]) -> int:
    """Go over the shards once; return how many were made here. One is decoded ahead when there are decoders."""
    mapper, made = DatasetMapper(cfg, is_train=False), 0
    waiting: deque[tuple[int, list[Callable[[], dict]]]] = deque()

    def finish() -> None:
        number, samples = waiting.popleft()
        predict(number, _batches([sample() for sample in samples], job.batch_size))
        claims.release(shard_path(job.directory, number).name)

    with ThreadPoolExecutor(max(1, job.num_decoders)) as decoders:
        for number, path in enumerate(job.shards):
            if path.exists() or not claims.take(path.name):
                continue
            if path.exists():  # made between the two looks
                claims.release(path.name)
                continue
            # Pillow lets other threads run while it decodes.
            waiting.append((number, [_decoding(decoders, job, mapper, record) for record in job.records(number)]))
            made += 1
            while len(waiting) > (1 if job.num_decoders else 0):
                finish()
        while waiting:
            finish()
    return made


def _decoding(
    decoders: ThreadPoolExecutor, job: PredictionPass, mapper: DatasetMapper, record: dict
) -> Callable[[], dict]:
    """Return what gives the decoded image: at once in the background, or when it is called for."""
    if job.num_decoders:
        return decoders.submit(_decode, mapper, record).result
    return functools.partial(_decode, mapper, record)


def _decode(mapper: DatasetMapper, record: dict) -> dict:
    try:
        return mapper(record)
    except Exception as error:
        raise DatasetError(
            f"an image must decode to the size of its record, got {error} "
            f"({record['file_name']}, image_id {record['image_id']}); it was readable when the pool was checked"
        ) from error


def _batches(samples: list[dict], batch_size: int) -> list[list[dict]]:
    """Return batches of images of one shape, which therefore need no padding, whatever the batch size."""

    def shape(sample: dict) -> tuple[int, ...]:
        return tuple(sample["image"].shape)

    batches = []
    for _, same_shape in itertools.groupby(sorted(samples, key=shape), key=shape):
        group = list(same_shape)
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return batches


def _predict_shard(
    models: MemberModels,
    job: PredictionPass,
    number: int,
    batches: list[list[dict]],
    progress: Callable[[int], None],
) -> None:
    answers = _Answers()
    num_groups = -(-len(models) // models.num_resident)
    for group_number, group in enumerate(models.groups()):
        for batch in batches:
            _predict_batch(models, group, batch, job, answers)
            if group_number == num_groups - 1:
                progress(len(batch))
    image_ids = np.array([record["image_id"] for record in job.records(number)], np.int64)
    path = shard_path(job.directory, number)
    if job.embeddings is not None:  # before the shard, which says that all is there
        rows = np.stack([answers.embeddings[image_id] for image_id in image_ids.tolist()])
        write_embeddings(job.embeddings / path.name, image_ids, rows)
    write_shard(path, Detections.concatenate(answers.detections), image_ids)


@dataclass
class _Answers:
    """What has been gathered of one shard."""

    detections: list[Detections] = field(default_factory=list)
    embeddings: dict[int, np.ndarray] = field(default_factory=dict)


def _predict_batch(
    models: MemberModels, group: list[tuple[int, Any]], batch: list[dict], job: PredictionPass, answers: _Answers
) -> None:
    """Ask a group of members about a batch; on a GPU without memory for it, about its halves."""
    try:
        found, embeddings = _ask(models, group, batch, job)
        answers.detections += found
        answers.embeddings.update(embeddings)
        return
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        if len(batch) == 1:
            raise PredictionError(
                f"the device's memory must suffice for one image and {len(group)} members, got {error} "
                f"({job.device}, image_id {batch[0]['image_id']}); lower CURATE.PREDICT.MEMORY_GB or the test size"
            ) from error
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        _predict_batch(models, group, half, job, answers)


def _ask(
    models: MemberModels, group: list[tuple[int, Any]], batch: list[dict], job: PredictionPass
) -> tuple[list[Detections], dict[int, np.ndarray]]:
    """Return the detections of a group of members, and the embeddings when the first member is among them."""
    found: list[Detections] = []
    embeddings: dict[int, np.ndarray] = {}
    with models.inference():
        images = models.any_model.preprocess_image(batch) if _can_share_images(models.any_model) else None
        if images is not None and images.tensor.is_cuda:
            images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        for number, model in group:
            features = None
            if number == 0 and job.embeddings is not None:
                images, features = _require_features(model, images)
                rows = pool_features(features, images, normalize=True)
                embeddings = {sample["image_id"]: row for sample, row in zip(batch, rows, strict=True)}
            try:
                outputs = predict_posteriors(model, batch, job.num_classes, images=images, features=features)
            except PredictionError as error:
                raise PredictionError(f"{error} ({job.members[number][0]})") from error
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


def _can_share_images(model: Any) -> bool:
    return hasattr(model, "preprocess_image") and hasattr(model, "backbone")


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
