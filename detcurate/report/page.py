"""Render the page: one self-contained HTML file from the template, the style and the script."""

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

from detcurate.report.page_tables import Table, count_of
from detcurate.report.pictures import Encoded, part
from detcurate.report.report_data import DrawnBox, Gallery, Picture, ReportData, Tile
from detcurate.report.svg import Drawing
from detcurate.report.verdict import Verdict

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TEMPLATES = files("detcurate.report") / "templates"


@dataclass(frozen=True)
class Shot:
    """A tile as the template uses it.

    Args:
        tile: The tile.
        picture: Its picture.
        thumb: The thumbnail as a data URI; empty if the image cannot be shown.
        problem: The reason why it cannot be shown.
        part: The shown part of the image, xyxy px.
        alt: The alternative text.
        classes: The class indices of its labels, separated by spaces.
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
    """The parts of the page that are computed from the report's data.

    Args:
        verdict: The verdict, which stands first.
        cards: Heading, value and explanation of each key figure.
        arm_tables: Tables of the comparison.
        pool_tables: Tables of the selection.
        arm_figures: Figures of the comparison.
        pool_figures: Figures of the selection.
        encoded: The pictures by key.
        thumbs: The thumbnails by tile.
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
    r"""Return JSON for a ``<script>`` element, which no text in it can end.

    Example:
        >>> str(json_for_html({"name": "</script>"}))
        '{"name":"\\u003c/script\\u003e"}'
    """
    shown = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    for sign, escaped in _UNSAFE.items():
        shown = shown.replace(sign, escaped)
    return Markup(shown)


def _breakable(name: str) -> Markup:
    """Return a text with possible line breaks after underscores, for names of settings and measures."""
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
    kept = {None: "", True: "selected", False: "removed"}[picture.kept]
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
    kept = {None: "", True: ", selected", False: ", removed"}[picture.kept]
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
    """Return the galleries for ``results.json``."""
    return [
        {
            "name": gallery.name,
            "extent": gallery.extent,
            "shown": [{"image": tile.key, "caption": tile.caption} for tile in gallery.tiles],
        }
        for gallery in galleries
    ]
