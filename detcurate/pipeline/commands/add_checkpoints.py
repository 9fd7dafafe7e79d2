"""``detcurate ensemble add``: add existing checkpoints to the ensemble of a run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detcurate.config.declaration import require_detectron2
from detcurate.ensemble.index import (
    MEMBER_INDEX,
    RUN_INDEX,
    Member,
    ensemble_members,
    member_file,
    verify_member,
    write_index,
)
from detcurate.errors import ConfigError, EnsembleError
from detcurate.io.files import atomic_path, sha256_file
from detcurate.pipeline.context import ADDED, Run
from detcurate.pipeline.stage import read_stage_metadata, run_stage, stage_state
from detcurate.pipeline.stages.train import added_members, train_stage
from detcurate.pipeline.training_jobs import training_config
from detcurate.pipeline.workspace import claim_output_dir, output_lock


@dataclass(frozen=True)
class Addition:
    """The result of adding checkpoints.

    Args:
        added: The new members.
        duplicates: Files with the weights of an existing member, each with that member.
        is_ready: Whether the stage ``train`` includes the new members already.
    """

    added: tuple[Member, ...]
    duplicates: tuple[tuple[Path, Member], ...]
    is_ready: bool


@dataclass(frozen=True)
class _Source:
    path: Path
    run: int
    member: Member | None = None  # if detcurate's hook saved the file


def add_members(run: Run, folder: Path, *, number: int | None = None) -> Addition:
    """Add the checkpoints of a folder to the ensemble in ``OUTPUT_DIR``; all of them or, on an error, none.

    They are stored in ``OUTPUT_DIR/added``, which no stage owns: changed settings do not remove them.

    Args:
        run: The run.
        folder: A folder of ``model_*.pth`` of Detectron2, or of members that detcurate's hook saved.
        number: The run number of the (first) added run; the next free number if ``None``.

    Raises:
        EnsembleError: A file cannot be used.
        ConfigError: The run uses imported predictions.
    """
    require_detectron2("`detcurate ensemble add`")
    if run.settings.predict.results:
        raise ConfigError(
            f"CURATE.PREDICT.RESULTS: imported predictions replace the ensemble (got "
            f"{run.settings.predict.results!r}). "
            "Remove it to add members."
        )
    if not folder.is_dir():
        raise EnsembleError(f"DIR: not a folder of checkpoints (got {folder}).")
    known, trained = added_members(run), _num_trained(run)
    free = max([run.settings.ensemble.num_runs, *(member.run + 1 for member in known)])
    first = free if number is None else number
    if first < trained:
        raise EnsembleError(f"--run: must be at least {trained}; lower runs were trained here (got {first}).")
    sources = list(_sources(folder, first))
    with output_lock(run):
        claim_output_dir(run, fresh=False)
        if added_members(run) != known:
            raise EnsembleError(f"{run.output_dir}: another process added members. Run the same command again.")
        return _add(run, sources, known)


def _add(run: Run, sources: Iterable[_Source], known: list[Member]) -> Addition:
    with _incoming(run.output_dir / ADDED) as incoming:
        added, duplicates = _convert(run, sources, known, incoming)
        for member in added:
            target = run.output_dir / ADDED / member.file
            target.parent.mkdir(exist_ok=True)
            (incoming / member.file).replace(target)
        if added:
            write_index(run.output_dir / ADDED / MEMBER_INDEX, [*known, *added])
    return Addition(tuple(added), tuple(duplicates), _refresh_train_stage(run))


def _sources(folder: Path, first: int) -> Iterator[_Source]:
    if (folder / MEMBER_INDEX).is_file() or any(folder.glob(f"run-*/{RUN_INDEX}")):
        for member in ensemble_members(folder):
            yield _Source(folder / member.file, first + member.run, member)
        return
    paths = sorted(folder.glob("model_*.pth"))
    if not paths:
        raise EnsembleError(f"DIR: no checkpoints model_*.pth and no members saved by detcurate's hook (got {folder}).")
    for path in paths:
        yield _Source(path, first)


@contextmanager
def _incoming(directory: Path) -> Iterator[Path]:
    """Yield an empty folder beside the members, from which all or none are moved."""
    folder = directory / ".incoming"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        if not any(directory.iterdir()):
            directory.rmdir()


def _convert(
    run: Run, sources: Iterable[_Source], known: list[Member], incoming: Path
) -> tuple[list[Member], list[tuple[Path, Member]]]:
    from detcurate.d2.checkpoints import model_state

    expected = model_state(training_config(run))
    added: list[Member] = []
    duplicates: list[tuple[Path, Member]] = []
    for source in sources:
        member = _convert_one(run, source, expected, incoming)
        twin = next((other for other in (*known, *added) if other.sha256 == member.sha256), None)
        if twin is not None:
            duplicates.append((source.path, twin))
            continue
        _require_free_place(source.path, member, [*known, *added])
        (incoming / _NEW).replace(_with_parent(incoming / member.file))
        added.append(member)
    return added, duplicates


def _convert_one(run: Run, source: _Source, expected: Any, incoming: Path) -> Member:
    """Write a checkpoint as ``incoming/new`` and return its member record."""
    from detcurate.d2.checkpoints import read_checkpoint, require_same_model, write_checkpoint

    if source.member is not None:
        verify_member(source.path, source.member.sha256, advice="Exclude it, or save it again.")
    checkpoint = read_checkpoint(source.path, allow_pickle=run.settings.train.allow_pickle)
    require_same_model(checkpoint, expected)
    own = source.member or Member(
        source.run, checkpoint.iteration, None, None, "", "", dtype=run.settings.ensemble.dtype
    )
    with atomic_path(incoming / _NEW) as temporary:
        write_checkpoint(checkpoint, expected, temporary, own.dtype)
    file = member_file(f"run-{source.run}", own.iteration, own.kind)
    return dataclasses.replace(own, run=source.run, file=file, sha256=sha256_file(incoming / _NEW))


def _require_free_place(path: Path, member: Member, others: Iterable[Member]) -> None:
    if member.iteration < 0:
        raise EnsembleError(
            f'{path}: the iteration is unknown. Store it as "iteration", or name the file model_<iteration>.pth.'
        )
    if any((other.run, *other.key) == (member.run, *member.key) for other in others):
        raise EnsembleError(
            f"{path}: run {member.run} has another {member.kind} of iteration {member.iteration}. Add the folder of "
            "another training with another --run."
        )


def _with_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _num_trained(run: Run) -> int:
    """Return the number of runs that were trained here."""
    stage_metadata = read_stage_metadata(run.directory("train"))
    return int(stage_metadata["settings"]["CURATE.ENSEMBLE"]["num_runs"]) if stage_metadata else 0


def _refresh_train_stage(run: Run) -> bool:
    """Run the stage ``train`` if that needs no training; return whether it includes the members."""
    if not _num_trained(run):
        run_stage(train_stage(_with_added_alone(run)))
        return True
    stage = train_stage(run)
    if stage_state(stage) != "complete" and not stage.keeps_good_files:
        return False
    run_stage(stage)
    return True


def _with_added_alone(run: Run) -> Run:
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.CURATE.ENSEMBLE.NUM_RUNS = 0
    cfg.freeze()
    return dataclasses.replace(run, cfg=cfg)


_NEW = "new.safetensors"
