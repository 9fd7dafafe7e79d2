"""Passes: the answers of some members on all images; the ensemble's answers are those of all passes together.

A member that is added later gets a pass of its own, and nobody is asked twice.

    predict/members.json
                set-00/set.json   shard-00000.parquet …
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import orjson

from detcurate import legacy
from detcurate.errors import PredictionError
from detcurate.io.files import remove_tree, write_json
from detcurate.io.storage import Location
from detcurate.predictions.shards import missing_shards, read_shard, shard_path
from detcurate.structures import Detections

MEMBERS = "members.json"
DESCRIPTION = "set.json"


@dataclass(frozen=True)
class PredictionSet:
    """One pass.

    Args:
        directory: Where its shards are.
        digest: Of the images, the settings and whatever else its answers depend on, but for the members.
        members: The members asked, in the order of the numbers that its shards give them.
    """

    directory: Location
    digest: str
    members: tuple[str, ...]

    @property
    def description(self) -> Location:
        """The file that says what the pass is."""
        return _description(self.directory)

    def write(self) -> None:
        """Write that file."""
        write_json(self.description, {"digest": self.digest, "members": list(self.members)})


def set_folders(directory: Location) -> list[Location]:
    """Return the folders of the prediction sets below a directory, oldest first."""
    found: list[Location] = [*directory.glob("set-*"), *directory.glob(legacy.PREDICTION_SETS)]
    return sorted(found, key=str)


def _description(folder: Location) -> Location:
    new, old = folder / DESCRIPTION, folder / legacy.SET_DESCRIPTION
    return old if old.exists() and not new.exists() else new


def read_prediction_sets(directory: Location) -> list[PredictionSet]:
    """Return the passes below a directory, oldest first; one that cannot be read counts as none."""
    prediction_sets = []
    for folder in set_folders(directory):
        try:
            described = orjson.loads(_description(folder).read_bytes())
            prediction_sets.append(PredictionSet(folder, described["digest"], tuple(described["members"])))
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
            continue
    return prediction_sets


def prepare_prediction_sets(
    directory: Location, digest: str, members: Sequence[str], *, num_shards: int
) -> list[PredictionSet]:
    """Return passes that together ask each member once: those that are there and still good, and a new one.

    Passes with another digest are removed, and so are those with a member that is not wanted any more, unless they are
    complete and some of theirs still are. The names of the members are written beside the passes.

    Args:
        directory: Where the passes are.
        digest: What the answers depend on, but for the members.
        members: The members wanted, each by a name that changes with its weights.
        num_shards: Of a complete pass.
    """
    wanted, kept = set(members), []
    predicted: set[str] = set()
    for old in read_prediction_sets(directory):
        is_complete = not missing_shards(old.directory, num_shards)
        is_useful = wanted.issuperset(old.members) or (is_complete and not wanted.isdisjoint(old.members))
        if old.digest == digest and predicted.isdisjoint(old.members) and is_useful:
            kept.append(old)
            predicted.update(old.members)
    for path in set_folders(directory):
        if path not in {old.directory for old in kept}:
            remove_tree(path)
    missing = tuple(member for member in members if member not in predicted)
    if missing:
        new = PredictionSet(directory / f"set-{_next_number(kept):02d}", digest, missing)
        new.write()
        kept.append(new)
    write_json(directory / MEMBERS, list(members))
    return kept


def prepare_folder(folder: Location, digest: str) -> None:
    """Empty a folder of answers that depend on something else than what ``digest`` is of, and say what they are of."""
    if not is_prepared(folder, digest):
        if folder.exists():
            remove_tree(folder)
        write_json(folder / DESCRIPTION, {"digest": digest})


def is_prepared(folder: Location, digest: str) -> bool:
    """Tell whether a folder is of answers that depend on what ``digest`` is of."""
    try:
        return bool(orjson.loads(_description(folder).read_bytes())["digest"] == digest)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return False


def read_members(directory: Location) -> list[str]:
    """Return the names of the members whose answers are wanted, in the order of their numbers.

    Raises:
        PredictionError: The file that names them cannot be read.
    """
    try:
        return list(orjson.loads((directory / MEMBERS).read_bytes()))
    except (OSError, orjson.JSONDecodeError, TypeError) as error:
        raise PredictionError(
            f"predictions must name their members ({directory / MEMBERS}): {error}; run the stage that predicts again"
        ) from error


@dataclass(frozen=True)
class Predictions:
    """The answers of some members, of all passes that hold them, shard by shard.

    Args:
        directory: Where the passes are.
        prediction_sets: Those that hold answers of the members.
        members: The members; their places are the numbers in the column ``member``.
        num_shards: How many shards there are.
    """

    directory: Location
    prediction_sets: tuple[PredictionSet, ...]
    members: tuple[str, ...]
    num_shards: int

    def read(self, index: int) -> tuple[Detections, np.ndarray]:
        """Read the same images of all passes together.

        Returns:
            The detections, and the (I,) int64 ids of the images that they cover.

        Raises:
            PredictionError: A shard is missing or damaged, or passes cover other images.
        """
        parts = [_read_part(found, index, self.members) for found in self.prediction_sets]
        if any(not np.array_equal(parts[0][1], image_ids) for _, image_ids in parts[1:]):
            raise PredictionError(
                f"all passes must cover the same images in shard {index}, got others "
                f"({self.directory}); delete that directory and run the same command again"
            )
        return Detections.concatenate([detections for detections, _ in parts]), parts[0][1]


def open_predictions(directory: Location, members: Sequence[str]) -> Predictions:
    """Find the passes below a directory that hold the answers of the members.

    Raises:
        PredictionError: A member is in no pass.
    """
    prediction_sets = [found for found in read_prediction_sets(directory) if not set(members).isdisjoint(found.members)]
    absent = set(members) - {member for found in prediction_sets for member in found.members}
    if absent:
        raise PredictionError(
            f"every member must have predicted the images, got none of {sorted(absent)[0]} ({directory}); "
            "run the stage that predicts again"
        )
    num_shards = max((len(list(found.directory.glob("shard-*.parquet"))) for found in prediction_sets), default=0)
    return Predictions(directory, tuple(prediction_sets), tuple(members), num_shards)


def read_predictions(directory: Location, members: Sequence[str]) -> Iterator[tuple[Detections, np.ndarray]]:
    """Read all shards one after another; arguments and errors are those of ``open_predictions`` and its ``read``."""
    predictions = open_predictions(directory, members)
    for index in range(predictions.num_shards):
        yield predictions.read(index)


def _read_part(found: PredictionSet, index: int, members: Sequence[str]) -> tuple[Detections, np.ndarray]:
    detections, image_ids = read_shard(shard_path(found.directory, index))
    if len(detections) and int(detections.member.max()) >= len(found.members):
        raise PredictionError(
            f"a shard must hold answers of the {len(found.members)} members of its pass, got member "
            f"{int(detections.member.max())} ({shard_path(found.directory, index)}); delete it and run again"
        )
    if found.members == tuple(members):  # nothing to renumber, and no copy of a shard to make and check
        return detections, image_ids
    number_of = {member: number for number, member in enumerate(members)}
    numbers = np.array([number_of.get(member, -1) for member in found.members], np.int32)
    member = numbers[detections.member]
    return replace(detections, member=np.maximum(member, 0)).take(member >= 0), image_ids


def _next_number(prediction_sets: Sequence[PredictionSet]) -> int:
    numbers = [
        int(match[1])
        for found in prediction_sets
        if (match := re.fullmatch(r"(?:set|pass)-(\d+)", found.directory.name))
    ]
    return max(numbers, default=-1) + 1
