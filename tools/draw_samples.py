#!/usr/bin/env python
"""Draw a contact sheet of a COCO file's images with their boxes, coloured by class, and a legend."""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from detcurate.coco.dataset import CocoDataset, read_coco
from detcurate.errors import ConfigError, DatasetError, DetcurateError

# BGR colours that differ from each other and from typical streets. Further classes get hues in between.
_PALETTE = ((0, 200, 255), (255, 150, 50), (255, 60, 220), (90, 255, 60), (255, 255, 0), (60, 60, 255), (255, 170, 255))
_SUFFIXES = (".jpg", ".jpeg", ".png")
_FONT, _LINE_PX, _GAP_PX = cv2.FONT_HERSHEY_SIMPLEX, 24, 6
_PAPER, _INK = (32, 32, 32), (240, 240, 240)


def main() -> int:
    """Draw the contact sheet and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", type=Path, help="a COCO detection file")
    parser.add_argument("image_root", type=Path, help="folder that file names are relative to")
    parser.add_argument("output", type=Path, help=f"output picture ({', '.join(_SUFFIXES)})")
    parser.add_argument("--num-images", type=int, default=12, help="images on the sheet (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=3, help="images in a row (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="scale factor of an image (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random choice of images (default: %(default)s)"
    )
    parser.add_argument(
        "--caption",
        nargs="+",
        default=["file_name"],
        metavar="FIELD",
        help="fields of the image record below each image (default: file_name)",
    )
    arguments = parser.parse_args()
    try:
        _validate(arguments)
        dataset = read_coco(arguments.annotations)
        rows = choose_images(dataset, num_images=arguments.num_images, seed=arguments.seed)
        sheet = draw_sheet(
            dataset,
            arguments.image_root,
            rows,
            columns=arguments.columns,
            scale=arguments.scale,
            caption=arguments.caption,
        )
        _write(arguments.output, sheet)
    except DetcurateError as error:
        sys.stderr.write(f"draw_samples: {error}\n")
        return 2
    return 0


def choose_images(dataset: CocoDataset, *, num_images: int, seed: int) -> list[int]:
    """Choose rows at random, spread over sequences; return all rows if there are at most ``num_images``."""
    rows = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    drawn: dict[str, int] = {}
    turns = {}
    for row in rows:
        sequence = dataset.sequences[row]
        turns[row] = 0 if sequence is None else drawn.get(sequence, 0)
        if sequence is not None:
            drawn[sequence] = turns[row] + 1
    return sorted(sorted(rows, key=turns.__getitem__)[:num_images])


def draw_sheet(
    dataset: CocoDataset, image_root: Path, rows: Sequence[int], *, columns: int, scale: float, caption: Sequence[str]
) -> np.ndarray:
    """Draw a grid of images with boxes and captions, below a legend of the classes that occur.

    Args:
        dataset: Labelled images.
        image_root: Folder that file names are relative to.
        rows: Images as rows of the dataset; at least one.
        columns: Images in a row.
        scale: Scale factor of an image.
        caption: Fields of the image record, such as ``file_name``.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ConfigError: A record lacks a field of the caption.
        DatasetError: An image cannot be read, or its size differs from its record.
    """
    shapes = [(_scaled(dataset.heights[row], scale), _scaled(dataset.widths[row], scale)) for row in rows]
    height, width = (max(sides) for sides in zip(*shapes, strict=True))
    columns = min(columns, len(rows))
    cells = [
        np.full((height + _LINE_PX, width, 3), _PAPER, np.uint8) for _ in range(-(-len(rows) // columns) * columns)
    ]
    for cell, row, (h, w) in zip(cells, rows, shapes, strict=False):
        cell[:h, :w] = _draw_image(dataset, image_root, row, (w, h))
        _write_text(cell, _caption(dataset, row, caption), (2, h + _LINE_PX - 8), width - 4)
    lines = [_join(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    grid = _join(lines, axis=0)
    classes = np.unique(dataset.class_index[np.isin(dataset.image_index, rows)])
    legend = _legend([(dataset.class_names[number], _color(number)) for number in classes], grid.shape[1])
    return cv2.copyMakeBorder(
        np.concatenate((legend, grid)), *(_GAP_PX,) * 4, borderType=cv2.BORDER_CONSTANT, value=_PAPER
    )


def _validate(arguments: argparse.Namespace) -> None:
    for name in ("num_images", "columns"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: must be at least 1 (got {getattr(arguments, name)}).")
    if not 0 < arguments.scale <= 16:
        raise ConfigError(f"--scale: must be above 0 and at most 16 (got {arguments.scale}).")
    if arguments.seed < 0:
        raise ConfigError(f"--seed: must be at least 0 (got {arguments.seed}).")
    if arguments.output.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"output: suffix must be one of {', '.join(_SUFFIXES)} (got {arguments.output}).")


def _draw_image(dataset: CocoDataset, image_root: Path, row: int, size: tuple[int, int]) -> np.ndarray:
    stated = (int(dataset.widths[row]), int(dataset.heights[row]))
    image = cv2.resize(
        _read_image(image_root / dataset.file_names[row], stated, int(dataset.image_ids[row])),
        size,
        interpolation=cv2.INTER_AREA if size[0] < stated[0] else cv2.INTER_CUBIC,
    )
    of_image = np.flatnonzero(dataset.image_index == row)
    boxes = dataset.boxes[of_image] * np.tile(np.divide(size, stated), 2)
    corners = np.clip(boxes.round(), 1, np.subtract((*size, *size), 2)).astype(int)  # keeps every line inside the image
    for (x0, y0, x1, y1), number in zip(corners.tolist(), dataset.class_index[of_image].tolist(), strict=True):
        # A dark outline keeps light colours visible on a light sky.
        cv2.rectangle(image, (x0, y0), (x1, y1), (0, 0, 0), 4)
        cv2.rectangle(image, (x0, y0), (x1, y1), _color(number), 2)
    return image


def _read_image(path: Path, stated: tuple[int, int], image_id: int) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: image {image_id} cannot be read ({error.strerror or error}). Check image_root."
        ) from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise DatasetError(f"{path}: image {image_id} cannot be decoded (got {len(data):,} bytes).")
    found = (image.shape[1], image.shape[0])
    if found != stated:
        raise DatasetError(
            f"{path}: size of image {image_id} must be {stated[0]}x{stated[1]} as in its record "
            f"(got {found[0]}x{found[1]}). Fix the record or check image_root."
        )
    return image


def _caption(dataset: CocoDataset, row: int, names: Sequence[str]) -> str:
    record = json.loads(bytes(dataset.raw_images[row]))
    absent = [name for name in names if name not in record]
    if absent:
        raise ConfigError(
            f"--caption: not a field of image {record['id']} in {dataset.path} (got {', '.join(absent)}). "
            f"Choose from {', '.join(record)}."
        )
    return ", ".join(str(record[name]) for name in names)


def _scaled(side: int, scale: float) -> int:
    return max(1, round(float(side) * scale))


def _color(class_index: int) -> tuple[int, int, int]:
    if class_index < len(_PALETTE):
        return _PALETTE[class_index]
    red, green, blue = colorsys.hsv_to_rgb(class_index * (math.sqrt(5) - 1) / 2 % 1, 0.75, 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def _join(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    shape = list(parts[0].shape)
    shape[axis] = _GAP_PX
    gap = np.full(shape, _PAPER, np.uint8)
    return np.concatenate([piece for part in parts for piece in (gap, part)][1:], axis=axis)


def _legend(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> np.ndarray:
    """Draw colour swatches with class names, wrapped into lines."""
    places, x, y = [], 0, 0
    for name, _ in entries:
        needed = 26 + _text_width(name) + 18
        if x and x + needed > width:
            x, y = 0, y + _LINE_PX
        places.append((x, y))
        x += needed
    legend = np.full(((y + _LINE_PX + _GAP_PX) if entries else 0, width, 3), _PAPER, np.uint8)
    for (name, color), (left, top) in zip(entries, places, strict=True):
        cv2.rectangle(legend, (left + 2, top + 5), (left + 18, top + 19), color, -1)
        _write_text(legend, name, (left + 26, top + 17), width - left - 26)
    return legend


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, 0.5, 1)[0][0])


def _write_text(image: np.ndarray, text: str, origin: tuple[int, int], width: int) -> None:
    while text and _text_width(text) > width:
        text = text[:-1]
    cv2.putText(image, text, origin, _FONT, 0.5, _INK, 1, cv2.LINE_AA)


def _write(path: Path, sheet: np.ndarray) -> None:
    quality = () if path.suffix.lower() == ".png" else (cv2.IMWRITE_JPEG_QUALITY, 85)
    _, data = cv2.imencode(path.suffix.lower(), sheet, quality)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise ConfigError(f"output: {path} cannot be written ({error.strerror or error}).") from error


if __name__ == "__main__":
    sys.exit(main())
