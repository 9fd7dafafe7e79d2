"""Training of one detector with Detectron2, as a job that can be killed at any time and resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultTrainer, hooks, launch
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from detcurate.coco.dataset import read_coco
from detcurate.config.declaration import load_config_text
from detcurate.d2 import registration  # noqa: F401  registers the small backbone
from detcurate.d2.checkpoints import load_initial_weights
from detcurate.d2.registration import open_remote_images
from detcurate.d2.train.data import SampleStream, SeededDataset, detection_dicts
from detcurate.d2.train.hooks import (
    EnsembleCheckpointer,
    ProgressReporter,
    ResumeSaver,
    StepSeeder,
    load_state_to_resume,
    mix_seed,
    remove_state_to_resume,
    unwrap,
)
from detcurate.d2.train.job import ImageSet as ImageSet
from detcurate.d2.train.job import TrainingJob
from detcurate.d2.train.solver import build_lr_scheduler, build_optimizer
from detcurate.errors import EnsembleError

Progress = Callable[[int], None]


class CurateTrainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` that saves members, resumes exactly, and offers AdamW."""

    def __init__(self, cfg: CfgNode, job: TrainingJob, records: list[dict], progress: Progress) -> None:
        self._job, self._records, self._progress = job, records, progress
        self._state_path = job.run_directory / "resume.pth"
        self._state = load_state_to_resume(self._state_path)
        super().__init__(cfg)
        if self._state is None:
            weights = str(job.weights or cfg.MODEL.WEIGHTS)
            load_initial_weights(unwrap(self.model), weights, allow_pickle=cfg.CURATE.TRAIN.ALLOW_PICKLE)
        else:
            unwrap(self.model).load_state_dict(self._state["model"])
            self.load_state_dict(self._state["trainer"])
            self.start_iter = self._state["trainer"]["iteration"] + 1
        progress(self.start_iter)

    def build_hooks(self) -> list[hooks.HookBase]:
        """Build the hooks: members are saved before the state to resume from, and the writers come last."""
        job = self._job
        built = [
            StepSeeder(job.seed),
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            EnsembleCheckpointer(job.writer, job.iterations, job.windows),
            *([EnsembleCheckpointer(job.last_writer, [self.max_iter - 1])] if job.keep_last else []),
            ResumeSaver(self._state_path, self.cfg.SOLVER.CHECKPOINT_PERIOD),
        ]
        if comm.is_main_process():
            built += [ProgressReporter(self._progress), hooks.PeriodicWriter(self.build_writers(), period=20)]
        return built

    def build_writers(self) -> list[Any]:
        """Build the writers of metrics and TensorBoard events; the progress bar replaces the terminal's."""
        directory = str(self._job.run_directory)
        return [JSONWriter(f"{directory}/metrics.json"), TensorboardXWriter(directory)]

    def build_train_loader(self, cfg: CfgNode) -> Any:
        """Build the loader, starting at the first sample that has not been trained on."""
        done = 0 if self._state is None else (self._state["trainer"]["iteration"] + 1) * cfg.SOLVER.IMS_PER_BATCH
        stream = SampleStream(
            len(self._records),
            seed=self._job.seed,
            start=done,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )
        return build_detection_train_loader(
            dataset=SeededDataset(self._records, DatasetMapper(cfg, is_train=True), self._job.seed),
            mapper=None,
            sampler=stream,
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            seed=self._job.seed,  # a separate generator: starting the loader must not change the first step's
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build SGD as Detectron2 does, or AdamW on the same parameter groups."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Build the learning-rate schedule of this package or of Detectron2."""
        return build_lr_scheduler(cfg, optimizer)


def train_run(job: TrainingJob, progress: Progress) -> None:
    """Train one run to the end, resuming an interrupted training; return at once if it is complete.

    Args:
        job: The run.
        progress: Called with the number of new iterations.

    Raises:
        DatasetError: The annotations or an image cannot be used.
        EnsembleError: The loss is not finite, or the state to resume from is damaged.
    """
    if job.is_complete:
        progress(job.last_iteration + 1)
        return
    distributed = job.distributed
    launch(
        _train,
        distributed.num_gpus,
        num_machines=distributed.num_machines,
        machine_rank=distributed.machine_rank,
        dist_url=distributed.dist_url,
        args=(job, progress if distributed.num_gpus * distributed.num_machines <= 1 else _no_progress),
    )
    if distributed.machine_rank == 0:
        remove_state_to_resume(job.run_directory / "resume.pth")


def _train(job: TrainingJob, progress: Progress) -> None:
    cfg = load_config_text(job.config)
    if job.device:
        cfg.defrost()
        cfg.MODEL.DEVICE = job.device
        cfg.freeze()
        torch.cuda.set_device(job.device)  # avoids a second context on the first GPU
    if cfg.MODEL.DEVICE == "cpu":
        torch.set_num_threads(1)
    open_remote_images(cfg)
    torch.manual_seed(mix_seed(job.seed))
    images = job.images
    dataset = read_coco(images.annotations, dict(images.policies))
    records = detection_dicts(dataset, images.image_root, images.image_ids)
    try:
        with _logged_to(job.run_directory / "log.txt"):
            CurateTrainer(cfg, job, records, progress).train()
    except FloatingPointError as error:
        raise EnsembleError(f"train: the loss of run {job.run} is not finite: {error}. Lower SOLVER.BASE_LR.") from None


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Log Detectron2 to a file instead of the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        handler.close()


def _no_progress(_: int) -> None:
    """Ignore progress: the processes of a distributed run have no common bar."""
