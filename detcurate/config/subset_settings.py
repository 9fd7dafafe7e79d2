"""The settings of the subset: how images are scored, which are kept, and how that is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from detcurate.config.base import Settings, require_known
from detcurate.errors import SelectionError
from detcurate.score.aggregate import AGGREGATIONS, NORMALIZATIONS
from detcurate.score.associate import ASSOCIATIONS
from detcurate.score.cluster_statistics import MISSING
from detcurate.score.measures import LABEL_MEASURES, MEASURES
from detcurate.score.scoring import WITHOUT_OBJECTS
from detcurate.select.compose import NOISE_FILTERS
from detcurate.select.limits import parse_quota
from detcurate.select.strategies import STRATEGIES

_SCORE_NAMES: Mapping[str, Iterable[str]] = {
    "aggregation": AGGREGATIONS,
    "association": ASSOCIATIONS,
    "missing": MISSING,
    "normalization": NORMALIZATIONS,
    "without_objects": WITHOUT_OBJECTS,
}


class ScoreSettings(Settings):
    """Which disagreement is measured, and how it becomes one score an image.

    Every measure is in the tables; ``measures`` and ``weights`` say which of them make the image score.
    docs/explanation/scoring.md says what each setting does.
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


class SearchSettings(Settings):
    """How the subset is searched. docs/explanation/selection.md, "Subset search", says when to take which.

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


class SelectSettings(Settings):
    """What is kept, and in which order it is bought. docs/explanation/selection.md has the steps.

    The budget is one of ``num_images``, ``num_boxes`` and ``cost_seconds`` (what annotating takes, by
    ``seconds_per_image`` and ``seconds_per_box``) when it is above 0, else ``fraction`` of the images. Floors and caps
    are texts such as ``"bicycle=200"`` (boxes) and ``"weather=rain=500"`` (images). 0 turns off
    ``duplicate_similarity``, ``sequence_gap`` and ``empty_minimum``.
    """

    strategy: str = "top_n"
    fraction: float = Field(0.5, gt=0, le=1)
    num_images: int = Field(0, ge=0)
    num_boxes: int = Field(0, ge=0)
    cost_seconds: float = Field(0.0, ge=0)
    seconds_per_image: float = Field(0.0, ge=0)
    seconds_per_box: float = Field(0.0, ge=0)
    noise_filter: str = "off"
    noise_filter_quantile: float = Field(0.95, ge=0, le=1)
    duplicate_similarity: float = Field(0.0, ge=0, le=1)
    sequence_gap: int = Field(0, ge=0)
    class_minimums: tuple[str, ...] = ()
    class_maximums: tuple[str, ...] = ()
    metadata_minimums: tuple[str, ...] = ()
    metadata_maximums: tuple[str, ...] = ()
    empty_minimum: int = Field(0, ge=0)
    threshold: float = 0.0
    num_strata: int = Field(50, ge=1)
    oversampling: float = Field(4.0, ge=1)

    @field_validator("strategy")
    @classmethod
    def _validate_strategy(cls, name: str) -> str:
        return require_known("the strategy", name, STRATEGIES)

    @field_validator("noise_filter")
    @classmethod
    def _validate_noise_filter(cls, name: str) -> str:
        return require_known("the noise_filter", name, NOISE_FILTERS)

    @field_validator("class_minimums", "class_maximums", "metadata_minimums", "metadata_maximums")
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
        requested = {name: getattr(self, name) for name in ("num_images", "num_boxes", "cost_seconds")}
        given = [f"{name} {value}" for name, value in requested.items() if value]
        if len(given) > 1:
            raise ValueError(f"num_images, num_boxes and cost_seconds must not be above 0 together, got {given}")
        if self.cost_seconds and not self.seconds_per_image + self.seconds_per_box:
            raise ValueError("seconds_per_image or seconds_per_box must be above 0 for a budget of cost_seconds")
        return self


class ManifestSettings(Settings):
    """How the subset is written: compressed or not, with a Croissant description or not.

    ``relabel_limit`` is how many suspected labels ``relabel.json`` lists at most; 0 writes none.
    """

    compress: bool = False
    croissant: bool = False
    relabel_limit: int = Field(1000, ge=0)


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


class RetrainSettings(Settings):
    """Which arms are trained from scratch and compared, each with seeds ``SEED, SEED + 1, …``.

    docs/explanation/experiments.md says what each arm is. ``equal`` says what they have in common: ``iterations``, so
    that a smaller subset is seen more often, or ``epochs``, so that its training is shorter in proportion.
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
