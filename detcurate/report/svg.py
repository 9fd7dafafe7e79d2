"""Figures as SVG that stands in the page: its text is text, its colours are the page's own, light or dark or printed.

matplotlib wants fixed colours. It is given ones that stand for the page's, and they are put in their place afterwards.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detcurate.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, SURFACE = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
KEPT, LEFT = "#0a0b05", "#0a0b06"
ARMS = ("#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15", "#0a0b16", "#0a0b17", "#0a0b18")
"""The colours of the arms, in order; the page has ``--arm-1`` and so on."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""The arms' markers: none is told by its colour alone."""

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
"""Inches: as wide as the page's text, and two beside each other."""

_PX = 96 / 72
_LONGEST = 26


@dataclass(frozen=True)
class Drawing:
    """One figure of the page.

    Args:
        name: An id.
        title: A heading.
        about: How to read it.
        alt: What it shows, for those who do not see it.
        svg: The markup; safe to be put into HTML.
        table: Its data.
        is_wide: Whether it takes the whole width of the page.
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
        name: Of the figure: the same name and data give the same bytes, and no id of two figures is the same.
        plot: Fills the figure in.
        height: In inches.
        width: In inches.

    Returns:
        An ``<svg>`` element without header, size in px.
    """
    import matplotlib  # here, as in all of the report: no command that draws nothing waits for it
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text: that matplotlib's own font lacks a script does not matter.
        warnings.filterwarnings("ignore", message=r".*Glyph .* missing from font.*")
        warnings.filterwarnings("ignore", message=r".*Matplotlib currently does not support .* natively.*")
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        plot(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_the_page(stream.getvalue(), name)


def axes(figure: Figure) -> Axes:
    """Return the one pair of axes of a figure."""
    found: Axes = figure.subplots()
    return found


def label(name: str) -> str:
    """Return a name from the data for a figure: one line, cut when it is long, nothing that XML does not allow."""
    shown = "".join(sign if sign.isprintable() else "�" for sign in " ".join(name.split()))
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def _for_the_page(text: str, name: str) -> str:
    """Turn matplotlib's file into an element of the page; only tags are touched, never a text from the data."""
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
