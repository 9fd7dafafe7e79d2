"""Running the stages in order, and telling beforehand what that would do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import orjson

from detcurate.coco.croissant import require_mlcroissant
from detcurate.errors import ConfigError, DetcurateError
from detcurate.files import write_bytes, write_json
from detcurate.pipeline.choose import manifest_stage, select_stage, subset_file
from detcurate.pipeline.context import ADDED, CACHE, DIRECTORIES, IMPORTED, Run
from detcurate.pipeline.ensemble import (
    added_members,
    ensemble_plan,
    member_bytes,
    require_budget,
    run_budget,
    train_stage,
)
from detcurate.pipeline.imported import imported_plans, require_imported
from detcurate.pipeline.modes import require_mode, score_settings
from detcurate.pipeline.pool import pool_stage, require_same_classes
from detcurate.pipeline.pool_columns import planned_amount, require_selectable
from detcurate.pipeline.predict import evaluate_stage, predict_stage
from detcurate.pipeline.report import report_stage
from detcurate.pipeline.retrain import retrain_seeds, retrain_stage
from detcurate.pipeline.score import score_stage
from detcurate.pipeline.train import require_device, require_solver
from detcurate.stages import Stage, changes, run_stage, stage_state

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
_SCORED = {"cluster": "objects", "reference": "reference boxes", "dense": "anchors and classes"}
_NEED_DETECTRON2 = ("train", "predict", "retrain", "evaluate")
_OWNER, _CONFIG, _LOG = "detcurate.json", "config.yaml", "log.txt"

_logger = logging.getLogger("detcurate")


def run_pipeline(run: Run, *, until: str | None = None, only: str | None = None, fresh: bool = False) -> None:
    """Bring the stages up to date, in order.

    Args:
        run: The run.
        until: Stop after this stage.
        only: Run this stage alone, on what the stages before it have left.
        fresh: First remove what an earlier run left in ``OUTPUT_DIR``.

    Raises:
        DetcurateError: Anything that the user can mend; what is finished is kept.
    """
    names = stage_names(until=until, only=only)
    _validate(run, names)
    claim_output_dir(run, fresh=fresh)
    with _logged_to(run.output_dir / _LOG):
        for name in names:
            run.markers[name] = run_stage(STAGES[name](run))


def stage_names(*, until: str | None = None, only: str | None = None) -> list[str]:
    """Return the names of the stages to run, in order."""
    if only is not None:
        return [only]
    names = list(STAGES)
    return names if until is None else names[: names.index(until) + 1]


def dry_run(run: Run, *, until: str | None = None, only: str | None = None) -> list[tuple[str, str, str]]:
    """Validate everything and tell, a row a stage, its name, its state and what it would do; write nothing."""
    _require_own_directory(run)
    names = stage_names(until=until, only=only)
    _validate(run, names)
    plans = _plans(run)
    rows, known = [], True
    for name in names:
        state = "to do"
        if known:
            try:
                stage = STAGES[name](run)
            except DetcurateError:
                if only:
                    raise
                known = False
            else:
                state = {
                    "complete": "up to date",
                    "interrupted": "to continue",
                    "changed": "to do again",
                    "new": "to do",
                }[found := stage_state(stage)]
                if found == "changed":
                    state += f" ({'; '.join(changes(stage)[:3])})"
                known = found == "complete"
        rows.append((name, state, plans[name]))
    return rows


def claim_output_dir(run: Run, *, fresh: bool) -> None:
    """Make ``OUTPUT_DIR`` this config's, or refuse to touch what another config or program put there."""
    if fresh and (run.output_dir / _OWNER).is_file():
        # What the run is to begin with stays, and so does the file that says whose it is.
        kept = {run.output_dir / IMPORTED} if run.settings.predict.results else set()
        for path in {run.output_dir / name for name in (*DIRECTORIES.values(), ADDED, IMPORTED, CACHE)} - kept:
            shutil.rmtree(path, ignore_errors=True)
        if not kept:
            (run.output_dir / _OWNER).unlink(missing_ok=True)
    _require_own_directory(run)
    write_json(run.output_dir / _OWNER, {"config_file": run.config_file.name})
    write_bytes(run.output_dir / _CONFIG, run.cfg.dump().encode())


def _require_own_directory(run: Run) -> None:
    directory, owner = run.output_dir, run.output_dir / _OWNER
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"OUTPUT_DIR must be a directory, got a file ({directory})")
    if owner.is_file():
        made_by = orjson.loads(owner.read_bytes()).get("config_file")
        if made_by != run.config_file.name:
            raise ConfigError(
                f"OUTPUT_DIR must be empty or made by {run.config_file.name}, got one made by {made_by} ({directory}); "
                "give another OUTPUT_DIR, or --fresh to discard what is there"
            )
    elif directory.is_dir():
        others = [path.name for path in directory.iterdir() if path.name not in (_CONFIG, _LOG)]
        if others:
            raise ConfigError(
                f"OUTPUT_DIR must be empty or made by detcurate, got one that holds {', '.join(sorted(others)[:3])} "
                f"({directory}); give another OUTPUT_DIR"
            )


def _validate(run: Run, names: list[str]) -> None:
    """Find what can be found before the first long stage: settings, files, budget, devices."""
    if run.settings.manifest.croissant:
        require_mlcroissant()
    if run.cfg.SEED < 0:
        raise ConfigError(f"SEED must be at least 0, so that a run can be repeated, got {run.cfg.SEED}")
    require_selectable(run, predicts="predict" in names)
    if not run.is_rendered:
        for part in ("pool", "evaluation"):
            if part == "pool" or set(names) & {"pool", "evaluate"}:
                root = run.image_root(part)
                if not root.is_dir():
                    raise ConfigError(
                        f"the image root of the {part} must be a directory, got {root}; "
                        f"set DATASETS.ROOT and CURATE.{part.upper()}.IMAGE_ROOT"
                    )
        if "pool" in names:
            require_same_classes(run.pool, run.evaluation)
    needing = [name for name in names if name in _NEED_DETECTRON2]
    if run.settings.predict.results and needing:
        require_imported(run)
        needing = [name for name in needing if name not in ("train", "predict")]
    if needing:
        from detcurate.d2.environment import require_detectron2

        hint = ", before which --until manifest stops," if run.settings.predict.results else ""
        require_detectron2(f"the stage '{needing[0]}'{hint}")
        require_device(run)
        require_solver(run)
        ensemble_plan(run)
        require_budget(run)
        if "predict" in needing:
            require_mode(run)


def _plans(run: Run) -> dict[str, str]:
    """Say what each stage would do and cost, from the settings alone."""
    settings, solver = run.settings, run.cfg.get("SOLVER")
    mode = settings.predict.mode
    score = score_settings(settings, mode)
    num_images = settings.render.num_images if run.is_rendered else len(run.pool)
    num_evaluation = settings.render.num_evaluation_images if run.is_rendered else len(run.evaluation)
    amount = planned_amount(settings.select, num_images)
    plans = {
        "pool": f"{'render' if run.is_rendered else 'read'} and decode {num_images:,} + {num_evaluation:,} images",
        "score": f"{', '.join(score.measures)}; {score.aggregation} over the {_SCORED[mode]} of an image",
        "select": f"{amount} of {num_images:,} images by {settings.select.strategy}",
        "manifest": f"{subset_file(run)} and its provenance",
        "report": f"{run.directory('report') / 'summary.md'} and results.json",
    }
    if settings.predict.results:
        plans |= imported_plans(run)
    if solver is None:
        return {name: plans.get(name, "needs Detectron2") for name in STAGES}
    runs, (iterations, windows), size = settings.ensemble.num_runs, ensemble_plan(run), member_bytes(run)
    a_run = len(iterations) + len(windows)
    if run_budget(run):
        a_run = min(a_run, run_budget(run) // size)
    added = len(added_members(run))
    members, seeds = runs * a_run + added, len(retrain_seeds(settings, run.cfg.SEED))
    detectors = seeds * len(settings.retrain.arms)
    reused = sum(settings.ensemble.augmentation(number) == "default" for number in range(min(runs, seeds)))
    new = detectors - (reused if "full" in settings.retrain.arms else 0)
    seen = solver.MAX_ITER * solver.IMS_PER_BATCH
    trained = (
        f"{runs} runs of {solver.MAX_ITER:,} iterations ({runs * seen:,} images seen), "
        f"{members - added} members of {size / 1e6:.1f} MB"
    )
    if added or not runs:
        trained = (f"{trained}, and " if runs else "") + f"{added} members that were added"
    asked = f"{members} members on {num_images:,} images: {members * num_images:,} forward passes"
    if mode == "reference":
        asked += ", and as many about given boxes"
    plans = {"train": trained, "predict": asked, **plans}
    up_to = "up to " if settings.retrain.equal == "epochs" else ""
    plans["retrain"] = (
        f"{new} detectors of {up_to}{solver.MAX_ITER:,} iterations ({up_to}{new * seen:,} images seen): "
        f"{', '.join(settings.retrain.arms)} with {seeds} seeds"
    )
    passes = detectors * num_evaluation
    plans["evaluate"] = f"{detectors} detectors on {num_evaluation:,} images: {passes:,} forward passes"
    return plans


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Write the log to a file too, and what stopped the run to the file alone: the terminal is told by the caller."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        stopped = (type(error).__name__, str(error))
        handler.handle(_logger.makeRecord(_logger.name, logging.ERROR, __file__, 0, "stopped: %s: %s", stopped, None))
        raise
    finally:
        _logger.removeHandler(handler)
        handler.close()
