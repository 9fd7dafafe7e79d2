"""Settings of images, labels and object storage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from detcurate.coco.validation.findings import parse_policies
from detcurate.config.base import Settings, location
from detcurate.errors import ConfigError
from detcurate.io.storage import StorageOptions, is_url


class PoolSettings(Settings):
    """The labelled pool to select from."""

    annotations: str = Field(
        "train.json", description="COCO annotation file of the pool: a path relative to DATASETS.ROOT, or a URL."
    )
    image_root: str = Field(
        "images", description="Folder that the pool's file names are relative to: a path below DATASETS.ROOT, or a URL."
    )
    bad_images: Literal["stop", "quarantine"] = Field(
        "stop", description="Stop at missing or unreadable images, or exclude them from the pool (quarantine)."
    )
    findings: tuple[str, ...] = Field(
        (),
        description="Policies for defects of the pool's and the evaluation's annotations, such as "
        "'invalid_box=repair'; `detcurate validate` lists the codes.",
    )

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
    """The rendered driving pool, which replaces your own files when ``num_images`` is above 0."""

    num_images: int = Field(0, ge=0, description="Number of pool images to render; 0 uses your own files.")
    num_evaluation_images: int = Field(300, ge=1, description="Number of evaluation images to render.")
    width: int = Field(256, ge=32, description="Width of a rendered image in pixels.")
    height: int = Field(160, ge=32, description="Height of a rendered image in pixels.")
    seed: int = Field(0, ge=0, description="Random seed of the rendered scenes.")
    near_duplicate_fraction: float = Field(
        0.25, ge=0, le=0.9, description="Share of the rendered pool images that are near-duplicates."
    )
    label_noise_fraction: float = Field(
        0.05, ge=0, le=0.25, description="Share of the rendered pool labels that are planted label errors."
    )


class EvaluationSettings(Settings):
    """The labelled images that every arm is evaluated on."""

    annotations: str = Field(
        "val.json", description="COCO annotation file of the evaluation: a path relative to DATASETS.ROOT, or a URL."
    )
    image_root: str = Field(
        "images",
        description="Folder that the evaluation's file names are relative to: a path below DATASETS.ROOT, or a URL.",
    )

    _validate_locations = field_validator("annotations", "image_root")(location)


class StorageSettings(Settings):
    """Object storage."""

    root: str = Field("", description="URL below which predictions and scores are stored; empty means OUTPUT_DIR.")
    cache: str = Field("", description="Local folder for copies of remote files; empty means the user's cache folder.")
    cache_gb: float = Field(8.0, gt=0, description="Maximum size of the copies of images in the cache, in GB.")
    retries: int = Field(5, ge=0, description="Number of times that a failed request is repeated.")
    timeout_s: float = Field(30.0, gt=0, description="Seconds without data after which a connection has failed.")

    _validate_location = field_validator("root")(location)

    @field_validator("root")
    @classmethod
    def _validate_root(cls, text: str) -> str:
        if text and not is_url(text):
            raise ValueError(f"must be a URL, or empty for OUTPUT_DIR (got {text!r})")
        return text

    @field_validator("cache")
    @classmethod
    def _validate_cache(cls, text: str) -> str:
        if is_url(text):
            raise ValueError("must be a local folder (got a URL)")
        return text

    @property
    def options(self) -> StorageOptions:
        """The same settings as the options of a storage client."""
        cache = Path(self.cache).expanduser() if self.cache else None
        return StorageOptions(self.retries, self.timeout_s, cache, int(self.cache_gb * 1e9))
