"""Check the image files of a pool: whether they exist, decode, and have the size of their records."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from PIL import Image, ImageOps

from detcurate.coco.dataset import CocoDataset
from detcurate.coco.validation.findings import LINK, FindingLog
from detcurate.errors import DatasetError, StorageError
from detcurate.io.files import write_bytes
from detcurate.io.safe_loading import leads_out, shown
from detcurate.io.storage import (
    Location,
    RemoteImage,
    fetch_ahead,
    image_files,
    image_source,
    image_statuses,
    path_status,
)
from detcurate.io.workers import run_jobs

_FORMATS = (
    "JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA",
)  # fmt: skip


@contextmanager
def opened_image(file: Location | RemoteImage) -> Iterator[Image.Image]:
    """Open an image as untrusted input.

    Only formats that Pillow decodes by itself are read: it would pass an EPS of any name to Ghostscript. Pipes and
    images above Pillow's limit of pixels are refused.

    Args:
        file: A local file, or an object in storage.

    Raises:
        OSError: The file is missing or does not decode.
        ValueError: It is not a regular file.
        Image.DecompressionBombWarning: It has too many pixels.
    """
    if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("not a regular file")
    with warnings.catch_warnings(), image_source(file) as source:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(source, formats=_formats()) as image:
            yield image


def leads_out_by_link(root: Location, name: str) -> bool:
    """Return whether a file, or a folder on its path, is a link to outside the root."""
    return bool(links_outside(root, (name,)))


def links_outside(root: Location, names: Iterable[str]) -> list[str]:
    """Return the names of files that are, or are below, a link to outside the root.

    The root itself may be a link, as the user named it.
    """
    if not isinstance(root, Path):  # object storage has no links
        return []
    real = os.path.realpath(root)
    inside: dict[str, bool] = {}
    found = []
    for name in names:
        try:
            path = os.path.join(real, name)  # noqa: PTH118  Path is too slow for 500,000 names
            folder = os.path.dirname(path)  # noqa: PTH120
            if folder not in inside:
                inside[folder] = _is_below(real, folder)
            if not inside[folder] or (os.path.islink(path) and not _is_below(real, path)):  # noqa: PTH114
                found.append(name)
        except ValueError:  # not a valid file name
            continue
    return found


def _is_below(real_root: str, path: str) -> bool:
    real = os.path.realpath(path)
    return real == real_root or real.startswith(real_root.rstrip(os.sep) + os.sep)


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


_BLOCK = 64


@dataclass(frozen=True)
class ImageFinding:
    """A finding on one image file.

    Args:
        image_id: The image.
        file_name: Its file, relative to the image root.
        code: ``missing_image_file``, ``unreadable_image``, ``image_size_differs``, ``unsupported_depth``,
            ``exif_rotation``, ``other_image_format`` or ``link_leaves_root``.
        reason: The details, as a phrase.
    """

    image_id: int
    file_name: str
    code: str
    reason: str

    @property
    def is_usable(self) -> bool:
        """Whether the image can be trained on nevertheless.

        Detectron2 applies the EXIF rotation, and detects the format from the content. A link is never quarantined:
        its policy decides.
        """
        return self.code in ("exif_rotation", "other_image_format", LINK)


class _Properties(msgspec.Struct, frozen=True, array_like=True):
    """The cached properties of one file: size in bytes, modification time, upright size in px, or the error.

    For an object in storage, the tag of its content replaces the time. Mode and format are Pillow's names. The error
    must stay last.
    """

    num_bytes: int
    mtime_ns: int
    width: int = 0
    height: int = 0
    is_rotated: bool = False
    mode: str = ""
    format: str = ""
    error: str = ""


@dataclass(frozen=True)
class _Block:
    file_names: tuple[str, ...]
    files: tuple[Path | RemoteImage, ...]


def image_fingerprint(dataset: CocoDataset, image_root: Location) -> str:
    """Return a digest of the images' names, sizes in bytes and modification times, without reading them."""
    digest = hashlib.sha256()
    for name, (num_bytes, mtime_ns) in zip(
        dataset.file_names, image_statuses(image_root, dataset.file_names), strict=True
    ):
        digest.update(f"{name}\0{num_bytes}\0{mtime_ns}\n".encode())
    return digest.hexdigest()


def examine_images(
    dataset: CocoDataset, image_root: Location, *, num_processes: int, desc: str, cache: Path | None = None
) -> list[ImageFinding]:
    """Decode every image once, in parallel, and return the findings.

    Args:
        dataset: The records.
        image_root: The folder of their file names, local or in object storage.
        num_processes: The number of worker processes.
        desc: The label of the progress bar.
        cache: A file for the properties of the images, so that unchanged files (by size and time) are not decoded
            again.

    Returns:
        By ascending ``image_id``: links to outside the root, and at most one other finding an image.

    Raises:
        DatasetError: ``image_root`` is not a directory.
        StorageError: An image cannot be fetched.
    """
    if not image_root.is_dir():
        raise DatasetError(f"image_root: not a directory (got {image_root}). Name the folder that holds the images.")
    linked = set(links_outside(image_root, dataset.file_names))
    known = _read_cache(cache)
    names = [name for name in dataset.file_names if not leads_out(name)]  # others are a finding of the records
    status = dict(zip(names, image_statuses(image_root, names), strict=True))
    # Decode failed files again: their permissions may have changed, or the version of Pillow.
    new = [name for name, seen in status.items() if name not in known or known[name][:2] != seen or known[name][-1]]
    files = image_files(image_root, new)
    blocks = [
        _Block(tuple(new[start : start + _BLOCK]), files[start : start + _BLOCK])
        for start in range(0, len(new), _BLOCK)
    ]
    for properties in run_jobs(
        _inspect_block, blocks, num_processes=num_processes, total=len(new), desc=desc, unit="image"
    ):
        known.update(properties)
    if cache is not None and new:
        seen = msgspec.json.encode({name: known[name] for name in status})
        write_bytes(cache, hashlib.sha256(seen).hexdigest().encode() + b"\n" + seen)
    findings = []
    for row, name in enumerate(dataset.file_names):
        if name not in status:
            continue
        if name in linked:
            reason = "the file, or a folder on its path, is a link to outside the image root"
            findings.append(ImageFinding(int(dataset.image_ids[row]), name, LINK, reason))
        found = _find(name, _Properties(*known[name]), (int(dataset.widths[row]), int(dataset.heights[row])))
        if found is not None:
            findings.append(ImageFinding(int(dataset.image_ids[row]), name, *found))
    return findings


def log_image_findings(findings: Sequence[ImageFinding], log: FindingLog) -> None:
    """Add the findings on image files to a log."""
    for finding in findings:
        name = shown(finding.file_name)
        log.add(finding.code, f"{name} (image_id {finding.image_id}): {finding.reason}")


def _find(name: str, properties: _Properties, size: tuple[int, int]) -> tuple[str, str] | None:
    if properties.num_bytes < 0:
        return "missing_image_file", "file not found"
    if properties.error:
        return "unreadable_image", f"does not decode: {properties.error}"
    if (properties.width, properties.height) != size:
        rotated = " after its EXIF rotation" if properties.is_rotated else ""
        reason = f"the image is {properties.width}x{properties.height}{rotated}, its record says {size[0]}x{size[1]}"
        return "image_size_differs", reason
    if properties.mode.startswith(_DEEP):
        return "unsupported_depth", f"more than 8 bits per channel (mode {properties.mode}), which are clipped at 255"
    if properties.is_rotated:
        return "exif_rotation", "rotated by its EXIF data"
    named = Image.registered_extensions().get(Path(name).suffix.lower(), properties.format)
    if _FAMILY.get(properties.format, properties.format) != _FAMILY.get(named, named):
        return "other_image_format", f"format {properties.format}, extension of {named}"
    return None


def _inspect_block(block: _Block, progress: Callable[[int], None]) -> dict[str, tuple]:
    fetch_ahead(block.files)
    properties = {
        name: msgspec.structs.astuple(_inspect(file)) for name, file in zip(block.file_names, block.files, strict=True)
    }
    progress(len(properties))
    return properties


def _inspect(file: Path | RemoteImage) -> _Properties:
    """Decode one image and apply its EXIF rotation, as Detectron2 does."""
    num_bytes, mtime_ns = file.entry if isinstance(file, RemoteImage) else path_status(file)
    if num_bytes < 0:
        return _Properties(num_bytes, mtime_ns)
    try:
        with opened_image(file) as image:
            image.load()
            is_rotated = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            width, height = ImageOps.exif_transpose(image).size
            mode, kind = image.mode, image.format or ""
    except StorageError:  # not a property of the image
        raise
    except FileNotFoundError:  # deleted since it was listed
        return _Properties(-1, 0)
    except Exception as error:  # decoders raise any exception on broken bytes
        # Without the folder: the reason goes into the provenance, which is equal on every machine.
        reason = _NO_FILE.sub(repr(file.name), str(error)).replace(str(file), file.name) or type(error).__name__
        return _Properties(num_bytes, mtime_ns, error=reason)
    return _Properties(num_bytes, mtime_ns, width, height, is_rotated, mode, kind)


def _read_cache(path: Path | None) -> dict[str, tuple]:
    if path is None or not path.is_file():
        return {}
    try:
        digest, _, seen = path.read_bytes().partition(b"\n")
        if hashlib.sha256(seen).hexdigest().encode() != digest:
            return {}
        properties: Mapping[str, _Properties] = msgspec.json.decode(seen, type=dict[str, _Properties])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # the cache only saves time
        return {}
    return {name: msgspec.structs.astuple(found) for name, found in properties.items()}


_ORIENTATION = 0x0112
_NO_FILE = re.compile(r"<_io\.BufferedReader name='[^']*'>")  # Pillow's name for an open file
_DEEP = ("I", "F")
"""Modes of 16 and 32 bits: Pillow, and so Detectron2, silently clips their values at 255."""

_FAMILY = {"MPO": "JPEG"}
"""Formats that are read as another one, because their files begin like it."""
