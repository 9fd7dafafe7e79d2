"""Figures of the selection: classes, box sizes, metadata, sequences and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detcurate.report.page_tables import Table, percent
from detcurate.report.pictures import LABEL_ERRORS
from detcurate.report.report_data import Choice, Pool, Scores
from detcurate.report.svg import HALF, INK, KEPT, LEFT, MUTED, SURFACE, Drawing, axes, draw, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

_MOST_VALUES, _MOST_SEQUENCES = 24, 24
_FRAME_BINS, _SIZE_BINS = 160, 28
_COCO_EDGES = (32.0, 96.0)  # px, where COCO's small and medium end

Counts = Mapping[str, Mapping[str, int]]


def count_figure(name: str, field: str, counts: Counts, *, unit: str) -> Drawing:
    """Draw the counts of each value of a field in the pool (outline) and in the subset (filled)."""
    names = sorted(counts, key=lambda value: -counts[value]["before"])
    shown = names[:_MOST_VALUES]
    before = [counts[value]["before"] for value in shown]
    after = [counts[value]["after"] for value in shown]
    total = sum(one["after"] for one in counts.values()) / max(sum(one["before"] for one in counts.values()), 1)

    def plot(figure: Figure) -> None:
        ax = axes(figure)
        rows = np.arange(len(shown))
        ax.barh(rows, before, 0.62, facecolor="none", edgecolor=LEFT, linewidth=1.1)
        ax.barh(rows, after, 0.62, color=KEPT)
        for row in rows:
            share = percent(after[row] / before[row] if before[row] else None)
            ax.annotate(share, (before[row], row), (5, 0), textcoords="offset points", va="center", color=MUTED)
        ax.set_yticks(rows, [label(value) for value in shown])
        ax.set_ylim(len(shown) - 0.45, -0.55)
        ax.set_xlim(0, max(max(before), 1) * 1.1)
        ax.xaxis.set_major_locator(whole_numbers())
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(unit)

    more = f" The {_MOST_VALUES} most frequent of {len(names):,}." if len(names) > _MOST_VALUES else ""
    about = f"Outline: pool. Filled: subset, with its share ({percent(total)} overall).{more}"
    alt = "; ".join(f"{value}: {a:,} of {b:,} selected" for value, a, b in zip(shown, after, before, strict=True))
    rows = tuple((value, counts[value]["before"], counts[value]["after"]) for value in names)
    svg = draw(name, plot, height=0.5 + 0.25 * max(len(shown), 1), width=HALF)
    table = Table(name.replace("-", "_"), "", (field, "before", "after"), rows)
    return Drawing(name, f"{unit.capitalize()} by {field}", about, alt, svg, table, is_wide=False)


def box_size_figure(pool: Pool, choice: Choice) -> Drawing:
    """Draw the sizes of the boxes, before and after."""
    side = np.maximum(pool.box_side, 1.0)
    top = float(side.max()) if len(side) else 100.0
    edges = np.geomspace(max(float(side.min()) if len(side) else 1.0, 1.0), max(top, 2.0) * 1.001, _SIZE_BINS + 1)
    before = np.histogram(side, edges)[0]
    after = np.histogram(side[choice.kept[pool.box_row]], edges)[0]

    def plot(figure: Figure) -> None:
        ax = axes(figure)
        before_after(ax, edges, before, after)
        ax.set_xscale("log")
        for edge, name in zip(_COCO_EDGES, ("small | medium", "medium | large"), strict=True):
            if edges[0] < edge < edges[-1]:
                ax.axvline(edge, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
                ax.annotate(name, (edge, 1.0), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                            ha="center", color=MUTED)  # fmt: skip
        ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048) if edges[0] <= tick <= edges[-1]]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel("square root of a box's area, px")
        ax.set_ylabel("boxes")

    about = "Outline: pool. Filled: subset. Dashed: limits of COCO's sizes."
    alt = f"{int(after.sum()):,} of {int(before.sum()):,} boxes selected; median side {_median(side)} px in the pool, "
    alt += f"{_median(side[choice.kept[pool.box_row]])} px in the subset"
    svg = draw("box-sizes", plot, height=2.4, width=HALF)
    return Drawing(
        "box-sizes", "Box sizes", about, alt, svg, histogram_table("box_sizes", edges, before, after), is_wide=False
    )


def sequence_figure(pool: Pool, choice: Choice) -> Drawing | None:
    """Draw the selected frames of each sequence; None if no image has a sequence."""
    placed = (pool.sequence >= 0) & (pool.frame_index >= 0)
    sizes = np.bincount(pool.sequence[placed], minlength=len(pool.sequence_names))
    known = np.flatnonzero(sizes)
    if not len(known):
        return None
    # Spread over all sequences by size: the longest alone would not represent the pool.
    by_size = known[np.argsort(-sizes[known], kind="stable")]
    shown = by_size[np.unique(np.linspace(0, len(by_size) - 1, min(len(by_size), _MOST_SEQUENCES)).astype(int))]
    frames = {row: _frames(pool, choice, placed & (pool.sequence == row)) for row in shown.tolist()}

    def plot(figure: Figure) -> None:
        ax = axes(figure)
        for place, (centres, before, after) in enumerate(frames.values()):
            ax.plot(*_ticks(centres, np.where(before > 0, 0.12, 0), place), color=LEFT, linewidth=1.4)
            height = 0.38 * np.sqrt(after / np.maximum(before, 1))
            ax.plot(*_ticks(centres, height, place), color=KEPT, linewidth=2.0)
        ax.set_yticks(range(len(shown)), [label(pool.sequence_names[row]) for row in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(whole_numbers())
        ax.set_xlabel("frame")

    rows = tuple(
        (pool.sequence_names[row], float(centres[k]), int(before[k]), int(after[k]))
        for row, (centres, before, after) in frames.items()
        for k in range(len(centres))
    )
    table = Table("sequences", "", ("sequence", "frame", "before", "after"), rows)
    more = f" {len(shown)} of {len(known):,} sequences, evenly spread from the longest to the shortest." * (
        len(shown) < len(known)
    )
    alt = "; ".join(
        f"{pool.sequence_names[row]}: {int(after.sum()):,} of {int(before.sum()):,} frames selected"
        for row, (_, before, after) in list(frames.items())[:12]
    )
    about = f"Short strokes: frames of the pool. Tall strokes: selected frames.{more}"
    svg = draw("sequences", plot, height=0.5 + 0.24 * len(shown))
    return Drawing("sequences", "Selected frames of each sequence", about, alt, svg, table)


def _frames(pool: Pool, choice: Choice, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bin centres along a sequence, with the numbers of frames and of selected frames in each."""
    frames, kept = pool.frame_index[rows], choice.kept[rows]
    first, last = int(frames.min()), int(frames.max())
    if last - first < _FRAME_BINS:
        edges = np.arange(first, last + 2) - 0.5
    else:
        edges = np.linspace(first - 0.5, last + 0.5, _FRAME_BINS + 1)
    before, after = np.histogram(frames, edges)[0], np.histogram(frames[kept], edges)[0]
    there = before > 0
    return ((edges[:-1] + edges[1:]) / 2)[there], before[there], after[there]


def _ticks(x: np.ndarray, half: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one line with gaps between strokes, which needs far less space than one line a stroke."""
    there = half > 0
    nothing = np.full(int(there.sum()), np.nan)
    xs = np.column_stack((x[there], x[there], nothing)).reshape(-1)
    return xs, np.column_stack((row - half[there], row + half[there], nothing)).reshape(-1)


def before_after(ax: Axes, edges: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Draw the histogram of the pool as an outline, and that of the subset filled."""
    ax.stairs(after, edges, fill=True, color=KEPT)
    ax.stairs(before, edges, color=LEFT, linewidth=1.2)
    ax.set_ylim(0, max(int(before.max()), 1) * 1.08)
    ax.grid(axis="y")
    ax.yaxis.set_major_locator(whole_numbers())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.tick_params(axis="y", labelcolor=MUTED)


def histogram_table(name: str, edges: np.ndarray, before: np.ndarray, after: np.ndarray) -> Table:
    """Return a histogram's bins."""
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), before.tolist(), after.tolist(), strict=True)
    return Table(name, "", ("from", "to", "before", "after"), tuple(rows))


def _median(values: np.ndarray) -> str:
    return f"{np.median(values):.0f}" if len(values) else "–"


def whole_numbers() -> MaxNLocator:
    """Return a locator of a few round ticks for an axis of counts."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


_MOST_POINTS, _BINS = 1_200, 40


def score_figures(scores: Scores, choice: Choice | None) -> list[Drawing]:
    """Draw the distributions of the image score, its components and the label-error scores."""
    kept = np.zeros(len(scores.image_score), bool) if choice is None else choice.kept
    edges, before, after = _histogram(scores.image_score, kept)

    def plot(figure: Figure) -> None:
        ax = axes(figure)
        before_after(ax, edges, before, after)
        ax.set_xlabel("image score (higher is selected first)")
        ax.set_ylabel("images")

    filled = "Outline: pool. Filled: subset." if choice is not None else "Nothing has been selected yet."
    alt = f"scores from {scores.image_score.min():.2f} to {scores.image_score.max():.2f}, "
    alt += f"median {np.median(scores.image_score):.2f}; {int(kept.sum()):,} images selected"
    table = histogram_table("scores", edges, before, after)
    first = Drawing("scores", "Scores", filled, alt, draw("scores", plot, height=3.1, width=HALF), table, is_wide=False)
    names = [name for name in (*scores.used, *LABEL_ERRORS) if name in scores.components]
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
    about = f"Images by component ({scores.aggregation} over their objects). {filled} Used in the score: {used}."
    alt = "; ".join(f"{name}: median {np.median(scores.components[name]):.2f}" for name in names)
    return Drawing("components", "Components", about, alt, draw("components", plot, height=1.75 * down), table)


def score_box_figure(pool: Pool, scores: Scores, choice: Choice | None) -> Drawing:
    """Draw the score over the number of labelled boxes, which shows whether the score prefers crowded images."""
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
                label="removed", **style)  # fmt: skip
        ax.plot(x[taken], y[taken], "o", color=KEPT, markeredgewidth=0, alpha=0.8, label="selected", **style)
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
    return Drawing("score-boxes", "Score over labelled boxes", about, alt, svg, table, is_wide=False)


def _histogram(values: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    return edges, np.histogram(values, edges)[0], np.histogram(values[kept], edges)[0]


def _medians(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean x and median y of up to 12 groups of equal size along x."""
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
