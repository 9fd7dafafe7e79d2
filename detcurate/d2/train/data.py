"""A COCO pool as Detectron2 sees it: dataset dicts, and a stream of samples that can be taken up anywhere."""

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

# What pycocotools, with which Detectron2 evaluates, stumbles over or silently counts wrong.
_NOT_FOR_PYCOCOTOOLS = (
    "annotation_id_zero",
    "byte_order_mark",
    "duplicate_annotation_id",
    "missing_area",
    "missing_id",
    "missing_iscrowd",
)


def detection_dicts(dataset: CocoDataset, image_root: Location, image_ids: np.ndarray | None = None) -> list[dict]:
    """Return Detectron2's dataset dicts, images without objects included, in ascending order of ``image_id``.

    Args:
        dataset: The pool.
        image_root: What its file names are relative to; those in object storage are named with what a listing says.
        image_ids: (K,) int64, the images to take; all when absent.
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
    """Put a manifest, or any COCO file, into Detectron2's catalogs, so that its own training scripts train on it.

    The categories stand in ascending order of their ids, as in everything that detcurate writes. Images without
    objects are kept in the catalog; Detectron2 drops them when it builds its loader, unless
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` is False.

    Args:
        name: In ``DatasetCatalog`` and ``MetadataCatalog``.
        path: The annotation file, or the folder of a manifest.
        image_root: What its file names are relative to.
        policies: What is done about findings, where it differs from the default; see
            :func:`detcurate.coco.dataset.read_coco`.

    Raises:
        DatasetError: The file cannot be used.
        ConfigError: The name is taken.
    """
    if name in DatasetCatalog.list():
        raise ConfigError(f"a dataset must have a name of its own, got {name!r}, which is registered already")
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
    """An endless shuffled stream of samples that starts anywhere at no cost.

    Yields ``position * num_images + index``: the position in the stream seeds the sample's augmentation (see
    :class:`SeededDataset`), so that sample k is the same whether or not training was interrupted before it, and
    whatever the number of loader workers.

    Args:
        num_images: Length of the dataset.
        seed: Of the shuffles; one permutation an epoch.
        start: The position of the first sample.
        rank: This process among ``world_size``, each of which takes every ``world_size``-th sample.
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
        with torch.random.fork_rng(devices=[]):  # without loader workers the step that is next draws in this process
            torch.default_generator.manual_seed(seed)
            try:
                return self._mapper(self._records[index])
            except Exception as error:
                record = self._records[index]
                raise DatasetError(
                    f"an image must be readable as it is trained on, got {error} ({record['file_name']}, image_id "
                    f"{record['image_id']}); it was readable when the pool was checked"
                ) from error
