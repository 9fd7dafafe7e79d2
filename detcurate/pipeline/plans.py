"""What a run would do and cost, told from the settings alone."""

from __future__ import annotations

from collections.abc import Sequence

from detcurate.pipeline.choose import subset_file
from detcurate.pipeline.context import Run
from detcurate.pipeline.ensemble import added_members, member_bytes, planned_members
from detcurate.pipeline.imported import imported_plans
from detcurate.pipeline.modes import score_settings
from detcurate.pipeline.pool_columns import planned_amount
from detcurate.pipeline.retrain import retrain_seeds
from detcurate.pipeline.search import builds_up, planned_rounds

_SCORED = {"cluster": "objects", "reference": "reference boxes", "dense": "anchors and classes"}


def plan_stages(run: Run, names: Sequence[str]) -> dict[str, str]:
    """Say of each of the stages what it would do and cost.

    Raises:
        SelectionError: The budget, or the seed set, does not go with the size of the pool.
    """
    settings = run.settings
    num_images = settings.render.num_images if run.is_rendered else len(run.pool)
    num_evaluation = settings.render.num_evaluation_images if run.is_rendered else len(run.evaluation)
    mode, amount = settings.predict.mode, planned_amount(settings.select, num_images)
    score = score_settings(settings, mode)
    plans = {
        "pool": f"{'render' if run.is_rendered else 'read'} and decode {num_images:,} + {num_evaluation:,} images",
        "score": f"{', '.join(score.measures)}; {score.aggregation} over the {_SCORED[mode]} of an image",
        "select": f"{amount} of {num_images:,} images by {settings.select.strategy}",
        "manifest": f"{subset_file(run)} and its provenance",
        "report": f"{run.directory('report') / 'index.html'}, results.json and summary.md",
    }
    if "SOLVER" in run.cfg:
        plans |= _ensemble_plans(run, num_images) | _arm_plans(run, num_evaluation)
    if settings.predict.results:
        plans |= imported_plans(run)
    return {name: plans.get(name, "needs Detectron2") for name in names}


def _ensemble_plans(run: Run, num_images: int) -> dict[str, str]:
    """Say what the training of the ensemble, and asking it, would cost; of all rounds where there are several."""
    runs, size, added = run.settings.ensemble.num_runs, member_bytes(run), len(added_members(run))
    members = planned_members(run)
    trained = (
        f"{runs:,} runs of {run.cfg.SOLVER.MAX_ITER:,} iterations ({runs * _images_seen(run):,} images seen), "
        f"{members - added:,} members of {size / 1e6:.1f} MB"
    )
    if added or not runs:
        trained = (f"{trained}, and " if runs else "") + f"{added} members that were added"
    asked = f"{members:,} members on {num_images:,} images: {members * num_images:,} forward passes"
    if run.settings.predict.mode == "reference":
        asked += ", and as many about given boxes"
    plans = {"train": trained, "predict": asked}
    if builds_up(run):
        sizes = " → ".join(planned_rounds(run, num_images))
        plans["search"] = f"{sizes} images; every round before the last costs what train and predict say of that"
    return plans


def _arm_plans(run: Run, num_evaluation: int) -> dict[str, str]:
    settings, solver, ensemble = run.settings, run.cfg.SOLVER, run.settings.ensemble
    seeds = len(retrain_seeds(settings, run.cfg.SEED))
    detectors, there = seeds * len(settings.retrain.all_arms), 0
    if "full" in settings.retrain.arms and settings.search.scheme in ("compress", "none"):
        there = sum(ensemble.augmentation(number) == "default" for number in range(min(ensemble.num_runs, seeds)))
    new, taken = detectors - there, f"; {there} of the full arm are the ensemble's own runs" if there else ""
    passes = detectors * num_evaluation
    up_to = "up to " if settings.retrain.equal == "epochs" else ""
    return {
        "retrain": f"{new} detectors of {up_to}{solver.MAX_ITER:,} iterations "
        f"({up_to}{new * _images_seen(run):,} images seen): {', '.join(settings.retrain.all_arms)} with {seeds} "
        f"seeds{taken}",
        "evaluate": f"{detectors} detectors on {num_evaluation:,} images: {passes:,} forward passes",
    }


def _images_seen(run: Run) -> int:
    """Return how many images a training sees."""
    return int(run.cfg.SOLVER.MAX_ITER * run.cfg.SOLVER.IMS_PER_BATCH)
