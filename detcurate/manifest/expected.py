"""The subset of a manifest, read and derived again from its source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from detcurate.coco.dataset import CocoDataset, Opened, read_coco
from detcurate.coco.text import Source, open_source
from detcurate.errors import SelectionError
from detcurate.manifest.provenance import AS_WRITTEN
from detcurate.manifest.write import kept_rows, subset_digest, subset_pieces

Rows = tuple[np.ndarray, np.ndarray]
"""Rows of images, (K,) int64, and of annotations, (M,) int64, both ascending."""


@dataclass
class ExpectedSubset:
    """An annotation file that should be a subset of a source; each part is read when it is first needed, and once.

    Most manifests are correct, so the list of images is tried first: when the text that the source gives for these
    images is the text of the subset, the subset is proven without being parsed. Otherwise it is read.

    Args:
        subset: The annotation file.
        image_list: The file with the names of its images; None where there is no such list.
        source: The source and its records, once its digest is verified.
    """

    subset: Path
    image_list: Path | None = None
    source: tuple[CocoDataset, Opened] | None = None

    @cached_property
    def text(self) -> Source:
        """The subset's text."""
        return open_source(self.subset)

    @cached_property
    def sha256(self) -> str:
        """Digest of the subset's text, compressed or not."""
        return text_sha256(self.text)

    @cached_property
    def proven(self) -> Rows | None:
        """The rows of the source that give the subset's text; None when the list of images does not show it."""
        if self.source is None or self.image_list is None:
            return None
        dataset, opened = self.source
        images = _listed_rows(dataset, self.image_list)
        if images is None:
            return None
        image_ids = dataset.image_ids[images]
        is_same = _is_text(self.text.content, subset_pieces(dataset, image_ids, opened))
        return kept_rows(dataset, image_ids) if is_same else None

    @cached_property
    def parsed(self) -> CocoDataset:
        """The subset, read."""
        return read_coco(self.subset, AS_WRITTEN)

    @cached_property
    def held(self) -> tuple[CocoDataset, Rows]:
        """A dataset and its rows that the subset holds: of the source when that is proven, else of the subset."""
        if self.source is not None and self.proven is not None:
            return self.source[0], self.proven
        return self.parsed, (np.arange(len(self.parsed)), np.arange(self.parsed.num_boxes))

    @cached_property
    def rows(self) -> Rows:
        """The rows of the source with the subset's image records.

        Raises:
            SelectionError: The source is unknown, or lacks an image record of the subset.
        """
        dataset, opened = self._known_source()
        return self.proven or kept_rows(dataset, _source_image_ids(dataset, opened, self.parsed))

    def derived_sha256(self) -> str:
        """Return the digest of the subset that the source gives for the same images."""
        if self.proven is not None:
            return self.sha256  # both texts were compared byte for byte
        dataset, opened = self._known_source()
        return subset_digest(dataset, dataset.image_ids[self.rows[0]], opened)

    def _known_source(self) -> tuple[CocoDataset, Opened]:
        if self.source is None:
            raise SelectionError(f"{self.subset}: its source is unknown. Name it with --source.")
        return self.source


def text_sha256(source: Source) -> str:
    """Return the SHA-256 of an annotation file's text, compressed or not."""
    return hashlib.sha256(source.content).hexdigest() if source.is_gzip else source.sha256


def _listed_rows(dataset: CocoDataset, path: Path) -> np.ndarray | None:
    """Return the rows of the images that a list names; None when it does not list images of the dataset."""
    try:
        names = path.read_bytes().decode().split("\n")[:-1]
    except (OSError, UnicodeDecodeError):
        return None
    row_of = {name: row for row, name in enumerate(dataset.file_names)}
    rows = np.array([row_of.get(name, -1) for name in names], np.int64)
    return rows if len(rows) and rows.min() >= 0 and len(np.unique(rows)) == len(rows) else None


def _is_text(text: memoryview, pieces: Iterable[Any]) -> bool:
    """Return whether a text is the concatenation of some pieces."""
    characters, at = np.frombuffer(text, np.uint8), 0
    for piece in pieces:
        expected = np.frombuffer(piece, np.uint8)
        if not np.array_equal(characters[at : at + len(expected)], expected):
            return False
        at += len(expected)
    return at == len(characters)


def _source_image_ids(dataset: CocoDataset, opened: Opened, subset: CocoDataset) -> np.ndarray:
    """Return the source's ids of the images with the subset's records."""
    records, _ = opened
    row_of = {records[position]: row for row, position in enumerate(dataset.image_positions.tolist())}
    kept, _ = subset.open()
    rows = [row_of.get(kept[position]) for position in range(len(kept))]
    unexpected = sum(row is None for row in rows)
    if unexpected:
        raise SelectionError(f"{unexpected:,} image records of {subset.path.name} are not in {dataset.path.name}")
    return dataset.image_ids[np.array(rows, np.int64)]
