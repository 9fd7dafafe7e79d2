"""Read corrected labels: COCO, "CVAT for images 1.1", and Label Studio's JSON export."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import numpy as np

from detcurate.coco.dataset import read_coco
from detcurate.coco.text import open_source
from detcurate.errors import DatasetError
from detcurate.interop.corrections.corrected_labels import Box, CorrectedBox, CorrectedFile, CorrectedImage
from detcurate.interop.export.cvat import ANNOTATION_ID, PROPOSAL
from detcurate.interop.export.label_studio import LOCAL_FILES, REGION
from detcurate.interop.export.relabel_queue import annotation_id_of
from detcurate.io.files import sha256_file
from detcurate.manifest.provenance import AS_WRITTEN

_DRAWN = ("rectangle", "ellipse", "polygon", "keypoint", "brush", "bitmask", "vector", "video")

Images = tuple[list[CorrectedImage], dict[str, int]]


def read_corrected(path: Path) -> CorrectedFile:
    """Read a file of corrected labels, in the format that its first character shows.

    Raises:
        DatasetError: It cannot be read, has an unknown format, or holds other shapes than upright boxes.
    """
    source = open_source(path, kind="correction")
    first = bytes(source.content[:4096]).lstrip()[:1]
    name, read = _FORMATS.get(first, ("", None))
    if read is None:
        raise DatasetError(
            f"{path}: neither COCO, CVAT for images 1.1 nor Label Studio's JSON (got a file that begins with "
            f"{first.decode(errors='replace')!r}). Export it in one of these formats."
        )
    images, skipped = read(path, bytes(source.content) if name != "coco" else b"")
    return CorrectedFile(path, name, sha256_file(path), tuple(images), skipped)


def _read_coco(path: Path, text: bytes) -> Images:
    dataset = read_coco(path, {**AS_WRITTEN, "box_outside_image": "error"})
    _, annotations = dataset.open()
    bounds = np.searchsorted(dataset.image_index, np.arange(len(dataset) + 1))
    images = []
    for row in range(len(dataset)):
        boxes = []
        for at in range(bounds[row], bounds[row + 1]):
            if not dataset.iscrowd[at]:
                x1, y1, x2, y2 = dataset.boxes[at].tolist()
                key = annotation_id_of(dataset, annotations, at)
                name = dataset.class_names[int(dataset.class_index[at])]
                boxes.append(CorrectedBox((x1, y1, x2, y2), name, "" if key is None else str(key)))
        size = (int(dataset.widths[row]), int(dataset.heights[row]))
        images.append(CorrectedImage(path, dataset.file_names[row], tuple(boxes), dataset.original_id(row), size))
    return images, {"crowd_regions": int(dataset.iscrowd.sum())}


class _DocumentTypeError(Exception):
    """The document declares a type, which may define entities."""


class _PlainTree(ET.TreeBuilder):
    """A builder that refuses a document type, so that no entity can be declared or expanded."""

    def doctype(self, *_: object) -> None:
        """Refuse the declaration before its content is read."""
        raise _DocumentTypeError


def _read_cvat(path: Path, text: bytes) -> Images:
    try:
        root = ET.fromstring(text, ET.XMLParser(target=_PlainTree()))
    except _DocumentTypeError:
        raise DatasetError(
            f"{path}: declares a document type, which is not allowed. Export it from CVAT again."
        ) from None
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two for an unknown encoding
        raise DatasetError(f"{path}: not XML from CVAT (got {error}). Export it again.") from error
    if root.tag != "annotations" or root.find("track") is not None:
        found = "tracks" if root.tag == "annotations" else f"<{root.tag}>"
        raise DatasetError(f"{path}: not 'CVAT for images 1.1' (got {found}). Choose that export format.")
    skipped = Counter({"proposals": 0})
    images = []
    for element in root.iter("image"):
        name, boxes = _attribute(path, element, "name"), []
        for shape in element:
            if shape.tag == "tag":
                continue
            box, is_proposal = _cvat_box(path, name, shape)
            skipped["proposals"] += is_proposal
            if not is_proposal:
                boxes.append(box)
        size = (int(_number(path, name, element, "width")), int(_number(path, name, element, "height")))
        images.append(CorrectedImage(path, name, tuple(boxes), None, size))
    return images, dict(skipped)


def _cvat_box(path: Path, name: str, shape: ET.Element) -> tuple[CorrectedBox, bool]:
    if shape.tag != "box":
        _refuse_shape(path, name, f"<{shape.tag}>")
    if "rotation" in shape.attrib and _number(path, name, shape, "rotation") % 360:
        _refuse_shape(path, name, "a rotated box")
    x1, y1, x2, y2 = (_number(path, name, shape, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    found = {attribute.get("name"): attribute.text or "" for attribute in shape.iter("attribute")}
    box = CorrectedBox((x1, y1, x2, y2), _attribute(path, shape, "label"), found.get(ANNOTATION_ID, ""))
    return box, found.get(PROPOSAL, "").strip().lower() == "true"


def _attribute(path: Path, element: ET.Element, key: str) -> str:
    value = element.get(key)
    if value is None:
        raise DatasetError(f"{path}: <{element.tag}> has no attribute {key!r}. Export it from CVAT again.")
    return value


def _number(path: Path, name: str, element: ET.Element, key: str) -> float:
    value = _attribute(path, element, key)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DatasetError(
            f"{path}: the attribute {key!r} of <{element.tag}> on {name!r} is not a finite number (got {value!r}). "
            "Export it from CVAT again."
        )
    return number


def _refuse_shape(path: Path, name: str, shape: str) -> None:
    raise DatasetError(f"{path}: a label of {name!r} is not an upright box (got {shape}). Draw a rectangle instead.")


def _read_label_studio(path: Path, text: bytes) -> Images:
    try:
        tasks = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON from Label Studio (got {error}). Export it again.") from error
    images = []
    skipped = {"not_annotated": 0}
    for number, task in enumerate(tasks):
        try:
            name, annotations = _file_name(task["data"]), task["annotations"]
            done = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
            if not done:
                skipped["not_annotated"] += 1
                continue
            latest = max(enumerate(done), key=lambda pair: (str(pair[1].get("updated_at") or ""), pair[0]))[1]
            image_id, size = task["data"].get("image_id"), _stated_size(latest["result"])
            boxes = [box for region in latest["result"] for box in _region_boxes(path, name, region)]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise DatasetError(
                f"{path}: task {number} is not of Label Studio's JSON export (got {type(error).__name__}: {error}). "
                "Export as JSON, not as JSON-MIN."
            ) from error
        images.append(CorrectedImage(path, name, tuple(boxes), image_id, size))
    return images, skipped


def _file_name(data: Mapping[str, Any]) -> str:
    """Return the file name of a task's image in the pool: the exported one, else the end of its URL."""
    if "file_name" in data:
        return str(data["file_name"])
    return unquote(str(data["image"]).removeprefix(LOCAL_FILES))


def _stated_size(regions: list[Mapping[str, Any]]) -> tuple[int, int] | None:
    sizes = {(int(region["original_width"]), int(region["original_height"])) for region in regions if _is_drawn(region)}
    return min(sizes) if sizes else None


def _is_drawn(region: Mapping[str, Any]) -> bool:
    return str(region.get("type", "")).startswith(_DRAWN)


def _region_boxes(path: Path, name: str, region: Mapping[str, Any]) -> list[CorrectedBox]:
    if not _is_drawn(region):
        return []  # a choice or a comment on the whole image
    if region["type"] != "rectanglelabels":
        _refuse_shape(path, name, str(region["type"]))
    value = region["value"]
    if float(value.get("rotation") or 0) % 360 or int(region.get("image_rotation") or 0) % 360:
        _refuse_shape(path, name, "a rotated box or image")
    x, y, width, height = (float(value[key]) / 100 for key in ("x", "y", "width", "height"))
    (class_name,) = value["rectanglelabels"]
    box: Box = (x, y, x + width, y + height)
    return [CorrectedBox(box, str(class_name), _key_of_region(str(region.get("id", ""))), is_share=True)]


def _key_of_region(text: str) -> str:
    """Return the annotation id of the pool in a region's id, empty for a new region."""
    if not text.startswith(REGION):
        return ""
    try:
        key = json.loads(text.removeprefix(REGION).rpartition("#")[0])
    except (ValueError, RecursionError):
        return ""
    return "" if key is None else str(key)


_FORMATS: Mapping[bytes, tuple[str, Callable[[Path, bytes], Images]]] = {
    b"{": ("coco", _read_coco),
    b"<": ("cvat", _read_cvat),
    b"[": ("label-studio", _read_label_studio),
}
