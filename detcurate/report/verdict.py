"""The verdict on the subset, which claims no more than the confidence intervals support."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detcurate.evaluate.arm_comparison import COMPARED
from detcurate.report.report_data import Comparison

ENOUGH_SEEDS = 5
LEARNED_AP = 1.0
"""AP in percent below which a detector has hardly learned."""
KINDS = ("gain", "loss", "unclear", "no_interval", "undefined")
"""The outcomes of a comparison: interval above, below or around 0; one seed; no boxes to evaluate on."""

_OTHERS = {"full": "the whole pool", "random": "as many random images"}


@dataclass(frozen=True)
class Claim:
    """The curated arm against another one, in AP percent, paired by seed.

    Args:
        other: The other arm.
        kind: One of ``KINDS``.
        num_seeds: At least 1.
        mean: The mean difference.
        over_seeds: The 95 % confidence interval over the seeds; None for one seed.
        over_images: The interval over seeds and evaluation images; None if unknown.
    """

    other: str
    kind: str
    num_seeds: int
    mean: float | None
    over_seeds: tuple[float, float] | None
    over_images: tuple[float, float] | None

    @property
    def name(self) -> str:
        """The other arm as a noun phrase."""
        return _OTHERS.get(self.other, f"the arm {self.other}")

    @property
    def sentence(self) -> str:
        """The supported statement."""
        against, seeds = f"Against {self.name}", _seeds(self.num_seeds)
        if self.kind == "undefined" or self.mean is None:
            return f"{against}: not defined, because the evaluation images have no boxes."
        if self.over_seeds is None:
            return (
                f"{against}: {signed(self.mean)} AP with one seed. Without an interval, no difference can be claimed."
            )
        text = f"{against}: {signed(self.mean)} AP, 95 % confidence interval {span(self.over_seeds)} over {seeds}"
        if self.over_images is not None:
            text += f", {span(self.over_images)} over seeds and evaluation images"
        return f"{text}. {_MEANING[self.kind]}"


_MEANING = {
    "gain": "The interval is above 0: a gain.",
    "loss": "The interval is below 0: a loss.",
    "unclear": "The interval includes 0: no difference can be claimed.",
}


@dataclass(frozen=True)
class Verdict:
    """The first statement of the report.

    Args:
        headline: One sentence.
        tone: One of ``KINDS``, or ``none`` if nothing was evaluated.
        sentences: The supporting statements.
        claims: The comparison with each other arm.
    """

    headline: str
    tone: str
    sentences: tuple[str, ...]
    claims: tuple[Claim, ...]


def claims(summary: Mapping[str, Any]) -> tuple[Claim, ...]:
    """Return the comparisons of the curated arm, the whole pool first.

    A difference counts only if both intervals, over seeds and over seeds and images, exclude 0.
    """
    found = [
        _claim(pair.removeprefix(f"{COMPARED} - "), difference) for pair, difference in summary["differences"].items()
    ]
    order = list(_OTHERS)
    return tuple(sorted(found, key=lambda claim: order.index(claim.other) if claim.other in order else len(order)))


def verdict(comparison: Comparison | None) -> Verdict:
    """Return the verdict on a comparison; the headline compares with the whole pool if that was trained."""
    if comparison is None or not comparison.models:
        return Verdict("No detectors have been compared yet.", "none", (), ())
    found = claims(comparison.summary)
    if not found:
        arms = ", ".join(comparison.summary["arms"])
        return Verdict(f"There is nothing to compare (arms: {arms}).", "none", (), ())
    first = found[0]
    sentences = [claim.sentence for claim in found]
    means = [arm["figures"]["AP"]["mean"] for arm in comparison.summary["arms"].values()]
    if all(mean is not None and mean < LEARNED_AP for mean in means):
        sentences.append(
            f"No arm reaches {LEARNED_AP:g} AP: these detectors have hardly learned, so neither their comparison nor "
            "the scores of such an ensemble are meaningful. Train longer (SOLVER.MAX_ITER)."
        )
    if first.num_seeds < ENOUGH_SEEDS:
        sentences.append(
            f"{_seeds(first.num_seeds).capitalize()} are too few for a decision: set CURATE.RETRAIN.NUM_SEEDS to "
            f"{ENOUGH_SEEDS} or more."
            if first.num_seeds > 1
            else f"Set CURATE.RETRAIN.NUM_SEEDS to {ENOUGH_SEEDS} or more for a confidence interval."
        )
    return Verdict(_headline(first), first.kind, tuple(sentences), found)


def signed(value: float) -> str:
    """Return a difference with its sign, one decimal and a real minus.

    Example:
        >>> signed(-1.25), signed(-0.01)
        ('−1.2', '+0.0')
    """
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0 turns -0.0 into 0.0


def span(ends: tuple[float, float]) -> str:
    """Return the two ends of an interval as text."""
    return f"{signed(ends[0])} to {signed(ends[1])}"


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"{number} seeds"


def _claim(other: str, difference: Mapping[str, Any]) -> Claim:
    figure, num_seeds = difference["figures"]["AP"], difference["num_seeds"]
    mean, half = figure["mean"], figure["interval"]
    if mean is None:
        return Claim(other, "undefined", num_seeds, None, None, None)
    ends = difference.get("bootstrap") or [None, None]
    if half is None:
        return Claim(other, "no_interval", num_seeds, mean, None, None)
    over_images = None if None in ends else (float(ends[0]), float(ends[1]))
    low, high = mean - half, mean + half
    if over_images is not None:
        low, high = min(low, over_images[0]), max(high, over_images[1])
    kind = "gain" if low > 0 else "loss" if high < 0 else "unclear"
    return Claim(other, kind, num_seeds, mean, (mean - half, mean + half), over_images)


def _headline(claim: Claim) -> str:
    if claim.kind == "gain":
        return f"The subset trains a better detector than {claim.name}: {signed(claim.mean or 0)} AP."
    if claim.kind == "loss":
        return f"The subset trains a worse detector than {claim.name}: {signed(claim.mean or 0)} AP."
    if claim.kind == "no_interval":
        return f"{signed(claim.mean or 0)} AP against {claim.name} with one seed, which may be chance."
    if claim.kind == "undefined":
        return "The evaluation images have no boxes, so AP is not defined."
    return f"No difference from {claim.name} can be claimed with {_seeds(claim.num_seeds)}."
