"""Figures as inline SVG: text stays text, and colours are the page's variables for light, dark and print.

matplotlib needs fixed colours. It gets placeholders, which are replaced by the page's variables afterwards.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detcurate.report.page_tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, SURFACE = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
KEPT, LEFT = "#0a0b05", "#0a0b06"
ARMS = ("#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15", "#0a0b16", "#0a0b17", "#0a0b18")
"""The colours of the arms, in order; the page has ``--arm-1`` and so on."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""The markers of the arms: colour alone distinguishes none."""

_VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", LINE: "--line", SURFACE: "--surface", KEPT: "--kept", LEFT: "--left"},
    **{colour: f"--arm-{number}" for number, colour in enumerate(ARMS, start=1)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text: it can be searched, and the browser knows every script
    "text.parse_math": False,  # a dollar in a class name is a dollar
    "font.size": 9.0,
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "legend.labelcolor": INK,
    "path.simplify": False,
}
WIDE, HALF = 10.5, 5.1
"""Widths in inches: the whole text width, and half of it."""

_PX = 96 / 72
_LONGEST = 26


@dataclass(frozen=True)
class Drawing:
    """One figure of the page.

    Args:
        name: An id.
        title: A heading.
        about: How to read it, one or two sentences.
        alt: The alternative text.
        svg: The markup, safe for HTML.
        table: Its data.
        is_wide: Whether it spans the whole width of the page.
    """

    name: str
    title: str
    about: str
    alt: str
    svg: str
    table: Table
    is_wide: bool = True


def draw(name: str, plot: Callable[[Figure], None], *, height: float, width: float = WIDE) -> str:
    """Draw a figure.

    Args:
        name: The figure's name: equal names and data give equal bytes; ids of two figures differ.
        plot: Draws into the figure.
        height: In inches.
        width: In inches.

    Returns:
        An ``<svg>`` element without header, size in px.
    """
    import matplotlib  # imported here, as in all of the report: other commands start without it
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text, so glyphs missing from matplotlib's font do not matter.
        warnings.filterwarnings("ignore", message=r".*Glyph .* missing from font.*")
        warnings.filterwarnings("ignore", message=r".*Matplotlib currently does not support .* natively.*")
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        plot(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_the_page(stream.getvalue(), name)


def axes(figure: Figure) -> Axes:
    """Return the only axes of a figure."""
    found: Axes = figure.subplots()
    return found


def label(name: str) -> str:
    """Return a name from the data as one line for a figure: shortened, and valid in XML."""
    shown = "".join(sign if sign.isprintable() else "�" for sign in " ".join(name.split()))
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def _for_the_page(text: str, name: str) -> str:
    """Return matplotlib's file as an element of the page; only tags are changed, not texts from the data."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", lambda found: _for_the_page_tag(found[0], name), text)


def _for_the_page_tag(tag: str, name: str) -> str:
    tag = re.sub(r'\b(id|xlink:href)="(#?)([^"]+)"', rf'\1="\g<2>{name}-\3"', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace("xlink:href=", "href=")
    tag = re.sub(r" font-family: [^;\"]*;", "", tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var({variable})")
    if not tag.startswith("<svg"):
        return re.sub(r"(\.\d\d)\d+", r"\1", tag)  # a hundredth of a point is enough
    width, height = (float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', tag)[0])
    size = f'width="{width * _PX:.0f}" height="{height * _PX:.0f}" viewBox="0 0 {width:g} {height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" aria-hidden="true" focusable="false" {size}>'
