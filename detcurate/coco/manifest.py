"""The subset as a COCO file, with a record of where it came from and of what was bought."""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from detcurate import files
from detcurate.coco.dataset import CocoDataset, Opened
from detcurate.coco.metadata import image_metadata
from detcurate.coco.subset import kept_rows, subset_pieces
from detcurate.errors import SelectionError

SUBSET_FILE = "subset.json"
_MEMBER = ("run", "iteration", "kind", "sha256", "results")
PROVENANCE_FILE = "provenance.json"
IMAGES_FILE = "images.txt"

# COCO's object sizes by area in px²: small is below the first edge, large from the second one on.
BOX_SIZE_EDGES = {"small": 0.0, "medium": 32.0**2, "large": 96.0**2}
_MOST_VALUES = 64  # of one metadata field, to be counted value by value


def subset_bytes(dataset: CocoDataset, image_ids: np.ndarray) -> bytes:
    """Return the COCO file of the images named: their records byte for byte, in the order of the source file.

    All other top-level values (``info``, ``licenses``, ``categories`` and what else there is) are copied untouched;
    images without annotations stay. Only the fields that a repair has changed are written anew. The order of
    ``image_ids`` does not matter, equal sets give equal bytes.

    Args:
        dataset: The source.
        image_ids: (K,) integers, unique; at least one.

    Raises:
        SelectionError: No id is given, or one is not an image of the source or is named twice.
        DatasetError: The source file was changed since it was read.
    """
    return b"".join(subset_pieces(dataset, image_ids))


def subset_digest(dataset: CocoDataset, image_ids: np.ndarray, opened: Opened | None = None) -> str:
    """Return the SHA-256 of :func:`subset_bytes`, without holding them; ``opened`` saves opening the file again."""
    digest = hashlib.sha256()
    for piece in subset_pieces(dataset, image_ids, opened):
        digest.update(piece)
    return digest.hexdigest()


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
    seconds_per_image: float = 0.0,
    seconds_per_box: float = 0.0,
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
        members: One mapping a member, with ``run``, ``iteration``, ``sha256`` and, for one that is known by its answers
            alone, ``results``, the name of that file; other keys are left out.
        scores_sha256: Digest of the image scores.
        versions: Name -> version of the software.
        seconds_per_image: What an annotator spends on an image, apart from its boxes.
        seconds_per_box: What an annotator spends on a box.

    Returns:
        A JSON-able dict with ``source``, ``findings``, ``subset``, ``strategy``, ``seed``, ``budget`` (asked; spent:
        images, boxes, cost in seconds), ``histograms`` (counts before and after, of boxes by class and by size, of
        images by each metadata field), ``ensemble``, ``config_sha256``, ``scores_sha256`` and ``versions``.

    Raises:
        SelectionError: No id is given, or one is not an image of the source or is named twice.
    """
    opened = dataset.open()
    images, annotations = kept_rows(dataset, image_ids)
    before = {"num_images": len(dataset), "num_boxes": dataset.num_boxes}
    after = {"num_images": len(images), "num_boxes": len(annotations)}
    cost = len(images) * seconds_per_image + len(annotations) * seconds_per_box
    return {
        "source": {"file_name": dataset.path.name, "sha256": dataset.sha256, **before},
        "findings": [
            {"code": finding.code, "policy": finding.policy, "count": finding.count} for finding in dataset.findings
        ],
        "subset": {"file_name": SUBSET_FILE, "sha256": subset_digest(dataset, image_ids, opened), **after},
        "strategy": strategy,
        "seed": seed,
        "budget": {
            "asked": dict(budget_asked),
            "spent": {"images": len(images), "boxes": len(annotations), "cost_seconds": cost},
            "seconds_per_image": seconds_per_image,
            "seconds_per_box": seconds_per_box,
        },
        "histograms": histograms(dataset, images, annotations, opened),
        "ensemble": [{key: member[key] for key in _MEMBER if key in member} for member in members],
        "config_sha256": config_sha256,
        "scores_sha256": scores_sha256,
        "versions": dict(versions),
    }


def write_subset(path: Path, dataset: CocoDataset, image_ids: np.ndarray) -> str:
    """Write a subset atomically, compressed when the name ends in ``.gz``; return the digest of its JSON text."""
    digest = hashlib.sha256()
    with files.atomic_path(path) as temporary, open_text(temporary, compress=path.suffix == ".gz") as stream:
        for piece in subset_pieces(dataset, image_ids):
            digest.update(piece)
            stream.write(piece)
    return digest.hexdigest()


@contextmanager
def open_text(path: Path, *, compress: bool) -> Iterator[BinaryIO | gzip.GzipFile]:
    """Open a file for writing, compressed or not; equal texts give equal bytes."""
    with path.open("wb") as stream:
        if not compress:
            yield stream
            return
        with gzip.GzipFile("", "wb", 6, stream, mtime=0) as zipped:  # without a name and a time inside
            yield zipped


def write_manifest(
    directory: Path,
    dataset: CocoDataset,
    image_ids: np.ndarray,
    provenance: Mapping[str, Any],
    *,
    compress: bool = False,
) -> list[Path]:
    """Write ``subset.json`` and ``images.txt``, then ``provenance.json``, whose presence says that all is whole.

    On failure none remains, and neither does an older one that they were to replace.

    Args:
        directory: Where to; made when absent.
        dataset: The source.
        image_ids: (K,) integers, the images kept.
        provenance: From :func:`build_provenance`.
        compress: Whether to write ``subset.json.gz`` instead.

    Returns:
        The files: subset, list of images, provenance.

    Raises:
        SelectionError: ``provenance`` describes another subset, or ``image_ids`` cannot be written.
        OSError: The files cannot be written.
    """
    subset = directory / (f"{SUBSET_FILE}.gz" if compress else SUBSET_FILE)
    images, description = directory / IMAGES_FILE, directory / PROVENANCE_FILE
    old = [directory / name for name in (PROVENANCE_FILE, IMAGES_FILE, SUBSET_FILE, f"{SUBSET_FILE}.gz")]
    for path in old:  # an old provenance must never stand beside the new subset
        path.unlink(missing_ok=True)
    try:
        digest = write_subset(subset, dataset, image_ids)
        if provenance["subset"]["sha256"] != digest:
            raise SelectionError(
                f"provenance must describe the subset that is written (sha256 {digest}), got sha256 "
                f"{provenance['subset']['sha256']} ({directory}); build it from the same images"
            )
        files.write_bytes(images, images_text(dataset, kept_rows(dataset, image_ids)[0]))
        files.write_json(description, files.sealed(provenance))
    except BaseException:
        for path in old:
            path.unlink(missing_ok=True)
        raise
    return [subset, images, description]


def images_text(dataset: CocoDataset, images: np.ndarray) -> bytes:
    """Return the text of ``images.txt``: the file names of some rows in the order of the file, one a line.

    A line break in a name is written as an escape, so that no name makes a line of its own.
    """
    rows = images[np.argsort(dataset.image_positions[images])]
    names = (dataset.file_names[row].replace("\r", "\\r").replace("\n", "\\n") for row in rows.tolist())
    return "".join(f"{name}\n" for name in names).encode()


def histograms(
    dataset: CocoDataset, images: np.ndarray, annotations: np.ndarray, opened: Opened | None = None
) -> dict[str, Any]:
    """Count the source and a subset of it: boxes by class and size, images by sequence and other metadata.

    Args:
        dataset: The source.
        images: The rows kept.
        annotations: The rows kept.
        opened: What ``dataset.open()`` gave, to save opening the file again.

    Returns:
        Field -> value -> ``before`` and ``after``. A metadata field with more than 64 values is left out, but for
        ``sequence``; one that is named like a count of ours has ``image.`` before its name.
    """
    num_classes, sizes = len(dataset.class_names), list(BOX_SIZE_EDGES)
    size = np.searchsorted(list(BOX_SIZE_EDGES.values()), dataset.areas, side="right") - 1
    counted = {
        "classes": _before_after(dataset.class_names, dataset.class_index, annotations, num_classes),
        "box_size": _before_after(sizes, size, annotations, len(sizes)),
    }
    for name, column in {"sequence": dataset.sequences, **image_metadata(dataset, opened)}.items():
        before = Counter(str(value) for value in column if value is not None)
        if before and (name == "sequence" or len(before) <= _MOST_VALUES):
            after = Counter(str(column[row]) for row in images.tolist() if column[row] is not None)
            field = f"image.{name}" if name in counted else name
            counted[field] = {value: {"before": before[value], "after": after[value]} for value in sorted(before)}
    return counted


def _before_after(
    names: Sequence[str], values: np.ndarray, rows: np.ndarray, num_bins: int
) -> dict[str, dict[str, int]]:
    before = np.bincount(values, minlength=num_bins).tolist()
    after = np.bincount(values[rows], minlength=num_bins).tolist()
    return {name: {"before": b, "after": a} for name, b, a in zip(names, before, after, strict=True)}
