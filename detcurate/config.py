"""The settings of every stage: one frozen, validated object each.

Users write them in upper case under ``CURATE`` in a Detectron2 config file (``CURATE.SELECT.FRACTION``);
:mod:`detcurate.d2.config` declares those keys from the defaults below, so that they stand in one place only.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from detcurate.coco.findings import parse_policies
from detcurate.ensemble import AUGMENTATIONS, STORAGES
from detcurate.errors import ConfigError, SelectionError
from detcurate.schedule import SCHEDULES
from detcurate.score.aggregate import AGGREGATIONS
from detcurate.score.associate import ASSOCIATIONS
from detcurate.score.combine import NORMALIZATIONS
from detcurate.score.evidence import MISSING
from detcurate.score.measures import LABEL_MEASURES, MEASURES
from detcurate.score.pool import WITHOUT_OBJECTS
from detcurate.select.compose import GUARDS
from detcurate.select.quotas import parse_quota
from detcurate.select.rank import STRATEGIES
from detcurate.storage import StorageOptions, is_url, locate

ARMS = (
    "curated",
    "random",
    "full",
    "random_boxes",
    "stratified_random",
    "most_boxes",
    "without_duplicates",
    "single_model_entropy",
)


def require_known(name: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` when it is among ``known``; else raise ``ValueError`` with the nearest name and the list."""
    names = sorted(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(names)}, got {value!r}{hint}")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _location(text: str, info: ValidationInfo) -> str:
    """Return a text that is a path, or a URL that detcurate reads and that holds no secret."""
    try:
        locate(text, name=str(info.field_name))
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


class PoolSettings(_Settings):
    """Which labelled images are searched. Paths are relative to ``DATASETS.ROOT`` unless absolute, or URLs.

    ``findings`` holds policies such as ``"invalid_box=repair"``, for the annotations of pool and evaluation.
    """

    annotations: str = "train.json"
    image_root: str = "images"
    bad_images: Literal["stop", "quarantine"] = "stop"
    findings: tuple[str, ...] = ()

    @field_validator("findings")
    @classmethod
    def _validate_findings(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        try:
            parse_policies(texts)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return texts

    _validate_locations = field_validator("annotations", "image_root")(_location)


class RenderSettings(_Settings):
    """The rendered driving pool, used instead of files of your own when ``num_images`` is above 0."""

    num_images: int = Field(0, ge=0)
    num_evaluation_images: int = Field(300, ge=1)
    width: int = Field(256, ge=32)
    height: int = Field(160, ge=32)
    seed: int = Field(0, ge=0)
    near_duplicate_fraction: float = Field(0.25, ge=0, le=0.9)
    label_noise_fraction: float = Field(0.05, ge=0, le=0.25)


class EvaluationSettings(_Settings):
    """The labelled images that every arm is evaluated on. Paths as in ``PoolSettings``."""

    annotations: str = "val.json"
    image_root: str = "images"

    _validate_locations = field_validator("annotations", "image_root")(_location)


class TrainSettings(_Settings):
    """How one detector is trained, beyond what ``SOLVER`` says.

    ``gpus_per_run`` 0 gives each run all GPUs of ``--num-gpus``, one run after the other; 1 gives it one, and as many
    runs train side by side as there are GPUs.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    allow_pickle: bool = False
    gpus_per_run: Literal[0, 1] = 0


class EnsembleSettings(_Settings):
    """How many runs there are, which iterations of each become members, and how those are stored.

    ``num_runs`` 0 means only the members that ``detcurate ensemble add`` has put there. ``max_gb`` 0 is no limit.
    docs/ensemble.md says which schedule reads which setting.
    """

    num_runs: int = Field(2, ge=0)
    members_per_run: int = Field(5, ge=1)
    last_fraction: float = Field(0.5, gt=0, le=1)
    iterations: tuple[int, ...] = ()
    schedule: str = "last_fraction"
    every: int = Field(1000, ge=1)
    cycles: int = Field(5, ge=1)
    storage: str = "fp32"
    average_last: int = Field(0, ge=0)
    average_every: int = Field(1, ge=1)
    max_gb: float = Field(0.0, ge=0)
    augmentations: tuple[str, ...] = ()

    @field_validator("schedule")
    @classmethod
    def _validate_schedule(cls, name: str) -> str:
        return require_known("the schedule", name, SCHEDULES)

    @field_validator("storage")
    @classmethod
    def _validate_storage(cls, name: str) -> str:
        return require_known("the storage", name, STORAGES)

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


class PredictSettings(_Settings):
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


_SCORE_NAMES: Mapping[str, Iterable[str]] = {
    "aggregation": AGGREGATIONS,
    "association": ASSOCIATIONS,
    "missing": MISSING,
    "normalization": NORMALIZATIONS,
    "without_objects": WITHOUT_OBJECTS,
}


class ScoreSettings(_Settings):
    """Which disagreement is measured, and how it becomes one score an image.

    Every measure is in the tables; ``measures`` and ``weights`` say which of them make the image score. docs/scoring.md
    says what each setting does.
    """

    measures: tuple[str, ...] = ("mutual_information", "iou_dispersion", "existence_entropy")
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    aggregation: str = "top_k_mean"
    normalization: str = "rank"
    iou_threshold: float = Field(0.5, gt=0, le=1)
    association: str = "sequential"
    per_class: bool = False
    missing: str = "background"
    top_k: int = Field(3, ge=1)
    without_objects: str = "zero"
    calibration_images: int = Field(0, ge=0)

    @field_validator("measures")
    @classmethod
    def _validate_measures(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) != len(names):
            raise ValueError(f"measures must be one or more different names, got {list(names)}")
        return tuple(require_known("a measure", name, (*MEASURES, *LABEL_MEASURES)) for name in names)

    @field_validator("aggregation", "association", "missing", "normalization", "without_objects")
    @classmethod
    def _validate_name(cls, name: str, info: ValidationInfo) -> str:
        field = str(info.field_name)
        return require_known(f"the {field}" if field.endswith("ation") else field, name, _SCORE_NAMES[field])

    @model_validator(mode="after")
    def _validate_weights(self) -> ScoreSettings:
        if len(self.weights) != len(self.measures):
            raise ValueError(f"weights must hold one number a measure ({len(self.measures)}), got {len(self.weights)}")
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"weights must be at least 0 with a sum above 0, got {list(self.weights)}")
        return self


class SearchSettings(_Settings):
    """How the subset is searched. docs/selection.md, "Subset search", says when to take which.

    ``compress``: the ensemble is trained on the whole pool, and the best of it is kept. ``pretrain``: likewise, and the
    arms start from the weights of the ensemble's runs. ``build_up``: from a random seed set (``seed_images``, or where
    that is 0 ``seed_fraction`` of the pool), rounds that grow at most ``growth``-fold; with ``warm_start`` each
    starts from the weights of the round before. ``none``: as ``compress``, of an ensemble that was trained on other
    images, so nothing is said of small shares.
    """

    scheme: Literal["compress", "build_up", "pretrain", "none"] = "compress"
    seed_fraction: float = Field(0.125, gt=0, lt=1)
    seed_images: int = Field(0, ge=0)
    growth: float = Field(2.0, gt=1)
    warm_start: bool = False

    @model_validator(mode="after")
    def _validate_warm_start(self) -> SearchSettings:
        if self.warm_start and self.scheme != "build_up":
            raise ValueError(f"warm_start must be False with the scheme {self.scheme}, which has one round, got True")
        return self


class SelectSettings(_Settings):
    """What is kept, and in which order it is bought. docs/selection.md has the steps.

    The budget is one of ``num_images``, ``num_boxes`` and ``cost_seconds`` (what annotating takes, by
    ``seconds_per_image`` and ``seconds_per_box``) when it is above 0, else ``fraction`` of the images. Floors and caps
    are texts such as ``"bicycle=200"`` (boxes) and ``"weather=rain=500"`` (images). 0 turns off
    ``duplicate_similarity``, ``sequence_gap`` and ``empty_floor``.
    """

    strategy: str = "top_n"
    fraction: float = Field(0.5, gt=0, le=1)
    num_images: int = Field(0, ge=0)
    num_boxes: int = Field(0, ge=0)
    cost_seconds: float = Field(0.0, ge=0)
    seconds_per_image: float = Field(0.0, ge=0)
    seconds_per_box: float = Field(0.0, ge=0)
    guard: str = "off"
    guard_quantile: float = Field(0.95, ge=0, le=1)
    duplicate_similarity: float = Field(0.0, ge=0, le=1)
    sequence_gap: int = Field(0, ge=0)
    class_floors: tuple[str, ...] = ()
    class_caps: tuple[str, ...] = ()
    metadata_floors: tuple[str, ...] = ()
    metadata_caps: tuple[str, ...] = ()
    empty_floor: int = Field(0, ge=0)
    threshold: float = 0.0
    num_strata: int = Field(50, ge=1)
    oversampling: float = Field(4.0, ge=1)

    @field_validator("strategy")
    @classmethod
    def _validate_strategy(cls, name: str) -> str:
        return require_known("the strategy", name, STRATEGIES)

    @field_validator("guard")
    @classmethod
    def _validate_guard(cls, name: str) -> str:
        return require_known("the guard", name, GUARDS)

    @field_validator("class_floors", "class_caps", "metadata_floors", "metadata_caps")
    @classmethod
    def _validate_quotas(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        num_names = 1 if str(info.field_name).startswith("class") else 2
        for text in texts:
            try:
                parse_quota(text, num_names=num_names)
            except SelectionError as error:
                raise ValueError(str(error)) from None
        return texts

    @model_validator(mode="after")
    def _validate_budget(self) -> SelectSettings:
        asked = {name: getattr(self, name) for name in ("num_images", "num_boxes", "cost_seconds")}
        given = [f"{name} {value}" for name, value in asked.items() if value]
        if len(given) > 1:
            raise ValueError(f"num_images, num_boxes and cost_seconds must not be above 0 together, got {given}")
        if self.cost_seconds and not self.seconds_per_image + self.seconds_per_box:
            raise ValueError("seconds_per_image or seconds_per_box must be above 0 for a budget of cost_seconds")
        return self


class ManifestSettings(_Settings):
    """How the subset is written: compressed or not, with a Croissant description or not.

    ``relabel_limit`` is how many suspected labels ``relabel.json`` lists at most; 0 writes none.
    """

    compress: bool = False
    croissant: bool = False
    relabel_limit: int = Field(1000, ge=0)


class RetrainSettings(_Settings):
    """Which arms are trained from scratch and compared, each with seeds ``SEED, SEED + 1, …``.

    docs/evidence.md says what each arm is. ``equal`` says what they have in common: ``iterations``, so that a smaller
    subset is seen more often, or ``epochs``, so that its training is shorter, and cheaper, in proportion.
    ``curve_fractions`` are shares of the pool, in (0, 1): random subsets for a learning curve, an arm each.
    """

    arms: tuple[str, ...] = ("curated", "random", "full")
    num_seeds: int = Field(2, ge=1)
    equal: Literal["iterations", "epochs"] = "iterations"
    curve_fractions: tuple[float, ...] = ()

    @field_validator("arms")
    @classmethod
    def _validate_arms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) != len(names):
            raise ValueError(f"arms must be one or more different names, got {list(names)}")
        return tuple(require_known("an arm", name, ARMS) for name in names)

    @model_validator(mode="after")
    def _validate_curve(self) -> RetrainSettings:
        fractions, is_closed = self.curve_fractions, "full" in self.arms
        if not all(0 < fraction < 1 for fraction in fractions):
            raise ValueError(f"curve_fractions must be in (0, 1), got {list(fractions)}; the arm full closes the curve")
        if len(self.curve_arms) < len(fractions):
            raise ValueError(f"curve_fractions must differ in their first six digits, got {list(fractions)}")
        if fractions and len(fractions) + is_closed < 3:
            raise ValueError(
                "curve_fractions must give a learning curve three sizes: three fractions, or two beside the arm full, "
                f"got {list(fractions)} with the arms {', '.join(self.arms)}"
            )
        return self

    @property
    def curve_arms(self) -> dict[str, float]:
        """The arms of the learning curve and their shares of the pool, the smallest first."""
        return {f"random_{100 * fraction:g}%": fraction for fraction in sorted(self.curve_fractions)}

    @property
    def all_arms(self) -> tuple[str, ...]:
        """The arms that are asked for, and those of the learning curve."""
        return (*self.arms, *self.curve_arms)


class StorageSettings(_Settings):
    """Object storage: docs/storage.md says what may be there.

    ``root`` is a URL below which the predictions and scores go; empty is ``OUTPUT_DIR``. ``cache`` is the folder of
    local copies, on a disk of this machine; empty is the user's own cache folder. ``cache_gb`` is what copies of images
    may take in it. A request that fails is tried again ``retries`` times; ``timeout_s`` is for how long a connection
    may be silent.
    """

    root: str = ""
    cache: str = ""
    cache_gb: float = Field(8.0, gt=0)
    retries: int = Field(5, ge=0)
    timeout_s: float = Field(30.0, gt=0)

    _validate_location = field_validator("root")(_location)

    @field_validator("root")
    @classmethod
    def _validate_root(cls, text: str) -> str:
        if text and not is_url(text):
            raise ValueError(f"root must be a URL, or empty for OUTPUT_DIR, got {text!r}")
        return text

    @property
    def options(self) -> StorageOptions:
        """How object storage is asked."""
        cache = Path(self.cache).expanduser() if self.cache else None
        return StorageOptions(self.retries, self.timeout_s, cache, int(self.cache_gb * 1e9))


class RaySettings(_Settings):
    """How ``--engine ray`` uses a cluster; docs/scale.md says what each setting is for.

    ``num_workers`` 0: as many as there is room for. A worker that predicts on a GPU takes ``gpus_per_worker`` of one
    and is given ``shards_per_block`` shards at a time. After ``max_deaths`` workers at one block the run is given up.
    """

    num_workers: int = Field(0, ge=0)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(1.0, gt=0, le=1)
    shards_per_block: int = Field(4, ge=1)
    max_deaths: int = Field(3, ge=1)


class CurateSettings(_Settings):
    """Everything under ``CURATE``. ``num_processes`` 0 means one a CPU core."""

    num_processes: int = Field(0, ge=0)
    pool: PoolSettings = PoolSettings()
    render: RenderSettings = RenderSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    train: TrainSettings = TrainSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    predict: PredictSettings = PredictSettings()
    score: ScoreSettings = ScoreSettings()
    search: SearchSettings = SearchSettings()
    select: SelectSettings = SelectSettings()
    manifest: ManifestSettings = ManifestSettings()
    retrain: RetrainSettings = RetrainSettings()
    storage: StorageSettings = StorageSettings()
    ray: RaySettings = RaySettings()

    @model_validator(mode="after")
    def _validate_arms(self) -> CurateSettings:
        if "without_duplicates" in self.retrain.arms and not self.select.duplicate_similarity:
            raise ValueError(
                "SELECT.DUPLICATE_SIMILARITY must be above 0 for the arm without_duplicates, got 0: it says what a "
                "near-duplicate is"
            )
        if "single_model_entropy" in self.retrain.arms and self.predict.mode == "dense":
            raise ValueError(
                "RETRAIN.ARMS must not hold single_model_entropy with PREDICT.MODE dense: no member's detections are "
                "kept"
            )
        return self

    @property
    def worker_processes(self) -> int:
        """How many worker processes to use on CPU."""
        return self.num_processes or os.cpu_count() or 1


def curate_settings(tree: Mapping[str, Any]) -> CurateSettings:
    """Validate the upper-case ``CURATE`` tree of a config.

    Raises:
        ConfigError: A key is unknown or a value is out of range; every finding is named.

    Example:
        >>> curate_settings({"SELECT": {"FRACTION": 0.25}}).select.fraction
        0.25
    """
    try:
        return CurateSettings.model_validate(_lower_keys(tree))
    except ValidationError as error:
        findings = "\n  ".join(_describe(finding) for finding in error.errors())
        raise ConfigError(findings) from None


def curate_defaults() -> dict[str, Any]:
    """Return the default ``CURATE`` tree with upper-case keys, as Detectron2 configs write them."""
    return _upper_keys(CurateSettings().model_dump())


def _describe(finding: Any) -> str:
    key = ".".join(["CURATE", *(str(part).upper() for part in finding["loc"])])
    message = finding["msg"].removeprefix("Value error, ")
    if finding["type"] == "value_error":
        return f"{key}: {message}"
    return f"{key}: {message[0].lower()}{message[1:]}, got {finding['input']!r}"


def _lower_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key.lower(): _lower_keys(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _upper_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key.upper(): _upper_keys(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
