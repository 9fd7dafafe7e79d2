"""The page: one HTML file that needs nothing else, made of the template, the style and the script beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import orjson
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from detcurate.report.pictures import Encoded, part
from detcurate.report.records import DrawnBox, Gallery, Picture, ReportData, Tile
from detcurate.report.svg import Drawing
from detcurate.report.tables import Table, count_of
from detcurate.report.verdict import Verdict

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TEMPLATES = files("detcurate.report") / "templates"


@dataclass(frozen=True)
class Shot:
    """A tile as the template wants it: the thumbnail, the part of the picture, its boxes.

    Args:
        tile: The tile.
        picture: Its picture.
        thumb: A data URI, empty where the image cannot be shown.
        problem: Why.
        part: xyxy px.
        alt: What it shows.
        classes: The numbers of the classes on it, with spaces between.
    """

    tile: Tile
    picture: Picture
    thumb: str
    problem: str
    part: tuple[float, float, float, float]
    alt: str
    classes: str


@dataclass(frozen=True)
class PageParts:
    """What the page is made of beside the run's own records.

    Args:
        verdict: First of all.
        cards: Heading, value and explanation of the figures at the top.
        arm_tables: Of the comparison.
        pool_tables: Of what was bought.
        arm_figures: Likewise.
        pool_figures: Likewise.
        encoded: The pictures by key.
        thumbs: The tiles' thumbnails.
    """

    verdict: Verdict
    cards: Sequence[tuple[str, str, str]]
    arm_tables: Sequence[Table]
    pool_tables: Sequence[Table]
    arm_figures: Sequence[Drawing]
    pool_figures: Sequence[Drawing]
    encoded: Mapping[str, Encoded]
    thumbs: Mapping[Tile, str]


def render(data: ReportData, parts: PageParts) -> bytes:
    """Return the page as UTF-8."""
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"svg": Markup, "breakable": _breakable}
    pictures = {picture.key: picture for picture in data.pictures}
    galleries = [
        (gallery, [_shot(tile, pictures, data, parts) for tile in gallery.tiles]) for gallery in data.galleries
    ]
    script = _source("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("index.html.j2").render(
        data=data,
        parts=parts,
        galleries=galleries,
        payload=json_for_html(_payload(data, parts)),
        style=Markup(_source("style.css")),
        script=Markup(script),
        script_digest=digest,
        config=data.config,
        provenance=orjson.dumps(data.provenance, option=orjson.OPT_INDENT_2).decode() if data.provenance else "",
    )
    return page.encode("utf-8", "replace")


def json_for_html(value: Any) -> Markup:
    r"""Return JSON that may stand in a ``<script>``: no tag can end it, whatever the texts in it are.

    Example:
        >>> str(json_for_html({"name": "</script>"}))
        '{"name":"\\u003c/script\\u003e"}'
    """
    shown = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    for sign, escaped in _UNSAFE.items():
        shown = shown.replace(sign, escaped)
    return Markup(shown)


def _breakable(name: str) -> Markup:
    """Return a text that may break after an underscore, as names of settings and measures want to."""
    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))


def _source(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _payload(data: ReportData, parts: PageParts) -> dict[str, Any]:
    return {
        "classes": list(data.class_names),
        "members": data.num_members,
        "pictures": {picture.key: _picture(picture, parts.encoded[picture.key]) for picture in data.pictures},
    }


def _picture(picture: Picture, encoded: Encoded) -> dict[str, Any]:
    kept = {None: "", True: "kept", False: "left out"}[picture.kept]
    return {
        "id": str(picture.image_id),
        "file": picture.file_name,
        "size": list(picture.size),
        "src": encoded.full,
        "problem": encoded.problem,
        "lines": [
            line for line in (picture.where, f"{kept}: {picture.reason}" if kept else "", picture.standing) if line
        ],
        "truth": [_box(box) for box in picture.truth],
        "consensus": [_box(box) for box in picture.consensus],
        "votes": [_box(box) for box in picture.votes],
    }


def _box(box: DrawnBox) -> list[Any]:
    sides = [round(side, 1) for side in box.xyxy]
    return [*sides, box.class_index, None if box.confidence is None else round(box.confidence, 2), box.note]


def _shot(tile: Tile, pictures: Mapping[str, Picture], data: ReportData, parts: PageParts) -> Shot:
    picture = pictures[tile.key]
    classes = sorted({box.class_index for box in picture.truth})
    names = [data.class_names[index] for index in classes]
    kept = {None: "", True: ", kept", False: ", left out"}[picture.kept]
    labels = count_of(len(picture.truth), "label") + (f" of {', '.join(names)}" if names else "")
    return Shot(
        tile=tile,
        picture=picture,
        thumb=parts.thumbs.get(tile, ""),
        problem=parts.encoded[tile.key].problem,
        part=part(picture, tile),
        alt=f"{picture.file_name}{kept}: {labels}; {tile.caption}",
        classes=" ".join(map(str, classes)),
    )


def gallery_figures(galleries: Sequence[Gallery]) -> list[dict[str, Any]]:
    """Return what ``results.json`` says of the galleries."""
    return [
        {
            "name": gallery.name,
            "extent": gallery.extent,
            "shown": [{"image": tile.key, "caption": tile.caption} for tile in gallery.tiles],
        }
        for gallery in galleries
    ]
