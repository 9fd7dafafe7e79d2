"""The parts of the summary beside its first tables: differences, the learning curve, what the trainings took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HEADINGS: Mapping[str, str] = {"AP_small": "AP_S", "AP_medium": "AP_M", "AP_large": "AP_L"}
"""Figures that are called otherwise in the head of a table."""

ABSENT = "–"


def mean_and_std(figure: Mapping[str, Any]) -> str:
    """Return ``mean ± deviation`` with one decimal, the mean alone where one seed has none, a dash without a mean."""
    if figure["mean"] is None:
        return ABSENT
    mean = f"{figure['mean']:.1f}"
    return mean if figure["std"] is None else f"{mean} ± {figure['std']:.1f}"


def signed(value: float) -> str:
    """Return a difference with its sign and one decimal."""
    return f"{round(value, 1) + 0.0:+.1f}"  # + 0.0 turns -0.0 into 0.0


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a GitHub table whose columns also line up in a terminal: the first to the left, the rest to the right."""
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
    """Return a text as one line in which no tag can begin, as viewers may show HTML that stands in Markdown."""
    return " ".join(text.split()).replace("<", "&lt;")


_COLUMNS = {"num_images": "images", "num_boxes": "boxes", "iterations": "iterations", "images_seen": "images seen"}


def sections(summary: Mapping[str, Any]) -> list[str]:
    """Return the sections of a summary, Markdown with a heading each.

    What there is nothing to say about is left out.
    """
    found = [difference_section(summary), curve_section(summary), training_section(summary)]
    return [section for section in found if section]


def difference_section(summary: Mapping[str, Any]) -> str:
    """Return every paired difference by figure, object size and class; empty where no arms are paired."""
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
        "In brackets the 95 % interval over seeds and images. A star where it leaves out 0 and so does Student's over "
        f"the seeds; of {count} differences a starred one may be chance."
    )


def curve_section(summary: Mapping[str, Any]) -> str:
    """Return the AP of the random subsets beside the fitted curve, and what the curated images are worth."""
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
    """Return what each arm was trained on and what that took, means over its seeds; empty where nothing is known."""
    known = {arm: found["training"] for arm, found in summary["arms"].items()}
    if not any(training["num_images"] for training in known.values()):
        return ""
    rows = [
        [arm, *(_count(training[name]) for name in _COLUMNS), _count(training["seconds"])]
        for arm, training in known.items()
    ]
    return (
        f"## What a training took\n\n{table(['arm', *_COLUMNS.values(), 'seconds'], rows)}\n\n"
        "Means over the seeds. The seconds are those of the iterations, beside whatever else the machine did. What the "
        "search took, the ensemble's training and its answers, is not in this table."
    )


def curve_sentence(curve: Mapping[str, Any]) -> str:
    """Say how many random images the curated ones are worth, with the interval, or why that cannot be said.

    Args:
        curve: What :func:`detcurate.evaluate.learning_curve.learning_curve` gave.
    """
    if curve["fit"] is None:
        return f"No learning curve: {curve['why_not']}."
    found, smallest, largest = curve["equivalent"], curve["fit"]["smallest"], curve["fit"]["largest"]
    if found is None:
        return "No curated subset was trained and evaluated that the learning curve could be compared with."
    subset = f"The {found['num_images']:,} curated images ({found['ap']:.1f} AP)"
    if _places(found) == ["below", "above"]:
        return (
            f"What {subset[0].lower()}{subset[1:]} are worth cannot be told with {found['num_seeds']} seeds: the 95 % "
            f"interval goes from fewer than {smallest:,} to more than {largest:,} random images."
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
        text = f"{subset} are {how}{found['where']} the curve: worth {end} random images, {_more(found)} data"
    return f"{text} ({_interval(found)})."


def _places(found: Mapping[str, Any]) -> list[str]:
    return [end["where"] for end in found["interval"] or ()]


def _beside(found: Mapping[str, Any]) -> str:
    """Say of a flat curve on which side of it a subset surely is."""
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
        f"-{fit['exponent']:.2f}, {fit['rmse']:.1f} AP from the points (root mean square). What it says beyond "
        f"{fit['largest']:,} images is an extrapolation."
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
