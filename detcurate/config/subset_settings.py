"""Settings of the subset: scores, search, selection, manifest, retraining."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from detcurate.choices import (
    AGGREGATIONS,
    ARMS,
    ASSOCIATIONS,
    DISAGREEMENT_MEASURES,
    LABEL_MEASURES,
    MISSING,
    NOISE_FILTERS,
    NORMALIZATIONS,
    STRATEGIES,
    WITHOUT_OBJECTS,
)
from detcurate.config.base import Settings, named, parse_quota, require_distinct


class ScoreSettings(Settings):
    """Which disagreement is measured, and how it becomes one score per image."""

    measures: tuple[str, ...] = named(
        ("mutual_information", "iou_dispersion", "existence_entropy"),
        (*DISAGREEMENT_MEASURES, *LABEL_MEASURES),
        "Measures that the image score combines; all measures are stored in the tables.",
    )
    weights: tuple[float, ...] = Field((), description="Weight of each of MEASURES; empty means equal weights.")
    aggregation: str = named("top_k_mean", AGGREGATIONS, "How the values of an image's objects become one value.")
    normalization: str = named("rank", NORMALIZATIONS, "How each measure is scaled over the pool before weighting.")
    iou_threshold: float = Field(
        0.5, gt=0, le=1, description="Minimum IoU at which detections of different members are the same object."
    )
    association: str = named("sequential", ASSOCIATIONS, "Algorithm that groups detections into objects.")
    per_class: bool = Field(False, description="Group only detections of the same class.")
    missing: str = named("background", MISSING, "What a member without a detection counts as: background, or nothing.")
    top_k: int = Field(3, ge=1, description="Number of objects that the aggregation top_k_mean averages.")
    without_objects: str = named(
        "zero", WITHOUT_OBJECTS, "Score of images without detections: zero, or that of other images."
    )
    calibration_images: int = Field(
        0, ge=0, description="Number of pool images to fit each member's temperature on; 0 does not calibrate."
    )

    _validate_measures = field_validator("measures")(require_distinct)

    @model_validator(mode="after")
    def _validate_weights(self) -> ScoreSettings:
        if self.weights and len(self.weights) != len(self.measures):
            raise ValueError(
                f"WEIGHTS: must hold one number for each of the {len(self.measures)} measures, or none for equal "
                f"weights (got {list(self.weights)})"
            )
        if self.weights and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise ValueError(f"WEIGHTS: must be at least 0 with a sum above 0 (got {list(self.weights)})")
        return self

    @property
    def measure_weights(self) -> dict[str, float]:
        """The weight of each of ``measures``, equal ones where ``weights`` is empty.

        Example:
            >>> ScoreSettings(measures=("entropy", "el2n")).measure_weights
            {'entropy': 1.0, 'el2n': 1.0}
        """
        return dict(zip(self.measures, self.weights or (1.0,) * len(self.measures), strict=True))


class SearchSettings(Settings):
    """Which images the scoring ensemble is trained on, and so in how many rounds the subset is selected."""

    scheme: Literal["compress", "build_up", "pretrain", "none"] = Field(
        "compress",
        description="compress: train the ensemble on the whole pool and keep the best of it; pretrain: the same, and "
        "start the arms from the ensemble's weights; build_up: grow the subset from a random seed set in rounds; none: "
        "the ensemble was trained on other images.",
    )
    seed_fraction: float = Field(0.125, gt=0, lt=1, description="Share of the pool in the seed set of build_up.")
    seed_images: int = Field(
        0, ge=0, description="Number of images in the seed set of build_up; 0 uses SEED_FRACTION instead."
    )
    growth: float = Field(2.0, gt=1, description="Maximum factor by which the subset grows in one round of build_up.")
    warm_start: bool = Field(False, description="Start each round of build_up from the weights of the round before it.")

    @model_validator(mode="after")
    def _validate_warm_start(self) -> SearchSettings:
        if self.warm_start and self.scheme != "build_up":
            raise ValueError(f"WARM_START: must be False with SCHEME {self.scheme}, which has one round (got True)")
        return self


class SelectSettings(Settings):
    """Which images are kept."""

    strategy: str = named("top_n", STRATEGIES, "Order in which images are selected until the budget is spent.")
    fraction: float = Field(
        0.5, gt=0, le=1, description="Budget as a share of the pool's images, unless another budget is above 0."
    )
    num_images: int = Field(0, ge=0, description="Budget as a number of images; 0 means another budget applies.")
    num_boxes: int = Field(0, ge=0, description="Budget as a number of labelled boxes; 0 means another budget applies.")
    cost_seconds: float = Field(
        0.0, ge=0, description="Budget of annotation time in seconds; 0 means another budget applies."
    )
    seconds_per_image: float = Field(
        0.0, ge=0, description="Annotation time of an image in seconds, apart from its boxes, for COST_SECONDS."
    )
    seconds_per_box: float = Field(0.0, ge=0, description="Annotation time of a box in seconds, for COST_SECONDS.")
    noise_filter: str = named(
        "off", NOISE_FILTERS, "Remove the images with the highest label-error scores (drop), and list them (queue)."
    )
    noise_filter_quantile: float = Field(
        0.95, ge=0, le=1, description="Quantile of the label-error score above which NOISE_FILTER removes an image."
    )
    duplicate_similarity: float | Literal["auto"] = Field(
        0.0,
        description="Similarity from which two images are near-duplicates (cosine of embeddings, or share of equal "
        "hash bits); auto finds it from the pool, 0 keeps all.",
        json_schema_extra={"range": "0 <= value <= 1"},
    )
    sequence_gap: int = Field(
        0, ge=0, description="Minimum distance in frames of two selected images of one sequence; 0 keeps all."
    )
    class_minimums: tuple[str, ...] = Field(
        (), description="Minimum number of boxes of a class, such as 'bicycle=200'."
    )
    class_maximums: tuple[str, ...] = Field((), description="Maximum number of boxes of a class, such as 'car=20000'.")
    metadata_minimums: tuple[str, ...] = Field(
        (), description="Minimum number of images with a metadata value, such as 'weather=rain=500'."
    )
    metadata_maximums: tuple[str, ...] = Field(
        (), description="Maximum number of images with a metadata value, such as 'sequence=drive-7=100'."
    )
    empty_minimum: int = Field(0, ge=0, description="Minimum number of images without a box; 0 means none.")
    threshold: float = Field(0.0, description="Minimum image score, for the strategy threshold.")
    num_strata: int = Field(50, ge=1, description="Number of equally wide score ranges, for the strategy strata.")
    oversampling: float = Field(
        4.0,
        ge=1,
        description="Number of budgets of best-scored images that k_center and facility_location choose from.",
    )

    @field_validator("duplicate_similarity", mode="before")
    @classmethod
    def _validate_similarity(cls, value: Any) -> Any:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value != "auto" and not (is_number and 0 <= value <= 1):
            raise ValueError(f"must be in [0, 1], or auto (got {value!r})")
        return value

    @field_validator("class_minimums", "class_maximums", "metadata_minimums", "metadata_maximums")
    @classmethod
    def _validate_quotas(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for text in texts:
            parse_quota(text, num_names=1 if str(info.field_name).startswith("class") else 2)
        return texts

    @model_validator(mode="after")
    def _validate_budget(self) -> SelectSettings:
        budgets = ("num_images", "num_boxes", "cost_seconds")
        given = [f"{name.upper()} {getattr(self, name)}" for name in budgets if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"at most one of NUM_IMAGES, NUM_BOXES and COST_SECONDS may be above 0 (got {given})")
        if self.cost_seconds and not self.seconds_per_image + self.seconds_per_box:
            raise ValueError(
                "COST_SECONDS: needs SECONDS_PER_IMAGE or SECONDS_PER_BOX above 0 "
                f"(got COST_SECONDS {self.cost_seconds:g} with both 0)"
            )
        return self


class ManifestSettings(Settings):
    """How the subset is written."""

    compress: bool = Field(False, description="Write subset.json.gz instead of subset.json.")
    croissant: bool = Field(False, description="Write a Croissant description (croissant.json) as well.")
    relabel_limit: int = Field(
        1000, ge=0, description="Maximum number of suspected label errors in relabel.json; 0 writes no such file."
    )


class RetrainSettings(Settings):
    """Which arms are trained from scratch and compared, with the seeds ``SEED, SEED + 1, ...``."""

    arms: tuple[str, ...] = named(
        ("curated", "random", "full"), ARMS, "Subsets of the pool to train on and compare (arms)."
    )
    num_seeds: int = Field(2, ge=1, description="Number of trainings of each arm, with different seeds.")
    equal: Literal["iterations", "epochs"] = Field(
        "iterations",
        description="What the trainings of all arms have in common: iterations, so that a smaller subset is seen more "
        "often, or epochs, so that its training is shorter.",
    )
    curve_fractions: tuple[float, ...] = Field(
        (),
        description="Shares of the pool to train random subsets of, for a learning curve; each in (0, 1).",
    )

    _validate_arms = field_validator("arms")(require_distinct)

    @model_validator(mode="after")
    def _validate_curve(self) -> RetrainSettings:
        fractions, is_closed = self.curve_fractions, "full" in self.arms
        got = f"(got {list(fractions)})"
        if not all(0 < fraction < 1 for fraction in fractions):
            raise ValueError(f"CURVE_FRACTIONS: must be in (0, 1) {got}. The arm full is the share 1.")
        if len(self.curve_arms) < len(fractions):
            raise ValueError(f"CURVE_FRACTIONS: must differ in their first six digits {got}")
        if fractions and len(fractions) + is_closed < 3:
            raise ValueError(
                "CURVE_FRACTIONS: a learning curve needs three sizes: three fractions, or two and the arm full "
                f"(got {list(fractions)} with ARMS {', '.join(self.arms)})"
            )
        return self

    @property
    def curve_arms(self) -> dict[str, float]:
        """The arms of the learning curve and their shares of the pool, the smallest first."""
        return {f"random_{100 * fraction:g}%": fraction for fraction in sorted(self.curve_fractions)}

    @property
    def all_arms(self) -> tuple[str, ...]:
        """The arms of ``arms`` and those of the learning curve."""
        return (*self.arms, *self.curve_arms)
