"""Pictures for the page: which images the galleries show, as reduced JPEGs."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from detcurate.coco.image_files import opened_image
from detcurate.io.storage import Location
from detcurate.report.report_data import Choice, Picture, Scores, Tile

BUDGET = 9_000_000
"""The most bytes of all JPEGs together; 12 MB in base64."""

_FULL_SIDES, _FULL_QUALITY = (960, 720, 540, 400), 78
_THUMB_SIDE, _THUMB_QUALITY = 320, 74
_CONTEXT, _LEAST_PART = 2.6, 56.0

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Encoded:
    """A picture as embedded in the page.

    Args:
        full: The JPEG as a data URI; empty if the image cannot be shown.
        problem: The reason why it cannot be shown; else empty.
    """

    full: str
    problem: str


def safe_path(root: Location, file_name: str) -> Location | None:
    """Return the file of an image, or None if its name leaves the image root.

    Example:
        >>> from pathlib import Path
        >>> safe_path(Path("/data"), "a/../b.jpg").as_posix()
        '/data/b.jpg'
        >>> safe_path(Path("/data"), "../secret.jpg") is None
        True
    """
    if file_name.startswith(("/", "\\")) or re.match("[A-Za-z]:", file_name) or "\0" in file_name:
        return None
    parts: list[str] = []
    for part in PurePosixPath(file_name).parts:
        if ".." in part.split("\\"):
            if part != ".." or not parts:
                return None
            parts.pop()
        else:
            parts.append(part)
    return root.joinpath(*parts) if parts else None


def encode(
    pictures: tuple[Picture, ...], tiles: tuple[Tile, ...], *, budget: int = BUDGET
) -> tuple[dict[str, Encoded], dict[Tile, str]]:
    """Return the pictures by key and the thumbnails by tile as data URIs, within a budget of bytes.

    If they exceed the budget, all are reduced further; none is dropped.

    Args:
        pictures: The pictures, each decoded once.
        tiles: The tiles of these pictures.
        budget: The most bytes of all JPEGs.
    """
    by_key: dict[str, list[Tile]] = {}
    for tile in tiles:
        by_key.setdefault(tile.key, []).append(tile)
    for side in _FULL_SIDES:
        found: dict[str, Encoded] = {}
        thumbs: dict[Tile, str] = {}
        spent = 0
        for picture in pictures:
            full, problem, small = _encode_one(picture, by_key.get(picture.key, []), side)
            spent += len(full) + sum(map(len, small.values()))
            found[picture.key] = Encoded(_uri(full), problem)
            thumbs |= {tile: _uri(data) for tile, data in small.items()}
        if spent <= budget:
            break
    return found, thumbs


def part(picture: Picture, tile: Tile) -> Box:
    """Return the part of a picture that a tile shows, xyxy px: the whole image, or the surroundings of its object."""
    width, height = picture.size
    if tile.focus is None:
        return 0.0, 0.0, float(width), float(height)
    x1, y1, x2, y2 = tile.focus
    context = max((x2 - x1), (y2 - y1) * width / height) * _CONTEXT
    wide = min(max(context, _LEAST_PART), float(width))
    high = min(wide * height / width, float(height))
    left = min(max((x1 + x2 - wide) / 2, 0.0), width - wide)
    top = min(max((y1 + y2 - high) / 2, 0.0), height - high)
    return left, top, left + wide, top + high


def _encode_one(picture: Picture, tiles: list[Tile], side: int) -> tuple[bytes, str, dict[Tile, bytes]]:
    if picture.path is None:
        return b"", "its name or a symbolic link leaves the image root", {}
    try:
        with opened_image(picture.path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        return b"", "the file is missing", {}
    except Exception as error:  # decoders raise many types for damaged bytes
        reason = str(error).replace(str(picture.path), picture.path.name) or type(error).__name__
        return b"", f"it does not decode: {reason}", {}
    scale = image.width / picture.size[0], image.height / picture.size[1]
    thumbs = {}
    for tile in tiles:
        x1, y1, x2, y2 = part(picture, tile)
        region = (round(x1 * scale[0]), round(y1 * scale[1]), round(x2 * scale[0]), round(y2 * scale[1]))
        thumbs[tile] = _jpeg(image.crop(region), _THUMB_SIDE, _THUMB_QUALITY)
    return _jpeg(image, side, _FULL_QUALITY), "", thumbs


def _jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    longest = max(image.size)
    if longest > side:
        size = tuple(max(1, round(length * side / longest)) for length in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)  # type: ignore[arg-type]
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def _uri(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""


NEAR_DUPLICATE = "near_duplicate"
_MINIMUM = ("minimum ", "floor ")  # the reason of a minimum quota, and as version 0.1 named it
LABEL_ERRORS = ("missing_label", "wrong_class", "inaccurate_box")
TILES = 12
"""The most tiles of one gallery."""
_GROUPS, _OF_A_GROUP = 4, 4

SUSPECTED = 0.5
"""The label-error score from which a label counts as a possible error."""


@dataclass(frozen=True)
class Pick:
    """The images of one gallery.

    Args:
        rows: (n,) int64, rows of the pool in display order.
        extent: The number shown and the number available, as text.
        group: (n,) int64, the group of each image; all 0 without groups.
    """

    rows: np.ndarray
    extent: str
    group: np.ndarray


def most_disagreed(scores: Scores) -> Pick:
    """Return the images with the highest scores; ties by id."""
    return _first(np.argsort(-scores.image_score, kind="stable"))


def least_disagreed(scores: Scores, choice: Choice) -> Pick:
    """Return the removed images with the lowest scores."""
    rows = np.flatnonzero(~choice.kept)
    return _first(rows[np.argsort(scores.image_score[rows], kind="stable")])


def of_minimums(choice: Choice) -> Pick:
    """Return the images selected for minimum quotas, one of each quota in turn."""
    is_minimum = np.array([reason.startswith(_MINIMUM) for reason in choice.reasons], bool)
    rows = np.flatnonzero(is_minimum[choice.reason] & choice.kept) if len(is_minimum) else np.zeros(0, np.int64)
    rows = rows[np.argsort(choice.rank[rows])]
    turn = np.zeros(len(rows), np.int64)
    for reason in np.unique(choice.reason[rows]):
        same = choice.reason[rows] == reason
        turn[same] = np.arange(int(same.sum()))
    return _first(rows[np.lexsort((choice.rank[rows], turn))])


def near_duplicates(choice: Choice) -> Pick:
    """Return groups of near-duplicates, each with the image that replaces the others first; largest groups first."""
    codes = [number for number, reason in enumerate(choice.reasons) if reason == NEAR_DUPLICATE]
    rows = np.flatnonzero(np.isin(choice.reason, codes) & (choice.replaced_by >= 0))
    keepers, counts = np.unique(choice.replaced_by[rows], return_counts=True)
    shown, group = [], []
    for number, at in enumerate(np.argsort(-counts, kind="stable")[:_GROUPS].tolist()):
        members = [int(keepers[at]), *rows[choice.replaced_by[rows] == keepers[at]].tolist()][:_OF_A_GROUP]
        shown += members
        group += [number] * len(members)
    return Pick(
        rows=np.array(shown, np.int64),
        extent=f"{len(set(group)):,} of {len(keepers):,} groups",
        group=np.array(group, np.int64),
    )


def most_suspected(scores: Scores, kind: str) -> Pick | None:
    """Return the images with possible label errors of a kind, highest score first; None without such scores."""
    column = scores.components.get(kind)
    if column is None:
        return None
    rows = np.flatnonzero(column >= SUSPECTED)
    return _first(rows[np.argsort(-column[rows], kind="stable")])


def _first(rows: np.ndarray) -> Pick:
    shown = rows[:TILES]
    return Pick(shown.astype(np.int64), f"{len(shown):,} of {len(rows):,} images", np.zeros(len(shown), np.int64))
