"""What a manifest is checked against: its own subset, and the subset derived again from its source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from detcurate.coco.dataset import CocoDataset, Opened, read_coco
from detcurate.coco.manifest import IMAGES_FILE, subset_digest
from detcurate.coco.provenance import AS_WRITTEN
from detcurate.coco.source import Source, open_source
from detcurate.coco.subset import kept_rows, subset_pieces
from detcurate.errors import SelectionError

Rows = tuple[np.ndarray, np.ndarray]
"""Rows of images, (K,) int64, and of annotations, (M,) int64, both ascending."""


@dataclass
class Evidence:
    """A manifest's files, each opened and read when it is first needed, and once.

    Most manifests are what they say. So the list of images is believed first: when the text of these images of the
    source is the subset's, byte for byte, nothing of the subset has to be parsed. Else the subset is read.

    Args:
        directory: The manifest's.
        subset: Its annotation file.
        source: The source and its records, once it is known to be what the provenance names.
    """

    directory: Path
    subset: Path
    source: tuple[CocoDataset, Opened] | None = None

    @cached_property
    def text(self) -> Source:
        """The subset's text."""
        return open_source(self.subset)

    @cached_property
    def sha256(self) -> str:
        """Digest of the subset's text, whether it is compressed or not."""
        return text_sha256(self.text)

    @cached_property
    def proven(self) -> Rows | None:
        """The rows of the source whose text the subset is; None when that is not known so easily."""
        if self.source is None:
            return None
        dataset, opened = self.source
        images = _named_rows(dataset, self.directory / IMAGES_FILE)
        if images is None:
            return None
        image_ids = dataset.image_ids[images]
        is_same = _is_text(self.text.content, subset_pieces(dataset, image_ids, opened))
        return kept_rows(dataset, image_ids) if is_same else None

    @cached_property
    def held(self) -> tuple[CocoDataset, Rows]:
        """A dataset, and its rows that the subset holds: of the source when that is proven, else of the subset."""
        if self.source is not None and self.proven is not None:
            return self.source[0], self.proven
        dataset = read_coco(self.subset, AS_WRITTEN)
        return dataset, (np.arange(len(dataset)), np.arange(dataset.num_boxes))

    @cached_property
    def rows(self) -> Rows:
        """The rows of the source whose image records the subset holds.

        Raises:
            SelectionError: The source is not known, or the subset holds an image record that does not stand in it.
        """
        dataset, opened = self._known_source()
        return self.proven or kept_rows(dataset, _source_image_ids(dataset, opened, self.held[0]))

    def derived_sha256(self) -> str:
        """Return the digest of the subset that the source gives for the same images."""
        if self.proven is not None:
            return self.sha256  # both texts were compared byte for byte
        dataset, opened = self._known_source()
        return subset_digest(dataset, dataset.image_ids[self.rows[0]], opened)

    def _known_source(self) -> tuple[CocoDataset, Opened]:
        if self.source is None:
            raise SelectionError(f"the source of {self.subset} must be known, got none; name it with --source")
        return self.source


def text_sha256(source: Source) -> str:
    """Return the SHA-256 of an annotation file's text, whether it is compressed or not."""
    return hashlib.sha256(source.content).hexdigest() if source.is_gzip else source.sha256


def _named_rows(dataset: CocoDataset, path: Path) -> np.ndarray | None:
    """Return the rows of the images that a list names, None when it is no list of images of the dataset."""
    try:
        names = path.read_bytes().decode().split("\n")[:-1]
    except (OSError, UnicodeDecodeError):
        return None
    row_of = {name: row for row, name in enumerate(dataset.file_names)}
    rows = np.array([row_of.get(name, -1) for name in names], np.int64)
    return rows if len(rows) and rows.min() >= 0 and len(np.unique(rows)) == len(rows) else None


def _is_text(text: memoryview, pieces: Iterable[Any]) -> bool:
    """Tell whether a text is what some pieces are together."""
    characters, at = np.frombuffer(text, np.uint8), 0
    for piece in pieces:
        expected = np.frombuffer(piece, np.uint8)
        if not np.array_equal(characters[at : at + len(expected)], expected):
            return False
        at += len(expected)
    return at == len(characters)


def _source_image_ids(dataset: CocoDataset, opened: Opened, subset: CocoDataset) -> np.ndarray:
    """Return the source's ids of the images whose records the subset holds."""
    records, _ = opened
    row_of = {records[position]: row for row, position in enumerate(dataset.image_positions.tolist())}
    kept, _ = subset.open()
    rows = [row_of.get(kept[position]) for position in range(len(kept))]
    strangers = sum(row is None for row in rows)
    if strangers:
        raise SelectionError(f"{strangers:,} image records of {subset.path.name} do not stand in {dataset.path.name}")
    return dataset.image_ids[np.array(rows, np.int64)]
