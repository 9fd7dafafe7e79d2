"""Whether the images of a pool are there, decode, and have the size that their records state."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from PIL import Image, ImageOps

from detcurate.coco.dataset import CocoDataset
from detcurate.coco.findings import FindingLog
from detcurate.errors import DatasetError
from detcurate.files import write_bytes
from detcurate.parallel import run_jobs

_BLOCK = 64


@dataclass(frozen=True)
class ImageFinding:
    """Something about one image file.

    Args:
        image_id: The image.
        file_name: Its file, relative to the image root.
        code: ``missing_image_file``, ``unreadable_image``, ``image_size_differs``, ``unsupported_depth``,
            ``exif_rotation`` or ``other_image_format``.
        reason: In words.
    """

    image_id: int
    file_name: str
    code: str
    reason: str

    @property
    def is_usable(self) -> bool:
        """Whether the image can be trained on all the same.

        Detectron2 turns an image as its EXIF data says, and goes by what a file is, not by its name.
        """
        return self.code in ("exif_rotation", "other_image_format")


class _Look(msgspec.Struct, frozen=True, array_like=True):
    """What was seen of one file: its size in bytes and its time, its size upright in px, or why it cannot be read.

    Mode and format are Pillow's names. The error stands last.
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
    image_root: Path


def image_fingerprint(dataset: CocoDataset, image_root: Path) -> str:
    """Return a digest of the images' names, sizes in bytes and times of change, without reading them."""
    digest = hashlib.sha256()
    for name in dataset.file_names:
        num_bytes, mtime_ns = _status(image_root / name)
        digest.update(f"{name}\0{num_bytes}\0{mtime_ns}\n".encode())
    return digest.hexdigest()


def examine_images(
    dataset: CocoDataset, image_root: Path, *, num_processes: int, desc: str, cache: Path | None = None
) -> list[ImageFinding]:
    """Decode every image once, in parallel, and return what is wrong with those that something is wrong with.

    Args:
        dataset: The records.
        image_root: What their file names are relative to.
        num_processes: How many worker processes.
        desc: What the progress bar says.
        cache: A file that remembers what was seen, so that files of the same size and time are not decoded again.

    Returns:
        One finding an image at most, in ascending order of ``image_id``; absent, broken, of another size, turned.

    Raises:
        DatasetError: ``image_root`` is not a directory.
    """
    if not image_root.is_dir():
        raise DatasetError(f"image_root must be a directory, got {image_root}; name the folder that holds the images")
    known = _read_cache(cache)
    status = {name: _status(image_root / name) for name in dataset.file_names}
    # What did not decode is tried again: its rights may have been set since, or another version of Pillow reads it.
    new = [name for name, seen in status.items() if name not in known or known[name][:2] != seen or known[name][-1]]
    blocks = [_Block(tuple(new[start : start + _BLOCK]), image_root) for start in range(0, len(new), _BLOCK)]
    for looks in run_jobs(_look_at, blocks, num_processes=num_processes, total=len(new), desc=desc, unit="image"):
        known.update(looks)
    if cache is not None and new:
        seen = msgspec.json.encode({name: known[name] for name in status})
        write_bytes(cache, hashlib.sha256(seen).hexdigest().encode() + b"\n" + seen)
    findings = []
    for row, name in enumerate(dataset.file_names):
        found = _judge(name, _Look(*known[name]), (int(dataset.widths[row]), int(dataset.heights[row])))
        if found is not None:
            findings.append(ImageFinding(int(dataset.image_ids[row]), name, *found))
    return findings


def log_image_findings(findings: Sequence[ImageFinding], log: FindingLog) -> None:
    """Add what was found of the image files to a log of findings."""
    for finding in findings:
        log.add(finding.code, f"{finding.file_name} (image_id {finding.image_id}): {finding.reason}")


def _judge(name: str, look: _Look, size: tuple[int, int]) -> tuple[str, str] | None:
    if look.num_bytes < 0:
        return "missing_image_file", "the file is absent"
    if look.error:
        return "unreadable_image", f"it does not decode: {look.error}"
    stated = f"its record says {size[0]}x{size[1]}"
    if (look.width, look.height) != size:
        turned = ", turned as its EXIF data says" if look.is_rotated else ""
        return "image_size_differs", f"it is {look.width}x{look.height}{turned}, {stated}"
    if look.mode.startswith(_DEEP):
        return "unsupported_depth", f"it has more than 8 bits a channel (mode {look.mode}), which are cut off at 255"
    if look.is_rotated:
        return "exif_rotation", "it is stored turned, and EXIF data say how"
    named = Image.registered_extensions().get(Path(name).suffix.lower(), look.format)
    if _FAMILY.get(look.format, look.format) != _FAMILY.get(named, named):
        return "other_image_format", f"it is {look.format}, and named as {named}"
    return None


def _look_at(block: _Block, progress: Callable[[int], None]) -> dict[str, tuple]:
    looks = {name: msgspec.structs.astuple(_look(block.image_root / name)) for name in block.file_names}
    progress(len(looks))
    return looks


def _look(path: Path) -> _Look:
    """Decode one image; its EXIF rotation is applied, as Detectron2 does."""
    num_bytes, mtime_ns = _status(path)
    if num_bytes < 0:
        return _Look(num_bytes, mtime_ns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                is_rotated = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
                width, height = ImageOps.exif_transpose(image).size
                mode, kind = image.mode, image.format or ""
    except Exception as error:  # broken bytes make a decoder raise TypeError and worse
        # Without the folder: what is said of an image goes into the provenance, which is the same on every machine.
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        return _Look(num_bytes, mtime_ns, error=reason)
    return _Look(num_bytes, mtime_ns, width, height, is_rotated, mode, kind)


def _status(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a name that the file system cannot hold
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _read_cache(path: Path | None) -> dict[str, tuple]:
    if path is None or not path.is_file():
        return {}
    try:
        digest, _, seen = path.read_bytes().partition(b"\n")
        if hashlib.sha256(seen).hexdigest().encode() != digest:
            return {}
        looks: Mapping[str, _Look] = msgspec.json.decode(seen, type=dict[str, _Look])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # it only saves time
        return {}
    return {name: msgspec.structs.astuple(look) for name, look in looks.items()}


_ORIENTATION = 0x0112
_DEEP = ("I", "F")
"""The modes of 16 and 32 bits: Pillow, and so Detectron2, makes 255 of all that is above, without a word."""

_FAMILY = {"MPO": "JPEG"}
"""Formats that begin as another one, and are read as it."""
