"""Figures of the arms: differences with confidence intervals, seeds, classes and the learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detcurate.evaluate.arm_comparison import COMPARED
from detcurate.report.page_tables import Table, class_ap_table, seed_table
from detcurate.report.report_data import Comparison
from detcurate.report.svg import ARMS, HALF, INK, LINE, MARKERS, MUTED, Drawing, axes, draw, label
from detcurate.report.verdict import Claim, signed, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.32  # inches
_MOST_CLASSES = 30


def arm_figures(comparison: Comparison, claims: Sequence[Claim]) -> list[Drawing]:
    """Return the figures that the comparison has data for, in page order."""
    figures = [_differences(claims)] if any(claim.mean is not None for claim in claims) else []
    if comparison.summary["arms"] and len(next(iter(comparison.summary["arms"].values()))["per_class"]) > 1:
        figures.append(_classes(comparison))
    figures.append(_seeds(comparison))
    curve = comparison.summary.get("learning_curve")
    if curve and curve.get("points"):
        figures.append(_learning_curve(curve))
    return figures


def _differences(claims: Sequence[Claim]) -> Drawing:
    """Draw the differences of the curated arm to the others, each with its two confidence intervals."""
    known = [claim for claim in claims if claim.mean is not None]

    def plot(figure: Figure) -> None:
        ax = axes(figure)
        ax.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for row, claim in enumerate(known):
            for ends, offset, width in ((claim.over_seeds, 0.0, 3.2), (claim.over_images, 0.26, 1.4)):
                if ends is not None:
                    ax.plot(ends, [row + offset] * 2, color=ARMS[0], linewidth=width, solid_capstyle="butt")
            ax.plot([claim.mean or 0.0], [row], MARKERS[0], color=ARMS[0], markersize=7)
            ax.annotate(_difference_text(claim), (1.01, row), xycoords=("axes fraction", "data"), va="center")
        _rows(ax, [f"curated − {claim.other}" for claim in known], below=0.6)
        ax.set_xlabel("difference in AP, points")

    rows = tuple(
        (claim.other, claim.kind, claim.num_seeds, claim.mean, *(claim.over_seeds or (None,) * 2),
         *(claim.over_images or (None,) * 2))
        for claim in known
    )  # fmt: skip
    columns = ("arm", "kind", "num_seeds", "mean", "seeds_low", "seeds_high", "seeds_images_low", "seeds_images_high")
    alt = "; ".join(
        f"curated less {claim.other}: {signed(claim.mean or 0)}"
        + (f", interval {span(claim.over_seeds)}" if claim.over_seeds else ", no interval")
        for claim in known
    )
    about = (
        "Thick line: 95 % confidence interval over seeds. Thin line below: over seeds and evaluation images. "
        "Dashed: no difference."
    )
    svg = draw("differences", plot, height=0.62 + 1.5 * _ROW * len(known))
    return Drawing(
        "differences",
        "The subset against the other arms",
        about,
        alt,
        svg,
        Table("differences", "", columns, rows),
    )


def _difference_text(claim: Claim) -> str:
    ends = f"  ({span(claim.over_seeds)})" if claim.over_seeds else "  (no interval)"
    return f"{signed(claim.mean or 0)}{ends}"


def _seeds(comparison: Comparison) -> Drawing:
    """Draw the AP of every detector, one point a seed."""
    arms = list(comparison.summary["arms"])
    values = {arm: comparison.summary["arms"][arm]["figures"]["AP"]["values"] for arm in arms}

    def plot(figure: Figure) -> None:
        ax = axes(figure)
        for row, arm in enumerate(arms):
            known = [value for value in values[arm] if value is not None]
            if len(known) > 1:
                ax.plot([float(np.mean(known))] * 2, [row - 0.28, row + 0.28], color=INK, linewidth=2)
            ax.plot(known, [row] * len(known), **_marker(row), alpha=0.85)
        _rows(ax, arms)
        ax.set_xlabel("AP in percent on the evaluation images")

    alt = "; ".join(f"{arm}: {', '.join('–' if v is None else f'{v:.1f}' for v in values[arm])}" for arm in arms)
    svg = draw("seeds", plot, height=0.55 + _ROW * len(arms), width=HALF)
    about = "Each point is one detector. The bar is the mean over the seeds of an arm."
    return Drawing("seeds", "AP of every seed", about, alt, svg, seed_table(comparison), is_wide=False)


def _classes(comparison: Comparison) -> Drawing:
    """Draw the mean AP of each class, one marker an arm."""
    arms = comparison.summary["arms"]
    shown = [arm for arm in arms if arm in ("curated", "random", "full")] or list(arms)[:3]
    names = list(arms[shown[0]]["per_class"])
    means = {arm: [arms[arm]["per_class"][name]["mean"] for name in names] for arm in shown}
    order = sorted(range(len(names)), key=lambda row: -_known(means[shown[0]][row]))[:_MOST_CLASSES]

    def plot(figure: Figure) -> None:
        ax = axes(figure)
        for row, at in enumerate(order):
            points = [means[arm][at] for arm in shown if means[arm][at] is not None]
            if points:
                ax.plot([min(points), max(points)], [row, row], color=LINE, linewidth=1.2, zorder=1)
        for number, arm in enumerate(arms):
            if arm in shown:
                found = [(means[arm][at], row) for row, at in enumerate(order) if means[arm][at] is not None]
                ax.plot([x for x, _ in found], [y for _, y in found], **_marker(number), label=arm, alpha=0.9)
        _rows(ax, [label(names[at]) for at in order])
        ax.set_xlabel("AP in percent, mean over the seeds")
        figure.legend(loc="outside upper right", ncols=len(shown), handletextpad=0.1, columnspacing=1.4)

    more = f" The {_MOST_CLASSES} with the highest AP of {len(names)}." if len(names) > _MOST_CLASSES else ""
    svg = draw("class-ap", plot, height=0.85 + 0.26 * len(order), width=HALF)
    alt = "; ".join(
        f"{names[at]}: " + ", ".join(f"{arm} {_known(means[arm][at]):.1f}" for arm in shown) for at in order[:12]
    )
    about, table = f"Each marker is one arm.{more}", class_ap_table(comparison)
    return Drawing("class-ap", "AP of each class", about, alt, svg, table, is_wide=False)


def _learning_curve(curve: Mapping[str, Any]) -> Drawing:
    """Draw AP over the number of random images, the fitted power law, and the subset."""
    points, fit, own = curve["points"], curve.get("fit"), curve.get("equivalent")
    known = [point for point in points if point["mean"] is not None]

    def plot(figure: Figure) -> None:
        ax = axes(figure)
        ax.grid(axis="y")
        if fit:
            sizes = np.geomspace(fit["smallest"], fit["largest"], 60)
            law = fit["asymptote"] - fit["scale"] * sizes ** -fit["exponent"]
            ax.plot(sizes, law, color=MUTED, linewidth=1.2, label="power law fitted to random subsets")
        for point in known:
            values = [value for value in point["values"] if value is not None]
            ax.plot([point["num_images"]] * len(values), values, MARKERS[1], **_style(1, 4), alpha=0.7)
        means = [[point["num_images"], point["mean"]] for point in known]
        ax.plot(*np.array(means).T, MARKERS[1], **_style(1, 7), label="random images, mean")
        if own:
            ax.plot([own["num_images"]], [own["ap"]], MARKERS[0], **_style(0, 9), label=COMPARED)
        ax.set_xlabel("images trained on")
        ax.set_ylabel("AP in percent")
        ax.tick_params(axis="y", labelcolor=MUTED)
        figure.legend(loc="outside upper left", labelspacing=0.3)

    columns = ("arm", "num_images", "mean", "std")
    rows = [(point["arm"], point["num_images"], point["mean"], point.get("std")) for point in points]
    if own:
        rows.append((COMPARED, own["num_images"], own["ap"], None))
    alt = "; ".join(f"{row[1]:,} images: AP {_known(row[2]):.1f} ({row[0]})" for row in rows)
    table = Table("learning_curve", "", columns, tuple(rows))
    title, about = "Equivalent number of random images", _worth(curve)
    svg = draw("learning-curve", plot, height=2.9, width=HALF)
    return Drawing("learning-curve", title, about, alt, svg, table, is_wide=False)


def _worth(curve: Mapping[str, Any]) -> str:
    own = curve.get("equivalent")
    if own is None or curve.get("fit") is None:
        return str(curve.get("why_not") or "The curated arm was not trained.")
    if own.get("images") is None:
        place = {"above": "more random images than were trained", "below": "fewer random images than were trained"}
        worth = place.get(own.get("where"), "no number of random images, because the curve is flat")
        return f"The subset of {own['num_images']:,} images equals {worth}."
    return f"The subset of {own['num_images']:,} images reaches the AP of {own['images']:,.0f} random images."


def _rows(ax: Axes, names: Sequence[str], *, below: float = 0.5) -> None:
    """Label the rows of a figure, the first at the top."""
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(len(names) - 1 + below, -0.5)
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)


def _marker(number: int) -> dict[str, Any]:
    return {"linestyle": "none", "marker": MARKERS[number % len(MARKERS)], **_style(number, 7)}


def _style(number: int, size: float) -> dict[str, Any]:
    return {"color": ARMS[number % len(ARMS)], "markersize": size, "markeredgewidth": 0}


def _known(value: float | None) -> float:
    return -1.0 if value is None else value
