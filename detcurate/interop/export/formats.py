"""The formats by name, and a folder that is whole or absent."""

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
    """How files are written.

    Args:
        images: ``link`` puts the images beside the labels, ``none`` leaves them where they are.
        url: What stands before the file name in Label Studio's image URLs.
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
"""The formats that hold images to validate on beside those to train on."""


def write_export(name: str, directory: Path, parts: Mapping[str, Content], options: Options) -> list[Path]:
    """Write one format into a new folder, as a whole or not at all.

    Args:
        name: A key of ``FORMATS``.
        directory: The folder; it must be absent or empty.
        parts: ``train``, and for ``yolo`` maybe ``val``.
        options: How.

    Returns:
        The files to be named to the tool.

    Raises:
        DatasetError: The folder holds something, an image is absent, or a name cannot be written in this format.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DatasetError(f"the output must be a folder that is absent or empty, got {directory}; name another")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.", suffix=".partial"))
    try:
        written = FORMATS[name](temporary, parts, options)
        if options.images == "link":
            for part, content in parts.items():
                place_images(content, temporary / "images" / (part if name in _WITH_PARTS else ""))
        temporary.chmod(0o777 & ~UMASK)  # mkdtemp makes it readable by its owner alone
        temporary.replace(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return [directory / path.relative_to(temporary) for path in written]
