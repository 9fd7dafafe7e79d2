"""Subset search: on which images the ensemble is trained, round after round, and what each round may hold.

``build_up`` begins with a random seed set. Each round trains an ensemble on what there is, scores the pool and buys the
best of the rest, until the budget is spent. The stages of the last round are those of every run; the rounds before it
are runs of the same stages in ``search/round-1``, ``search/round-2``, …, and the seed set is round 0.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from detcurate.config import CurateSettings
from detcurate.errors import ConfigError, SelectionError
from detcurate.pipeline.context import Run
from detcurate.pipeline.pool_columns import planned_amount, requested_budget
from detcurate.pipeline.tables import SelectionTable, read_selection
from detcurate.select.compose import select
from detcurate.select.limits import Budget, resolve_budget
from detcurate.structures import ImageScores

SEED_SET = 0
ROUND_STAGES = ("train", "predict", "score", "select", "manifest")
_HARDEST_FIRST = ("top_n", "threshold")
_LEAST_COMPRESSED = 0.3
"""Below this share of the pool, the images that are hardest for models of all of it lose to random ones."""


def builds_up(run: Run) -> bool:
    """Whether the subset is built up round by round."""
    return run.settings.search.scheme == "build_up"


def search_rounds(run: Run) -> list[Run]:
    """Return the runs before the last one, the seed set's first; none where nothing is built up."""
    return [run.for_round(number) for number in range(len(round_limits(run)) - 1)] if builds_up(run) else []


def round_limits(run: Run) -> tuple[int, ...]:
    """Return how much of the budget each round may spend, in its unit: of the seed set first, of the last round last.

    Each round grows by the same factor, which is at most ``CURATE.SEARCH.GROWTH``.

    Raises:
        SelectionError: The seed set is larger than the pool, or costs as much as the budget.
    """
    budget = whole_budget(run)
    seeds = np.isin(run.usable_image_ids, seed_set(run))
    return geometric_limits(int(budget.costs[seeds].sum()), budget, growth=run.settings.search.growth)


def geometric_limits(first: int, budget: Budget, *, growth: float) -> tuple[int, ...]:
    """Return the limits from ``first`` to the budget's, in the fewest equal steps that grow at most ``growth``-fold.

    Raises:
        SelectionError: The seed set costs nothing, or as much as the budget.

    Example:
        >>> half = Budget(np.ones(600, np.int64), 300, "300 images")
        >>> geometric_limits(75, half, growth=2.0), geometric_limits(50, half, growth=2.0)
        ((75, 150, 300), (50, 91, 165, 300))
    """
    if not 0 < first < budget.limit:
        share = "nothing" if first == 0 else f"{first / budget.limit:.0%} of that"
        raise SelectionError(
            f"the seed set must cost something, and less than the budget of {budget.text}, got one that costs {share}; "
            "set CURATE.SEARCH.SEED_FRACTION or SEED_IMAGES"
        )
    ratio = budget.limit / first
    steps = max(1, math.ceil(round(math.log(ratio) / math.log(growth), 9)))
    return tuple(round(first * ratio ** (step / steps)) for step in range(steps + 1))


def whole_budget(run: Run) -> Budget:
    """Return what the whole search may spend, on the images that can be used."""
    rows = run.pool.subset_rows(run.usable_image_ids)
    return requested_budget(run.settings.select, run.pool.boxes_per_image[rows])


def round_budget(run: Run) -> Budget:
    """Return what the images of a run's round may cost, those of the rounds before included."""
    budget = whole_budget(run)
    if not builds_up(run) or run.round is None:
        return budget
    limit = round_limits(run)[run.round]
    return replace(budget, limit=limit, text=f"{limit / budget.limit:.0%} of {budget.text}")


def seed_set(run: Run) -> np.ndarray:
    """Draw the images to begin with: (n,) int64, in the order drawn; a smaller set is the head of a larger one."""
    ids = run.usable_image_ids
    scores = ImageScores(ids, np.zeros(len(ids)), {})
    drawn = select(scores, budget=seed_images(run, len(ids)), strategy="random", seed=run.cfg.SEED)
    return drawn.selection.image_ids


def seed_images(run: Run, num_images: int) -> int:
    """Return the size of the seed set of a pool of so many images.

    Raises:
        SelectionError: It is larger than the pool.
    """
    search = run.settings.search
    if search.seed_images > num_images:
        raise SelectionError(
            f"CURATE.SEARCH.SEED_IMAGES must be at most the pool's {num_images:,} images, got {search.seed_images:,}; "
            "lower it, or give a larger pool"
        )
    if search.seed_images:
        return search.seed_images
    return resolve_budget(num_images, fraction=search.seed_fraction, count=None)


def previous_round(run: Run) -> Run | None:
    """Return the run whose selection a run's ensemble is trained on; None where that is the whole pool."""
    if not builds_up(run) or run.round == SEED_SET:
        return None
    return run.for_round(len(round_limits(run)) - 2 if run.round is None else run.round - 1)


def training_image_ids(run: Run) -> np.ndarray:
    """Return the images that a run's ensemble is trained on: (n,) int64, ascending."""
    before = previous_round(run)
    return run.usable_image_ids if before is None else np.sort(read_selection(before).image_ids)


def held_images(run: Run) -> list[tuple[np.ndarray, str]]:
    """Return what the rounds before have bought, in order: the images of each, and the reason that stands for it."""
    before = previous_round(run)
    if before is None:
        return []
    earlier, ids = held_images(before), read_selection(before).image_ids
    known = np.concatenate([images for images, _ in earlier]) if earlier else np.zeros(0, np.int64)
    name = "seed_set" if before.round == SEED_SET else f"round_{before.round}"
    return [*earlier, (ids[~np.isin(ids, known)], name)]


def lineage(run: Run) -> dict[str, Any]:
    """Describe the search for the provenance: its scheme, and every round before with the digest of what it chose."""
    before, rounds = previous_round(run), []
    while before is not None:
        output = before.stage_metadata("select")["outputs"][SelectionTable.FILE]
        rounds.append(
            {
                "round": before.round,
                "images": len(read_selection(before).image_ids),
                "selection_sha256": output["sha256"],
            }
        )
        before = previous_round(before)
    return {**run.settings.search.model_dump(mode="json"), "rounds": rounds[::-1]}


def planned_rounds(run: Run, num_images: int) -> list[str]:
    """Say how large each round would be, of a pool of which only the size is known.

    Raises:
        SelectionError: As ``round_limits``.
    """
    select, seeds = run.settings.select, seed_images(run, num_images)
    if select.num_boxes or select.cost_seconds:
        growth = run.settings.search.growth
        return [f"{seeds:,} images", f"at most {growth:g} times as much", "…", planned_amount(select, num_images)]
    budget = requested_budget(select, np.ones(num_images, np.int64))
    return [f"{limit:,}" for limit in geometric_limits(seeds, budget, growth=run.settings.search.growth)]


def require_search(run: Run, added: int) -> None:
    """Find before the first long stage what the search would stop at.

    Raises:
        ConfigError: The scheme wants runs that are trained here, and there are none, or others besides.
        SelectionError: The seed set does not go with the pool or the budget.
    """
    scheme = run.settings.search.scheme
    if scheme in ("build_up", "pretrain") and not run.settings.ensemble.num_runs:
        raise ConfigError(
            f"CURATE.ENSEMBLE.NUM_RUNS must be at least 1 with CURATE.SEARCH.SCHEME {scheme}, which trains, got 0"
        )
    if not builds_up(run):
        return
    if added:
        raise ConfigError(
            f"no member must have been added with CURATE.SEARCH.SCHEME build_up, got {added}: they were not trained on "
            "what each round has; use another OUTPUT_DIR"
        )
    planned_rounds(run, run.settings.render.num_images if run.is_rendered else len(run.pool))


def expected_loss(settings: CurateSettings, share: float) -> str:
    """Warn where the literature says that a scheme loses: the hardest images alone, of a small share of the pool.

    Args:
        settings: Of the run.
        share: of the pool's cost that is bought, in (0, 1].

    Returns:
        A sentence, empty where nothing is known against it.
    """
    is_hardest = settings.search.scheme == "compress" and settings.select.strategy in _HARDEST_FIRST
    if not is_hardest or share >= _LEAST_COMPRESSED:
        return ""
    return (
        f"{share:.0%} of the pool, the hardest first: models of all of it are known to choose worse than chance below "
        f"{_LEAST_COMPRESSED:.0%}; consider CURATE.SEARCH.SCHEME build_up, or CURATE.SELECT.STRATEGY strata"
    )
