"""Description of one training run: plain records that can be sent to a worker process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detcurate.config.declaration import load_config_text
from detcurate.ensemble.index import AVERAGE, CHECKPOINT, MemberWriter
from detcurate.io.storage import Location


@dataclass(frozen=True)
class ImageSet:
    """Labelled images by reference, so that a job is small.

    Args:
        annotations: A COCO file.
        image_root: Base of its file names, a local folder or object storage.
        image_ids: The images to train on; None for all.
        policies: Pairs of a finding's code and its policy.
    """

    annotations: Path
    image_root: Location
    image_ids: tuple[int, ...] | None = None
    policies: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Distributed:
    """The processes of one run: the arguments of Detectron2's ``launch``."""

    num_gpus: int = 0
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"


@dataclass(frozen=True)
class TrainingJob:
    """One run: images, seed, and the iterations to save.

    Args:
        config: The whole config as YAML (``cfg.dump()``).
        images: The training images.
        directory: The members are written to ``directory/folder``.
        folder: Such as ``"run-0"``.
        run: Number of the run.
        seed: Of the weights, the order and the augmentation.
        iterations: The iterations after which a member is saved.
        windows: The iterations after which an average is saved -> the iterations of its samples.
        dtype: The dtype of the saved members.
        max_bytes: Limit of the members on disk; 0 for no limit.
        keep_last: Whether the last weights are saved in fp32 besides the members, by :attr:`last_writer`.
        weights: Initial weights instead of ``MODEL.WEIGHTS``.
        device: Device of the training; empty for the config's.
        distributed: The processes of the training.
    """

    config: str
    images: ImageSet
    directory: Path
    folder: str
    run: int
    seed: int
    iterations: tuple[int, ...]
    windows: Mapping[int, Sequence[int]] = field(default_factory=dict)
    dtype: str = "fp32"
    max_bytes: int = 0
    keep_last: bool = False
    weights: Path | None = None
    device: str = ""
    distributed: Distributed = Distributed()

    @property
    def run_directory(self) -> Path:
        """The folder of the members, the log and the metrics of this run."""
        return self.directory / self.folder

    @property
    def writer(self) -> MemberWriter:
        """The writer of the members of this run."""
        return MemberWriter(
            self.directory,
            run=self.run,
            seed=self.seed,
            folder=self.folder,
            dtype=self.dtype,
            max_bytes=self.max_bytes,
            plan=[*((i, CHECKPOINT) for i in self.iterations), *((end, AVERAGE) for end in self.windows)],
        )

    @property
    def last_writer(self) -> MemberWriter:
        """The writer of the last weights in fp32, which are not a member."""
        return MemberWriter(
            self.directory,
            run=self.run,
            seed=self.seed,
            folder=f"{self.folder}/last",
            plan=[(self.last_iteration, CHECKPOINT)],
        )

    @property
    def last_iteration(self) -> int:
        """The last iteration of the training."""
        return int(load_config_text(self.config).SOLVER.MAX_ITER) - 1

    @property
    def is_complete(self) -> bool:
        """Whether all members, and the last weights if kept, exist."""
        return self.writer.is_complete() and (not self.keep_last or self.last_writer.is_complete())
