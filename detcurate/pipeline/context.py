"""The run that every stage works on: its config, directories, datasets and usable images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import orjson

from detcurate import legacy
from detcurate.coco.dataset import CocoDataset, read_coco
from detcurate.coco.validation.findings import parse_policies
from detcurate.config import CurateSettings, EvaluationSettings, PoolSettings, curate_settings
from detcurate.engines import LOCAL, Engine
from detcurate.errors import DatasetError, PredictionError
from detcurate.io.storage import Location, RemotePath, annotation_copy, join, locate
from detcurate.pipeline.stage import STAGE_FILE, damaged_outputs, read_stage_metadata
from detcurate.synthetic import CLASSES, SyntheticConfig

StageMetadata = dict[str, Any]

LOG = "log.txt"
"""The log file below ``OUTPUT_DIR``."""

CACHE = "cache"
"""The directory below ``OUTPUT_DIR`` for caches, which may be deleted."""

ADDED = "added"
"""The directory below ``OUTPUT_DIR`` for members trained elsewhere; no stage owns it."""

CANDIDATES = "candidates"
"""The directory below ``OUTPUT_DIR`` for the runs that rank unlabelled images; no stage owns it."""

IMPORTED = "imported"
"""The directory below ``OUTPUT_DIR`` for imported predictions of other frameworks; no stage owns it."""

STORED = ("predict", "score")
"""The stages that write below ``CURATE.STORAGE.ROOT`` if it is set."""

LocalStage = Literal["pool", "search", "train", "select", "manifest", "retrain", "evaluate", "report"]
"""The stages that always write below ``OUTPUT_DIR``."""

STAGES = ("pool", "search", "train", "predict", "score", "select", "manifest", "retrain", "evaluate", "report")
"""All stages in order; each has a directory of its name."""


@dataclass(frozen=True)
class Run:
    """One run of the pipeline.

    Args:
        cfg: The frozen config.
        config_file: The file of the config.
        distributed: Detectron2's launch options (num_gpus, num_machines, machine_rank, dist_url).
        finished_stages: Stage -> metadata of the stages that have finished, added as they finish.
        round: The round of a search, see :mod:`detcurate.pipeline.search`; None for the last round, and without a
            search.
        engine: Runs prediction and scoring; the results do not depend on it.
        labelled: For ranked candidates, the run with the labelled pool.
    """

    cfg: Any
    config_file: Path
    distributed: dict[str, Any] = field(default_factory=dict)
    finished_stages: dict[str, StageMetadata] = field(default_factory=dict)
    round: int | None = None
    engine: Engine = LOCAL
    labelled: Run | None = None

    @cached_property
    def settings(self) -> CurateSettings:
        """The typed settings under ``CURATE``; with imported predictions, ``NUM_RUNS`` is 0."""
        settings = curate_settings(self.cfg.CURATE)
        if not settings.predict.results:
            return settings
        return settings.model_copy(update={"ensemble": settings.ensemble.model_copy(update={"num_runs": 0})})

    @property
    def output_dir(self) -> Path:
        """``OUTPUT_DIR``."""
        return Path(self.cfg.OUTPUT_DIR)

    @overload
    def directory(self, stage: LocalStage) -> Path: ...

    @overload
    def directory(self, stage: str) -> Location: ...

    def directory(self, stage: str) -> Location:
        """Return the directory of a stage, which is named after it.

        The stages in ``STORED`` write below ``CURATE.STORAGE.ROOT`` if it is set. A run of version 0.1 keeps its
        directories.
        """
        if stage not in self._directories:
            base = self.storage_root if stage in STORED else self.output_dir
            if self.round is not None and stage != "pool":
                base = base / "search" / f"round-{self.round}"
            self._directories[stage] = stage_directory(base, stage)
        return self._directories[stage]

    @cached_property
    def storage_root(self) -> Location:
        """``CURATE.STORAGE.ROOT``, or ``OUTPUT_DIR`` if it is empty."""
        storage = self.settings.storage
        if not storage.root:
            return self.output_dir
        return locate(storage.root, name="CURATE.STORAGE.ROOT", options=storage.options)

    def for_round(self, number: int) -> Run:
        """Return the run of a round of the search, with the pool that this run has already read."""
        of_pool = {name: stage_metadata for name, stage_metadata in self.finished_stages.items() if name == "pool"}
        other = replace(self, round=number, finished_stages=of_pool)
        other.__dict__.update({name: self.__dict__[name] for name in _OF_THE_POOL if name in self.__dict__})
        return other

    def stage_metadata(self, stage: str) -> StageMetadata:
        """Return the metadata of a finished stage.

        Raises:
            PredictionError: The stage has not finished, or one of its files is missing or damaged.
        """
        if stage in self.finished_stages:
            return self.finished_stages[stage]
        stage_metadata = read_stage_metadata(self.directory(stage))
        if stage_metadata is None or stage_metadata["status"] != "complete":
            raise PredictionError(
                f"{self.output_dir}: the stage '{stage}' has not finished. Run it first, with --until {stage}."
            )
        for name, why in damaged_outputs(self.directory(stage), stage_metadata).items():
            raise PredictionError(
                f"{self.directory(stage) / name}: this file of the stage '{stage}' {why}. Run the stage again, with "
                f"--until {stage}."
            )
        self.finished_stages[stage] = stage_metadata
        return stage_metadata

    @property
    def is_rendered(self) -> bool:
        """Whether the pool is rendered, not read from files of the user."""
        return self.settings.render.num_images > 0

    def annotations(self, part: str) -> Path:
        """Return the COCO file of the ``"pool"`` or the ``"evaluation"`` images; from object storage, a local copy.

        Raises:
            DatasetError: The object does not exist.
            StorageError: The object cannot be read.
        """
        if part not in self._annotations:
            place = self.annotations_place(part)
            self._annotations[part] = place if isinstance(place, Path) else _copied(place, part)
        return self._annotations[part]

    def annotations_place(self, part: str) -> Location:
        """Return the location of that file, which may be in object storage."""
        if self.is_rendered:
            return self.directory("pool") / f"{_RENDERED[part]}.json"
        return join(self.dataset_root, self._files(part).annotations)

    def image_root(self, part: str) -> Location:
        """Return the folder that the file names of the ``"pool"`` or the ``"evaluation"`` images are relative to.

        In object storage, every call returns the same object, which keeps its listing.
        """
        if self.is_rendered:
            return self.directory("pool") / f"images-{_RENDERED[part]}"
        if part not in self._image_roots:
            self._image_roots[part] = join(self.dataset_root, self._files(part).image_root)
        return self._image_roots[part]

    @cached_property
    def dataset_root(self) -> Location:
        """``DATASETS.ROOT``."""
        options = self.settings.storage.options
        return locate(str(self.cfg.DATASETS.ROOT), name="DATASETS.ROOT", options=options)

    @cached_property
    def _directories(self) -> dict[str, Location]:
        return {}

    @cached_property
    def _annotations(self) -> dict[str, Path]:
        return {}

    @cached_property
    def _image_roots(self) -> dict[str, Location]:
        return {}

    def _files(self, part: str) -> PoolSettings | EvaluationSettings:
        return self.settings.pool if part == "pool" else self.settings.evaluation

    @property
    def policies(self) -> dict[str, str]:
        """Rule -> policy for findings in the annotation files, where it differs from the default."""
        return parse_policies(self.settings.pool.findings)

    @cached_property
    def pool(self) -> CocoDataset:
        """The labelled pool, quarantined images included."""
        return read_coco(self.annotations("pool"), self.policies)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the pool's classes, known before a rendered pool exists."""
        return CLASSES if self.is_rendered else self.pool.class_names

    @cached_property
    def evaluation(self) -> CocoDataset:
        """The labelled evaluation images."""
        return read_coco(self.annotations("evaluation"), self.policies)

    @cached_property
    def usable_image_ids(self) -> np.ndarray:
        """(I,) int64 ascending: the pool without its quarantined images."""
        bad = [entry["image_id"] for entry in self.pool_facts["quarantined"]]
        return self.pool.image_ids[~np.isin(self.pool.image_ids, bad)]

    @cached_property
    def pool_facts(self) -> dict[str, Any]:
        """The content of ``pool/pool.json``."""
        self.stage_metadata("pool")
        return dict(orjson.loads((self.directory("pool") / "pool.json").read_bytes()))

    def synthetic(self, part: str) -> SyntheticConfig:
        """Return the renderer's settings of the ``"pool"`` (with defects) or the ``"evaluation"`` images (clean)."""
        render = self.settings.render
        if part == "evaluation":
            # Far from seeds that a user would try next: the evaluation must not show streets of the pool.
            seed = render.seed + 1_000_003
            return SyntheticConfig.clean(
                num_images=render.num_evaluation_images, width=render.width, height=render.height, seed=seed
            )
        return SyntheticConfig(
            num_images=render.num_images,
            width=render.width,
            height=render.height,
            seed=render.seed,
            near_duplicate_fraction=render.near_duplicate_fraction,
            wrong_class_fraction=render.label_noise_fraction,
            shifted_box_fraction=render.label_noise_fraction,
            missing_box_fraction=render.label_noise_fraction,
            spurious_box_fraction=render.label_noise_fraction,
        )


_RENDERED = {"pool": "train", "evaluation": "val"}
_OF_THE_POOL = ("settings", "pool", "evaluation", "usable_image_ids", "pool_facts", "_annotations", "_image_roots")


@overload
def stage_directory(base: Path, stage: str) -> Path: ...


@overload
def stage_directory(base: Location, stage: str) -> Location: ...


def stage_directory(base: Location, stage: str) -> Location:
    """Return the directory of a stage; if only the one with the name of version 0.1 exists, that one."""
    directory, old = base / stage, base / legacy.FOLDERS.get(stage, stage)
    if old == directory or (directory / STAGE_FILE).exists() or not (old / STAGE_FILE).exists():
        return directory
    legacy.warn_renamed(f"{old.name}/", f"{stage}/")
    return old


def _copied(place: RemotePath, part: str) -> Path:
    try:
        return annotation_copy(place)
    except FileNotFoundError as error:
        raise DatasetError(
            f"CURATE.{part.upper()}.ANNOTATIONS: no such object or bucket (got {place}). Fix it or DATASETS.ROOT."
        ) from error
