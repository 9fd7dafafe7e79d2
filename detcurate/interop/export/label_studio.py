"""Export to Label Studio's tasks: the labels as an annotation, the consensus of the ensemble as a prediction.

Boxes are in percent of the image, and a task names its image by URL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

import orjson

from detcurate.interop.export.content import Content, ImageContent
from detcurate.interop.export.cvat import require_xml
from detcurate.io.files import atomic_path, write_bytes

TASKS, CONFIG = "tasks.json", "label_config.xml"
LOCAL_FILES = "/data/local-files/?d="
REGION = "annotation-"
"""The prefix of the id of a label's region; the annotation id follows as JSON."""


def write_label_studio(directory: Path, content: Content, *, url: str = LOCAL_FILES) -> list[Path]:
    """Write ``tasks.json``, the tasks to import, and ``label_config.xml``, the labeling interface of the project.

    Args:
        directory: The output folder.
        content: The images, their labels and label errors.
        url: The prefix of the file name in an image's URL.

    Raises:
        DatasetError: A class name has a character that XML does not allow.
    """
    for name in content.class_names:
        require_xml("class name", name, content.dataset.path)
    config = directory / CONFIG
    write_bytes(config, _config(content.class_names))
    path = directory / TASKS
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        separator = b"[\n"
        for image in content.images():
            stream.write(separator + orjson.dumps(_task(image, content.class_names, url)))
            separator = b",\n"
        stream.write(b"\n]\n" if separator != b"[\n" else b"[]\n")
    return [path, config]


def _config(class_names: Sequence[str]) -> bytes:
    view = ET.Element("View")
    ET.SubElement(view, "Header", {"value": "$label_error"})
    ET.SubElement(view, "Image", {"name": "image", "value": "$image", "zoom": "true"})
    labels = ET.SubElement(view, "RectangleLabels", {"name": "label", "toName": "image"})
    for name in class_names:
        ET.SubElement(labels, "Label", {"value": name})
    ET.indent(view)
    text: str = ET.tostring(view, encoding="unicode")
    return f"{text}\n".encode()


def _task(image: ImageContent, class_names: Sequence[str], url: str) -> dict[str, Any]:
    labels = [
        {
            **_region(image, label.box, class_names[label.class_index]),
            "id": f"{REGION}{_id_text(label.annotation_id, number)}",
            **_note(" / ".join(label_error.sentence(class_names) for label_error in label.label_errors)),
        }
        for number, label in enumerate(image.labels)
    ]
    predicted = [
        {
            **_region(image, label_error.box, class_names[label_error.class_index]),
            "id": f"consensus-{number}",
            "score": label_error.score,
            **_note(label_error.sentence(class_names)),
        }
        for number, label_error in enumerate(image.label_errors)
    ]
    worst = max((label_error.label_error_score for label_error in image.label_errors), default=0.0)
    summary = image.label_errors[0].sentence(class_names) if image.label_errors else ""
    return {
        "data": {
            "image": url + quote(image.file_name),
            "file_name": image.file_name,
            "image_id": image.image_id,
            "label_error": summary,
        },
        "annotations": [{"result": labels, "was_cancelled": False, "ground_truth": False}],
        "predictions": [{"model_version": "detcurate", "score": worst, "result": predicted}] if predicted else [],
    }


def _region(image: ImageContent, box: tuple[float, float, float, float], name: str) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    across, down = 100.0 / image.width, 100.0 / image.height
    value = {"x": x1 * across, "y": y1 * down, "width": (x2 - x1) * across, "height": (y2 - y1) * down}
    return {
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": {**value, "rotation": 0, "rectanglelabels": [name]},
    }


def _note(text: str) -> dict[str, Any]:
    return {"meta": {"text": [text]}} if text else {}


def _id_text(key: int | str | None, number: int) -> str:
    """Return an annotation's id as JSON, with a number because ids of the pool may repeat or be absent."""
    return f"{orjson.dumps(key).decode()}#{number}"
