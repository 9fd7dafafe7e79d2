"""The members of an ensemble: which iterations they are, and the ledger that says what was saved.

Free of any framework: :mod:`detcurate.d2.hooks` is a thin adapter on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson

from detcurate.errors import ConfigError, EnsembleError
from detcurate.files import atomic_path, sha256_file, write_bytes

LEDGER = "ensemble.jsonl"


@dataclass(frozen=True)
class Member:
    """One checkpoint, known by its run and iteration.

    Args:
        run: From 0.
        iteration: From 0, as Detectron2 counts: the checkpoint after 1,000 updates is iteration 999.
        seed: The seed of its run.
        lr: The learning rate of its last update.
        file: Its weights, relative to the ensemble's directory.
        sha256: Of that file.
    """

    run: int
    iteration: int
    seed: int
    lr: float
    file: str
    sha256: str


def member_iterations(
    max_iter: int, *, members_per_run: int, last_fraction: float, explicit: Sequence[int] = ()
) -> tuple[int, ...]:
    """Return the iterations (from 0) after which a member is saved, ascending, the last one always among them.

    Equally spaced over the last fraction of training, unless they are given explicitly.

    Raises:
        ConfigError: An explicit iteration is outside [0, max_iter), or there are more members than iterations.

    Example:
        >>> member_iterations(1000, members_per_run=5, last_fraction=0.5)
        (599, 699, 799, 899, 999)
    """
    if explicit:
        if min(explicit) < 0 or max(explicit) >= max_iter or len(set(explicit)) != len(explicit):
            raise ConfigError(
                f"CURATE.ENSEMBLE.ITERATIONS must be different numbers from 0 to SOLVER.MAX_ITER - 1 = {max_iter - 1}, "
                f"got {list(explicit)}"
            )
        return tuple(sorted(explicit))
    window = max(1, round(max_iter * last_fraction))
    if members_per_run > window:
        raise ConfigError(
            f"CURATE.ENSEMBLE.MEMBERS_PER_RUN must be at most the {window} iterations of the last fraction, "
            f"got {members_per_run}; train longer or raise CURATE.ENSEMBLE.LAST_FRACTION"
        )
    steps = np.arange(1, members_per_run + 1) * (window / members_per_run)
    return tuple(int(max_iter - window + round(step) - 1) for step in steps)


class MemberWriter:
    """Saves the members of one run: the weights first, then the line in the run's ledger.

    A crash between the two leaves a file that no line names, which the next save of that iteration replaces. An
    iteration that the ledger already holds is not saved again, unless its file is gone.

    Args:
        directory: The ensemble's.
        run: Number of the run, from 0.
        seed: Of the run.
        folder: The run's folder below ``directory``; ``run-<run>`` when absent.
    """

    def __init__(self, directory: Path, *, run: int, seed: int, folder: str | None = None) -> None:
        self.directory, self.run, self.seed = directory, run, seed
        self.folder = folder or f"run-{run}"
        self._ledger = directory / self.folder / "members.jsonl"

    def members(self) -> list[Member]:
        """Return the members of this run that are saved so far: those of the ledger whose file is there."""
        named = read_ledger(self._ledger) if self._ledger.exists() else []
        return [member for member in named if (self.directory / member.file).is_file()]

    def save(self, iteration: int, lr: float, write: Callable[[Path], None]) -> None:
        """Save a member with ``write(path)`` unless the ledger already holds it."""
        members = self.members()
        if any(member.iteration == iteration for member in members):
            return
        file = f"{self.folder}/iter-{iteration:07d}.safetensors"
        path = self.directory / file
        with atomic_path(path) as temporary:
            write(temporary)
        members.append(Member(self.run, iteration, self.seed, lr, file, sha256_file(path)))
        write_ledger(self._ledger, members)


def write_ledger(path: Path, members: Sequence[Member]) -> None:
    """Write a ledger atomically, one JSON line a member, ordered by run and iteration."""
    ordered = sorted(members, key=lambda member: (member.run, member.iteration))
    write_bytes(path, b"".join(orjson.dumps(asdict(member)) + b"\n" for member in ordered))


def read_ledger(path: Path) -> list[Member]:
    """Read a ledger.

    Raises:
        EnsembleError: It is missing, a line cannot be read, or a (run, iteration) stands there twice.
    """
    if not path.is_file():
        raise EnsembleError(f"the ledger must exist, got no file {path}; run the stage 'train'")
    members = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            members.append(Member(**orjson.loads(line)))
        except (orjson.JSONDecodeError, TypeError) as error:
            raise EnsembleError(f"a ledger line must be one member as JSON ({path}, line {number}): {error}") from error
    if len({(member.run, member.iteration) for member in members}) != len(members):
        raise EnsembleError(f"a member must stand once in the ledger, got a (run, iteration) twice ({path})")
    return members


def verify_member(path: Path, sha256: str) -> None:
    """Raise ``EnsembleError`` unless the file exists and has the digest that the ledger gives."""
    if not path.is_file():
        raise EnsembleError(f"a member's weights must exist, got no file {path}; {_RETRAIN}")
    found = sha256_file(path)
    if found != sha256:
        raise EnsembleError(
            f"a member's weights must have the digest of the ledger, {sha256[:12]}…, got {found[:12]}… ({path}); "
            f"the file is truncated or was changed; {_RETRAIN}"
        )


_RETRAIN = "delete the ensemble directory and run the same command again to train it anew"
