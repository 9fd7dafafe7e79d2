"""The settings of detectors: how they are trained, which become members, and how those are asked."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from detcurate.config.base import Settings, require_known
from detcurate.ensemble.index import AUGMENTATIONS, DTYPES
from detcurate.ensemble.schedule import SCHEDULES


class TrainSettings(Settings):
    """How one detector is trained, beyond what ``SOLVER`` says.

    ``gpus_per_run`` 0 gives each run all GPUs of ``--num-gpus``, one run after the other; 1 gives it one, and as many
    runs train side by side as there are GPUs.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    allow_pickle: bool = False
    gpus_per_run: Literal[0, 1] = 0


class EnsembleSettings(Settings):
    """How many runs there are, which iterations of each become members, and how those are stored.

    ``num_runs`` 0 means only the members that ``detcurate ensemble add`` has put there. ``max_gb`` 0 is no limit.
    docs/explanation/ensembles.md says which schedule reads which setting.
    """

    num_runs: int = Field(2, ge=0)
    members_per_run: int = Field(5, ge=1)
    last_fraction: float = Field(0.5, gt=0, le=1)
    iterations: tuple[int, ...] = ()
    schedule: str = "last_fraction"
    every: int = Field(1000, ge=1)
    cycles: int = Field(5, ge=1)
    dtype: str = "fp32"
    average_last: int = Field(0, ge=0)
    average_every: int = Field(1, ge=1)
    max_gb: float = Field(0.0, ge=0)
    augmentations: tuple[str, ...] = ()

    @field_validator("schedule")
    @classmethod
    def _validate_schedule(cls, name: str) -> str:
        return require_known("the schedule", name, SCHEDULES)

    @field_validator("dtype")
    @classmethod
    def _validate_dtype(cls, name: str) -> str:
        return require_known("the dtype", name, DTYPES)

    @field_validator("augmentations")
    @classmethod
    def _validate_augmentations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(require_known("an augmentation", name, AUGMENTATIONS) for name in names)

    @model_validator(mode="after")
    def _validate_iterations(self) -> EnsembleSettings:
        if self.iterations and self.schedule not in ("last_fraction", "explicit"):
            raise ValueError(f"iterations must be empty for the schedule {self.schedule}, got {list(self.iterations)}")
        if self.schedule == "explicit" and not self.iterations:
            raise ValueError("iterations must be given for the schedule explicit, got none")
        return self

    def augmentation(self, run: int) -> str:
        """Return the name of a run's augmentation."""
        return self.augmentations[run % len(self.augmentations)] if self.augmentations else "default"


class PredictSettings(Settings):
    """How the pool goes through the members. What a detection is, ``MODEL.*_TEST`` and ``TEST`` say.

    ``mode`` is what each member is asked: where objects are (``cluster``), what is in given boxes besides
    (``reference``, two-stage detectors), or what is at every anchor (``dense``, one-stage detectors).
    ``memory_gb`` is what the members' weights may take on a device: those that do not fit are loaded in groups,
    shard by shard. ``precision`` is that of the arithmetic, on a GPU. ``embeddings`` keeps a row an image of the first
    member's features, for near-duplicates and diversity. ``results`` names answers of other frameworks' detectors that
    ``detcurate import-results`` has put there; they take the place of an ensemble of Detectron2.
    """

    batch_size: int = Field(8, ge=1)
    shard_size: int = Field(64, ge=1)
    memory_gb: float = Field(8.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    mode: Literal["cluster", "reference", "dense"] = "cluster"
    embeddings: bool = False
    results: str = ""

    @field_validator("results")
    @classmethod
    def _validate_results(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"results must be a name of letters, digits, '.', '_' and '-', got {name!r}")
        return name

    @model_validator(mode="after")
    def _validate_members(self) -> PredictSettings:
        if self.results and self.embeddings:
            raise ValueError("embeddings must be False with results: no member is there to be asked for features")
        if self.results and self.mode != "cluster":
            raise ValueError(
                f"mode must be cluster with results, got {self.mode}: no member is there to be asked again"
            )
        return self


class RaySettings(Settings):
    """How ``--engine ray`` uses a cluster; docs/how-to/clusters.md says what each setting is for.

    ``num_workers`` 0: as many as there is room for. A worker that predicts on a GPU takes ``gpus_per_worker`` of one
    and is given ``shards_per_block`` shards at a time. After ``max_deaths`` workers at one block the run is given up.
    """

    num_workers: int = Field(0, ge=0)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(1.0, gt=0, le=1)
    shards_per_block: int = Field(4, ge=1)
    max_deaths: int = Field(3, ge=1)
