"""The settings of every stage: one frozen, validated object each.

Users write them in upper case under ``CURATE`` in a Detectron2 config file (``CURATE.SELECT.FRACTION``);
:mod:`detcurate.config.declaration` declares those keys from the defaults below, so that they stand in one place only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from detcurate.config.base import Settings
from detcurate.config.data_settings import EvaluationSettings, PoolSettings, RenderSettings, StorageSettings
from detcurate.config.detector_settings import EnsembleSettings, PredictSettings, RaySettings, TrainSettings
from detcurate.config.subset_settings import (
    ARMS,
    ManifestSettings,
    RetrainSettings,
    ScoreSettings,
    SearchSettings,
    SelectSettings,
)
from detcurate.errors import ConfigError

__all__ = [
    "ARMS",
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
]


class CurateSettings(Settings):
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
