"""Running the stages in order, and telling beforehand what that would do."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from detcurate.coco.croissant import require_mlcroissant
from detcurate.errors import ConfigError, DetcurateError
from detcurate.files import TEMPORARY_SUFFIX, remove_temporaries, write_bytes, write_json
from detcurate.lock import LOCK, locked, require_held
from detcurate.pipeline.choose import manifest_stage, select_stage
from detcurate.pipeline.context import ADDED, CACHE, CANDIDATES, DIRECTORIES, IMPORTED, LOG, Run
from detcurate.pipeline.ensemble import added_members, ensemble_plan, require_budget, train_stage
from detcurate.pipeline.imported import require_imported
from detcurate.pipeline.join import join_predict, require_joinable
from detcurate.pipeline.modes import require_mode
from detcurate.pipeline.plans import plan_stages
from detcurate.pipeline.pool import pool_stage, require_same_classes
from detcurate.pipeline.pool_columns import require_selectable
from detcurate.pipeline.predict import evaluate_stage, predict_stage
from detcurate.pipeline.report import report_stage
from detcurate.pipeline.retrain import retrain_stage
from detcurate.pipeline.score import score_stage
from detcurate.pipeline.search import ROUND_STAGES, SEED_SET, builds_up, require_search, search_rounds
from detcurate.pipeline.stored import claim_storage_root, require_locations, require_own_root
from detcurate.pipeline.train import require_device, require_solver
from detcurate.stages import Stage, changes, run_stage, stage_state
from detcurate.untrusted import PlainFormatter, read_json_object

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
_STATES = {
    "complete": "up to date",
    "interrupted": "to continue",
    "changed": "to do again",
    "new": "to do",
}
_OWNER, _CONFIG, _REPORT_LOCK = "detcurate.json", "config.yaml", ".report.lock"

_logger = logging.getLogger("detcurate")


def run_pipeline(
    run: Run, *, until: str | None = None, only: str | None = None, fresh: bool = False, wait: bool = False
) -> None:
    """Bring the stages up to date, in order.

    Args:
        run: The run.
        until: Stop after this stage.
        only: Run this stage alone, on what the stages before it have left.
        fresh: First remove what an earlier run left in ``OUTPUT_DIR``.
        wait: Wait for another run in ``OUTPUT_DIR`` to end, instead of refusing.

    Raises:
        DetcurateError: Anything that the user can mend; what is finished is kept.
    """
    names = stage_names(run, until=until, only=only)
    _validate(run, names)
    with _named_when_full(run.output_dir), output_lock(run, wait=wait):
        claim_output_dir(run, fresh=fresh)
        with _logged_to(run.output_dir / LOG):
            for name in names:
                for of_round, part, stage in _stages(run, name):
                    require_held(run.output_dir)
                    with report_lock(run) if name == "report" else nullcontext():
                        of_round.markers[part] = run_stage(stage)


@contextmanager
def _named_when_full(directory: Path) -> Iterator[None]:
    """Name the folder in an error of the system that names no file, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(directory)
        raise


@contextmanager
def output_lock(run: Run, *, wait: bool = False) -> Iterator[None]:
    """Hold ``OUTPUT_DIR``, which is this config's, against every other run and what else writes there.

    Of a training on several machines, the first one's process holds it for all.

    Raises:
        ConfigError: Another run holds it, or it is not this config's.
    """
    if run.distributed.get("machine_rank", 0):
        yield
        return
    _require_detcurate_directory(run)  # a folder of somebody else's gets not so much as a lock
    with locked(run.output_dir, wait=wait):
        yield


def report_lock(run: Run) -> AbstractContextManager[None]:
    """Hold the report, which may be asked for while the run is still going on."""
    return locked(run.output_dir, name=_REPORT_LOCK, wait=True)


def join_pipeline(run: Run, *, wait_seconds: float) -> None:
    """Help a run that is at its stage ``predict``, from another process or machine; see :func:`join_predict`."""
    require_joinable(run)
    _require_own_directory(run)
    _validate(run, ["predict"])
    join_predict(run, wait_seconds=wait_seconds)


def stage_names(run: Run, *, until: str | None = None, only: str | None = None) -> list[str]:
    """Return the names of the stages to run, in order; the search is one where the subset is built up in rounds.

    Raises:
        ConfigError: The search is asked for where there is none.
    """
    if not builds_up(run) and SEARCH in (until, only):
        raise ConfigError(
            f"CURATE.SEARCH.SCHEME must be build_up for the stage {SEARCH}, got {run.settings.search.scheme}"
        )
    if only is not None:
        return [only]
    names = [name for name in STAGE_NAMES if name != SEARCH or builds_up(run)]
    return names if until is None else names[: names.index(until) + 1]


def _stages(run: Run, name: str) -> Iterator[tuple[Run, str, Stage]]:
    """Give the stages behind a name, each with its run and its own name; one is built when the one before is done."""
    if name != SEARCH:
        yield run, name, STAGES[name](run)
        return
    for of_round in search_rounds(run):
        for part in ("select",) if of_round.round == SEED_SET else ROUND_STAGES:
            stage = STAGES[part](of_round)
            yield of_round, part, dataclasses.replace(stage, name=f"round {of_round.round} {part}")


def dry_run(run: Run, *, until: str | None = None, only: str | None = None) -> list[tuple[str, str, str]]:
    """Validate everything and tell, a row a stage, its name, its state and what it would do; write nothing."""
    _require_own_directory(run)
    require_own_root(run)
    names = stage_names(run, until=until, only=only)
    _validate(run, names)
    plans = plan_stages(run, names)
    rows, known = [], True
    for name in names:
        state = "to do"
        if known:
            try:
                state, known = _state(run, name)
            except DetcurateError:
                if only:
                    raise
                known = False
        rows.append((name, state, plans[name]))
    return rows


def _state(run: Run, name: str) -> tuple[str, bool]:
    """Say in which state the stages behind a name are, the first that is not up to date, and whether all are."""
    for _, _, stage in _stages(run, name):
        found = stage_state(stage)
        if found != "complete":
            why = f" ({'; '.join(changes(stage)[:3])})" if found == "changed" else ""
            return _STATES[found] + why, False
    return _STATES["complete"], True


def claim_output_dir(run: Run, *, fresh: bool) -> None:
    """Make ``OUTPUT_DIR`` this config's, or refuse to touch what another config or program put there."""
    require_own_root(run)
    if fresh and (run.output_dir / _OWNER).is_file():
        for lock in (run.output_dir / CANDIDATES).glob(f"*/{LOCK}"):
            with locked(lock.parent):  # refuses while a ranking is at work there
                pass
        # What the run is to begin with stays, and so does the file that says whose it is.
        kept = {run.output_dir / IMPORTED} if run.settings.predict.results else set()
        for path in {
            run.output_dir / name for name in (*DIRECTORIES.values(), ADDED, CANDIDATES, IMPORTED, CACHE)
        } - kept:
            shutil.rmtree(path, ignore_errors=True)
        if not kept:
            (run.output_dir / _OWNER).unlink(missing_ok=True)
    _require_own_directory(run)
    claim_storage_root(run, fresh=fresh)
    for leftover in run.output_dir.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    remove_temporaries(run.output_dir / CACHE)
    write_json(run.output_dir / _OWNER, {"config_file": run.config_file.name})
    kept_cfg = run.cfg.clone()
    kept_cfg.defrost()
    kept_cfg.CURATE.TRAIN.ALLOW_PICKLE = False  # a command's own, never a file's
    write_bytes(run.output_dir / _CONFIG, kept_cfg.dump().encode())


def _require_own_directory(run: Run) -> None:
    _require_detcurate_directory(run)
    directory, owner = run.output_dir, run.output_dir / _OWNER
    if not owner.is_file():
        return
    try:
        made_by = read_json_object(owner)["config_file"]
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"OUTPUT_DIR must say which config made it, got JSON that is damaged ({owner}): {error}; "
            f'write {{"config_file": "{run.config_file.name}"}} into it if it is that one\'s'
        ) from error
    if made_by != run.config_file.name:
        raise ConfigError(
            f"OUTPUT_DIR must be empty or made by {run.config_file.name}, got one made by {made_by} ({directory}); "
            "give another OUTPUT_DIR, or --fresh to discard what is there"
        )


def _require_detcurate_directory(run: Run) -> None:
    directory = run.output_dir
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"OUTPUT_DIR must be a directory, got a file ({directory})")
    if directory.is_dir() and not (directory / _OWNER).is_file():
        others = [path.name for path in directory.iterdir() if path.name not in (_CONFIG, LOG) and not _is_ours(path)]
        if others:
            raise ConfigError(
                f"OUTPUT_DIR must be empty or made by detcurate, got one that holds {', '.join(sorted(others)[:3])} "
                f"({directory}); give another OUTPUT_DIR"
            )


def _is_ours(path: Path) -> bool:
    """Tell whether a file is a lock, or what a killed run left half written."""
    return path.name.startswith((LOCK, _REPORT_LOCK, f".{_OWNER}.", f".{_CONFIG}."))


def _validate(run: Run, names: list[str]) -> None:
    """Find what can be found before the first long stage: settings, files, budget, devices."""
    require_locations(run)
    if run.settings.manifest.croissant:
        require_mlcroissant()
    if run.cfg.SEED < 0:
        raise ConfigError(f"SEED must be at least 0, so that a run can be repeated, got {run.cfg.SEED}")
    require_selectable(run, predicts="predict" in names)
    require_search(run, len(added_members(run)))
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
        if not run.engine.hands_out_blocks or set(needing) - {"predict", "evaluate"}:
            require_device(run)
        require_solver(run)
        ensemble_plan(run)
        require_budget(run)
        if "predict" in needing:
            require_mode(run)


def _open_log(path: Path) -> TextIO:
    """Open a log to add to it; a link, which could lead to any file of the user's, is refused."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise ConfigError(f"the log must be a file that can be written, got {error.strerror} ({path})") from error
    return os.fdopen(handle, "a", encoding="utf-8")


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Write the log to a file too, and what stopped the run to the file alone: the terminal is told by the caller."""
    handler = logging.StreamHandler(_open_log(path))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is told of once, not by the log
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    _logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        stopped = (type(error).__name__, str(error))
        handler.handle(_logger.makeRecord(_logger.name, logging.ERROR, __file__, 0, "stopped: %s: %s", stopped, None))
        raise
    finally:
        _logger.removeHandler(handler)
        with suppress(OSError):
            handler.stream.close()
