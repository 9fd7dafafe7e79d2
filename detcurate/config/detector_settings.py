"""Settings of detectors: training, ensemble members, prediction, Ray."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from detcurate.choices import AUGMENTATIONS, DTYPES, SCHEDULES
from detcurate.config.base import Settings, named


class TrainSettings(Settings):
    """How one detector is trained, in addition to Detectron2's ``SOLVER``."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="Optimizer of all trainings.")
    allow_pickle: bool = Field(
        False,
        description="Unpickle initial weights, which can run code; accepted on the command line only, never in a file.",
    )
    gpus_per_run: Literal[0, 1] = Field(
        0,
        description="GPUs of each training run: 0 trains one run at a time on all of --num-gpus, 1 trains as many runs "
        "side by side as there are GPUs.",
    )


class EnsembleSettings(Settings):
    """How many runs are trained, which iterations become members, and how members are stored."""

    num_runs: int = Field(
        2, ge=0, description="Number of trainings with different seeds; 0 uses only members added by `ensemble add`."
    )
    members_per_run: int = Field(
        5, ge=1, description="Members of each run, for the schedules last_fraction and cosine_cycles."
    )
    last_fraction: float = Field(
        0.5, gt=0, le=1, description="Last share of a training that members are taken from, for last_fraction."
    )
    iterations: tuple[int, ...] = Field(
        (),
        description="Iterations (from 0) that become members, for the schedule explicit; given alone they select it.",
    )
    schedule: str = named("last_fraction", SCHEDULES, "Rule that chooses the iterations that become members.")
    every: int = Field(1000, ge=1, description="Iterations between two members, for the schedule every_n.")
    cycles: int = Field(5, ge=1, description="Number of learning-rate cycles, for the schedule cosine_cycles.")
    dtype: str = named("fp32", DTYPES, "Type that a member's floating-point weights are stored as.")
    average_last: int = Field(
        0,
        ge=0,
        description="Number of intervals between members, counted from the end, to store weight averages of as well.",
    )
    average_every: int = Field(1, ge=1, description="Iterations between two samples of a weight average.")
    max_gb: float = Field(0.0, ge=0, description="Maximum size of all members on disk in GB; 0 means no limit.")
    augmentations: tuple[str, ...] = named(
        (), AUGMENTATIONS, "Augmentations of run 0, 1, ... in turn; empty means the config's INPUT for every run."
    )

    @model_validator(mode="after")
    def _validate_iterations(self) -> EnsembleSettings:
        if self.iterations and self.schedule not in ("last_fraction", "explicit"):
            raise ValueError(f"ITERATIONS: must be empty for SCHEDULE {self.schedule} (got {list(self.iterations)})")
        if self.schedule == "explicit" and not self.iterations:
            raise ValueError("ITERATIONS: must name at least one iteration for SCHEDULE explicit (got none)")
        return self

    def augmentation(self, run: int) -> str:
        """Return the name of a run's augmentation."""
        return self.augmentations[run % len(self.augmentations)] if self.augmentations else "default"


class PredictSettings(Settings):
    """How the members predict the pool. Detectron2's ``MODEL.*_TEST`` and ``TEST`` define a detection."""

    batch_size: int = Field(8, ge=1, description="Images in one forward pass.")
    shard_size: int = Field(64, ge=1, description="Images in one prediction shard, the unit of work and of resuming.")
    memory_gb: float = Field(
        8.0, gt=0, description="Memory for members' weights on a device in GB; more members are loaded in groups."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass on a GPU.")
    mode: Literal["cluster", "reference", "dense"] = Field(
        "cluster",
        description="What members predict: detections (cluster), also the class of given boxes (reference, two-stage "
        "detectors), or the scores of every anchor (dense, one-stage detectors).",
    )
    embeddings: bool = Field(
        False, description="Store the first member's features of each image, for near-duplicates and diversity."
    )
    results: str = Field(
        "", description="Name of predictions imported by `detcurate import`, used instead of Detectron2 members."
    )

    @field_validator("results")
    @classmethod
    def _validate_results(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"must be a name of letters, digits, '.', '_' and '-' (got {name!r})")
        return name

    @model_validator(mode="after")
    def _validate_members(self) -> PredictSettings:
        if self.results and self.embeddings:
            raise ValueError(
                "EMBEDDINGS: must be False with RESULTS (got True). Imported predictions contain no features."
            )
        if self.results and self.mode != "cluster":
            raise ValueError(
                f"MODE: must be cluster with RESULTS (got {self.mode}). Imported predictions contain detections only."
            )
        return self


class RaySettings(Settings):
    """How ``--engine ray`` uses a cluster."""

    num_workers: int = Field(0, ge=0, description="Number of workers; 0 means as many as fit on the cluster.")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that a worker reserves.")
    gpus_per_worker: float = Field(
        1.0, gt=0, le=1, description="Share of a GPU that a worker reserves when MODEL.DEVICE is a GPU."
    )
    shards_per_block: int = Field(4, ge=1, description="Prediction shards that a worker receives at a time.")
    max_deaths: int = Field(3, ge=1, description="Number of workers that may die on one block before the run fails.")
