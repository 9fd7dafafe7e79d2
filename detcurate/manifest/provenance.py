"""A manifest that is there already: its files, and what its provenance must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from detcurate.errors import DatasetError
from detcurate.io.files import verify_checksum
from detcurate.io.safe_loading import MOST_JSON_BYTES, read_bytes
from detcurate.manifest.write import PROVENANCE_FILE, SUBSET_FILE

AS_WRITTEN = {"box_outside_image": "note", "absolute_file_name": "warn", "normalized_boxes": "note"}
"""Policies for looking at a manifest: what was let through when it was written is let through again."""


def read_provenance(directory: Path) -> dict[str, Any]:
    """Read a manifest's ``provenance.json``.

    Raises:
        DatasetError: It is missing, not JSON, or lacks what is checked.
    """
    path = directory / PROVENANCE_FILE
    try:
        value = verify_checksum(read_bytes(path, MOST_JSON_BYTES))
        msgspec.convert(value, _Provenance)
    except OSError as error:
        raise DatasetError(
            f"a manifest must hold {PROVENANCE_FILE}, got {error.strerror} ({path}); name the folder of a manifest"
        ) from error
    except (ValueError, msgspec.ValidationError) as error:
        raise DatasetError(f"the provenance must be JSON from detcurate ({path}): {error}; write it again") from error
    return dict(value)


def subset_path(directory: Path) -> Path:
    """Return a manifest's annotation file, compressed or not.

    Raises:
        DatasetError: There is none.
    """
    for name in (SUBSET_FILE, f"{SUBSET_FILE}.gz"):
        if (directory / name).is_file():
            return directory / name
    raise DatasetError(f"a manifest must hold {SUBSET_FILE}, got none ({directory}); name the folder of a manifest")


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
    """What of the provenance is checked."""

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
