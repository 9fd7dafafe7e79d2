"""The settings of images and labels: which there are, and where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from detcurate.coco.validation.findings import parse_policies
from detcurate.config.base import Settings, location
from detcurate.errors import ConfigError
from detcurate.io.storage import StorageOptions, is_url


class PoolSettings(Settings):
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

    _validate_locations = field_validator("annotations", "image_root")(location)


class RenderSettings(Settings):
    """The rendered driving pool, used instead of files of your own when ``num_images`` is above 0."""

    num_images: int = Field(0, ge=0)
    num_evaluation_images: int = Field(300, ge=1)
    width: int = Field(256, ge=32)
    height: int = Field(160, ge=32)
    seed: int = Field(0, ge=0)
    near_duplicate_fraction: float = Field(0.25, ge=0, le=0.9)
    label_noise_fraction: float = Field(0.05, ge=0, le=0.25)


class EvaluationSettings(Settings):
    """The labelled images that every arm is evaluated on. Paths as in ``PoolSettings``."""

    annotations: str = "val.json"
    image_root: str = "images"

    _validate_locations = field_validator("annotations", "image_root")(location)


class StorageSettings(Settings):
    """Object storage: docs/how-to/object-storage.md says what may be there.

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

    _validate_location = field_validator("root")(location)

    @field_validator("root")
    @classmethod
    def _validate_root(cls, text: str) -> str:
        if text and not is_url(text):
            raise ValueError(f"root must be a URL, or empty for OUTPUT_DIR, got {text!r}")
        return text

    @field_validator("cache")
    @classmethod
    def _validate_cache(cls, text: str) -> str:
        if is_url(text):
            raise ValueError("cache must be a folder of this machine, got a URL")
        return text

    @property
    def options(self) -> StorageOptions:
        """How object storage is asked."""
        cache = Path(self.cache).expanduser() if self.cache else None
        return StorageOptions(self.retries, self.timeout_s, cache, int(self.cache_gb * 1e9))
