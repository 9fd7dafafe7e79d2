"""The members of an ensemble: their index, and the weights that it lists.

Independent of any framework; :mod:`detcurate.d2.train.hooks` adapts it to Detectron2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from detcurate.ensemble.schedule import member_iterations as member_iterations  # re-exported
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
"""The dtype of a member without weights: its file is a COCO results file with its predictions."""

AUGMENTATIONS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "no_flip": {"RANDOM_FLIP": "none"},
    "crop": {"CROP.ENABLED": True, "CROP.TYPE": "relative_range", "CROP.SIZE": [0.8, 0.8]},
}
"""Augmentations of a run that differ from the config: a name, and the keys below ``INPUT`` that it sets."""

Key = tuple[int, str]
"""Iteration and kind, which identify a member within its run."""


@dataclass(frozen=True)
class Member:
    """The weights at one iteration of one run, identified by run, iteration and kind.

    Args:
        run: From 0.
        iteration: From 0, as Detectron2 counts: the checkpoint after 1,000 updates is iteration 999.
        seed: The seed of its run; ``None`` when it was trained elsewhere and is unknown.
        lr: The learning rate of its last update, or ``None`` when unknown.
        file: The file of its weights, relative to the ensemble's directory.
        sha256: The SHA-256 of that file.
        kind: ``"checkpoint"``, or ``"average"`` of the weights since the previous checkpoint.
        dtype: The stored floating-point type; one of ``DTYPES``, or ``RESULTS``.
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
        """Iteration and kind; the average of an iteration sorts before its checkpoint."""
        return self.iteration, self.kind


def member_file(folder: str, iteration: int, kind: str) -> str:
    """Return the file of a member, relative to the ensemble's directory."""
    return f"{folder}/iter-{iteration:07d}{'' if kind == CHECKPOINT else f'-{kind}'}.safetensors"


class MemberWriter:
    """Save the members of one run: first the weights, then the line in the run's index.

    A crash between the two leaves a file without a line, which the next save of that iteration replaces. An iteration
    in the index is not saved again, unless its file is missing.

    With a budget, members are removed (the line first, then the file) or not saved, so that the remaining ones are as
    evenly spaced as possible; the last always remains. A budget below the size of one member holds one.

    Args:
        directory: Directory of the ensemble.
        run: Number of the run, from 0.
        seed: Seed of the run.
        folder: The run's folder below ``directory``; ``run-<run>`` when absent.
        dtype: Type of the stored weights, for the index.
        max_bytes: Largest total size of the members; 0 for no limit.
        plan: All members of the finished run, so that thinning fits the whole run; without it, the saved members.
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
            raise EnsembleError(f"dtype: unknown (got {dtype!r}). Give one of {', '.join(DTYPES)}.")
        self.directory, self.run, self.seed, self.dtype = directory, run, seed, dtype
        self.folder = folder or f"run-{run}"
        self._index_file = directory / self.folder / RUN_INDEX
        self._max_bytes, self._plan = max_bytes, frozenset(plan)

    def members(self) -> list[Member]:
        """Return the saved members of this run: those in the index whose file exists."""
        listed = read_index(self._index_file) if self._index_file.exists() else []
        return [member for member in listed if (self.directory / member.file).is_file()]

    def is_complete(self) -> bool:
        """Return whether all planned members that the budget allows are saved."""
        members = self.members()
        return bool(members) and self._kept(members) <= {member.key for member in members}

    def save(self, iteration: int, lr: float | None, write: Callable[[Path], None], kind: str = CHECKPOINT) -> None:
        """Save a member with ``write(path)`` unless it is in the index or the budget excludes it."""
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
        """Return the planned and saved members that the budget allows."""
        keys = sorted({*self._plan, *more, *(member.key for member in members)})
        if not self._max_bytes:
            return set(keys)
        size = max((self.directory / member.file).stat().st_size for member in members)
        # An average lies between two checkpoints: half an iteration before its own distinguishes them.
        positions = tuple(iteration - (kind != CHECKPOINT) / 2 for iteration, kind in keys)
        return {keys[index] for index in thin_evenly(positions, max(1, self._max_bytes // size))}

    def _drop(self, members: Sequence[Member], newest: Key) -> None:
        kept = {*self._kept(members), newest}  # the newest is the last so far
        survivors = [member for member in members if member.key in kept]
        if len(survivors) < len(members):
            write_index(self._index_file, survivors)
        if self._max_bytes:
            listed = {self.directory / member.file for member in survivors}
            for path in self._index_file.parent.glob("iter-*.safetensors"):
                if path not in listed:  # removed now, or left by a crash between line and file
                    path.unlink()


def write_index(path: Path, members: Sequence[Member]) -> None:
    """Write a member index atomically, one JSON line a member, sorted by run and iteration."""
    ordered = sorted(members, key=lambda member: (member.run, *member.key))
    records = (asdict(member) for member in ordered)
    lines = (orjson.dumps({**record, _CHECK: _check_of(record)}) for record in records)
    write_bytes(path, b"".join(line + b"\n" for line in lines))


def read_index(path: Path) -> list[Member]:
    """Read a member index.

    Raises:
        EnsembleError: It is missing, a line cannot be read, or a member occurs twice.
    """
    if not path.is_file():
        raise EnsembleError(f"{path}: the member index is missing. Run the stage train.")
    members = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            members.append(_validated(_read_member(line)))
        except (ValueError, TypeError, AttributeError) as error:
            raise EnsembleError(
                f"{path}: line {number} is not a member (got {error}). Delete {path.parent} and run the same command "
                "again."
            ) from error
    if len({(member.run, *member.key) for member in members}) != len(members):
        raise EnsembleError(f"{path}: a member occurs twice (same run, iteration and kind). Remove one of its lines.")
    return members


def _validated(member: Member) -> Member:
    """Return a member of an untrusted index; raise ``ValueError`` for values that detcurate never writes."""
    numbers = (member.run, member.iteration)
    if not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
        raise ValueError(f"run and iteration {numbers}, not integers from 0")
    if not is_inside(member.file) or not isinstance(member.sha256, str):
        raise ValueError(f"file {member.file!r}, not a path below the ensemble with a digest")
    if member.kind not in KINDS or member.dtype not in (*DTYPES, RESULTS):
        raise ValueError(f"unknown kind or dtype {member.kind!r}, {member.dtype!r}")
    return member


def _read_member(line: bytes) -> Member:
    value = orjson.loads(line)
    check = value.pop(_CHECK, None)  # absent in older versions
    if check is not None and check != _check_of(value):
        raise ValueError("its content differs from its checksum")
    return Member(**renamed_keys(value, {"storage": "dtype"}))


def _check_of(record: Mapping[str, Any]) -> str:
    return sha256_json(record)[:16]


_RETRAIN = "Delete the folder train and run the same command again to train again."


def ensemble_members(directory: Path) -> list[Member]:
    """Return the members of an ensemble from its index, or from those of its runs where it has none yet.

    Raises:
        EnsembleError: There is no index, or one cannot be read.
    """
    runs = sorted(directory.glob(f"run-*/{RUN_INDEX}"))
    if (directory / MEMBER_INDEX).is_file() or not runs:
        return read_index(directory / MEMBER_INDEX)
    members = [member for path in runs for member in read_index(path)]
    return sorted(members, key=lambda member: (member.run, *member.key))


def verify_member(path: Path, sha256: str, *, advice: str = _RETRAIN) -> None:
    """Raise ``EnsembleError`` unless a member's file exists and has the digest of the index."""
    if not path.is_file():
        raise EnsembleError(f"{path}: the weights of this member are missing. {advice}")
    found = sha256_file(path)
    if found != sha256:
        raise EnsembleError(
            f"{path}: truncated or changed (got SHA-256 {found[:12]}…, the index has {sha256[:12]}…). {advice}"
        )
