"""Figures of the scores: how they are spread, and whether they follow the number of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detcurate.report.figures_pool import before_after, histogram_table, whole_numbers
from detcurate.report.picks import SUSPICIONS
from detcurate.report.records import Choice, Pool, Scores
from detcurate.report.svg import HALF, INK, KEPT, LEFT, MUTED, SURFACE, Drawing, axes, draw, label
from detcurate.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS, _BINS = 1_200, 40


def score_figures(scores: Scores, choice: Choice | None) -> list[Drawing]:
    """Draw the distribution of the image score, and those of its components and of the suspicions."""
    kept = np.zeros(len(scores.image_score), bool) if choice is None else choice.kept
    edges, before, after = _histogram(scores.image_score, kept)

    def plot(figure: Figure) -> None:
        ax = axes(figure)
        before_after(ax, edges, before, after)
        ax.set_xlabel("image score: higher is bought first")
        ax.set_ylabel("images")

    filled = "Outline: the pool. Filled: kept." if choice is not None else "Nothing has been selected yet."
    alt = f"scores from {scores.image_score.min():.2f} to {scores.image_score.max():.2f}, "
    alt += f"median {np.median(scores.image_score):.2f}; {int(kept.sum()):,} images kept"
    table = histogram_table("scores", edges, before, after)
    first = Drawing("scores", "Scores", filled, alt, draw("scores", plot, height=3.1, width=HALF), table, is_wide=False)
    names = [name for name in (*scores.used, *SUSPICIONS) if name in scores.components]
    return [first, _component_figure(scores, names, kept, filled)] if names else [first]


def _component_figure(scores: Scores, names: Sequence[str], kept: np.ndarray, filled: str) -> Drawing:
    found = {name: _histogram(scores.components[name], kept) for name in names}
    across = min(4, len(names)) if len(names) != 6 else 3
    down = -(-len(names) // across)

    def plot(figure: Figure) -> None:
        grid = figure.subplots(down, across, squeeze=False).reshape(-1)
        for ax, name in zip(grid, names, strict=False):
            before_after(ax, *found[name])
            ax.set_title(label(name.replace("_", " ")))
            ax.locator_params(axis="x", nbins=5)
        for ax in grid[len(names) :]:
            ax.set_axis_off()

    rows = tuple(
        (name, float(edges[k]), float(edges[k + 1]), int(before[k]), int(after[k]))
        for name, (edges, before, after) in found.items()
        for k in range(len(before))
    )
    table = Table("components", "", ("component", "from", "to", "before", "after"), rows)
    used = ", ".join(name for name in names if name in scores.used) or "none"
    about = f"Images by component, {scores.aggregation} over their objects. {filled} In the score: {used}."
    alt = "; ".join(f"{name}: median {np.median(scores.components[name]):.2f}" for name in names)
    return Drawing("components", "Components", about, alt, draw("components", plot, height=1.75 * down), table)


def score_box_figure(pool: Pool, scores: Scores, choice: Choice | None) -> Drawing:
    """Draw score against the number of labelled boxes: whether crowded images were bought for being crowded."""
    rows = np.arange(len(pool))
    if len(rows) > _MOST_POINTS:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), _MOST_POINTS, replace=False))
    kept = np.zeros(len(pool), bool) if choice is None else choice.kept
    x, y = pool.num_boxes[rows], scores.image_score[rows]
    centres, medians = _medians(pool.num_boxes, scores.image_score)

    def plot(figure: Figure) -> None:
        ax = axes(figure)
        ax.grid(axis="y")
        left, taken = ~kept[rows], kept[rows]
        style: dict[str, Any] = {"linestyle": "none", "markersize": 3.4}
        ax.plot(x[left], y[left], "o", markerfacecolor="none", markeredgecolor=LEFT, markeredgewidth=0.8,
                label="left out", **style)  # fmt: skip
        ax.plot(x[taken], y[taken], "o", color=KEPT, markeredgewidth=0, alpha=0.8, label="kept", **style)
        ax.plot(centres, medians, color=SURFACE, linewidth=4)
        ax.plot(centres, medians, color=INK, linewidth=1.8, label="median score")
        ax.set_xlabel("labelled boxes on the image")
        ax.set_ylabel("image score")
        ax.tick_params(axis="y", labelcolor=MUTED)
        ax.xaxis.set_major_locator(whole_numbers())
        figure.legend(loc="outside upper right", ncols=3, columnspacing=1.4, handletextpad=0.4)

    correlation = _rank_correlation(pool.num_boxes, scores.image_score)
    sampled = f" A random {_MOST_POINTS:,} of {len(pool):,} images." if len(rows) < len(pool) else ""
    about = f"Rank correlation {correlation}.{sampled}"
    table = Table(
        "score_and_boxes", "", ("image_id", "num_boxes", "image_score", "kept"),
        tuple(zip(pool.image_ids[rows].tolist(), x.tolist(), y.tolist(), kept[rows].astype(int).tolist(), strict=True)),
    )  # fmt: skip
    alt = f"rank correlation of the score and the number of labelled boxes {correlation}"
    svg = draw("score-boxes", plot, height=3.1, width=HALF)
    return Drawing("score-boxes", "Score against labelled boxes", about, alt, svg, table, is_wide=False)


def _histogram(values: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    return edges, np.histogram(values, edges)[0], np.histogram(values[kept], edges)[0]


def _medians(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return up to a dozen groups of equal numbers along x: their mean x and median y."""
    groups = np.array_split(np.argsort(x, kind="stable"), min(12, max(len(x) // 8, 1)))
    centres = np.array([x[group].mean() for group in groups])
    medians = np.array([np.median(y[group]) for group in groups])
    first = np.unique(centres, return_index=True)[1]
    return centres[first], medians[first]


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> str:
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return "not defined"
    ranks = [np.searchsorted(np.sort(v), v, "left") + np.searchsorted(np.sort(v), v, "right") for v in (x, y)]
    return f"{np.corrcoef(ranks[0], ranks[1])[0, 1]:+.2f}".replace("-", "−")
