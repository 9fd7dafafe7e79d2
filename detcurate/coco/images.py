"""Whether the images of a pool are there, decode, and have the size that their records state."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from detcurate.coco.dataset import CocoDataset
from detcurate.parallel import run_jobs

_BLOCK = 64


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used, and why."""

    image_id: int
    file_name: str
    reason: str


@dataclass(frozen=True)
class _Block:
    images: tuple[tuple[int, str, int, int], ...]
    image_root: Path


def image_fingerprint(dataset: CocoDataset, image_root: Path) -> str:
    """Return a digest of the images' names, sizes in bytes and times of change, without reading them."""
    digest = hashlib.sha256()
    for name in dataset.file_names:
        try:
            status = (image_root / name).stat()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{name}\0absent\n".encode())
    return digest.hexdigest()


def find_bad_images(dataset: CocoDataset, image_root: Path, *, num_processes: int, desc: str) -> list[BadImage]:
    """Decode every image once, in parallel, and return those that are absent, broken, or of another size.

    Args:
        dataset: The records.
        image_root: What their file names are relative to.
        num_processes: How many worker processes.
        desc: What the progress bar says.

    Returns:
        The images that cannot be used, in ascending order of ``image_id``.
    """
    rows = [
        (int(image_id), name, int(width), int(height))
        for image_id, name, width, height in zip(
            dataset.image_ids, dataset.file_names, dataset.widths, dataset.heights, strict=True
        )
    ]
    blocks = [_Block(tuple(rows[start : start + _BLOCK]), image_root) for start in range(0, len(rows), _BLOCK)]
    found = run_jobs(_check_block, blocks, num_processes=num_processes, total=len(rows), desc=desc, unit="image")
    return [bad for block in found for bad in block]


def _check_block(block: _Block, progress: Callable[[int], None]) -> list[BadImage]:
    bad = []
    for image_id, file_name, width, height in block.images:
        reason = _defect(block.image_root / file_name, (width, height))
        if reason:
            bad.append(BadImage(image_id, file_name, reason))
    progress(len(block.images))
    return bad


def _defect(path: Path, size: Sequence[int]) -> str | None:
    """Return why an image cannot be used, or ``None``. Its EXIF rotation is applied first, as Detectron2 does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                found = ImageOps.exif_transpose(image).size
    except FileNotFoundError:
        return "the file is absent"
    except Exception as error:  # broken bytes make a decoder raise TypeError and worse
        return f"it does not decode: {error}"
    if tuple(found) != tuple(size):
        return f"it is {found[0]}x{found[1]}, its record says {size[0]}x{size[1]}"
    return None
