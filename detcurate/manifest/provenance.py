"""Read the provenance of a manifest or a split, and find the annotation file of a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from detcurate.errors import DatasetError
from detcurate.io.files import verify_checksum
from detcurate.io.safe_loading import MOST_JSON_BYTES, read_bytes
from detcurate.legacy import BUDGET_KEYS, renamed_keys
from detcurate.manifest.write import PROVENANCE_FILE, SUBSET_FILE

AS_WRITTEN = {"box_outside_image": "note", "absolute_file_name": "warn", "normalized_boxes": "note"}
"""Policies for reading a manifest: findings that were accepted when it was written are accepted again."""


def read_provenance(directory: Path) -> dict[str, Any]:
    """Read the ``provenance.json`` of a manifest or a split; keys of version 0.1 are renamed.

    Raises:
        DatasetError: It is missing, not JSON, or lacks a key.
    """
    path = directory / PROVENANCE_FILE
    try:
        value = verify_checksum(read_bytes(path, MOST_JSON_BYTES))
        msgspec.convert(value, _Split if is_split(value) else _Provenance)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read (got {error.strerror}). Name the folder of a manifest, which holds "
            f"{PROVENANCE_FILE}."
        ) from error
    except (ValueError, msgspec.ValidationError) as error:
        raise DatasetError(f"{path}: not a provenance of detcurate (got {error}). Write the manifest again.") from error
    if not is_split(value):
        value["budget"] = renamed_keys(value["budget"], BUDGET_KEYS)
    return value


def is_split(provenance: Mapping[str, Any]) -> bool:
    """Return whether a provenance describes a split into two files, not a subset."""
    return "parts" in provenance


def subset_path(directory: Path) -> Path:
    """Return a manifest's annotation file, compressed or not.

    Raises:
        DatasetError: There is none.
    """
    for name in (SUBSET_FILE, f"{SUBSET_FILE}.gz"):
        if (directory / name).is_file():
            return directory / name
    raise DatasetError(f"{directory}: holds no {SUBSET_FILE}. Name the folder of a manifest, or an annotation file.")


class _File(msgspec.Struct):
    file_name: str
    sha256: str
    num_images: int
    num_boxes: int


class _Spent(msgspec.Struct):
    images: int
    boxes: int
    cost_seconds: float


class _Budget(msgspec.Struct):
    spent: _Spent
    seconds_per_image: float
    seconds_per_box: float


class _Member(msgspec.Struct):
    run: int
    iteration: int
    sha256: str


class _Provenance(msgspec.Struct):
    """The keys of a manifest's provenance that are verified."""

    source: _File
    subset: _File
    budget: _Budget
    strategy: str
    seed: int
    findings: list[dict[str, str | int]]
    histograms: dict[str, dict[str, dict[str, int]]]
    ensemble: list[_Member]
    config_sha256: str
    scores_sha256: str
    settings: dict[str, dict[str, Any]] = {}


class _Parts(msgspec.Struct):
    train: _File
    val: _File


class _SplitSettings(msgspec.Struct):
    fraction: float
    by: str
    stratify: bool
    seed: int


class _Settings(msgspec.Struct):
    split: _SplitSettings
    pool: dict[str, Any] = {}


class _Split(msgspec.Struct):
    """The keys of a split's provenance that are verified."""

    source: _File
    parts: _Parts
    seed: int
    findings: list[dict[str, str | int]]
    histograms: dict[str, dict[str, dict[str, int]]]
    classes: dict[str, dict[str, float]]
    config_sha256: str
    settings: _Settings
