"""Prediction of shards by any number of processes: leases on shards, decoding ahead, batches of images of one shape."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.data import DatasetMapper

from detcurate.config.declaration import load_config_text
from detcurate.d2 import registration  # noqa: F401  registers the small backbone
from detcurate.d2.infer.models import MemberModels
from detcurate.d2.registration import open_remote_images, storage_options
from detcurate.errors import DatasetError, PredictionError, StorageError
from detcurate.io.leases import Leases, NoLeases, leases_folder, shard_lease
from detcurate.io.storage import Location, fetch_ahead
from detcurate.predictions.shards import missing_shards, shard_path, write_embeddings

Batch = list[dict[str, Any]]
Group = list[tuple[int, Any]]
"""Models that are in memory at the same time, with the members' numbers."""

Work = Callable[[MemberModels, int, list[Batch]], None]
"""Writes the shard of a number from its decoded images."""

Prediction = TypeVar("Prediction")

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class PredictionJob:
    """Members to run on images, for one process; any number of processes may work on one ``directory``.

    Args:
        config: The whole config as YAML (``cfg.dump()``).
        members: The members' weights and digests, in the order of their numbers.
        image_ids: (I,) int64.
        file_names: I paths, or images in object storage as :class:`detcurate.io.storage.RemoteImage` writes them.
        sizes: (I, 2) int64, width and height of the records, px.
        num_classes: C.
        shard_size: Images a shard.
        batch_size: Images a forward pass; halved when a GPU runs out of memory.
        device: Such as ``"cpu"`` or ``"cuda:1"``.
        directory: Destination of the shards.
        memory_gb: Limit of the members' weights on the device.
        precision: ``"fp32"`` or ``"bf16"``.
        num_decoders: Threads that decode the next shard during inference; 0 decodes between batches.
        embeddings: Destination of the shards of the first member's embeddings; None for no embeddings.
        first_shard: Number in ``directory`` of the first shard of these images.
        is_exclusive: Whether no other process works on these shards, so that no leases are taken.
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
    directory: Location
    memory_gb: float = 8.0
    precision: str = "fp32"
    num_decoders: int = 0
    embeddings: Location | None = None
    first_shard: int = 0
    is_exclusive: bool = False

    @property
    def shards(self) -> list[Location]:
        """The files of all shards, in order."""
        return [shard_path(self.directory, self.first_shard + number) for number in range(self.num_shards)]

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return -(-len(self.image_ids) // self.shard_size)

    def missing(self) -> list[int]:
        """Return the numbers of the missing shards."""
        if self.is_exclusive:  # few shards: cheaper than a listing of the folder
            return [number for number, path in enumerate(self.shards) if not path.is_file()]
        return missing_shards(self.directory, self.num_shards)

    @property
    def name(self) -> str:
        """The name of these shards in messages."""
        shards, image_ids = self.shards, self.image_ids
        return (
            f"{shards[0]} to {shards[-1].name} (image_id {image_ids[0]} to {image_ids[-1]})" if shards else "no shards"
        )

    def block(self, shards: range) -> PredictionJob:
        """Return the job of consecutive shards, which no other process works on."""
        rows = slice(self.rows(shards[0]).start, self.rows(shards[-1]).stop)
        return replace(
            self,
            image_ids=self.image_ids[rows],
            file_names=self.file_names[rows],
            sizes=self.sizes[rows],
            first_shard=self.first_shard + shards[0],
            is_exclusive=True,
        )

    def rows(self, shard: int) -> range:
        """Return the rows of one shard's images."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.image_ids)))

    def records(self, shard: int) -> list[dict[str, Any]]:
        """Return Detectron2's dataset dicts of one shard's images, without labels."""
        return [
            {
                "file_name": self.file_names[row],
                "image_id": int(self.image_ids[row]),
                "width": int(self.sizes[row, 0]),
                "height": int(self.sizes[row, 1]),
            }
            for row in self.rows(shard)
        ]


class ModelKeeper:
    """Holds the members' models of a process: built for its first shard, and kept for the next job."""

    def __init__(self) -> None:
        self._models: MemberModels | None = None
        self._key: tuple[Any, ...] = ()

    def models(self, job: PredictionJob, cfg: Any) -> MemberModels:
        """Return the models of a job; reuse those of the previous job if the members are equal."""
        key = (job.config, job.members, job.device, job.memory_gb, job.precision)
        if self._models is None or self._key != key:
            self._models = MemberModels(cfg, job.members, memory_gb=job.memory_gb, precision=job.precision)
            self._key = key
        return self._models


class KeepingModels:
    """A function of jobs that keeps the models between calls; picklable before the first call.

    Args:
        work: Predicts a job, such as ``predict_cluster``.
    """

    def __init__(self, work: Callable[..., None]) -> None:
        self._work, self._keeper = work, ModelKeeper()

    def __call__(self, job: Any, progress: Callable[[int], None]) -> None:
        """Predict a job."""
        self._work(job, progress, self._keeper)


def make_shards(job: PredictionJob, work: Work, keeper: ModelKeeper | None = None) -> None:
    """Write the missing shards that no other process holds a lease on; return when all shards exist.

    Args:
        job: Members, images and destination.
        work: Writes one shard; the models are built for the first.
        keeper: Holds the models between calls.

    Raises:
        DatasetError: An image does not decode to the size of its record.
        EnsembleError: A member's file is missing, changed, or does not fit the config.
        PredictionError: A prediction is not finite, or the device's memory is too small for one image.
    """
    if job.device == "cpu":
        torch.set_num_threads(1)
    cfg = load_config_text(job.config).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = job.device
    open_remote_images(cfg)
    kept = keeper or ModelKeeper()

    def make(number: int, batches: list[Batch]) -> None:
        work(kept.models(job, cfg), number, batches)

    folder = leases_folder(job.directory, Path(cfg.OUTPUT_DIR))
    with NoLeases() if job.is_exclusive else Leases(folder) as leases:
        while job.missing():
            if not _sweep(job, leases, cfg, make):
                time.sleep(_POLL_SECONDS)  # other processes hold the leases, until they finish or the leases expire


def predict_groups(
    models: MemberModels,
    batches: list[Batch],
    predict: Callable[[Group, Batch], Prediction],
    job: PredictionJob,
    progress: Callable[[int], None],
) -> Iterator[Prediction]:
    """Run all members on all batches, in groups of members that fit in memory, and yield the predictions.

    Args:
        models: The members.
        batches: The images of a shard.
        predict: Runs a group of members on images of one shape.
        job: The job of the shard.
        progress: Called with the number of images that all members have predicted.
    """
    num_groups = -(-len(models) // models.num_resident)
    for group_number, group in enumerate(models.groups()):
        for batch in batches:
            yield from predict_in_parts(functools.partial(predict, group), batch, job, len(group))
            if group_number == num_groups - 1:
                progress(len(batch))


def predict_in_parts(
    predict: Callable[[Batch], Prediction], batch: Batch, job: PredictionJob, num_members: int
) -> list[Prediction]:
    """Predict a batch; if the GPU runs out of memory, predict its halves.

    Raises:
        PredictionError: The memory is too small for one image.
    """
    try:
        return [predict(batch)]
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        if len(batch) == 1:
            raise PredictionError(
                f"{job.device}: out of memory for one image and {num_members} members (image_id "
                f"{batch[0]['image_id']}): {error}. Lower CURATE.PREDICT.MEMORY_GB or INPUT.MIN_SIZE_TEST."
            ) from error
    middle = len(batch) // 2
    return [
        prediction
        for half in (batch[:middle], batch[middle:])
        for prediction in predict_in_parts(predict, half, job, num_members)
    ]


@contextlib.contextmanager
def naming_member(job: PredictionJob, number: int) -> Iterator[None]:
    """Add the member's file to an error about its predictions."""
    try:
        yield
    except PredictionError as error:
        raise PredictionError(f"{job.members[number][0]}: {error}") from error


def write_shard_embeddings(job: PredictionJob, number: int, embeddings: dict[int, np.ndarray]) -> None:
    """Write the embeddings of one shard's images, before the shard itself marks them as complete."""
    image_ids = job.image_ids[list(job.rows(number))]
    rows = np.stack([embeddings[image_id] for image_id in image_ids.tolist()])
    write_embeddings(job.embeddings / job.shards[number].name, image_ids, rows)


def _sweep(job: PredictionJob, leases: Leases | NoLeases, cfg: Any, make: Callable[[int, list[Batch]], None]) -> int:
    """Go over the missing shards once; return how many were written. With decoders, one shard is decoded ahead."""
    mapper, made = DatasetMapper(cfg, is_train=False), 0
    waiting: deque[tuple[int, list[Callable[[], dict]]]] = deque()

    def finish() -> None:
        number, samples = waiting.popleft()
        make(number, _batches([sample() for sample in samples], job.batch_size))
        leases.release(shard_lease(job.shards[number].name))

    with _decoders(max(1, job.num_decoders)) as decoders:
        shards, options = job.shards, storage_options(cfg)
        for number in job.missing():
            path = shards[number]
            lease = shard_lease(path.name)
            if not leases.acquire(lease):
                continue
            if path.is_file():  # written by another process since the listing
                leases.release(lease)
                continue
            records = job.records(number)
            fetch_ahead((record["file_name"] for record in records), options)
            # Pillow releases the GIL while it decodes.
            waiting.append((number, [_decoding(decoders, job, mapper, record) for record in records]))
            made += 1
            while len(waiting) > (1 if job.num_decoders else 0):
                finish()
        while waiting:
            finish()
    return made


@contextlib.contextmanager
def _decoders(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Provide threads that decode images; at the end, images in the queue are cancelled."""
    decoders = ThreadPoolExecutor(num_threads)
    try:
        yield decoders
    finally:
        decoders.shutdown(cancel_futures=True)


def _decoding(
    decoders: ThreadPoolExecutor, job: PredictionJob, mapper: DatasetMapper, record: dict
) -> Callable[[], dict]:
    """Return a function that returns the decoded image, decoded in the background if there are decoders."""
    if job.num_decoders:
        return decoders.submit(_decode, mapper, record).result
    return functools.partial(_decode, mapper, record)


def _decode(mapper: DatasetMapper, record: dict) -> dict:
    try:
        return mapper(record)
    except (MemoryError, StorageError):
        raise  # not a defect of the image
    except Exception as error:
        raise DatasetError(
            f"{record['file_name']}: the image does not decode to the size of its record (image_id "
            f"{record['image_id']}): {error}. It was readable when the pool was checked."
        ) from error


def _batches(samples: Batch, batch_size: int) -> list[Batch]:
    """Return batches of images of one shape, which need no padding."""

    def shape(sample: dict) -> tuple[int, ...]:
        return tuple(sample["image"].shape)

    batches = []
    for _, same_shape in itertools.groupby(sorted(samples, key=shape), key=shape):
        group = list(same_shape)
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return batches
