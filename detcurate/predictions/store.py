"""Prediction sets: the predictions of some members on all images; together the sets hold those of the ensemble.

A member that is added later gets a set of its own, so that no member predicts twice.

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
    """One prediction set.

    Args:
        directory: Folder of its shards.
        digest: Digest of all that the predictions depend on, except the members: images, settings.
        members: Names of the members; their positions are the member numbers in the shards.
    """

    directory: Location
    digest: str
    members: tuple[str, ...]

    @property
    def description(self) -> Location:
        """The file that describes the set."""
        return _description(self.directory)

    def write(self) -> None:
        """Write the file that describes the set."""
        write_json(self.description, {"digest": self.digest, "members": list(self.members)})


def set_folders(directory: Location) -> list[Location]:
    """Return the folders of the prediction sets below a directory, oldest first."""
    found: list[Location] = [*directory.glob("set-*"), *directory.glob(legacy.PREDICTION_SETS)]
    return sorted(found, key=str)


def _description(folder: Location) -> Location:
    new, old = folder / DESCRIPTION, folder / legacy.SET_DESCRIPTION
    return old if old.exists() and not new.exists() else new


def read_prediction_sets(directory: Location) -> list[PredictionSet]:
    """Return the prediction sets below a directory, oldest first, without those that cannot be read."""
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
    """Return prediction sets that together hold each member once: the valid existing ones, and a new one for the rest.

    Sets with another digest are removed. So are sets that hold other members too, unless they are complete and hold
    some of ``members``. The names of the members are written beside the sets.

    Args:
        directory: Folder of the sets.
        digest: Digest of all that the predictions depend on, except the members.
        members: Names of the members; a name changes with the member's weights.
        num_shards: Number of shards of a complete set.
    """
    requested, kept = set(members), []
    predicted: set[str] = set()
    for old in read_prediction_sets(directory):
        is_complete = not missing_shards(old.directory, num_shards)
        is_useful = requested.issuperset(old.members) or (is_complete and not requested.isdisjoint(old.members))
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
    """Empty a folder of predictions with another digest, and write ``digest`` into it."""
    if not is_prepared(folder, digest):
        if folder.exists():
            remove_tree(folder)
        write_json(folder / DESCRIPTION, {"digest": digest})


def is_prepared(folder: Location, digest: str) -> bool:
    """Return whether a folder of predictions has this digest."""
    try:
        return bool(orjson.loads(_description(folder).read_bytes())["digest"] == digest)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return False


def read_members(directory: Location) -> list[str]:
    """Return the names of the members in use, in the order of their numbers.

    Raises:
        PredictionError: The file of the names cannot be read.
    """
    try:
        return list(orjson.loads((directory / MEMBERS).read_bytes()))
    except (OSError, orjson.JSONDecodeError, TypeError) as error:
        raise PredictionError(
            f"{directory / MEMBERS}: cannot read the names of the members (got {error}). Run the stage predict again."
        ) from error


@dataclass(frozen=True)
class Predictions:
    """The predictions of some members, read shard by shard from all sets that hold them.

    Args:
        directory: Folder of the sets.
        prediction_sets: The sets that hold predictions of the members.
        members: Names of the members; their positions are the numbers in the column ``member``.
        num_shards: Number of shards.
    """

    directory: Location
    prediction_sets: tuple[PredictionSet, ...]
    members: tuple[str, ...]
    num_shards: int

    def read(self, index: int) -> tuple[Detections, np.ndarray]:
        """Read one shard of all sets together.

        Returns:
            The detections, and the (I,) int64 ids of the images that they cover.

        Raises:
            PredictionError: A shard is missing or damaged, or the sets cover different images.
        """
        parts = [_read_part(found, index, self.members) for found in self.prediction_sets]
        if any(not np.array_equal(parts[0][1], image_ids) for _, image_ids in parts[1:]):
            raise PredictionError(
                f"{self.directory}: the prediction sets cover different images in shard {index}. Delete that directory "
                "and run the same command again."
            )
        return Detections.concatenate([detections for detections, _ in parts]), parts[0][1]


def open_predictions(directory: Location, members: Sequence[str]) -> Predictions:
    """Return the predictions of the members from the sets below a directory.

    Raises:
        PredictionError: A member is in no set.
    """
    prediction_sets = [found for found in read_prediction_sets(directory) if not set(members).isdisjoint(found.members)]
    absent = set(members) - {member for found in prediction_sets for member in found.members}
    if absent:
        raise PredictionError(
            f"{directory}: no predictions of the member {sorted(absent)[0]}. Run the stage predict again."
        )
    num_shards = max((len(list(found.directory.glob("shard-*.parquet"))) for found in prediction_sets), default=0)
    return Predictions(directory, tuple(prediction_sets), tuple(members), num_shards)


def read_predictions(directory: Location, members: Sequence[str]) -> Iterator[tuple[Detections, np.ndarray]]:
    """Read all shards in order; arguments and errors as of ``open_predictions`` and ``Predictions.read``."""
    predictions = open_predictions(directory, members)
    for index in range(predictions.num_shards):
        yield predictions.read(index)


def _read_part(found: PredictionSet, index: int, members: Sequence[str]) -> tuple[Detections, np.ndarray]:
    detections, image_ids = read_shard(shard_path(found.directory, index))
    if len(detections) and int(detections.member.max()) >= len(found.members):
        raise PredictionError(
            f"{shard_path(found.directory, index)}: unknown member (got {int(detections.member.max())}, the set has "
            f"{len(found.members)} members). Delete the file and run the same command again."
        )
    if found.members == tuple(members):  # avoids copying and checking a shard
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
