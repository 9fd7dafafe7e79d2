"""The image files of a pool: opened as a stranger's, and found where a link leads out of their folder."""

from __future__ import annotations

import functools
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from detcurate.storage import Location, RemoteImage, image_source

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
