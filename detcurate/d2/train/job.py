"""What one training run is: plain records that a worker process can be sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detcurate.config.declaration import load_config_text
from detcurate.ensemble.index import AVERAGE, CHECKPOINT, MemberWriter
from detcurate.io.storage import Location


@dataclass(frozen=True)
class ImageSet:
    """Labelled images by reference, so that a job that names them is small.

    Args:
        annotations: A COCO file.
        image_root: What its file names are relative to, here or in object storage.
        image_ids: The images meant; all of the file when ``None``.
        policies: What is done about findings, pairs of code and policy.
    """

    annotations: Path
    image_root: Location
    image_ids: tuple[int, ...] | None = None
    policies: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Distributed:
    """How many processes train one run, in the words of Detectron2's ``launch``."""

    num_gpus: int = 0
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"


@dataclass(frozen=True)
class TrainingJob:
    """One run: what to train on, with which seed, and which iterations to keep.

    Args:
        config: The whole config as YAML (``cfg.dump()``).
        images: The training images.
        directory: The members go to ``directory/folder``.
        folder: Such as ``"run-0"``.
        run: Number of the run.
        seed: Of the weights, the order and the augmentation.
        iterations: After which a member is saved.
        windows: After which an average is saved besides, and of which iterations.
        dtype: What the members are stored as.
        max_bytes: What the members may take on disk; 0 for no limit.
        keep_last: Whether the last weights are kept in fp32 too, beside the members: :attr:`last_writer` has them.
        weights: What it starts from, in place of ``MODEL.WEIGHTS``.
        device: Where it trains; empty for the config's.
        distributed: How many processes train it.
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
        """Where the members, the log and the metrics of this run are."""
        return self.directory / self.folder

    @property
    def writer(self) -> MemberWriter:
        """What saves the members of this run."""
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
        """What saves the last weights in fp32, which are no member."""
        return MemberWriter(
            self.directory,
            run=self.run,
            seed=self.seed,
            folder=f"{self.folder}/last",
            plan=[(self.last_iteration, CHECKPOINT)],
        )

    @property
    def last_iteration(self) -> int:
        """The iteration that the training ends with."""
        return int(load_config_text(self.config).SOLVER.MAX_ITER) - 1

    @property
    def is_complete(self) -> bool:
        """Whether all that is to be saved is there."""
        return self.writer.is_complete() and (not self.keep_last or self.last_writer.is_complete())
