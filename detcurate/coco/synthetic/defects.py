"""Label defects planted in a rendered pool, with the truth kept aside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detcurate.boxes import box_iou

KINDS = ("wrong_class", "shifted_box", "missing_box", "spurious_box")
_TRIES = 50


@dataclass
class Labels:
    """The boxes of a whole pool while it is being rendered, as columns that grow.

    Args:
        image_index: Of each box.
        class_index: Of each box.
        boxes: xyxy, px.
    """

    image_index: list[int] = field(default_factory=list)
    class_index: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)


def plant_defects(
    labels: Labels, fractions: dict[str, float], *, num_classes: int, size: tuple[int, int], seed: int
) -> tuple[Labels, list[tuple[str, dict[str, Any]]], list[dict[str, Any]]]:
    """Damage a share of the labels of each kind; a box is damaged once at most.

    Args:
        labels: The truth.
        fractions: Kind -> share of the true boxes.
        num_classes: C.
        size: Width and height of the images, px.
        seed: Of the choice.

    Returns:
        The damaged labels; for each of them the kind of its defect (empty when it is right) and the truth; and the
        boxes that are missing.
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
    """Move a box by 30 to 60 % of its own size, and stretch it a little; what leaves the image is cut."""
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
    """Make boxes of a real object's class and size where there is no object, in images that have some.

    Where large objects leave no place the boxes get smaller, so that there are always as many as asked for.
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
