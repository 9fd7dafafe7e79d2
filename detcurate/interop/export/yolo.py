"""Export to Ultralytics YOLO: ``data.yaml``, a text file of boxes for each image, and the images."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import yaml

from detcurate.errors import DatasetError
from detcurate.interop.export.content import Content, ImageContent
from detcurate.io.files import write_bytes

DATA = "data.yaml"
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")  # PyYAML writes some of them unescaped and reads a space
_VAL_IS_TRAIN = "# val repeats the training images: name your validation images here before you train.\n"


def write_yolo(directory: Path, parts: Mapping[str, Content]) -> list[Path]:
    """Write ``data.yaml``, ``labels/PART/*.txt``, and ``predictions/PART/*.txt`` for images with possible label errors.

    A line of a label is ``class x y width height``; a line of a prediction adds the consensus confidence, as
    ``yolo predict save_txt save_conf`` does. Centres and sizes are shares of the image's size.

    Args:
        directory: The output folder.
        parts: ``train``, and optionally ``val``.

    Returns:
        ``data.yaml``.

    Raises:
        DatasetError: Two images would share a text file, or a name leads out of its folder.
    """
    for part, content in parts.items():
        taken: dict[str, str] = {}
        for image in content.images():
            name = label_name(part, image.file_name)
            other = taken.setdefault(name, image.file_name)
            if other != image.file_name:
                raise DatasetError(
                    f"{content.dataset.path}: two file names differ only in their suffix (got {other!r} and "
                    f"{image.file_name!r}), so that YOLO would read {name} for both. Rename one of them."
                )
            write_bytes(directory / name, _lines([(label.class_index, label.box) for label in image.labels], image))
            if image.label_errors:
                predicted = [
                    (label_error.class_index, label_error.box, label_error.score) for label_error in image.label_errors
                ]
                write_bytes(directory / "predictions" / part / _with_txt(image.file_name), _lines(predicted, image))
    path = directory / DATA
    write_bytes(path, _yaml(parts).encode())
    return [path]


def label_name(part: str, file_name: str) -> str:
    """Return the path where YOLO expects an image's labels: it replaces the last folder ``images`` by ``labels``.

    Example:
        >>> label_name("train", "cam0/7.jpg"), label_name("train", "images/7.jpg")
        ('labels/train/cam0/7.txt', 'images/train/labels/7.txt')
    """
    path = f"/images/{part}/{_normal(file_name)}"
    return _with_txt("/labels/".join(path.rsplit("/images/", 1)).lstrip("/"))


def image_name(part: str, file_name: str) -> str:
    """Return the path of the image."""
    return f"images/{part}/{_normal(file_name)}"


def _normal(file_name: str) -> str:
    return posixpath.normpath(file_name)


def _with_txt(name: str) -> str:
    return str(PurePosixPath(_normal(name)).with_suffix(".txt"))


def _lines(boxes: Sequence[tuple], image: ImageContent) -> bytes:
    lines = []
    for class_index, (x1, y1, x2, y2), *confidence in boxes:
        shares = (
            (x1 + x2) / 2 / image.width, (y1 + y2) / 2 / image.height, (x2 - x1) / image.width,
            (y2 - y1) / image.height, *confidence,
        )  # fmt: skip
        lines.append(" ".join([str(class_index), *(f"{min(max(share, 0.0), 1.0):.8g}" for share in shares)]) + "\n")
    return "".join(lines).encode()


def _yaml(parts: Mapping[str, Content]) -> str:
    names = dict(enumerate(parts["train"].class_names))
    has_val = "val" in parts
    folders = {"train": "images/train", "val": "images/val" if has_val else "images/train"}
    is_plain = not any(_ESCAPED.search(name) for name in names.values())
    text: str = yaml.safe_dump({**folders, "names": names}, allow_unicode=is_plain, sort_keys=False, width=10_000)
    return text if has_val else _VAL_IS_TRAIN + text
