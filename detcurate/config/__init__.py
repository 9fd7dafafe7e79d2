"""The settings of every stage: one frozen, validated object for each stage.

Users write them in upper case under ``CURATE`` in a Detectron2 config file, such as ``CURATE.SELECT.FRACTION``.
:mod:`detcurate.config.declaration` declares the keys from the defaults here, and :mod:`detcurate.config.describe`
lists them for users.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from detcurate.config.base import Settings, parse_quota
from detcurate.config.data_settings import EvaluationSettings, PoolSettings, RenderSettings, StorageSettings
from detcurate.config.detector_settings import EnsembleSettings, PredictSettings, RaySettings, TrainSettings
from detcurate.config.subset_settings import (
    ManifestSettings,
    RetrainSettings,
    ScoreSettings,
    SearchSettings,
    SelectSettings,
)
from detcurate.errors import ConfigError

__all__ = [
    "CurateSettings",
    "EnsembleSettings",
    "EvaluationSettings",
    "ManifestSettings",
    "PoolSettings",
    "PredictSettings",
    "RaySettings",
    "RenderSettings",
    "RetrainSettings",
    "ScoreSettings",
    "SearchSettings",
    "SelectSettings",
    "StorageSettings",
    "TrainSettings",
    "curate_defaults",
    "curate_settings",
    "parse_quota",
]


class CurateSettings(Settings):
    """Everything under ``CURATE``."""

    num_processes: int = Field(0, ge=0, description="Number of CPU worker processes; 0 means one per core.")
    pool: PoolSettings = Field(PoolSettings(), description="The labelled pool to select from.")
    render: RenderSettings = Field(RenderSettings(), description="A rendered driving pool in place of your own files.")
    evaluation: EvaluationSettings = Field(
        EvaluationSettings(), description="The labelled images that every arm is evaluated on."
    )
    train: TrainSettings = Field(TrainSettings(), description="How one detector is trained, in addition to SOLVER.")
    ensemble: EnsembleSettings = Field(
        EnsembleSettings(), description="How many runs are trained, and which iterations become members."
    )
    predict: PredictSettings = Field(PredictSettings(), description="How the members predict the pool.")
    score: ScoreSettings = Field(
        ScoreSettings(), description="Which disagreement is measured, and how it becomes one score per image."
    )
    search: SearchSettings = Field(
        SearchSettings(), description="Which images the ensemble is trained on, and in how many rounds."
    )
    select: SelectSettings = Field(SelectSettings(), description="Which images are kept.")
    manifest: ManifestSettings = Field(ManifestSettings(), description="How the subset is written.")
    retrain: RetrainSettings = Field(
        RetrainSettings(), description="Which arms (subsets) are trained from scratch and compared."
    )
    storage: StorageSettings = Field(StorageSettings(), description="Object storage: s3://, gs:// and az:// URLs.")
    ray: RaySettings = Field(RaySettings(), description="How `--engine ray` uses a cluster.")

    @model_validator(mode="after")
    def _validate_arms(self) -> CurateSettings:
        if "without_duplicates" in self.retrain.arms and not self.select.duplicate_similarity:
            raise ValueError(
                "SELECT.DUPLICATE_SIMILARITY: must be above 0 for the arm without_duplicates (got 0). Set it to the "
                "similarity of a near-duplicate, or to auto."
            )
        if "single_model_entropy" in self.retrain.arms and self.predict.mode == "dense":
            raise ValueError(
                "RETRAIN.ARMS: must not contain single_model_entropy with PREDICT.MODE dense "
                f"(got {', '.join(self.retrain.arms)}). The mode dense stores no member's detections."
            )
        return self

    @property
    def worker_processes(self) -> int:
        """Number of worker processes on CPU, at least 1."""
        return self.num_processes or os.cpu_count() or 1


def curate_settings(tree: Mapping[str, Any]) -> CurateSettings:
    """Validate the upper-case ``CURATE`` tree of a config.

    Raises:
        ConfigError: A key is unknown or a value is invalid. The message lists every such key.

    Example:
        >>> curate_settings({"SELECT": {"FRACTION": 0.25}}).select.fraction
        0.25
    """
    try:
        return CurateSettings.model_validate(_lower_keys(tree))
    except ValidationError as error:
        raise ConfigError("\n  ".join(_describe(finding) for finding in error.errors())) from None


def curate_defaults() -> dict[str, Any]:
    """Return the default ``CURATE`` tree with upper-case keys, as Detectron2 configs write them."""
    return _upper_keys(CurateSettings().model_dump())


def _describe(finding: Any) -> str:
    """Return the message of one finding of pydantic: the key, what is wrong, the value."""
    key = ".".join(["CURATE", *(str(part).upper() for part in finding["loc"])])
    message = finding["msg"].removeprefix("Value error, ")
    if finding["type"] == "value_error":  # of a validator of ours, which names the key when it is one of several
        return f"{key}.{message}" if re.match(r"[A-Z_.]+: ", message) else f"{key}: {message}"
    if finding["type"] == "extra_forbidden":
        return f"{key}: is not a setting (got {finding['input']!r}). `detcurate config` lists all settings."
    return f"{key}: {message[0].lower()}{message[1:]} (got {finding['input']!r})".replace("input should", "must", 1)


def _lower_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key.lower(): _lower_keys(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _upper_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key.upper(): _upper_keys(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
