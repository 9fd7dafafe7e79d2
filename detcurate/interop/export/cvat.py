"""Export to CVAT's own format, "CVAT for images 1.1".

CVAT has no layer of predictions, so a prediction of the ensemble is a box with the attribute ``proposal`` set. The
import of corrections ignores it unless the annotator has unticked the attribute.
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
    """Write ``annotations.xml`` and ``labels.json``, the label specification of the CVAT task.

    A missing label or an inaccurate box gets a proposed box of its own; a wrong class is named in the attribute
    ``label_error`` of the label.

    Raises:
        DatasetError: A class or file name has a character that XML does not allow.
    """
    for name in content.class_names:
        require_xml("class name", name, content.dataset.path)
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


def require_xml(kind: str, text: str, path: Path) -> None:
    """Raise ``DatasetError`` when a text has a character that XML does not allow."""
    if _NOT_XML.search(text):
        raise DatasetError(
            f"{path}: a {kind} has a character that XML does not allow (got {text!r}). Rename it, or export to another "
            "tool."
        )


def _label_spec(name: str) -> dict[str, Any]:
    """Return a label in the form of the raw editor of CVAT's label constructor."""
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
        note = "; ".join(label_error.sentence(class_names) for label_error in label.label_errors)
        attributes = {ANNOTATION_ID: _for_xml(key), LABEL_ERROR: _for_xml(note), PROPOSAL: "false"}
        yield class_names[label.class_index], label.box, attributes
    for label_error in image.label_errors:
        if label_error.kind != "wrong_class":
            attributes = {ANNOTATION_ID: "", LABEL_ERROR: label_error.sentence(class_names), PROPOSAL: "true"}
            yield class_names[label_error.class_index], label_error.box, attributes


def _for_xml(text: str) -> str:
    """Return an id or a sentence without the characters that XML does not allow; it is only a hint."""
    return _NOT_XML.sub("", text)
