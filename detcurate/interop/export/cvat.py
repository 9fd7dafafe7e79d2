"""CVAT's own format, "CVAT for images 1.1": the labels and the proposals of the ensemble as boxes with attributes.

CVAT has no layer of predictions. What the ensemble proposes is a box whose attribute ``proposal`` is true; when the
corrections are read back it is left out unless the annotator has unticked that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from detcurate.errors import DatasetError
from detcurate.interop.export.content import Content, ImageContent
from detcurate.io.files import atomic_path, write_json

ANNOTATIONS, LABELS = "annotations.xml", "labels.json"
ANNOTATION_ID, LABEL_ERROR, PROPOSAL = "annotation_id", "label_error", "proposal"

_INPUTS: Mapping[str, tuple[str, str]] = {
    ANNOTATION_ID: ("text", ""),
    LABEL_ERROR: ("text", ""),
    PROPOSAL: ("checkbox", "false"),
}
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def write_cvat(directory: Path, content: Content) -> list[Path]:
    """Write ``annotations.xml`` and ``labels.json``, the labels that CVAT's task must have.

    A misplaced or missing object is proposed as a box of its own; a wrong class is named in an attribute, on the
    label itself.

    Raises:
        DatasetError: A class or file name has a character that XML cannot hold.
    """
    for name in content.class_names:
        require_xml("a class name", name, content.dataset.path)
    labels = directory / LABELS
    write_json(labels, [_label_spec(name) for name in content.class_names])
    path = directory / ANNOTATIONS
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        stream.write(ET.tostring(_meta(content), encoding="unicode") + "\n")
        for number, image in enumerate(content.images()):
            require_xml("file_name", image.file_name, content.dataset.path)
            stream.write(ET.tostring(_image(number, image, content.class_names), encoding="unicode") + "\n")
        stream.write("</annotations>\n")
    return [path, labels]


def require_xml(what: str, text: str, path: Path) -> None:
    """Raise ``DatasetError`` when a text has a character that XML cannot hold."""
    found = _NOT_XML.search(text)
    if found:
        raise DatasetError(
            f"{what} must have only characters that XML can hold, got {text!r} ({path}); rename it, or use another tool"
        )


def _label_spec(name: str) -> dict[str, Any]:
    """Return a label as the raw editor of CVAT's label constructor takes it."""
    attributes = [
        {"name": key, "input_type": kind, "mutable": False, "default_value": default, "values": [default]}
        for key, (kind, default) in _INPUTS.items()
    ]
    return {"name": name, "type": "rectangle", "attributes": attributes}


def _meta(content: Content) -> ET.Element:
    meta = ET.Element("meta")
    task = ET.SubElement(meta, "task")
    for key, text in (("name", "detcurate"), ("size", str(len(content.rows))), ("mode", "annotation")):
        ET.SubElement(task, key).text = text
    labels = ET.SubElement(task, "labels")
    for name in content.class_names:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = name
        ET.SubElement(label, "type").text = "rectangle"
        attributes = ET.SubElement(label, "attributes")
        for key, (kind, default) in _INPUTS.items():
            attribute = ET.SubElement(attributes, "attribute")
            for tag, text in (("name", key), ("mutable", "False"), ("input_type", kind), ("default_value", default)):
                ET.SubElement(attribute, tag).text = text
            ET.SubElement(attribute, "values").text = default
    return meta


def _image(number: int, image: ImageContent, class_names: Sequence[str]) -> ET.Element:
    size = {"width": str(image.width), "height": str(image.height)}
    element = ET.Element("image", {"id": str(number), "name": image.file_name, **size})
    for name, box, attributes in _boxes(image, class_names):
        corners = zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)
        rectangle = ET.SubElement(
            element,
            "box",
            {"label": name, "source": "manual", "occluded": "0", **{key: f"{value:.2f}" for key, value in corners},
             "z_order": "0"},
        )  # fmt: skip
        for key, text in attributes.items():
            ET.SubElement(rectangle, "attribute", {"name": key}).text = text
    return element


def _boxes(
    image: ImageContent, class_names: Sequence[str]
) -> Iterator[tuple[str, tuple[float, float, float, float], dict[str, str]]]:
    for label in image.labels:
        key = "" if label.annotation_id is None else str(label.annotation_id)
        words = "; ".join(label_error.sentence(class_names) for label_error in label.label_errors)
        found = {ANNOTATION_ID: _for_xml(key), LABEL_ERROR: _for_xml(words), PROPOSAL: "false"}
        yield class_names[label.class_index], label.box, found
    for label_error in image.label_errors:
        if label_error.kind != "wrong_class":
            words = label_error.sentence(class_names)
            yield (
                class_names[label_error.class_index],
                label_error.box,
                {ANNOTATION_ID: "", LABEL_ERROR: words, PROPOSAL: "true"},
            )


def _for_xml(text: str) -> str:
    """Return an id or a sentence without the characters that XML cannot hold: it is a hint, no more."""
    return _NOT_XML.sub("", text)
