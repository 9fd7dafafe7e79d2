"""A rendered pool on disk, in COCO's layout, and the side file that says which labels were damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detcurate.boxes import xyxy_to_xywh
from detcurate.coco.synthetic.actors import CLASSES
from detcurate.coco.synthetic.defects import KINDS, Labels, plant_defects
from detcurate.coco.synthetic.scene import Frame, render_frames
from detcurate.errors import ConfigError, DatasetError
from detcurate.files import write_json

RARE_CLASS = "bus"
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class SyntheticConfig:
    """What to render.

    Args:
        num_images: At least 1.
        width: px, at least 32.
        height: px, at least 32.
        seed: 0 or more; the same config gives the same bytes.
        frames_per_sequence: At least 2.
        near_duplicate_fraction: Share of the images that repeat the one before, in [0, 0.9].
        wrong_class_fraction: Share of the boxes that get another class, in [0, 0.25].
        shifted_box_fraction: Share of the boxes that are moved, likewise.
        missing_box_fraction: Share of the boxes that are left out, likewise.
        spurious_box_fraction: Number of boxes on nothing, as a share of the true ones, likewise.

    Raises:
        ConfigError: A value is out of range.
    """

    num_images: int = 600
    width: int = 256
    height: int = 160
    seed: int = 0
    frames_per_sequence: int = 20
    near_duplicate_fraction: float = 0.25
    wrong_class_fraction: float = 0.05
    shifted_box_fraction: float = 0.05
    missing_box_fraction: float = 0.05
    spurious_box_fraction: float = 0.05

    def __post_init__(self) -> None:
        least = {"num_images": 1, "width": 32, "height": 32, "seed": 0, "frames_per_sequence": 2}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for field in fields(self):
            high = 0.9 if field.name.startswith("near") else 0.25
            if field.name.endswith("_fraction") and not 0 <= getattr(self, field.name) <= high:
                raise ConfigError(f"{field.name} must be in [0, {high}], got {getattr(self, field.name)}")

    @classmethod
    def clean(cls, *, num_images: int, width: int, height: int, seed: int) -> SyntheticConfig:
        """Return a config without planted defects, for evaluation."""
        return cls(
            num_images=num_images,
            width=width,
            height=height,
            seed=seed,
            near_duplicate_fraction=0.0,
            wrong_class_fraction=0.0,
            shifted_box_fraction=0.0,
            missing_box_fraction=0.0,
            spurious_box_fraction=0.0,
        )


def render_sequence(config: SyntheticConfig, sequence: int) -> Iterator[Frame]:
    """Render the frames of one sequence, without label defects."""
    length = min(config.frames_per_sequence, config.num_images - sequence * config.frames_per_sequence)
    first = sequence * config.frames_per_sequence
    due = [round(frames * config.near_duplicate_fraction) for frames in (first, first + length)]
    duplicates = min(due[1] - due[0], length - 1)
    return render_frames(
        config.seed,
        sequence,
        num_frames=length,
        num_duplicates=duplicates,
        width=config.width,
        height=config.height,
    )


def write_dataset(
    directory: Path,
    config: SyntheticConfig,
    *,
    name: str = "train",
    progress: Callable[[int], object] | None = None,
) -> None:
    """Render a pool into ``<name>.json``, ``<name>-defects.json`` and ``images-<name>/``.

    The annotation file is written last, so that its presence says that the images are all there.

    Args:
        directory: Where to; made when absent.
        config: What to render.
        name: Of the files.
        progress: Called with the number of images just written.

    Raises:
        DatasetError: An image cannot be written.
    """
    image_root = directory / f"images-{name}"
    image_root.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").unlink(missing_ok=True)  # of an earlier rendering, whose images are replaced now
    images: list[dict[str, Any]] = []
    groups: list[list[int]] = []
    truth = Labels()
    for sequence in range(-(-config.num_images // config.frames_per_sequence)):
        for frame in render_sequence(config, sequence):
            record = _image_record(config, len(images) + 1, sequence, frame)
            _write_image(image_root / record["file_name"], frame.image)
            if frame.is_duplicate:
                if groups and groups[-1][-1] == record["id"] - 1:
                    groups[-1].append(record["id"])
                else:
                    groups.append([record["id"] - 1, record["id"]])
            truth.image_index += [len(images)] * len(frame.boxes)
            truth.class_index += frame.class_index.tolist()
            truth.boxes += list(frame.boxes)
            images.append(record)
            if progress:
                progress(1)
    fractions = {kind: getattr(config, f"{kind}_fraction") for kind in KINDS}
    damaged, truths, missing = plant_defects(
        truth, fractions, num_classes=len(CLASSES), size=(config.width, config.height), seed=config.seed
    )
    annotations, defects = _annotations(damaged, truths)
    rare = CLASSES.index(RARE_CLASS)
    defects["near_duplicates"] = groups
    defects["missing_boxes"] = [
        {"image_id": box["image_index"] + 1, "category_id": box["class_index"] + 1, "bbox": _bbox(box["box"])}
        for box in missing
    ]
    defects["rare_class"] = {
        "category_id": rare + 1,
        "image_ids": sorted({i + 1 for i, c in zip(truth.image_index, truth.class_index, strict=True) if c == rare}),
    }
    write_json(directory / f"{name}-defects.json", defects)
    write_json(
        directory / f"{name}.json",
        {
            "info": {"description": "rendered driving scenes", "seed": config.seed},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": kind} for number, kind in enumerate(CLASSES, start=1)],
        },
    )


def _image_record(config: SyntheticConfig, image_id: int, sequence: int, frame: Frame) -> dict[str, Any]:
    name = f"seq-{sequence:04d}"
    return {
        "id": image_id,
        "file_name": f"{name}_{frame.frame_index:06d}.jpg",
        "width": config.width,
        "height": config.height,
        "sequence": name,
        "frame_index": frame.frame_index,
        **frame.attributes,
    }


def _write_image(path: Path, image: np.ndarray) -> None:
    encoded, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
    if not encoded:
        raise DatasetError(f"a rendered image must be encoded as JPEG ({path})")
    path.write_bytes(data.tobytes())


def _annotations(
    labels: Labels, truths: list[tuple[str, dict[str, Any]]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Number the labels image by image, and list the damaged ones by their numbers."""
    annotations: list[dict[str, Any]] = []
    defects: dict[str, Any] = {"wrong_class": [], "shifted_boxes": [], "spurious_boxes": []}
    for row in sorted(range(len(labels.boxes)), key=lambda row: labels.image_index[row]):
        number, (kind, truth) = len(annotations) + 1, truths[row]
        bbox = _bbox(labels.boxes[row])
        annotations.append(
            {
                "id": number,
                "image_id": labels.image_index[row] + 1,
                "category_id": labels.class_index[row] + 1,
                "bbox": bbox,
                "area": round(bbox[2] * bbox[3], 2),
                "iscrowd": 0,
            }
        )
        if kind == "wrong_class":
            defects["wrong_class"].append({"annotation_id": number, "true_category_id": truth["class_index"] + 1})
        elif kind == "shifted_box":
            defects["shifted_boxes"].append({"annotation_id": number, "true_bbox": _bbox(truth["box"])})
        elif kind == "spurious_box":
            defects["spurious_boxes"].append(number)
    return annotations, defects


def _bbox(box: np.ndarray) -> list[float]:
    return [round(float(value), 2) for value in xyxy_to_xywh(box)[0]]
