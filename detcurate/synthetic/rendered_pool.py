"""Write a rendered pool in COCO format, and a file that lists its planted label defects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detcurate.errors import ConfigError, DatasetError
from detcurate.io.files import write_json
from detcurate.structures.boxes import box_iou, xyxy_to_xywh
from detcurate.synthetic.actors import CLASSES
from detcurate.synthetic.scene import Frame, render_frames

KINDS = ("wrong_class", "shifted_box", "missing_box", "spurious_box")
_TRIES = 50


@dataclass
class Labels:
    """The boxes of a pool during rendering, as growing columns.

    Args:
        image_index: The image of each box.
        class_index: The class of each box.
        boxes: Each box, (4,) xyxy, px.
    """

    image_index: list[int] = field(default_factory=list)
    class_index: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)


def plant_defects(
    labels: Labels, fractions: dict[str, float], *, num_classes: int, size: tuple[int, int], seed: int
) -> tuple[Labels, list[tuple[str, dict[str, Any]]], list[dict[str, Any]]]:
    """Damage a share of the labels with each kind of defect; no label has two.

    Args:
        labels: The true labels.
        fractions: Kind -> share of the true boxes.
        num_classes: The number of classes C.
        size: Width and height of the images, px.
        seed: Seed of the choice.

    Returns:
        The damaged labels; for each of them the kind of its defect (empty if correct) and the true label; and the
        missing boxes.
    """
    rng = np.random.default_rng([seed, 0xDEFEC7])
    count = len(labels.boxes)
    order = rng.permutation(count)
    fate = np.full(count, "", dtype="U12")
    start = 0
    for kind in KINDS[:3]:
        amount = round(fractions[kind] * count)
        fate[order[start : start + amount]] = kind
        start += amount
    damaged, truths, missing = Labels(), [], []
    for number in range(count):
        image, true_class, box, kind = (
            labels.image_index[number],
            labels.class_index[number],
            labels.boxes[number],
            fate[number],
        )
        if kind == "missing_box":
            missing.append({"image_index": image, "class_index": true_class, "box": box})
            continue
        shown_class, shown_box = true_class, box
        if kind == "wrong_class":
            shown_class = int((true_class + rng.integers(1, num_classes)) % num_classes)
        elif kind == "shifted_box":
            shown_box = _shift(box, size, rng)
        _append(damaged, image, shown_class, shown_box)
        truths.append((str(kind), {"class_index": true_class, "box": box}))
    for image, shown_class, box in _spurious(labels, round(fractions["spurious_box"] * count), size, rng):
        _append(damaged, image, shown_class, box)
        truths.append(("spurious_box", {}))
    return damaged, truths, missing


def _append(labels: Labels, image: int, class_index: int, box: np.ndarray) -> None:
    labels.image_index.append(image)
    labels.class_index.append(class_index)
    labels.boxes.append(box)


def _shift(box: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Move a box by 30 to 60 % of its own size, stretch it slightly, and clip it to the image."""
    sides = box[2:] - box[:2]
    for _ in range(_TRIES):
        offset = rng.choice((-1.0, 1.0), 2) * rng.uniform(0.3, 0.6, 2) * sides
        stretched = sides * rng.uniform(0.8, 1.25, 2)
        middle = (box[:2] + box[2:]) / 2 + offset
        moved = np.concatenate((middle - stretched / 2, middle + stretched / 2))
        moved = np.clip(moved, 0.0, np.array((*size, *size), np.float64))
        if (moved[2:] - moved[:2] >= 0.5 * sides).all() and box_iou(box, moved)[0, 0] < 0.6:
            return np.asarray(moved)
    halved: np.ndarray = np.concatenate((box[:2], box[:2] + 0.5 * sides))
    return halved


def _spurious(
    labels: Labels, amount: int, size: tuple[int, int], rng: np.random.Generator
) -> list[tuple[int, int, np.ndarray]]:
    """Create boxes with the class and size of a real object at places without objects, in images with objects.

    Where large objects leave no space, the boxes get smaller, so that the number is always reached.
    """
    found: list[tuple[int, int, np.ndarray]] = []
    failures = 0
    by_image: dict[int, list[np.ndarray]] = {}
    for image, box in zip(labels.image_index, labels.boxes, strict=True):
        by_image.setdefault(image, []).append(box)
    while len(found) < amount:
        number = int(rng.integers(len(labels.boxes)))
        image, sides = labels.image_index[number], labels.boxes[number][2:] - labels.boxes[number][:2]
        sides = sides * 0.5 ** (failures // _TRIES)
        failures += 1
        corner = rng.uniform(0, 1, 2) * (np.asarray(size) - sides)
        box = np.concatenate((corner, corner + sides))
        if box_iou(box, np.array(by_image[image])).max() < 0.1:
            by_image[image].append(box)
            found.append((image, labels.class_index[number], box))
            failures = 0
    return found


RARE_CLASS = "bus"
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class SyntheticConfig:
    """Settings of a rendered pool; equal settings give equal bytes.

    Args:
        num_images: Number of images, >= 1.
        width: Width of the images, px, >= 32.
        height: Height of the images, px, >= 32.
        seed: Seed of the scenes and the defects, >= 0.
        frames_per_sequence: Length of a sequence, >= 2.
        near_duplicate_fraction: Share of the images that repeat the previous one, in [0, 0.9].
        wrong_class_fraction: Share of the boxes with another class, in [0, 0.25].
        shifted_box_fraction: Share of the boxes that are moved, in [0, 0.25].
        missing_box_fraction: Share of the boxes that are removed, in [0, 0.25].
        spurious_box_fraction: Number of boxes without an object, as a share of the true ones, in [0, 0.25].

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
                raise ConfigError(f"{name}: too small (got {getattr(self, name)}). It must be >= {low}.")
        for share in fields(self):
            high = 0.9 if share.name.startswith("near") else 0.25
            if share.name.endswith("_fraction") and not 0 <= getattr(self, share.name) <= high:
                raise ConfigError(
                    f"{share.name}: out of range (got {getattr(self, share.name)}). It must be in [0, {high}]."
                )

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

    The annotation file is written last, so that its presence implies that all images exist.

    Args:
        directory: The folder; created if needed.
        config: The settings.
        name: The prefix of the files.
        progress: Called with the number of images just written.

    Raises:
        DatasetError: An image cannot be written.
    """
    image_root = directory / f"images-{name}"
    image_root.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").unlink(missing_ok=True)  # an earlier rendering: its images are replaced now
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
        raise DatasetError(f"{path}: a rendered image could not be encoded as JPEG.")
    path.write_bytes(data.tobytes())


def _annotations(
    labels: Labels, truths: list[tuple[str, dict[str, Any]]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Number the labels image by image, and list the damaged ones by number."""
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
