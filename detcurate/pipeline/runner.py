"""Run the stages in order, and plan a run without running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

from detcurate.errors import ConfigError, DetcurateError
from detcurate.io.leases import require_held
from detcurate.manifest.croissant import require_mlcroissant
from detcurate.pipeline.context import LOG, Run
from detcurate.pipeline.imported_members import imported_plans, require_imported
from detcurate.pipeline.join import join_predict, require_joinable
from detcurate.pipeline.pool_columns import planned_amount, require_selectable
from detcurate.pipeline.prediction_modes import prediction_mode
from detcurate.pipeline.search import ROUND_STAGES, SEED_SET, builds_up, planned_rounds, require_search, search_rounds
from detcurate.pipeline.stage import Stage, changes, run_stage, stage_state
from detcurate.pipeline.stages.manifest import manifest_stage, subset_file
from detcurate.pipeline.stages.pool import pool_stage, require_same_classes
from detcurate.pipeline.stages.predict import evaluate_stage, predict_stage
from detcurate.pipeline.stages.report import report_stage
from detcurate.pipeline.stages.retrain import retrain_seeds, retrain_stage
from detcurate.pipeline.stages.score import score_stage
from detcurate.pipeline.stages.select import select_stage
from detcurate.pipeline.stages.train import (
    added_members,
    ensemble_plan,
    member_bytes,
    planned_members,
    require_budget,
    require_members,
    train_stage,
)
from detcurate.pipeline.training_jobs import require_device, require_model, require_solver, require_weights
from detcurate.pipeline.workspace import (
    claim_output_dir,
    logged_to,
    naming_full_disk,
    output_lock,
    report_lock,
    require_locations,
    require_own_directory,
    require_own_root,
)


def plan_stages(run: Run, names: Sequence[str]) -> dict[str, str]:
    """Return stage -> what it would do and cost, as text.

    Raises:
        SelectionError: The budget or the seed set does not fit the size of the pool.
    """
    settings = run.settings
    num_images = settings.render.num_images if run.is_rendered else len(run.pool)
    num_evaluation = settings.render.num_evaluation_images if run.is_rendered else len(run.evaluation)
    mode, amount = prediction_mode(settings), planned_amount(settings.select, num_images)
    score = mode.score_settings(settings)
    plans = {
        "pool": f"{'render' if run.is_rendered else 'read'} and decode {num_images:,} + {num_evaluation:,} images",
        "score": f"{', '.join(score.measures)}; {score.aggregation} over the {mode.scored} of an image",
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
    """Return the costs of training the ensemble and predicting with it, and of all rounds of a search, as text."""
    runs, size, added = run.settings.ensemble.num_runs, member_bytes(run), len(added_members(run))
    members = planned_members(run)
    trained = (
        f"{runs:,} runs of {run.cfg.SOLVER.MAX_ITER:,} iterations ({runs * _images_seen(run):,} images seen), "
        f"{members - added:,} members of {size / 1e6:.1f} MB"
    )
    if added or not runs:
        trained = (f"{trained}, and " if runs else "") + f"{added} added members"
    requested = f"{members:,} members on {num_images:,} images: {members * num_images:,} forward passes"
    requested += prediction_mode(run.settings).passes
    plans = {"train": trained, "predict": requested}
    if builds_up(run):
        sizes = " → ".join(planned_rounds(run, num_images))
        plans["search"] = f"{sizes} images; every round before the last costs as much as train and predict"
    return plans


def _arm_plans(run: Run, num_evaluation: int) -> dict[str, str]:
    settings, solver, ensemble = run.settings, run.cfg.SOLVER, run.settings.ensemble
    seeds = len(retrain_seeds(settings, run.cfg.SEED))
    detectors, num_reused = seeds * len(settings.retrain.all_arms), 0
    if "full" in settings.retrain.arms and settings.search.scheme in ("compress", "none"):
        num_reused = sum(ensemble.augmentation(number) == "default" for number in range(min(ensemble.num_runs, seeds)))
    new, reused = detectors - num_reused, f"; reuses {num_reused} runs of the ensemble" if num_reused else ""
    num_passes = detectors * num_evaluation
    up_to = "up to " if settings.retrain.equal == "epochs" else ""
    return {
        "retrain": f"{new} detectors of {up_to}{solver.MAX_ITER:,} iterations "
        f"({up_to}{new * _images_seen(run):,} images seen): {', '.join(settings.retrain.all_arms)} with {seeds} "
        f"seeds{reused}",
        "evaluate": f"{detectors} detectors on {num_evaluation:,} images: {num_passes:,} forward passes",
    }


def _images_seen(run: Run) -> int:
    """Return the number of images that one training sees."""
    return int(run.cfg.SOLVER.MAX_ITER * run.cfg.SOLVER.IMS_PER_BATCH)


STAGES: Mapping[str, Callable[[Run], Stage]] = {
    "pool": pool_stage,
    "train": train_stage,
    "predict": predict_stage,
    "score": score_stage,
    "select": select_stage,
    "manifest": manifest_stage,
    "retrain": retrain_stage,
    "evaluate": evaluate_stage,
    "report": report_stage,
}
SEARCH = "search"
STAGE_NAMES = ("pool", SEARCH, *(name for name in STAGES if name != "pool"))
_NEED_DETECTRON2 = ("search", "train", "predict", "retrain", "evaluate")
_TRAIN = ("search", "train", "retrain")
_STATES = {
    "complete": "up to date",
    "interrupted": "to continue",
    "changed": "to run again",
    "new": "to run",
}


def run_pipeline(
    run: Run, *, until: str | None = None, only: str | None = None, fresh: bool = False, wait: bool = False
) -> None:
    """Run the stages in order; stages that are up to date are skipped.

    Args:
        run: The run.
        until: The last stage to run.
        only: The only stage to run, on the results of earlier stages.
        fresh: Whether to remove earlier results in ``OUTPUT_DIR`` first.
        wait: Whether to wait for another run in ``OUTPUT_DIR`` to end, instead of raising ``ConfigError``.

    Raises:
        DetcurateError: An error that the user can fix; finished work is kept.
    """
    names = stage_names(run, until=until, only=only)
    _validate(run, names)
    with naming_full_disk(run.output_dir), output_lock(run, wait=wait):
        claim_output_dir(run, fresh=fresh)
        with logged_to(run.output_dir / LOG):
            for name in names:
                for of_round, part, stage in _stages(run, name):
                    require_held(run.output_dir)
                    with report_lock(run) if name == "report" else nullcontext():
                        of_round.finished_stages[part] = run_stage(stage)


def join_pipeline(run: Run, *, wait_seconds: float) -> None:
    """Help another process with the stage ``predict`` of its run; see :func:`join_predict`."""
    require_joinable(run)
    require_own_directory(run)
    _validate(run, ["predict"])
    join_predict(run, wait_seconds=wait_seconds)


def stage_names(run: Run, *, until: str | None = None, only: str | None = None) -> list[str]:
    """Return the names of the stages to run, in order; ``search`` is one of them if the subset is built up in rounds.

    Raises:
        ConfigError: The stage ``search`` is named without the scheme ``build_up``.
    """
    if not builds_up(run) and SEARCH in (until, only):
        raise ConfigError(
            f"CURATE.SEARCH.SCHEME: must be build_up for the stage {SEARCH} (got {run.settings.search.scheme})."
        )
    if only is not None:
        return [only]
    names = [name for name in STAGE_NAMES if name != SEARCH or builds_up(run)]
    return names if until is None else names[: names.index(until) + 1]


def _stages(run: Run, name: str) -> Iterator[tuple[Run, str, Stage]]:
    """Yield the stages of a name, each with its run and its own name; each is created after the previous has run."""
    if name != SEARCH:
        yield run, name, STAGES[name](run)
        return
    for of_round in search_rounds(run):
        for part in ("select",) if of_round.round == SEED_SET else ROUND_STAGES:
            stage = STAGES[part](of_round)
            yield of_round, part, dataclasses.replace(stage, name=f"round {of_round.round} {part}")


def dry_run(
    run: Run, *, until: str | None = None, only: str | None = None, fresh: bool = False
) -> list[tuple[str, str, str]]:
    """Validate the run and return name, state and plan of each stage; nothing is written."""
    require_own_directory(run)
    require_own_root(run)
    names = stage_names(run, until=until, only=only)
    _validate(run, names)
    plans = plan_stages(run, names)
    rows, known = [], not fresh
    for name in names:
        state = _STATES["new"]
        if known:
            try:
                state, known = _state(run, name)
            except DetcurateError:
                if only:
                    raise
                known = False
        if name in _TRAIN and state != _STATES["complete"] and not run.settings.predict.results:
            require_weights(run)
        rows.append((name, state, plans[name]))
    return rows


def _state(run: Run, name: str) -> tuple[str, bool]:
    """Return the state of the first stage of a name that is not up to date, and whether all are."""
    for _, _, stage in _stages(run, name):
        found = stage_state(stage)
        if found != "complete":
            why = f" ({'; '.join(changes(stage)[:3])})" if found == "changed" else ""
            return _STATES[found] + why, False
    return _STATES["complete"], True


def _validate(run: Run, names: list[str]) -> None:
    """Check settings, files, budget and devices before the first long stage."""
    require_locations(run)
    if run.settings.manifest.croissant:
        require_mlcroissant()
    if run.cfg.SEED < 0:
        raise ConfigError(f"SEED: must be at least 0, so that the run can be repeated (got {run.cfg.SEED}).")
    require_selectable(run, predicts="predict" in names)
    require_search(run, len(added_members(run)))
    if not run.is_rendered:
        for part in ("pool", "evaluation"):
            if part == "pool" or set(names) & {"pool", "evaluate"}:
                root = run.image_root(part)
                if not root.is_dir():
                    raise ConfigError(
                        f"CURATE.{part.upper()}.IMAGE_ROOT: no such folder (got {root}). Fix it or DATASETS.ROOT."
                    )
        if "pool" in names:
            require_same_classes(run.pool, run.evaluation)
    needing = [name for name in names if name in _NEED_DETECTRON2]
    if run.settings.predict.results and needing:
        require_imported(run)
        needing = [name for name in needing if name not in ("train", "predict")]
    if needing:
        from detcurate.config.declaration import require_detectron2

        hint = ", before which --until manifest stops," if run.settings.predict.results else ""
        require_detectron2(f"the stage '{needing[0]}'{hint}")
        if not run.engine.assigns_blocks or set(needing) - {"predict", "evaluate"}:
            require_device(run)
        require_solver(run)
        require_model(run)
        ensemble_plan(run)
        require_budget(run)
        if "train" in needing:
            require_members(run, added_members(run))
        mode = prediction_mode(run.settings)
        if "predict" in needing:
            mode.validate(run)
        if "train" in needing and "score" in names:
            mode.validate_members(run.settings, planned_members(run))  # before the first member is trained
