"""A COCO pool for Detectron2: dataset dicts, the catalogs, and a stream of samples that resumes at any position."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from torch.utils.data import Dataset, Sampler

from detcurate.coco.dataset import CocoDataset, read_coco
from detcurate.coco.text import open_source
from detcurate.d2.train.hooks import mix_seed
from detcurate.errors import ConfigError, DatasetError
from detcurate.io.storage import Location, image_files
from detcurate.manifest.provenance import subset_path

# Findings for which pycocotools, Detectron2's evaluator, fails or counts wrongly.
_NOT_FOR_PYCOCOTOOLS = (
    "annotation_id_zero",
    "byte_order_mark",
    "duplicate_annotation_id",
    "missing_area",
    "missing_id",
    "missing_iscrowd",
)


def detection_dicts(dataset: CocoDataset, image_root: Location, image_ids: np.ndarray | None = None) -> list[dict]:
    """Return Detectron2's dataset dicts in ascending order of ``image_id``, including images without objects.

    Args:
        dataset: The pool.
        image_root: Base of its file names; objects in storage are named with size and version from a listing.
        image_ids: (K,) int64, the images to return; default all.
    """
    keep = np.ones(len(dataset), bool) if image_ids is None else np.isin(dataset.image_ids, image_ids)
    rows = np.flatnonzero(keep)
    files = image_files(image_root, [dataset.file_names[row] for row in rows])
    records: dict[int, dict] = {
        int(row): {
            "file_name": str(file),
            "image_id": int(dataset.image_ids[row]),
            "height": int(dataset.heights[row]),
            "width": int(dataset.widths[row]),
            "annotations": [],
        }
        for row, file in zip(rows, files, strict=True)
    }
    for annotation in np.flatnonzero(keep[dataset.image_index]):
        records[int(dataset.image_index[annotation])]["annotations"].append(
            {
                "bbox": dataset.boxes[annotation].tolist(),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": int(dataset.class_index[annotation]),
                "iscrowd": int(dataset.iscrowd[annotation]),
            }
        )
    return list(records.values())


def register_manifest(name: str, path: Path, image_root: Path, policies: Mapping[str, str] | None = None) -> None:
    """Register a manifest, or any COCO file, in Detectron2's catalogs for its own training scripts.

    The categories are in ascending order of their ids, as in all files of detcurate. The catalog keeps images without
    objects; Detectron2's loader drops them unless ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` is False.

    Args:
        name: In ``DatasetCatalog`` and ``MetadataCatalog``.
        path: The annotation file, or the folder of a manifest.
        image_root: Base of its file names.
        policies: Policies for findings that differ from the default; see
            :func:`detcurate.coco.dataset.read_coco`.

    Raises:
        DatasetError: The file cannot be used.
        ConfigError: The name is registered already.
    """
    if name in DatasetCatalog.list():
        raise ConfigError(f"name: the dataset is registered already (got {name!r}). Choose another name.")
    file = subset_path(path) if path.is_dir() else path
    dataset = read_coco(file, policies or {})
    # Without a json_file Detectron2's evaluator writes one from the dicts.
    is_plain = not open_source(file).is_gzip and all(
        finding.policy != "repair" and finding.code not in _NOT_FOR_PYCOCOTOOLS for finding in dataset.findings
    )
    DatasetCatalog.register(name, lambda: detection_dicts(read_coco(file, policies or {}), image_root))
    MetadataCatalog.get(name).set(
        **({"json_file": str(file)} if is_plain else {}),
        image_root=str(image_root),
        evaluator_type="coco",
        thing_classes=list(dataset.class_names),
        thing_dataset_id_to_contiguous_id={
            category_id: index for index, category_id in enumerate(dataset.category_ids.tolist())
        },
    )


class SampleStream(Sampler):
    """An endless shuffled stream of samples that starts at any position in constant time.

    Yields ``position * num_images + index``: the position in the stream seeds the sample's augmentation (see
    :class:`SeededDataset`), so that sample k does not depend on interruptions or the number of loader workers.

    Args:
        num_images: Length of the dataset.
        seed: Of the shuffles; one permutation an epoch.
        start: The position of the first sample.
        rank: Number of this process; each of ``world_size`` takes every ``world_size``-th sample.
        world_size: Number of training processes.
    """

    def __init__(self, num_images: int, *, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self._num_images, self._seed = num_images, seed
        self._start, self._rank, self._world_size = start, rank, world_size

    def __iter__(self) -> Iterator[int]:
        for position in itertools.count(self._start + self._rank, self._world_size):
            epoch, offset = divmod(position, self._num_images)
            yield position * self._num_images + int(self._permutation(epoch)[offset])

    def _permutation(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._num_images)
        return self._order


class SeededDataset(Dataset):
    """Maps dataset dicts to training samples, with Detectron2's augmentations seeded by the position in the stream."""

    def __init__(self, records: list[dict], mapper: Callable[[dict], Any], seed: int) -> None:
        self._records, self._mapper, self._seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, code: int) -> Any:
        position, index = divmod(code, len(self._records))
        seed = mix_seed(self._seed, position)
        random.seed(seed)
        np.random.seed(seed)
        with torch.random.fork_rng(devices=[]):  # without loader workers, the training step uses the same generator
            torch.default_generator.manual_seed(seed)
            try:
                return self._mapper(self._records[index])
            except Exception as error:
                record = self._records[index]
                raise DatasetError(
                    f"{record['file_name']}: the image cannot be read for training (image_id {record['image_id']}): "
                    f"{error}. It was readable when the pool was checked."
                ) from error
