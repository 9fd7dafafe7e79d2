"""The stage ``train``: train the runs of the ensemble, and link the members that were added."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from detcurate.config.declaration import require_detectron2
from detcurate.ensemble.index import AUGMENTATIONS, MEMBER_INDEX, Member, read_index, verify_member, write_index
from detcurate.ensemble.schedule import averaging_windows, member_iterations
from detcurate.errors import ConfigError, EnsembleError
from detcurate.io.files import link_or_copy, sha256_file
from detcurate.pipeline.context import ADDED, Run
from detcurate.pipeline.imported_members import imported_train_stage
from detcurate.pipeline.search import SEED_SET, builds_up, previous_round, training_image_ids
from detcurate.pipeline.stage import Stage, StageResult, changes, output_digest
from detcurate.pipeline.training_jobs import (
    COSINE_CYCLES,
    train_jobs,
    training_config,
    training_job,
    training_settings,
    weight_bytes,
)


def ensemble_plan(run: Run) -> tuple[tuple[int, ...], dict[int, tuple[int, ...]]]:
    """Return the iterations that save a member in each run, and the iterations that each average covers.

    Raises:
        ConfigError: The schedule is invalid, or the learning rate does not fit it.
    """
    ensemble, solver = run.settings.ensemble, run.cfg.SOLVER
    if not ensemble.num_runs:
        return (), {}
    if ensemble.schedule == "cosine_cycles" and solver.LR_SCHEDULER_NAME != COSINE_CYCLES:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME: must be {COSINE_CYCLES} for CURATE.ENSEMBLE.SCHEDULE cosine_cycles (got "
            f"{solver.LR_SCHEDULER_NAME})."
        )
    iterations = member_iterations(
        solver.MAX_ITER,
        schedule=ensemble.schedule,
        members_per_run=ensemble.members_per_run,
        last_fraction=ensemble.last_fraction,
        explicit=ensemble.iterations,
        every=ensemble.every,
        cycles=ensemble.cycles,
    )
    return iterations, averaging_windows(iterations, last=ensemble.average_last, every=ensemble.average_every)


def run_budget(run: Run) -> int:
    """Return the disk budget of the members of one run in bytes; 0 for no limit."""
    ensemble = run.settings.ensemble
    return int(ensemble.max_gb * 1e9) // max(ensemble.num_runs, 1)


def member_bytes(run: Run) -> int:
    """Return the size of a member's weights in bytes."""
    return weight_bytes(run) // (1 if run.settings.ensemble.dtype == "fp32" else 2)


def planned_members(run: Run) -> int:
    """Return the number of members: those of all runs, within the disk budget, and those that were added."""
    iterations, windows = ensemble_plan(run)
    of_a_run = len(iterations) + len(windows)
    if run_budget(run):
        of_a_run = min(of_a_run, run_budget(run) // member_bytes(run))
    return run.settings.ensemble.num_runs * of_a_run + len(added_members(run))


def train_stage(run: Run) -> Stage:
    """Return the stage ``train``.

    Trained runs stay valid when members are added or removed. Imported predictions replace the whole ensemble.
    """
    if run.settings.predict.results:
        return imported_train_stage(run)
    require_detectron2("the stage 'train'")
    settings: dict[str, Any] = {"CURATE.ENSEMBLE": _ensemble_settings(run)}
    inputs = {}
    if run.settings.ensemble.num_runs:
        settings = {**training_settings(run), **settings}
        inputs["pool"] = output_digest(run.stage_metadata("pool"))
    if added_members(run):
        inputs["added"] = sha256_file(run.output_dir / ADDED / MEMBER_INDEX)
    before = previous_round(run)
    if before is not None:
        settings["CURATE.SEARCH"] = {"warm_start": run.settings.search.warm_start}
        inputs["round before"] = output_digest(before.stage_metadata("select"))
        if _starts_from(run) is not None:
            inputs["weights before"] = output_digest(before.stage_metadata("train"))
    stage = Stage("train", run.directory("train"), settings, inputs, lambda: _train_ensemble(run))
    return dataclasses.replace(stage, keeps_good_files=set(changes(stage)) == {"added changed"})


def _ensemble_settings(run: Run) -> dict[str, Any]:
    """Return the settings that affect the members, without those that are unused or at their defaults."""
    ensemble = run.settings.ensemble
    if not ensemble.num_runs:
        return {"num_runs": 0}
    always = ("num_runs", "members_per_run", "last_fraction", "iterations")
    kept = ensemble.model_dump(mode="json", include=set(always))
    unread = {"every"} if ensemble.schedule != "every_n" else set()
    unread |= {"cycles"} if ensemble.schedule != "cosine_cycles" else set()
    return {**kept, **ensemble.model_dump(mode="json", exclude_defaults=True, exclude={*always, *unread})}


def added_members(run: Run) -> list[Member]:
    """Return the members that ``detcurate ensemble add`` added to ``OUTPUT_DIR``."""
    member_index = run.output_dir / ADDED / MEMBER_INDEX
    return read_index(member_index) if member_index.is_file() else []


def require_budget(run: Run) -> None:
    """Raise ``ConfigError`` if the disk budget is too small for one member of each run."""
    if 0 < run_budget(run) < member_bytes(run):
        raise ConfigError(
            f"CURATE.ENSEMBLE.MAX_GB: too small for one member of {member_bytes(run) / 1e9:.3g} GB in each of the "
            f"{run.settings.ensemble.num_runs} runs (got {run.settings.ensemble.max_gb:g}). Raise it."
        )


def _train_ensemble(run: Run) -> StageResult:
    directory, num_runs, added = run.directory("train"), run.settings.ensemble.num_runs, added_members(run)
    require_members(run, added)
    require_budget(run)
    jobs = [_ensemble_job(run, number) for number in range(num_runs)]
    train_jobs(run, jobs, desc="train ensemble")
    trained = [member for job in jobs for member in job.writer.members()]
    kept = [directory / job.last_writer.members()[0].file for job in jobs if job.keep_last]
    _link_added(run, added)
    members = [*trained, *added]
    member_index = directory / MEMBER_INDEX
    write_index(member_index, members)
    size = sum((directory / member.file).stat().st_size for member in members)
    summary = f"{len(trained)} members from {num_runs} runs of {run.cfg.SOLVER.MAX_ITER:,} iterations"
    if builds_up(run):
        summary += f" on {len(training_image_ids(run)):,} images"
    if added:
        summary = f"{summary} and {len(added)} added members" if trained else f"{len(added)} added members"
    return StageResult(
        [member_index, *(directory / member.file for member in members), *kept], f"{summary} ({size / 1e6:,.1f} MB)"
    )


def require_members(run: Run, added: list[Member]) -> None:
    """Check that the ensemble has members, and that added runs do not use the numbers of trained runs.

    Raises:
        EnsembleError: The ensemble would have no member.
        ConfigError: A run number is used twice.
    """
    num_runs = run.settings.ensemble.num_runs
    if not num_runs and not added:
        raise EnsembleError(
            "CURATE.ENSEMBLE.NUM_RUNS: the ensemble has no members (got 0, and none were added). Set it, or run "
            "`detcurate ensemble add DIR --config-file FILE` first."
        )
    if added and min(member.run for member in added) < num_runs:
        raise ConfigError(
            f"CURATE.ENSEMBLE.NUM_RUNS: exceeds the lowest added run, {min(member.run for member in added)} (got "
            f"{num_runs}). Set it to 0 to use the added members alone, or delete {run.output_dir / ADDED} and add them "
            f"with --run {num_runs}."
        )


def _link_added(run: Run, added: list[Member]) -> None:
    """Link or copy the added members into the stage's directory, and remove files of members that are gone."""
    source, target = run.output_dir / ADDED, run.directory("train")
    runs = {f"run-{number}" for number in range(run.settings.ensemble.num_runs)}
    named = {target / member.file for member in added}
    for path in target.glob("run-*/*"):
        if path.parent.name not in runs and path not in named:
            path.unlink()
    for member in added:
        if (target / member.file).is_file():
            continue
        verify_member(source / member.file, member.sha256, advice=f"Delete {source} and add the members again.")
        link_or_copy(source / member.file, target / member.file)


def _ensemble_job(run: Run, number: int) -> Any:
    ensemble = run.settings.ensemble
    iterations, windows = ensemble_plan(run)
    last, before = run.cfg.SOLVER.MAX_ITER - 1, _starts_from(run)
    job = training_job(run, run.directory("train"), f"run-{number}", number, run.cfg.SEED + number, iterations)
    return dataclasses.replace(
        job,
        images=dataclasses.replace(job.images, image_ids=tuple(training_image_ids(run).tolist())),
        weights=None if before is None else run_weights(before, number)[0],
        config=training_config(run, AUGMENTATIONS[ensemble.augmentation(number)]),
        windows=windows,
        dtype=ensemble.dtype,
        max_bytes=run_budget(run),
        # The full arm and the next round start from the last fp32 weights of the run.
        keep_last=ensemble.dtype != "fp32" or last not in iterations,
    )


def _starts_from(run: Run) -> Run | None:
    """Return the round with the weights that this round starts from, or None."""
    before = previous_round(run) if run.settings.search.warm_start else None
    return None if before is None or before.round == SEED_SET else before


def last_weights(run: Run, seed: int) -> tuple[Path, Member] | None:
    """Return the last fp32 weights of the ensemble's run that equals a training of the full arm with a seed.

    Returns:
        The file and its record in the run's index; ``None`` if there is no such run.
    """
    number = seed - run.cfg.SEED
    ensemble = run.settings.ensemble
    if builds_up(run) or not 0 <= number < ensemble.num_runs or ensemble.augmentation(number) != "default":
        return None
    return run_weights(run, number)


def run_weights(run: Run, number: int) -> tuple[Path, Member]:
    """Return the file of the last fp32 weights of a run of the ensemble, and its record in the run's index."""
    job = _ensemble_job(run, number)
    writer = job.last_writer if job.keep_last else job.writer
    member = writer.members()[-1]  # an average precedes the checkpoint of the same iteration
    verify_member(writer.directory / member.file, member.sha256)
    return writer.directory / member.file, member
