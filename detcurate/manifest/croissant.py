"""Describe a manifest in Croissant, so that dataset catalogues can find and read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detcurate.errors import ConfigError
from detcurate.io.files import sha256_file, write_json

CROISSANT_FILE = "croissant.json"

_FIELDS = {
    "images": {"id": "INTEGER", "file_name": "TEXT", "width": "INTEGER", "height": "INTEGER"},
    "annotations": {"id": "INTEGER", "image_id": "INTEGER", "category_id": "INTEGER", "bbox": "BOUNDING_BOX"},
    "categories": {"id": "INTEGER", "name": "TEXT"},
}


def require_mlcroissant() -> Any:
    """Import and return ``mlcroissant``.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import mlcroissant
    except ImportError:
        raise ConfigError(
            "CURATE.MANIFEST.CROISSANT: the package mlcroissant is not installed. Run pip install "
            "'detcurate[croissant]', or set it to False."
        ) from None
    return mlcroissant


def write_croissant(directory: Path, provenance: Mapping[str, Any], subset_name: str) -> Path:
    """Write ``croissant.json``, which describes the subset's file, images, annotations and categories.

    Args:
        directory: The folder of the manifest.
        provenance: The content of ``provenance.json``.
        subset_name: The name of the annotation file in it.

    Returns:
        The path of the file.

    Raises:
        ConfigError: The package ``mlcroissant`` is not installed.

    Source:
        The MLCommons Croissant format, http://mlcommons.org/croissant/1.1.
    """
    mlc = require_mlcroissant()
    subset, source = provenance["subset"], provenance["source"]
    digest = sha256_file(directory / subset_name)
    compression = ["application/gzip"] if subset_name.endswith(".gz") else []
    distribution, record_sets = [], []
    for name, fields in _fields(provenance).items():
        # The reader makes one table of each file object, so each list needs its own.
        file_id = f"{subset_name}.{name}"
        distribution.append(
            mlc.FileObject(
                id=file_id,
                name=file_id,
                content_url=subset_name,
                encoding_formats=[*compression, "application/json"],
                sha256=digest,
            )
        )
        columns = [
            mlc.Field(
                id=f"{name}/{field}",
                name=field,
                data_types=getattr(mlc.DataType, kind),
                source=mlc.Source(file_object=file_id, extract=mlc.Extract(json_path=f"$.{name}[*].{field}")),
            )
            for field, kind in fields.items()
        ]
        record_sets.append(mlc.RecordSet(id=name, name=name, fields=columns))
    metadata = mlc.Metadata(
        ctx=mlc.Context(conforms_to="http://mlcommons.org/croissant/1.1"),
        name=f"subset of {source['file_name']}",
        description=(
            f"{subset['num_images']} of {source['num_images']} images of {source['file_name']} (sha256 "
            f"{source['sha256']}), selected by detcurate with the strategy {provenance['strategy']}; "
            "provenance.json beside this file describes how."
        ),
        distribution=distribution,
        record_sets=record_sets,
    )
    path = directory / CROISSANT_FILE
    write_json(path, metadata.to_json())
    return path


def _fields(provenance: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return list -> field -> type; every record must have each field, so ids that may be absent are left out."""
    found = {finding["code"]: finding["policy"] for finding in provenance["findings"]}
    fields = {name: dict(columns) for name, columns in _FIELDS.items()}
    if found.get("missing_id", "repair") != "repair":
        del fields["annotations"]["id"]
    if "string_id" in found:
        for columns in fields.values():
            columns.update({name: "TEXT" for name in columns if name in ("id", "image_id", "category_id")})
    return fields
