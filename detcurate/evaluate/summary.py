"""Markdown of a comparison of arms: tables, differences, the learning curve and the cost of the trainings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HEADINGS: Mapping[str, str] = {"AP_small": "AP_S", "AP_medium": "AP_M", "AP_large": "AP_L"}
"""Figure -> its heading in a table, where that differs from its name."""

ABSENT = "–"


def mean_and_std(figure: Mapping[str, Any]) -> str:
    """Return ``mean ± deviation`` with one decimal; the mean alone for one seed, a dash without a mean."""
    if figure["mean"] is None:
        return ABSENT
    mean = f"{figure['mean']:.1f}"
    return mean if figure["std"] is None else f"{mean} ± {figure['std']:.1f}"


def signed(value: float) -> str:
    """Return a difference with its sign and one decimal."""
    return f"{round(value, 1) + 0.0:+.1f}"  # + 0.0 turns -0.0 into 0.0


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a GitHub table that is also aligned as plain text: the first column left, the others right."""
    cells = [[_escape(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in [cells[0], rule, *cells[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(cell: str) -> str:
    return plain(cell).replace("|", "\\|")


def plain(text: str) -> str:
    """Return a text as one line with ``<`` escaped: viewers may render HTML inside Markdown."""
    return " ".join(text.split()).replace("<", "&lt;")


_COLUMNS = {"num_images": "images", "num_boxes": "boxes", "iterations": "iterations", "images_seen": "images seen"}


def sections(summary: Mapping[str, Any]) -> list[str]:
    """Return the non-empty sections of a summary, each as Markdown with a heading."""
    found = [difference_section(summary), curve_section(summary), training_section(summary)]
    return [section for section in found if section]


def difference_section(summary: Mapping[str, Any]) -> str:
    """Return all paired differences by figure, object size and class; empty if no arms are paired."""
    pairs = summary["differences"]
    if not pairs:
        return ""
    first = next(iter(pairs.values()))
    rows = [
        [HEADINGS.get(name, name), *(_difference(pairs[pair][part][name]) for pair in pairs)]
        for part in ("figures", "per_class")
        for name in first[part]
    ]
    count = sum(row[1 + column] != ABSENT for row in rows for column in range(len(pairs)))
    return (
        f"## Differences by object size and class\n\n{table(['AP', *pairs], rows)}\n\n"
        "In brackets: the 95 % interval over seeds and images. A star marks differences for which this interval and "
        f"Student's over the seeds exclude 0; of {count} differences some may be starred by chance."
    )


def curve_section(summary: Mapping[str, Any]) -> str:
    """Return the AP of the random subsets beside the fitted curve, and the equivalent of the curated images."""
    curve = summary.get("learning_curve")
    if curve is None:
        return ""
    rows = [
        [point["arm"], f"{point['num_images']:,}", mean_and_std(point), _fitted(curve["fit"], point["num_images"])]
        for point in curve["points"]
    ]
    parts = ["## Learning curve", table(["random subset", "images", "AP", "fitted"], rows), curve_sentence(curve)]
    if curve["fit"]:
        parts.append(_law(curve["fit"]))
    return "\n\n".join(parts)


def training_section(summary: Mapping[str, Any]) -> str:
    """Return training set and cost of each arm, means over its seeds; empty if no training is known."""
    known = {arm: found["training"] for arm, found in summary["arms"].items()}
    if not any(training["num_images"] for training in known.values()):
        return ""
    rows = [
        [arm, *(_count(training[name]) for name in _COLUMNS), _count(training["seconds"])]
        for arm, training in known.items()
    ]
    return (
        f"## Cost of the trainings\n\n{table(['arm', *_COLUMNS.values(), 'seconds'], rows)}\n\n"
        "Means over the seeds. Seconds are wall-clock time of the iterations and depend on the machine's other load. "
        "The cost of the search (training the ensemble and its predictions) is not included."
    )


def curve_sentence(curve: Mapping[str, Any]) -> str:
    """Return a sentence: the number of random images that equals the curated ones, or the reason why there is none.

    Args:
        curve: The result of :func:`detcurate.evaluate.learning_curve.learning_curve`.
    """
    if curve["fit"] is None:
        return f"No learning curve: {curve['why_not'].rstrip('.')}."
    found, smallest, largest = curve["equivalent"], curve["fit"]["smallest"], curve["fit"]["largest"]
    if found is None:
        return "The learning curve has no curated subset to compare with."
    subset = f"The {found['num_images']:,} curated images ({found['ap']:.1f} AP)"
    if _places(found) == ["below", "above"]:
        return (
            f"{subset} cannot be placed on the curve with {found['num_seeds']} seeds: the 95 % interval goes from "
            f"fewer than {smallest:,} to more than {largest:,} random images."
        )
    if found["where"] == "flat":
        return (
            f"{subset} have no equivalent: from {smallest:,} to {largest:,} random images the AP does not rise "
            f"({curve['fit']['asymptote']:.1f} on average){_beside(found)}."
        )
    if found["where"] == "within":
        text = f"{subset} equal {_more(found)} random data: {found['images']:,.0f} random images"
        if "boxes" in found:
            text += f" with {found['boxes']:,.0f} boxes, {_surplus(found['more_boxes'])} than theirs"
    else:
        how = "" if set(_places(found)) <= {found["where"]} else "on average "
        end = f"more than {largest:,}" if found["where"] == "above" else f"fewer than {smallest:,}"
        text = f"{subset} are {how}{found['where']} the curve: they equal {end} random images, {_more(found)} data"
    return f"{text} ({_interval(found)})."


def _places(found: Mapping[str, Any]) -> list[str]:
    return [end["where"] for end in found["interval"] or ()]


def _beside(found: Mapping[str, Any]) -> str:
    """Return on which side of a flat curve the subset is, if the interval lies on one side."""
    places = _places(found)
    return f", and the curated ones are {places[0]} that" if len(set(places)) == 1 and places[0] != "within" else ""


def _interval(found: Mapping[str, Any]) -> str:
    if found["interval"] is None:
        return "no interval: one seed" if found["num_seeds"] == 1 else "no interval"
    low, high = (_more(end) for end in found["interval"])
    text = f"95 % interval: {low} to {high}" if low != high else f"95 % interval: {low} throughout"
    return text


def _more(end: Mapping[str, Any]) -> str:
    size = _surplus(end["more"])
    return {"above": f"over {size}", "below": f"under {size}"}.get(end["where"], size)


def _surplus(percent: float) -> str:
    return f"{abs(percent):.0f} % {'more' if percent >= 0 else 'less'}"


def _law(fit: Mapping[str, Any]) -> str:
    if not fit["scale"]:
        return f"Fitted over all seeds: a flat line, {fit['rmse']:.1f} AP from the points (root mean square)."
    rise = fit["scale"] * fit["smallest"] ** -fit["exponent"]
    return (
        f"Fitted over all seeds: AP = {fit['asymptote']:.1f} - {rise:.1f} · (images / {fit['smallest']:,})^"
        f"-{fit['exponent']:.2f}, {fit['rmse']:.1f} AP from the points (root mean square). Values beyond "
        f"{fit['largest']:,} images are extrapolated."
    )


def _fitted(fit: Mapping[str, Any] | None, num_images: int) -> str:
    return ABSENT if fit is None else f"{fit['asymptote'] - fit['scale'] * num_images ** -fit['exponent']:.1f}"


def _difference(figure: Mapping[str, Any]) -> str:
    if figure["mean"] is None:
        return ABSENT
    ends = figure.get("bootstrap") or [None, None]
    if figure["interval"] is None or ends[0] is None:
        return signed(figure["mean"])
    low, high = figure["mean"] - figure["interval"], figure["mean"] + figure["interval"]
    star = "*" if min(low, ends[0]) > 0 or max(high, ends[1]) < 0 else ""
    return f"{signed(figure['mean'])}{star} ({signed(ends[0])} to {signed(ends[1])})"


def _count(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}"
