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

# Well apart from one another and from streets; further classes get hues in between.
_PALETTE = ((0, 200, 255), (255, 150, 50), (255, 60, 220), (90, 255, 60), (255, 255, 0), (60, 60, 255), (255, 170, 255))
_SUFFIXES = (".jpg", ".jpeg", ".png")
_FONT, _LINE_PX, _GAP_PX = cv2.FONT_HERSHEY_SIMPLEX, 24, 6
_PAPER, _INK = (32, 32, 32), (240, 240, 240)


def main() -> int:
    """Draw the sheet; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", type=Path, help="a COCO detection file")
    parser.add_argument("image_root", type=Path, help="the folder that its file names are relative to")
    parser.add_argument("output", type=Path, help=f"the picture to write: {', '.join(_SUFFIXES)}")
    parser.add_argument("--num-images", type=int, default=12, help="images on the sheet (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=3, help="images side by side (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of an image on the sheet (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which images are drawn (default: %(default)s)")
    parser.add_argument(
        "--caption",
        nargs="+",
        default=["file_name"],
        metavar="FIELD",
        help="of the image's record (default: file_name)",
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
    """Choose rows at random, a second one of a sequence only after one of every other; all when there are fewer."""
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
    """Draw images side by side, each with its boxes and a caption, below a legend of the classes that are seen.

    Args:
        dataset: The labels.
        image_root: What the file names are relative to.
        rows: Which images, as rows of the dataset; at least one.
        columns: Images side by side.
        scale: Size of an image on the sheet, as a multiple of its own.
        caption: Fields of the image's record, such as ``file_name``.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ConfigError: A record has not got a field of the caption.
        DatasetError: An image cannot be read, or has another size than its record states.
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
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if not 0 < arguments.scale <= 16:
        raise ConfigError(f"--scale must be above 0 and at most 16, got {arguments.scale}")
    if arguments.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {arguments.seed}")
    if arguments.output.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"output must end in {', '.join(_SUFFIXES)}, got {arguments.output}")


def _draw_image(dataset: CocoDataset, image_root: Path, row: int, size: tuple[int, int]) -> np.ndarray:
    stated = (int(dataset.widths[row]), int(dataset.heights[row]))
    image = cv2.resize(
        _read_image(image_root / dataset.file_names[row], stated, int(dataset.image_ids[row])),
        size,
        interpolation=cv2.INTER_AREA if size[0] < stated[0] else cv2.INTER_CUBIC,
    )
    of_image = np.flatnonzero(dataset.image_index == row)
    boxes = dataset.boxes[of_image] * np.tile(np.divide(size, stated), 2)
    corners = np.clip(boxes.round(), 1, np.subtract((*size, *size), 2)).astype(int)  # so that no line is cut off
    for (x0, y0, x1, y1), number in zip(corners.tolist(), dataset.class_index[of_image].tolist(), strict=True):
        # A dark rim keeps light colours visible on a light sky.
        cv2.rectangle(image, (x0, y0), (x1, y1), (0, 0, 0), 4)
        cv2.rectangle(image, (x0, y0), (x1, y1), _color(number), 2)
    return image


def _read_image(path: Path, stated: tuple[int, int], image_id: int) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"every image must be readable, got {error.strerror or error} ({path}, image_id {image_id}); "
            "name the folder that the file names are relative to"
        ) from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise DatasetError(
            f"every image must decode, got {len(data):,} bytes that do not ({path}, image_id {image_id})"
        )
    found = (image.shape[1], image.shape[0])
    if found != stated:
        raise DatasetError(
            f"an image must have the size of its record, {stated[0]}x{stated[1]}, got {found[0]}x{found[1]} "
            f"({path}, image_id {image_id}); mend the record or name another folder"
        )
    return image


def _caption(dataset: CocoDataset, row: int, names: Sequence[str]) -> str:
    record = json.loads(bytes(dataset.raw_images[row]))
    absent = [name for name in names if name not in record]
    if absent:
        raise ConfigError(
            f"--caption must name fields of the image records, got {', '.join(absent)} "
            f"({dataset.path}, image_id {record['id']}); choose from {', '.join(record)}"
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
    """Draw swatches with names, in as many lines as they need."""
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
        raise ConfigError(f"output must be writable, got {error.strerror or error} ({path}); name another") from error


if __name__ == "__main__":
    sys.exit(main())
