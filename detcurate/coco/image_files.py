"""Whether the images of a pool are there, decode, and have the size that their records state."""

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
    """Open an image as one of a stranger's.

    Only formats that Pillow decodes by itself are read: an EPS by any name would be handed to Ghostscript. A pipe that
    never ends and an image of more pixels than Pillow takes for a bomb are refused.

    Args:
        file: Here, or in object storage.

    Raises:
        OSError: It is absent or does not decode.
        ValueError: It is no regular file.
        Image.DecompressionBombWarning: It has too many pixels.
    """
    if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("it is no regular file")
    with warnings.catch_warnings(), image_source(file) as source:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(source, formats=_formats()) as image:
            yield image


def leads_out_by_link(root: Location, name: str) -> bool:
    """Tell whether the file of a name, or a folder on the way to it, is a link that leads out of the root."""
    return bool(names_that_lead_out(root, (name,)))


def names_that_lead_out(root: Location, names: Iterable[str]) -> list[str]:
    """Return those names whose file, or a folder on the way to it, is a link that leads out of the root.

    The root itself may be a link: that is the arrangement of whoever named it.
    """
    if not isinstance(root, Path):  # object storage has no links
        return []
    real = os.path.realpath(root)
    inside: dict[str, bool] = {}
    found = []
    for name in names:
        try:
            path = os.path.join(real, name)  # noqa: PTH118  half a million of them, and Path is slow
            folder = os.path.dirname(path)  # noqa: PTH120
            if folder not in inside:
                inside[folder] = _is_below(real, folder)
            if not inside[folder] or (os.path.islink(path) and not _is_below(real, path)):  # noqa: PTH114
                found.append(name)
        except ValueError:  # a name that no file can have
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
    """Something about one image file.

    Args:
        image_id: The image.
        file_name: Its file, relative to the image root.
        code: ``missing_image_file``, ``unreadable_image``, ``image_size_differs``, ``unsupported_depth``,
            ``exif_rotation``, ``other_image_format`` or ``link_leaves_root``.
        reason: In words.
    """

    image_id: int
    file_name: str
    code: str
    reason: str

    @property
    def is_usable(self) -> bool:
        """Whether the image can be trained on all the same.

        Detectron2 turns an image as its EXIF data says, and goes by what a file is, not by its name. A link is never
        put in quarantine: its policy decides.
        """
        return self.code in ("exif_rotation", "other_image_format", LINK)


class _Look(msgspec.Struct, frozen=True, array_like=True):
    """What was seen of one file: its size in bytes and its time, its size upright in px, or why it cannot be read.

    Of an object in storage the tag of its content stands in the place of the time. Mode and format are Pillow's names.
    The error stands last.
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
    """Return a digest of the images' names, sizes in bytes and times of change, without reading them."""
    digest = hashlib.sha256()
    for name, (num_bytes, mtime_ns) in zip(
        dataset.file_names, image_statuses(image_root, dataset.file_names), strict=True
    ):
        digest.update(f"{name}\0{num_bytes}\0{mtime_ns}\n".encode())
    return digest.hexdigest()


def examine_images(
    dataset: CocoDataset, image_root: Location, *, num_processes: int, desc: str, cache: Path | None = None
) -> list[ImageFinding]:
    """Decode every image once, in parallel, and return what is wrong with those that something is wrong with.

    Args:
        dataset: The records.
        image_root: What their file names are relative to, here or in object storage.
        num_processes: How many worker processes.
        desc: What the progress bar says.
        cache: A file that remembers what was seen, so that files of the same size and time are not decoded again.

    Returns:
        In ascending order of ``image_id``: links that lead out of the root, and one finding an image at most of those
        absent, broken, of another size, turned.

    Raises:
        DatasetError: ``image_root`` is not a directory.
        StorageError: An image cannot be fetched.
    """
    if not image_root.is_dir():
        raise DatasetError(f"image_root must be a directory, got {image_root}; name the folder that holds the images")
    led_out = set(names_that_lead_out(image_root, dataset.file_names))
    known = _read_cache(cache)
    names = [name for name in dataset.file_names if not leads_out(name)]  # those are a finding of the records
    status = dict(zip(names, image_statuses(image_root, names), strict=True))
    # What did not decode is tried again: its rights may have been set since, or another version of Pillow reads it.
    new = [name for name, seen in status.items() if name not in known or known[name][:2] != seen or known[name][-1]]
    files = image_files(image_root, new)
    blocks = [
        _Block(tuple(new[start : start + _BLOCK]), files[start : start + _BLOCK])
        for start in range(0, len(new), _BLOCK)
    ]
    for looks in run_jobs(_look_at, blocks, num_processes=num_processes, total=len(new), desc=desc, unit="image"):
        known.update(looks)
    if cache is not None and new:
        seen = msgspec.json.encode({name: known[name] for name in status})
        write_bytes(cache, hashlib.sha256(seen).hexdigest().encode() + b"\n" + seen)
    findings = []
    for row, name in enumerate(dataset.file_names):
        if name not in status:
            continue
        if name in led_out:
            reason = "it, or a folder on the way to it, is a link that leads out of the image root"
            findings.append(ImageFinding(int(dataset.image_ids[row]), name, LINK, reason))
        found = _judge(name, _Look(*known[name]), (int(dataset.widths[row]), int(dataset.heights[row])))
        if found is not None:
            findings.append(ImageFinding(int(dataset.image_ids[row]), name, *found))
    return findings


def log_image_findings(findings: Sequence[ImageFinding], log: FindingLog) -> None:
    """Add what was found of the image files to a log of findings."""
    for finding in findings:
        name = shown(finding.file_name)
        log.add(finding.code, f"{name} (image_id {finding.image_id}): {finding.reason}")


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
    fetch_ahead(block.files)
    looks = {
        name: msgspec.structs.astuple(_look(file)) for name, file in zip(block.file_names, block.files, strict=True)
    }
    progress(len(looks))
    return looks


def _look(file: Path | RemoteImage) -> _Look:
    """Decode one image; its EXIF rotation is applied, as Detectron2 does."""
    num_bytes, mtime_ns = file.entry if isinstance(file, RemoteImage) else path_status(file)
    if num_bytes < 0:
        return _Look(num_bytes, mtime_ns)
    try:
        with opened_image(file) as image:
            image.load()
            is_rotated = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            width, height = ImageOps.exif_transpose(image).size
            mode, kind = image.mode, image.format or ""
    except StorageError:  # which says nothing of the image
        raise
    except FileNotFoundError:  # it is gone since it was listed
        return _Look(-1, 0)
    except Exception as error:  # broken bytes make a decoder raise TypeError and worse
        # Without the folder: what is said of an image goes into the provenance, which is the same on every machine.
        reason = _NO_FILE.sub(repr(file.name), str(error)).replace(str(file), file.name) or type(error).__name__
        return _Look(num_bytes, mtime_ns, error=reason)
    return _Look(num_bytes, mtime_ns, width, height, is_rotated, mode, kind)


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
_NO_FILE = re.compile(r"<_io\.BufferedReader name='[^']*'>")  # how Pillow calls a file that it was given open
_DEEP = ("I", "F")
"""The modes of 16 and 32 bits: Pillow, and so Detectron2, makes 255 of all that is above, without a word."""

_FAMILY = {"MPO": "JPEG"}
"""Formats that begin as another one, and are read as it."""
