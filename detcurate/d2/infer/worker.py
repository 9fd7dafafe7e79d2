"""Shards of images that any number of processes work on: claimed by file, decoded ahead, in batches of one shape."""

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
"""Members that are in memory together, with their numbers."""

Work = Callable[[MemberModels, int, list[Batch]], None]
"""Makes the shard of a number from its decoded images."""

Prediction = TypeVar("Prediction")

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class PredictionJob:
    """Some members on some images, as one process sees it; any number of processes may work on one ``directory``.

    Args:
        config: The whole config as YAML (``cfg.dump()``).
        members: The members' weights and digests, in the order of their numbers.
        image_ids: (I,) int64.
        file_names: I paths, or images in object storage as :class:`detcurate.io.storage.RemoteImage` writes them.
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
        first_shard: The number that the first of the images' shards has in ``directory``.
        is_handed_out: Whether the shards are this process's alone, so that it claims none.
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
    is_handed_out: bool = False

    @property
    def shards(self) -> list[Location]:
        """The files of all shards, in order."""
        return [shard_path(self.directory, self.first_shard + number) for number in range(self.num_shards)]

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return -(-len(self.image_ids) // self.shard_size)

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not there."""
        if self.is_handed_out:  # a few: not worth the listing of all
            return [number for number, path in enumerate(self.shards) if not path.is_file()]
        return missing_shards(self.directory, self.num_shards)

    @property
    def name(self) -> str:
        """What a message calls these shards."""
        shards, image_ids = self.shards, self.image_ids
        return (
            f"{shards[0]} to {shards[-1].name} (image_id {image_ids[0]} to {image_ids[-1]})" if shards else "no shards"
        )

    def block(self, shards: range) -> PredictionJob:
        """Return the job of some neighbouring shards alone, which nobody else is given."""
        rows = slice(self.rows(shards[0]).start, self.rows(shards[-1]).stop)
        return replace(
            self,
            image_ids=self.image_ids[rows],
            file_names=self.file_names[rows],
            sizes=self.sizes[rows],
            first_shard=self.first_shard + shards[0],
            is_handed_out=True,
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
    """The members' models of a process: built for the first shard that there is to do, kept for the next job."""

    def __init__(self) -> None:
        self._models: MemberModels | None = None
        self._of: tuple[Any, ...] = ()

    def models(self, job: PredictionJob, cfg: Any) -> MemberModels:
        """Return the models of a job; those of the job before when it has the same members."""
        wanted = (job.config, job.members, job.device, job.memory_gb, job.precision)
        if self._models is None or self._of != wanted:
            self._models = MemberModels(cfg, job.members, memory_gb=job.memory_gb, precision=job.precision)
            self._of = wanted
        return self._models


class KeepingModels:
    """Work on one job after another by a process that keeps the models in between; picklable before it begins.

    Args:
        work: Such as ``predict_cluster``.
    """

    def __init__(self, work: Callable[..., None]) -> None:
        self._work, self._keeper = work, ModelKeeper()

    def __call__(self, job: Any, progress: Callable[[int], None]) -> None:
        """Do the work on a job."""
        self._work(job, progress, self._keeper)


def make_shards(job: PredictionJob, work: Work, keeper: ModelKeeper | None = None) -> None:
    """Make every shard that is not there yet and that no other process is at; return when all are there.

    Args:
        job: What the shards are of.
        work: Makes one; the models are built for the first that there is to do.
        keeper: Of models that outlive this call.

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
    open_remote_images(cfg)
    kept = keeper or ModelKeeper()

    def make(number: int, batches: list[Batch]) -> None:
        work(kept.models(job, cfg), number, batches)

    folder = leases_folder(job.directory, Path(cfg.OUTPUT_DIR))
    with NoLeases() if job.is_handed_out else Leases(folder) as leases:
        while job.missing():
            if not _sweep(job, leases, cfg, make):
                time.sleep(_POLL_SECONDS)  # other processes hold the rest: they finish it, or their leases grow stale


def predict_groups(
    models: MemberModels,
    batches: list[Batch],
    predict: Callable[[Group, Batch], Prediction],
    job: PredictionJob,
    progress: Callable[[int], None],
) -> Iterator[Prediction]:
    """Ask all members about all batches, as many members at a time as are in memory, and yield the answers.

    Args:
        models: The members.
        batches: The images of a shard.
        predict: Asks a group of members about images of one shape.
        job: What the shard is of.
        progress: Called with the number of images that all members have answered.
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
    """Ask about a batch; on a GPU without memory for it, about its halves.

    Raises:
        PredictionError: The memory does not suffice for one image.
    """
    try:
        return [predict(batch)]
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        if len(batch) == 1:
            raise PredictionError(
                f"the device's memory must suffice for one image and {num_members} members, got {error} "
                f"({job.device}, image_id {batch[0]['image_id']}); lower CURATE.PREDICT.MEMORY_GB or the test size"
            ) from error
    middle = len(batch) // 2
    return [
        prediction
        for half in (batch[:middle], batch[middle:])
        for prediction in predict_in_parts(predict, half, job, num_members)
    ]


@contextlib.contextmanager
def naming_member(job: PredictionJob, number: int) -> Iterator[None]:
    """Name the member's file in an error about its answer."""
    try:
        yield
    except PredictionError as error:
        raise PredictionError(f"{error} ({job.members[number][0]})") from error


def write_shard_embeddings(job: PredictionJob, number: int, embeddings: dict[int, np.ndarray]) -> None:
    """Write the embeddings, by image_id, of one shard's images; to be done before the shard says that all is there."""
    image_ids = job.image_ids[list(job.rows(number))]
    rows = np.stack([embeddings[image_id] for image_id in image_ids.tolist()])
    write_embeddings(job.embeddings / job.shards[number].name, image_ids, rows)


def _sweep(job: PredictionJob, leases: Leases | NoLeases, cfg: Any, make: Callable[[int, list[Batch]], None]) -> int:
    """Go over the shards once; return how many were made here. One is decoded ahead when there are decoders."""
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
            if path.is_file():  # made between the two looks
                leases.release(lease)
                continue
            records = job.records(number)
            fetch_ahead((record["file_name"] for record in records), options)
            # Pillow lets other threads run while it decodes.
            waiting.append((number, [_decoding(decoders, job, mapper, record) for record in records]))
            made += 1
            while len(waiting) > (1 if job.num_decoders else 0):
                finish()
        while waiting:
            finish()
    return made


@contextlib.contextmanager
def _decoders(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads to decode with; who leaves them early does not wait for the images in the queue."""
    decoders = ThreadPoolExecutor(num_threads)
    try:
        yield decoders
    finally:
        decoders.shutdown(cancel_futures=True)


def _decoding(
    decoders: ThreadPoolExecutor, job: PredictionJob, mapper: DatasetMapper, record: dict
) -> Callable[[], dict]:
    """Return what gives the decoded image: at once in the background, or when it is called for."""
    if job.num_decoders:
        return decoders.submit(_decode, mapper, record).result
    return functools.partial(_decode, mapper, record)


def _decode(mapper: DatasetMapper, record: dict) -> dict:
    try:
        return mapper(record)
    except (MemoryError, StorageError):
        raise  # which says nothing of the image
    except Exception as error:
        raise DatasetError(
            f"an image must decode to the size of its record, got {error} "
            f"({record['file_name']}, image_id {record['image_id']}); it was readable when the pool was checked"
        ) from error


def _batches(samples: Batch, batch_size: int) -> list[Batch]:
    """Return batches of images of one shape, which therefore need no padding, whatever the batch size."""

    def shape(sample: dict) -> tuple[int, ...]:
        return tuple(sample["image"].shape)

    batches = []
    for _, same_shape in itertools.groupby(sorted(samples, key=shape), key=shape):
        group = list(same_shape)
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return batches
