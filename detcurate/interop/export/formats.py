"""Write an export in one of the formats, as a folder that is complete or absent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detcurate.errors import DatasetError
from detcurate.interop.export.content import Content, place_images
from detcurate.interop.export.cvat import write_cvat
from detcurate.interop.export.fiftyone import write_fiftyone
from detcurate.interop.export.label_studio import LOCAL_FILES, write_label_studio
from detcurate.interop.export.yolo import write_yolo
from detcurate.io.files import UMASK

Images = Literal["none", "link"]
IMAGES: tuple[Images, ...] = ("none", "link")


@dataclass(frozen=True)
class Options:
    """The options of an export.

    Args:
        images: ``link`` places the images beside the labels, ``none`` writes no images.
        url: The prefix of the file name in Label Studio's image URLs.
    """

    images: Images = "none"
    url: str = LOCAL_FILES


def _cvat(directory: Path, parts: Mapping[str, Content], options: Options) -> list[Path]:
    return write_cvat(directory, parts["train"])


def _label_studio(directory: Path, parts: Mapping[str, Content], options: Options) -> list[Path]:
    return write_label_studio(directory, parts["train"], url=options.url)


def _fiftyone(directory: Path, parts: Mapping[str, Content], options: Options) -> list[Path]:
    return write_fiftyone(directory, parts["train"])


def _yolo(directory: Path, parts: Mapping[str, Content], options: Options) -> list[Path]:
    return write_yolo(directory, parts)


FORMATS: Mapping[str, Callable[[Path, Mapping[str, Content], Options], list[Path]]] = {
    "cvat": _cvat,
    "label-studio": _label_studio,
    "fiftyone": _fiftyone,
    "yolo": _yolo,
}
_WITH_PARTS = ("yolo",)
"""The formats with validation images beside the training images."""


def write_export(name: str, directory: Path, parts: Mapping[str, Content], options: Options) -> list[Path]:
    """Write one format into a new folder, completely or not at all.

    Args:
        name: A key of ``FORMATS``.
        directory: The folder; absent or empty.
        parts: ``train``, and optionally ``val`` for ``yolo``.
        options: The options of the export.

    Returns:
        The files to import into the tool.

    Raises:
        DatasetError: The folder is not empty, an image is missing, or a name cannot be written in this format.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DatasetError(f"output: not an absent or empty folder (got {directory}). Name another folder.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.", suffix=".partial"))
    try:
        written = FORMATS[name](temporary, parts, options)
        if options.images == "link":
            for part, content in parts.items():
                place_images(content, temporary / "images" / (part if name in _WITH_PARTS else ""))
        temporary.chmod(0o777 & ~UMASK)  # mkdtemp makes it readable by its owner only
        temporary.replace(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return [directory / path.relative_to(temporary) for path in written]
