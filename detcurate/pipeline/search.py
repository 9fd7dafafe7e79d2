"""Subset search: the images that the ensemble of each round is trained on, and the budget of each round.

``build_up`` starts from a random seed set. Each round trains an ensemble on the images selected so far, scores the pool
and adds the best of the other images, until the budget is spent. The last round uses the stages of the run itself.
Earlier rounds run the same stages in ``search/round-1``, ``search/round-2``, …; the seed set is round 0.
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
"""Below this share of the pool, the images that are hardest for models of the whole pool lose to random images."""


def builds_up(run: Run) -> bool:
    """Whether the subset is built up round by round."""
    return run.settings.search.scheme == "build_up"


def search_rounds(run: Run) -> list[Run]:
    """Return the runs of the rounds before the last, the seed set first; none without ``build_up``."""
    return [run.for_round(number) for number in range(len(round_limits(run)) - 1)] if builds_up(run) else []


def round_limits(run: Run) -> tuple[int, ...]:
    """Return the budget of each round, in the unit of the whole budget: the seed set first, the last round last.

    Each round grows by the same factor, at most ``CURATE.SEARCH.GROWTH``.

    Raises:
        SelectionError: The seed set exceeds the pool or costs as much as the budget.
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
            f"CURATE.SEARCH.SEED_IMAGES, SEED_FRACTION: the seed set must cost more than 0 and less than the budget of "
            f"{budget.text} (got {share}). Set one of them."
        )
    ratio = budget.limit / first
    steps = max(1, math.ceil(round(math.log(ratio) / math.log(growth), 9)))
    return tuple(round(first * ratio ** (step / steps)) for step in range(steps + 1))


def whole_budget(run: Run) -> Budget:
    """Return the budget of the whole search, on the usable images."""
    rows = run.pool.subset_rows(run.usable_image_ids)
    return requested_budget(run.settings.select, run.pool.boxes_per_image[rows])


def round_budget(run: Run) -> Budget:
    """Return the budget of a round, which includes the images of earlier rounds."""
    budget = whole_budget(run)
    if not builds_up(run) or run.round is None:
        return budget
    limit = round_limits(run)[run.round]
    return replace(budget, limit=limit, text=f"{limit / budget.limit:.0%} of {budget.text}")


def seed_set(run: Run) -> np.ndarray:
    """Return the random images to start from, (n,) int64 in order; a smaller set is the head of a larger one."""
    ids = run.usable_image_ids
    scores = ImageScores(ids, np.zeros(len(ids)), {})
    drawn = select(scores, budget=seed_images(run, len(ids)), strategy="random", seed=run.cfg.SEED)
    return drawn.selection.image_ids


def seed_images(run: Run, num_images: int) -> int:
    """Return the size of the seed set of a pool with ``num_images`` images.

    Raises:
        SelectionError: The seed set is larger than the pool.
    """
    search = run.settings.search
    if search.seed_images > num_images:
        raise SelectionError(
            f"CURATE.SEARCH.SEED_IMAGES: exceeds the pool's {num_images:,} images (got {search.seed_images:,}). "
            "Lower it."
        )
    if search.seed_images:
        return search.seed_images
    return resolve_budget(num_images, fraction=search.seed_fraction, count=None)


def previous_round(run: Run) -> Run | None:
    """Return the round with the selection that a run's ensemble is trained on; None for the whole pool."""
    if not builds_up(run) or run.round == SEED_SET:
        return None
    return run.for_round(len(round_limits(run)) - 2 if run.round is None else run.round - 1)


def training_image_ids(run: Run) -> np.ndarray:
    """Return the images that a run's ensemble is trained on: (n,) int64, ascending."""
    before = previous_round(run)
    return run.usable_image_ids if before is None else np.sort(read_selection(before).image_ids)


def held_images(run: Run) -> list[tuple[np.ndarray, str]]:
    """Return the images that each earlier round selected, in order, with the reason that names the round."""
    before = previous_round(run)
    if before is None:
        return []
    earlier, ids = held_images(before), read_selection(before).image_ids
    known = np.concatenate([images for images, _ in earlier]) if earlier else np.zeros(0, np.int64)
    name = "seed_set" if before.round == SEED_SET else f"round_{before.round}"
    return [*earlier, (ids[~np.isin(ids, known)], name)]


def lineage(run: Run) -> dict[str, Any]:
    """Return the search's settings and its earlier rounds with the digests of their selections, for the provenance."""
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
    """Return the size of each round as text, for a pool of which only the size is known.

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
    """Check the settings of the search before the first long stage.

    Args:
        run: The run.
        added: The number of members that were added.

    Raises:
        ConfigError: The scheme needs runs trained here and ``NUM_RUNS`` is 0, or members were added to ``build_up``.
        SelectionError: The seed set does not fit the pool or the budget.
    """
    scheme = run.settings.search.scheme
    if scheme in ("build_up", "pretrain") and not run.settings.ensemble.num_runs:
        raise ConfigError(f"CURATE.ENSEMBLE.NUM_RUNS: must be at least 1 for CURATE.SEARCH.SCHEME {scheme} (got 0).")
    if not builds_up(run):
        return
    if added:
        raise ConfigError(
            "CURATE.SEARCH.SCHEME: build_up cannot use added members, which were not trained on the images of a round "
            f"(got {added}). Set another OUTPUT_DIR."
        )
    planned_rounds(run, run.settings.render.num_images if run.is_rendered else len(run.pool))


def expected_loss(settings: CurateSettings, share: float) -> str:
    """Return a warning if a scheme is known to fail: the hardest images of a small share of the pool.

    Args:
        settings: Of the run.
        share: The budget as a share of the pool's cost, in (0, 1].

    Returns:
        A sentence, or an empty text.
    """
    is_hardest = settings.search.scheme == "compress" and settings.select.strategy in _HARDEST_FIRST
    if not is_hardest or share >= _LEAST_COMPRESSED:
        return ""
    return (
        f"the hardest {share:.0%} of the pool by models of the whole pool are known to be worse than random below "
        f"{_LEAST_COMPRESSED:.0%}. Consider CURATE.SEARCH.SCHEME build_up or CURATE.SELECT.STRATEGY strata."
    )
