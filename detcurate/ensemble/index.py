"""The members of an ensemble: the ledger that says what was saved, and the files that it speaks of.

Free of any framework: :mod:`detcurate.d2.train.hooks` is a thin adapter on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from detcurate.ensemble.schedule import member_iterations as member_iterations  # where users of a ledger look for it
from detcurate.ensemble.schedule import thin_evenly
from detcurate.errors import EnsembleError
from detcurate.io.files import atomic_path, sha256_file, sha256_json, write_bytes
from detcurate.io.safe_loading import is_inside
from detcurate.legacy import renamed_keys

MEMBER_INDEX, RUN_INDEX = "ensemble.jsonl", "members.jsonl"
_CHECK = "check"
CHECKPOINT, AVERAGE = "checkpoint", "average"
KINDS = (CHECKPOINT, AVERAGE)
DTYPES = ("fp32", "bf16", "fp16")
RESULTS = "results"
"""The dtype of a member that is known by its answers alone: its file is a COCO results file."""

AUGMENTATIONS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "no_flip": {"RANDOM_FLIP": "none"},
    "crop": {"CROP.ENABLED": True, "CROP.TYPE": "relative_range", "CROP.SIZE": [0.8, 0.8]},
}
"""What a run may do otherwise than the config's ``INPUT``: a name, and the keys below ``INPUT`` that it sets."""

Key = tuple[int, str]
"""An iteration and a kind: what a member is known by within its run."""


@dataclass(frozen=True)
class Member:
    """The weights at one iteration of one run, known by run, iteration and kind.

    Args:
        run: From 0.
        iteration: From 0, as Detectron2 counts: the checkpoint after 1,000 updates is iteration 999.
        seed: The seed of its run; ``None`` when it was trained elsewhere and nobody said.
        lr: The learning rate of its last update, or ``None`` likewise.
        file: Its weights, relative to the ensemble's directory.
        sha256: Of that file.
        kind: ``"checkpoint"``, or ``"average"`` of the weights since the checkpoint before.
        dtype: What its floating-point numbers are stored as; one of ``DTYPES``, or ``RESULTS``.
    """

    run: int
    iteration: int
    seed: int | None
    lr: float | None
    file: str
    sha256: str
    kind: str = CHECKPOINT
    dtype: str = "fp32"

    @property
    def key(self) -> Key:
        """What it is known by within its run; of one iteration the average comes first."""
        return self.iteration, self.kind


def member_file(folder: str, iteration: int, kind: str) -> str:
    """Return the file of a member, relative to the ensemble's directory."""
    return f"{folder}/iter-{iteration:07d}{'' if kind == CHECKPOINT else f'-{kind}'}.safetensors"


class MemberWriter:
    """Saves the members of one run: the weights first, then the line in the run's ledger.

    A crash between the two leaves a file that no line names, which the next save of that iteration replaces. An
    iteration that the ledger already holds is not saved again, unless its file is gone.

    With a budget, members are dropped (the line first, then the file) or not saved at all, so that those that stay are
    as evenly spaced as possible; the last always stays. While the first is the only one, its size is not yet known to
    be too much: a budget below one member holds one.

    Args:
        directory: The ensemble's.
        run: Number of the run, from 0.
        seed: Of the run.
        folder: The run's folder below ``directory``; ``run-<run>`` when absent.
        dtype: What the weights are stored as, for the ledger.
        max_bytes: What the members may take together; 0 for no limit.
        plan: The members that are to come, so that what is thinned fits the whole run; without it, what is there.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run: int,
        seed: int | None,
        folder: str | None = None,
        dtype: str = "fp32",
        max_bytes: int = 0,
        plan: Collection[Key] = (),
    ) -> None:
        if dtype not in DTYPES:
            raise EnsembleError(f"the dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.directory, self.run, self.seed, self.dtype = directory, run, seed, dtype
        self.folder = folder or f"run-{run}"
        self._index_file = directory / self.folder / RUN_INDEX
        self._max_bytes, self._plan = max_bytes, frozenset(plan)

    def members(self) -> list[Member]:
        """Return the members of this run that are saved so far: those of the ledger whose file is there."""
        named = read_index(self._index_file) if self._index_file.exists() else []
        return [member for member in named if (self.directory / member.file).is_file()]

    def is_complete(self) -> bool:
        """Tell whether all that is planned is saved, as far as the budget lets it."""
        members = self.members()
        return bool(members) and self._kept(members) <= {member.key for member in members}

    def save(self, iteration: int, lr: float | None, write: Callable[[Path], None], kind: str = CHECKPOINT) -> None:
        """Save a member with ``write(path)`` unless the ledger already holds it or the budget has no place for it."""
        members, key = self.members(), (iteration, kind)
        if any(member.key == key for member in members):
            return
        if members and self._plan and key not in self._kept(members, key):
            return
        file = member_file(self.folder, iteration, kind)
        path = self.directory / file
        with atomic_path(path) as temporary:
            write(temporary)
        members.append(Member(self.run, iteration, self.seed, lr, file, sha256_file(path), kind, self.dtype))
        write_index(self._index_file, members)
        self._drop(members, newest=key)

    def _kept(self, members: Sequence[Member], *more: Key) -> set[Key]:
        """Return which of the planned and the present members the budget has a place for."""
        keys = sorted({*self._plan, *more, *(member.key for member in members)})
        if not self._max_bytes:
            return set(keys)
        size = max((self.directory / member.file).stat().st_size for member in members)
        # An average lies between two checkpoints; half an iteration before its own is enough to tell them apart.
        positions = tuple(iteration - (kind != CHECKPOINT) / 2 for iteration, kind in keys)
        return {keys[index] for index in thin_evenly(positions, max(1, self._max_bytes // size))}

    def _drop(self, members: Sequence[Member], newest: Key) -> None:
        kept = {*self._kept(members), newest}  # the newest is the last until another is there
        survivors = [member for member in members if member.key in kept]
        if len(survivors) < len(members):
            write_index(self._index_file, survivors)
        if self._max_bytes:
            named = {self.directory / member.file for member in survivors}
            for path in self._index_file.parent.glob("iter-*.safetensors"):
                if path not in named:  # dropped now, or when a crash came between the line and the file
                    path.unlink()


def write_index(path: Path, members: Sequence[Member]) -> None:
    """Write a ledger atomically, one JSON line a member, ordered by run and iteration."""
    ordered = sorted(members, key=lambda member: (member.run, *member.key))
    records = (asdict(member) for member in ordered)
    lines = (orjson.dumps({**record, _CHECK: _check_of(record)}) for record in records)
    write_bytes(path, b"".join(line + b"\n" for line in lines))


def read_index(path: Path) -> list[Member]:
    """Read a ledger.

    Raises:
        EnsembleError: It is missing, a line cannot be read, or a (run, iteration) of one kind stands there twice.
    """
    if not path.is_file():
        raise EnsembleError(f"the ledger must exist, got no file {path}; run the stage 'train'")
    members = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            members.append(_plain(_read_member(line)))
        except (ValueError, TypeError, AttributeError) as error:
            raise EnsembleError(
                f"a ledger line must be one member as JSON ({path}, line {number}): {error}; "
                f"delete {path.parent} and run the same command again"
            ) from error
    if len({(member.run, *member.key) for member in members}) != len(members):
        raise EnsembleError(f"a member must stand once in the ledger, got a (run, iteration) twice ({path})")
    return members


def _plain(member: Member) -> Member:
    """Return a member of a ledger that may be a stranger's; raises ``ValueError`` for what no ledger of ours says."""
    numbers = (member.run, member.iteration)
    if not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
        raise ValueError(f"run and iteration must be integers from 0, got {numbers}")
    if not is_inside(member.file) or not isinstance(member.sha256, str):
        raise ValueError(f"file must be a path below the ensemble with a digest, got {member.file!r}")
    if member.kind not in KINDS or member.dtype not in (*DTYPES, RESULTS):
        raise ValueError(f"kind and dtype must be known, got {member.kind!r} and {member.dtype!r}")
    return member


def _read_member(line: bytes) -> Member:
    value = orjson.loads(line)
    check = value.pop(_CHECK, None)  # of an older version it has none
    if check is not None and check != _check_of(value):
        raise ValueError("it is not what was written, by its own digest")
    return Member(**renamed_keys(value, {"storage": "dtype"}))


def _check_of(record: Mapping[str, Any]) -> str:
    return sha256_json(record)[:16]


_RETRAIN = "delete the ensemble directory and run the same command again to train it anew"


def ensemble_members(directory: Path) -> list[Member]:
    """Return the members of an ensemble: those of its ledger, or, where it has none yet, of its runs' ledgers.

    Raises:
        EnsembleError: There is no ledger at all, or one cannot be read.
    """
    runs = sorted(directory.glob(f"run-*/{RUN_INDEX}"))
    if (directory / MEMBER_INDEX).is_file() or not runs:
        return read_index(directory / MEMBER_INDEX)
    members = [member for path in runs for member in read_index(path)]
    return sorted(members, key=lambda member: (member.run, *member.key))


def verify_member(path: Path, sha256: str, *, advice: str = _RETRAIN) -> None:
    """Raise ``EnsembleError`` unless the file exists and has the digest that the ledger gives."""
    if not path.is_file():
        raise EnsembleError(f"a member's weights must exist, got no file {path}; {advice}")
    found = sha256_file(path)
    if found != sha256:
        raise EnsembleError(
            f"a member's weights must have the digest of the ledger, {sha256[:12]}…, got {found[:12]}… ({path}); "
            f"the file is truncated or was changed; {advice}"
        )
