"""Describe a manifest, and compare two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detcurate.coco.dataset import CocoDataset, read_coco
from detcurate.manifest.provenance import AS_WRITTEN, subset_path
from detcurate.manifest.write import histograms


def open_manifest(path: Path) -> CocoDataset:
    """Read an annotation file, or the one in a manifest's folder.

    Raises:
        DatasetError: There is no annotation file, or it cannot be used.
    """
    return read_coco(subset_path(path) if path.is_dir() else path, AS_WRITTEN)


def manifest_stats(dataset: CocoDataset) -> dict[str, Any]:
    """Describe one set of images.

    Returns:
        A JSON-able dict: ``num_images``, ``num_boxes``, ``num_empty_images``, ``boxes_per_image`` (mean, median,
        max) and ``histograms`` (field -> value -> count: ``classes``, ``box_size``, metadata).
    """
    per_image = dataset.boxes_per_image
    return {
        "file": dataset.path.name,
        "num_images": len(dataset),
        "num_boxes": dataset.num_boxes,
        "num_empty_images": int((per_image == 0).sum()),
        "boxes_per_image": {
            "mean": float(per_image.mean()),
            "median": float(np.median(per_image)),
            "max": int(per_image.max()),
        },
        "histograms": _counts(dataset),
    }


def diff_manifests(first: CocoDataset, second: CocoDataset) -> dict[str, Any]:
    """Compare two sets of images by the ids in their files; the sources may differ.

    Returns:
        A JSON-able dict: ``images`` (``added``, ``removed``, ``kept``: lists of ids; ``changed``: the kept images with
        another record or other annotations; ``jaccard`` in [0, 1]: 1 for equal sets, 0 for disjoint ones) and
        ``histograms`` (field -> ``shift``, the total variation distance in [0, 1] between the two distributions, and
        ``values``: value -> ``[count in the first, in the second]``). A metadata field that only one of them counts
        (see :func:`detcurate.manifest.write.histograms`) is left out.
    """
    first_prints, second_prints = _fingerprints(first), _fingerprints(second)
    kept = [key for key in first_prints if key in second_prints]
    union = len(first_prints) + len(second_prints) - len(kept)
    before, after = _counts(first), _counts(second)
    return {
        "first": {"file": str(first.path), "num_images": len(first), "num_boxes": first.num_boxes},
        "second": {"file": str(second.path), "num_images": len(second), "num_boxes": second.num_boxes},
        "images": {
            "added": [key for key in second_prints if key not in first_prints],
            "removed": [key for key in first_prints if key not in second_prints],
            "kept": kept,
            "changed": [key for key in kept if first_prints[key] != second_prints[key]],
            "jaccard": len(kept) / union,
        },
        "histograms": {name: _shift(before[name], after[name]) for name in before if name in after},
    }


def _shift(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    totals = max(sum(before.values()), 1), max(sum(after.values()), 1)
    values = {name: [before.get(name, 0), after.get(name, 0)] for name in dict.fromkeys((*before, *after))}
    distance = 0.5 * sum(abs(a / totals[0] - b / totals[1]) for a, b in values.values())
    return {"shift": distance, "values": values}


def _counts(dataset: CocoDataset) -> dict[str, dict[str, int]]:
    no_rows = np.zeros(0, np.int64)
    counted = histograms(dataset, no_rows, no_rows)
    return {name: {value: count["before"] for value, count in counted[name].items()} for name in counted}


def _fingerprints(dataset: CocoDataset) -> dict[int | str, bytes]:
    """Return image id in the file -> a digest of the records of the image and of its annotations."""
    images, annotations = dataset.open()
    bounds = np.searchsorted(dataset.image_index, np.arange(len(dataset) + 1))
    prints = {}
    for row in range(len(dataset)):
        digest = hashlib.blake2b(images[int(dataset.image_positions[row])], digest_size=16)
        positions = dataset.annotation_positions[bounds[row] : bounds[row + 1]].tolist()
        for text in sorted(annotations[at] for at in positions):  # their order has no meaning
            digest.update(text)
        prints[dataset.original_id(row)] = digest.digest()
    return prints
