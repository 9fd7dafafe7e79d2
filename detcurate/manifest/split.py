"""Split one annotation file into training and validation images."""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from detcurate.coco.dataset import CocoDataset, Opened, image_metadata, open_coco
from detcurate.errors import ConfigError
from detcurate.io import files
from detcurate.manifest.provenance import AS_WRITTEN
from detcurate.manifest.stratify import choose_validation
from detcurate.manifest.write import PROVENANCE_FILE, histograms, write_subset
from detcurate.version import __version__

PARTS = ("train", "val")
SEQUENCE, FILE_NAME = "sequence", "file_name"
UNBALANCED = 0.05
"""A class is reported as unbalanced when its share of the validation boxes is off by more than this."""

_MOST_NAMES = 12  # in an error message


@dataclass(frozen=True)
class PartCounts:
    """The size of one side of a split."""

    num_images: int
    num_boxes: int
    num_groups: int


@dataclass(frozen=True)
class ClassShare:
    """How one class is divided.

    Args:
        name: The class.
        num_boxes: Its boxes in the source, crowd regions included.
        num_groups: The groups that hold at least one of them.
        num_val_boxes: Its boxes on the validation side.
        target: The share of its boxes that the validation side should hold, in (0, 1).
    """

    name: str
    num_boxes: int
    num_groups: int
    num_val_boxes: int
    target: float

    @property
    def actual(self) -> float:
        """The share of its boxes on the validation side, in [0, 1]; 0 for a class without boxes."""
        return self.num_val_boxes / max(self.num_boxes, 1)

    @property
    def is_unbalanced(self) -> bool:
        """Whether the share differs from the target by more than ``UNBALANCED``."""
        return self.num_boxes > 0 and abs(self.actual - self.target) > UNBALANCED


@dataclass(frozen=True)
class SplitReport:
    """What :func:`write_split` wrote.

    Args:
        output: The folder.
        by: The attribute that groups the images; ``file_name`` when each image is a group of its own.
        is_default_by: Whether ``by`` was chosen because the image records name a sequence.
        fraction: The share of the images that was requested for the validation side, in (0, 1).
        stratified: Whether the classes were balanced.
        num_ungrouped: The images without a value of ``by``; each of them is a group of its own.
        parts: ``train`` and ``val`` -> their size.
        classes: The classes in the order of the category ids.
    """

    output: Path
    by: str
    is_default_by: bool
    fraction: float
    stratified: bool
    num_ungrouped: int
    parts: Mapping[str, PartCounts]
    classes: tuple[ClassShare, ...]

    @property
    def val_share(self) -> float:
        """The share of the images on the validation side, in (0, 1)."""
        return self.parts["val"].num_images / sum(part.num_images for part in self.parts.values())

    @property
    def unbalanced(self) -> tuple[ClassShare, ...]:
        """The classes that could not be balanced, the largest deviation first."""
        found = [share for share in self.classes if share.is_unbalanced]
        return tuple(sorted(found, key=lambda share: -abs(share.actual - share.target)))

    @property
    def in_one_group(self) -> tuple[ClassShare, ...]:
        """The classes whose boxes are all in a single group, and so on one side."""
        return tuple(share for share in self.classes if share.num_groups == 1)

    def notes(self) -> list[str]:
        """Return sentences on how the images were grouped and what could not be balanced."""
        num_groups = sum(part.num_groups for part in self.parts.values())
        if self.by == FILE_NAME:
            lines = ["grouped by image: the split may put similar frames on both sides; name an attribute with --by"]
        else:
            why = f" (default: the image records name a {SEQUENCE})" if self.is_default_by else ""
            lines = [f"grouped by {self.by}{why}: {num_groups:,} groups, none on both sides"]
        if self.num_ungrouped:
            lines.append(f"{self.num_ungrouped:,} images have no {self.by}; each is a group of its own")
        if abs(self.val_share - self.fraction) > UNBALANCED:
            lines.append(f"images: {self.val_share:.1%} for validation instead of {self.fraction:.1%}")
        lines += [
            f"{share.name}: {share.actual:.1%} of its boxes for validation instead of {share.target:.1%} "
            f"({share.num_val_boxes:,} of {share.num_boxes:,} boxes; {share.num_groups:,} groups)"
            for share in self.unbalanced
        ]
        if self.in_one_group and self.by != FILE_NAME:
            lines.append(f"in a single group: {', '.join(share.name for share in self.in_one_group)}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return {
            "output": str(self.output),
            "by": self.by,
            "fraction": self.fraction,
            "stratified": self.stratified,
            "num_ungrouped": self.num_ungrouped,
            "parts": {name: vars(part) for name, part in self.parts.items()},
            "val_share": self.val_share,
            "classes": class_records(self.classes),
            "unbalanced": [share.name for share in self.unbalanced],
            "in_one_group": [share.name for share in self.in_one_group],
            "notes": self.notes(),
        }


def class_records(shares: Sequence[ClassShare]) -> dict[str, dict[str, float]]:
    """Return class name -> its counts, and its target and actual share, as JSON-able values."""
    return {
        share.name: {
            "num_boxes": share.num_boxes,
            "num_val_boxes": share.num_val_boxes,
            "num_groups": share.num_groups,
            "target": share.target,
            "actual": share.actual,
        }
        for share in shares
    }


def write_split(
    source: Path,
    output: Path,
    *,
    fraction: float,
    by: str = "",
    stratify: bool = False,
    seed: int = 0,
    policies: Mapping[str, str] = MappingProxyType({}),
) -> SplitReport:
    """Write ``train.json``, ``val.json`` and ``provenance.json`` from one annotation file.

    Records are copied byte for byte, as in a subset manifest, and all other top-level values stand in both files. Each
    image is on one side. No group is on both sides, and neither are two records of one ``file_name``. The folder is
    complete or absent.

    Args:
        source: The COCO file, plain or gzip.
        output: The folder to write; absent or empty.
        fraction: The share of the images for validation, in (0, 1). Groups may allow only a share near it; with two
            groups or more neither side is empty.
        by: The attribute of the image records that groups them, such as ``sequence`` or ``attributes.weather``;
            ``file_name`` for no groups. Empty: ``sequence`` where the records name one, else no groups.
        stratify: Whether to divide the boxes of each class by the same fraction, as far as the groups allow.
        seed: Equal seeds give equal splits; at least 0.
        policies: Finding -> ``error``, ``warn``, ``repair`` or ``note``; see
            :func:`detcurate.coco.dataset.read_coco`.

    Returns:
        The report, which names the classes that could not be balanced.

    Raises:
        ConfigError: A setting cannot be used, the output exists, or all images are in one group.
        DatasetError: The source cannot be read.
    """
    _require_settings(output, fraction, seed)
    policies = {**AS_WRITTEN, **policies}
    dataset, opened = open_coco(source, policies)
    by, is_default = (by, False) if by else (SEQUENCE if any(dataset.sequences) else FILE_NAME, True)
    values = group_values(dataset, by, opened)
    groups = group_numbers(dataset, values)
    if groups.max() == 0:
        raise ConfigError(
            f"by: all images are in one group, so one side would be empty (got {by!r} with {len(dataset):,} images in "
            f"{source}). Name an attribute with more values, or {FILE_NAME} to split image by image."
        )
    is_val = choose_validation(dataset, groups, fraction=fraction, stratify=stratify, seed=seed)[groups]
    classes = class_shares(dataset, groups, is_val, fraction)
    ids = {"train": dataset.image_ids[~is_val], "val": dataset.image_ids[is_val]}
    counts = {
        name: PartCounts(
            num_images=int(rows.sum()),
            num_boxes=int(dataset.boxes_per_image[rows].sum()),
            num_groups=int(np.count_nonzero(np.bincount(groups[rows]))),
        )
        for name, rows in (("train", ~is_val), ("val", is_val))
    }
    settings = {
        "pool": {"findings": policies},
        "split": {"fraction": fraction, "by": by, "stratify": stratify, "seed": seed},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.", suffix=files.TEMPORARY_SUFFIX))
    try:
        digests = {name: write_subset(temporary / f"{name}.json", dataset, ids[name]) for name in PARTS}
        provenance = {
            "source": {
                "file_name": source.name,
                "sha256": dataset.sha256,
                "num_images": len(dataset),
                "num_boxes": dataset.num_boxes,
            },
            "findings": [{"code": f.code, "policy": f.policy, "count": f.count} for f in dataset.findings],
            "parts": {
                name: {"file_name": f"{name}.json", "sha256": digests[name], **vars(counts[name])} for name in PARTS
            },
            "strategy": "split",
            "seed": seed,
            "settings": settings,
            "config_sha256": files.sha256_json(settings),
            "classes": class_records(classes),
            "histograms": split_histograms(dataset, is_val, opened),
            "versions": {"detcurate": __version__, "numpy": np.__version__},
        }
        files.write_json(temporary / PROVENANCE_FILE, files.add_checksum(provenance))
        temporary.chmod(0o777 & ~files.UMASK)  # mkdtemp makes it readable by its owner only
        temporary.replace(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    num_ungrouped = sum(value is None for value in values)
    return SplitReport(
        output, by, is_default and by == SEQUENCE, fraction, stratify, num_ungrouped, MappingProxyType(counts), classes
    )


def _require_settings(output: Path, fraction: float, seed: int) -> None:
    if not 0 < fraction < 1:
        raise ConfigError(
            f"fraction: not between 0 and 1 (got {fraction}). Give the share for validation, such as 0.2."
        )
    if seed < 0:
        raise ConfigError(f"seed: negative (got {seed}). Give an integer of at least 0.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output: exists (got {output}). Name a folder that is absent or empty.")


def group_values(dataset: CocoDataset, by: str, opened: Opened | None = None) -> list[str | None]:
    """Return the value of an attribute for each image: I texts, None where the image has none.

    Raises:
        ConfigError: No image has the attribute.
    """
    if by == FILE_NAME:
        return list(dataset.file_names)
    if by == SEQUENCE and any(dataset.sequences):
        return list(dataset.sequences)
    columns = image_metadata(dataset, opened)
    if by not in columns:
        known = [FILE_NAME, *([SEQUENCE] if any(dataset.sequences) else []), *columns]
        near = difflib.get_close_matches(by, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(known[:_MOST_NAMES]) + (", …" if len(known) > _MOST_NAMES else "")
        raise ConfigError(f"by: no image of {dataset.path} has this attribute (got {by!r}). Name one of {shown}.{hint}")
    return [None if value is None else str(value) for value in columns[by]]


def group_numbers(dataset: CocoDataset, values: Sequence[str | None]) -> np.ndarray:
    """Number the groups of images from 0: (I,) int64.

    Images of one value are in one group, and so are images of one ``file_name``; an image without a value joins
    no other by it.
    """
    of_name = _numbered(dataset.file_names)
    of_value = _numbered([row if value is None else value for row, value in enumerate(values)])
    if of_name.max() == len(dataset) - 1:
        return of_value
    first: dict[int, int] = {}
    parent = np.arange(int(of_value.max()) + 1)
    for name, value in zip(of_name.tolist(), of_value.tolist(), strict=True):
        parent[_root(parent, value)] = _root(parent, first.setdefault(name, value))
    roots = np.array([_root(parent, value) for value in range(len(parent))])
    return np.unique(roots[of_value], return_inverse=True)[1].astype(np.int64)


def _numbered(keys: Sequence[int | str]) -> np.ndarray:
    """Number equal keys equally, in the order of their first occurrence: (n,) int64."""
    number_of: dict[int | str, int] = {}
    return np.array([number_of.setdefault(key, len(number_of)) for key in keys], np.int64)


def _root(parent: np.ndarray, node: int) -> int:
    """Return the representative of a node, shortening the path to it in place."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = int(parent[node])
    return node


def class_shares(
    dataset: CocoDataset, groups: np.ndarray, is_val: np.ndarray, fraction: float
) -> tuple[ClassShare, ...]:
    """Return how each class is divided.

    Args:
        dataset: The source.
        groups: (I,) int64, the group of each image.
        is_val: (I,) bool, whether the image is on the validation side.
        fraction: The target share of the validation side, in (0, 1).
    """
    num_classes = len(dataset.class_names)
    of_val = np.bincount(dataset.class_index[is_val[dataset.image_index]], minlength=num_classes)
    pairs = np.sort(groups[dataset.image_index] * num_classes + dataset.class_index)
    first = pairs[np.diff(pairs, prepend=-1) > 0]
    in_groups = np.bincount(first % num_classes, minlength=num_classes)
    columns = zip(
        dataset.class_names, dataset.class_counts().tolist(), in_groups.tolist(), of_val.tolist(), strict=True
    )
    return tuple(ClassShare(*values, target=fraction) for values in columns)


def split_histograms(dataset: CocoDataset, is_val: np.ndarray, opened: Opened | None = None) -> dict[str, Any]:
    """Count the source and both sides: field -> value -> ``before``, ``train`` and ``val``.

    The fields are those of :func:`detcurate.manifest.write.histograms`.
    """
    counted = histograms(dataset, np.flatnonzero(is_val), np.flatnonzero(is_val[dataset.image_index]), opened)
    return {
        field: {
            value: {"before": n["before"], "train": n["before"] - n["after"], "val": n["after"]}
            for value, n in counts.items()
        }
        for field, counts in counted.items()
    }
