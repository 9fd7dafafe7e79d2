"""The subset as a COCO file, with a record of where it came from and of what was bought."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from detcurate import files
from detcurate.coco.dataset import CocoDataset
from detcurate.errors import SelectionError

SUBSET_FILE = "subset.json"
PROVENANCE_FILE = "provenance.json"

# COCO's object sizes by area in px²: small is below the first edge, large from the second one on.
BOX_SIZE_EDGES = {"small": 0.0, "medium": 32.0**2, "large": 96.0**2}


def subset_bytes(dataset: CocoDataset, image_ids: np.ndarray) -> bytes:
    """Return the COCO file of the images named: their records byte for byte, in the order of the source file.

    All other top-level values (``info``, ``licenses``, ``categories`` and what else there is) are copied untouched;
    images without annotations stay. The order of ``image_ids`` does not matter, equal sets give equal bytes.

    Args:
        dataset: The source.
        image_ids: (K,) integers, unique; at least one.

    Raises:
        SelectionError: No id is given, or one is not an image of the source or is named twice.
    """
    images, annotations = _kept(dataset, image_ids)
    images = images[np.argsort(dataset.image_file_order[images])]
    annotations = annotations[np.argsort(dataset.annotation_file_order[annotations])]
    values: dict[str, Any] = dict(dataset.raw_top_level)
    values["images"] = _json_list([dataset.raw_images[row] for row in images.tolist()])
    values["annotations"] = _json_list([dataset.raw_annotations[row] for row in annotations.tolist()])
    return b"{" + b",\n".join(b"".join((orjson.dumps(key), b": ", value)) for key, value in values.items()) + b"}\n"


def build_provenance(
    *,
    dataset: CocoDataset,
    image_ids: np.ndarray,
    strategy: str,
    seed: int,
    budget_asked: Mapping[str, float],
    config_sha256: str,
    members: Sequence[Mapping[str, Any]],
    scores_sha256: str,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Describe a subset so that it can be repeated and checked; equal input gives an equal description.

    It holds neither the time nor a folder of the machine, so that two machines write the same bytes.

    Args:
        dataset: The source.
        image_ids: (K,) integers, the images kept; at least one.
        strategy: The selection strategy's name.
        seed: The seed of the selection.
        budget_asked: What was asked for, such as ``{"fraction": 0.5}``.
        config_sha256: Digest of the settings.
        members: One mapping a member, with ``run``, ``iteration`` and ``sha256``; other keys are left out.
        scores_sha256: Digest of the image scores.
        versions: Name -> version of the software.

    Returns:
        A JSON-able dict with ``source``, ``subset``, ``strategy``, ``seed``, ``budget`` (asked, spent), ``histograms``
        (counts before and after, of boxes by class and by size and, where images name a sequence, of images by
        sequence), ``ensemble``, ``config_sha256``, ``scores_sha256`` and ``versions``.

    Raises:
        SelectionError: No id is given, or one is not an image of the source or is named twice.
    """
    images, annotations = _kept(dataset, image_ids)
    before = {"num_images": len(dataset), "num_boxes": dataset.num_boxes}
    after = {"num_images": len(images), "num_boxes": len(annotations)}
    digest = hashlib.sha256(subset_bytes(dataset, image_ids)).hexdigest()
    return {
        "source": {"file_name": dataset.path.name, "sha256": dataset.sha256, **before},
        "subset": {"file_name": SUBSET_FILE, "sha256": digest, **after},
        "strategy": strategy,
        "seed": seed,
        "budget": {"asked": dict(budget_asked), "spent": {"images": len(images), "boxes": len(annotations)}},
        "histograms": _histograms(dataset, images, annotations),
        "ensemble": [{key: member[key] for key in ("run", "iteration", "sha256")} for member in members],
        "config_sha256": config_sha256,
        "scores_sha256": scores_sha256,
        "versions": dict(versions),
    }


def write_manifest(directory: Path, dataset: CocoDataset, image_ids: np.ndarray, provenance: Mapping[str, Any]) -> None:
    """Write ``subset.json`` and then ``provenance.json``, whose presence says that the manifest is whole.

    On failure neither remains, and neither does an older one that they were to replace.

    Raises:
        SelectionError: ``provenance`` describes another subset, or ``image_ids`` cannot be written.
        OSError: The files cannot be written.
    """
    data = subset_bytes(dataset, image_ids)
    digest = hashlib.sha256(data).hexdigest()
    if provenance["subset"]["sha256"] != digest:
        raise SelectionError(
            f"provenance must describe the subset that is written (sha256 {digest}), got sha256 "
            f"{provenance['subset']['sha256']} ({directory}); build it from the same images"
        )
    subset_path, provenance_path = directory / SUBSET_FILE, directory / PROVENANCE_FILE
    provenance_path.unlink(missing_ok=True)  # an old one must never stand beside the new subset
    try:
        files.write_bytes(subset_path, data)
        files.write_json(provenance_path, provenance)
    except BaseException:
        subset_path.unlink(missing_ok=True)
        raise


def _kept(dataset: CocoDataset, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the images kept and those of their annotations, both ascending."""
    if not len(image_ids):
        raise SelectionError(f"image_ids must name at least one image of {dataset.path}, got none; raise the budget")
    kept = np.zeros(len(dataset), bool)
    kept[dataset.subset_rows(image_ids)] = True
    return np.flatnonzero(kept), np.flatnonzero(kept[dataset.image_index])


def _json_list(records: Sequence[Any]) -> bytes:
    # One record a line, so that a diff of two subsets names images.
    return b"[\n" + b",\n".join(records) + b"\n]" if records else b"[]"


def _histograms(dataset: CocoDataset, images: np.ndarray, annotations: np.ndarray) -> dict[str, Any]:
    num_classes, sizes = len(dataset.class_names), list(BOX_SIZE_EDGES)
    size = np.searchsorted(list(BOX_SIZE_EDGES.values()), dataset.areas, side="right") - 1
    histograms = {
        "classes": _before_after(dataset.class_names, dataset.class_index, annotations, num_classes),
        "box_size": _before_after(sizes, size, annotations, len(sizes)),
    }
    before = Counter(name for name in dataset.sequences if name is not None)
    if before:
        after = Counter(dataset.sequences[row] for row in images.tolist())
        histograms["sequence"] = {name: {"before": before[name], "after": after[name]} for name in sorted(before)}
    return histograms


def _before_after(
    names: Sequence[str], values: np.ndarray, rows: np.ndarray, num_bins: int
) -> dict[str, dict[str, int]]:
    before = np.bincount(values, minlength=num_bins).tolist()
    after = np.bincount(values[rows], minlength=num_bins).tolist()
    return {name: {"before": b, "after": a} for name, b, a in zip(names, before, after, strict=True)}
