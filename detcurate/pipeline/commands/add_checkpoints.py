"""``detcurate ensemble add``: checkpoints of a training that is over become members of a run's ensemble."""

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
    """What came of it.

    Args:
        added: The new members.
        duplicates: Files that hold a member once more, and that member.
        is_ready: Whether the stage ``train`` has taken them in.
    """

    added: tuple[Member, ...]
    duplicates: tuple[tuple[Path, Member], ...]
    is_ready: bool


@dataclass(frozen=True)
class _Source:
    path: Path
    run: int
    member: Member | None = None  # when our own hook saved it


def add_members(run: Run, folder: Path, *, number: int | None = None) -> Addition:
    """Add the checkpoints of a folder to the ensemble in ``OUTPUT_DIR``; all of them or, on an error, none.

    They are kept in ``OUTPUT_DIR/added``, which no stage owns: no changed setting removes them.

    Args:
        run: The run.
        folder: ``model_*.pth`` of Detectron2, or what our own hook saved in a trainer of one's own.
        number: Of the run that they become (of the first, when there are several); the next free one when ``None``.

    Raises:
        EnsembleError: A file cannot be used; it is named.
    """
    require_detectron2("`detcurate ensemble add`")
    if run.settings.predict.results:
        raise ConfigError(
            f"CURATE.PREDICT.RESULTS must be empty to add members, got {run.settings.predict.results!r}; leave it out, "
            "as imported answers take the place of an ensemble"
        )
    if not folder.is_dir():
        raise EnsembleError(f"DIR must be a folder of checkpoints, got {folder}")
    known, trained = added_members(run), _num_trained(run)
    free = max([run.settings.ensemble.num_runs, *(member.run + 1 for member in known)])
    first = free if number is None else number
    if first < trained:
        raise EnsembleError(f"--run must be at least {trained}, as the runs below were trained here, got {first}")
    sources = list(_sources(folder, first))
    with output_lock(run):
        claim_output_dir(run, fresh=False)
        if added_members(run) != known:
            raise EnsembleError(f"members were added to {run.output_dir} just now; give the same command again")
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
    return Addition(tuple(added), tuple(duplicates), _settle(run))


def _sources(folder: Path, first: int) -> Iterator[_Source]:
    if (folder / MEMBER_INDEX).is_file() or any(folder.glob(f"run-*/{RUN_INDEX}")):
        for member in ensemble_members(folder):
            yield _Source(folder / member.file, first + member.run, member)
        return
    paths = sorted(folder.glob("model_*.pth"))
    if not paths:
        raise EnsembleError(
            f"DIR must hold checkpoints named model_*.pth, or members that detcurate's hook saved, got none ({folder})"
        )
    for path in paths:
        yield _Source(path, first)


@contextmanager
def _incoming(directory: Path) -> Iterator[Path]:
    """Give an empty folder beside the members, so that either all or none come to them."""
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
        _require_place(source.path, member, [*known, *added])
        (incoming / _NEW).replace(_made(incoming / member.file))
        added.append(member)
    return added, duplicates


def _convert_one(run: Run, source: _Source, expected: Any, incoming: Path) -> Member:
    """Write a checkpoint as ``incoming/new``, and return the member that it would be."""
    from detcurate.d2.checkpoints import read_checkpoint, require_same_model, write_checkpoint

    if source.member is not None:
        verify_member(source.path, source.member.sha256, advice="leave it out, or have it saved anew")
    checkpoint = read_checkpoint(source.path, allow_pickle=run.settings.train.allow_pickle)
    require_same_model(checkpoint, expected)
    own = source.member or Member(
        source.run, checkpoint.iteration, None, None, "", "", dtype=run.settings.ensemble.dtype
    )
    with atomic_path(incoming / _NEW) as temporary:
        write_checkpoint(checkpoint, expected, temporary, own.dtype)
    file = member_file(f"run-{source.run}", own.iteration, own.kind)
    return dataclasses.replace(own, run=source.run, file=file, sha256=sha256_file(incoming / _NEW))


def _require_place(path: Path, member: Member, others: Iterable[Member]) -> None:
    if member.iteration < 0:
        raise EnsembleError(
            f'a checkpoint must say its iteration, in "iteration" or as model_<iteration>.pth, got neither ({path})'
        )
    if any((other.run, *other.key) == (member.run, *member.key) for other in others):
        raise EnsembleError(
            f"a run must have one {member.kind} an iteration, got other weights for iteration {member.iteration} of "
            f"run {member.run} ({path}); add the folder of another training with another --run"
        )


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _num_trained(run: Run) -> int:
    """Return how many runs were trained here, so that their numbers are taken."""
    stage_metadata = read_stage_metadata(run.directory("train"))
    return int(stage_metadata["settings"]["CURATE.ENSEMBLE"]["num_runs"]) if stage_metadata else 0


def _settle(run: Run) -> bool:
    """Let the stage ``train`` take the members in, as far as that needs no training; tell whether it has."""
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
