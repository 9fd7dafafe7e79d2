"""Prediction sets: 3 images in 2 shards; members are added and removed."""

import numpy as np
import pytest

from detcurate.errors import PredictionError
from detcurate.predictions.shards import shard_path, write_shard
from detcurate.predictions.store import (
    open_predictions,
    prepare_folder,
    prepare_prediction_sets,
    read_members,
    read_prediction_sets,
    read_predictions,
)
from detcurate.structures import Detections

IMAGES = ([11, 12], [13])
C = 4


def detections(image_ids, members, mark):
    """Return one detection an image and member; the box holds the member's mark."""
    rows = [(image_id, member) for image_id in image_ids for member in range(len(members))]
    n = len(rows)
    return Detections(
        image_ids=np.array([row[0] for row in rows], np.int64),
        member=np.array([row[1] for row in rows], np.int32),
        boxes=np.array([[mark[members[row[1]]], 0, 100, 5] for row in rows], np.float32).reshape(n, 4),
        scores=np.full(n, 0.5, np.float32),
        class_index=np.zeros(n, np.int32),
        class_probs=np.full((n, C + 1), 1 / (C + 1), np.float32),
    )


def fill(found, mark, shards=(0, 1)):
    for number in shards:
        write_shard(
            shard_path(found.directory, number),
            detections(IMAGES[number], found.members, mark),
            np.array(IMAGES[number]),
        )


MARK = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}


def marks(directory, members):
    """Return for each image the marks of members 0, 1, … in order."""
    found = {}
    for part, _ in read_predictions(directory, members):
        for image_id, member, box in zip(part.image_ids.tolist(), part.member.tolist(), part.boxes, strict=True):
            found.setdefault(image_id, {})[member] = float(box[0])
    return {image_id: [predictions[m] for m in sorted(predictions)] for image_id, predictions in found.items()}


def test_added_member_gets_own_prediction_set(tmp_path):
    (first,) = prepare_prediction_sets(tmp_path, "digest", ["a", "b"], num_shards=2)
    assert first.members == ("a", "b")
    fill(first, MARK)
    kept, added = prepare_prediction_sets(tmp_path, "digest", ["c", "a", "b"], num_shards=2)
    assert kept == first
    assert added.members == ("c",)
    fill(added, MARK)
    assert read_members(tmp_path) == ["c", "a", "b"]
    assert marks(tmp_path, read_members(tmp_path)) == {image: [3.0, 1.0, 2.0] for image in (11, 12, 13)}
    assert prepare_prediction_sets(tmp_path, "digest", ["c", "a", "b"], num_shards=2) == [first, added]
    for index, (whole, image_ids) in enumerate(read_predictions(tmp_path, ["c", "b"])):
        part, covered = open_predictions(tmp_path, ["c", "b"]).read(index)
        assert covered.tolist() == image_ids.tolist() == IMAGES[index]
        np.testing.assert_array_equal(part.boxes, whole.boxes)
        np.testing.assert_array_equal(part.member, whole.member)


def test_removed_member_is_excluded_and_set_is_kept(tmp_path):
    (first,) = prepare_prediction_sets(tmp_path, "digest", ["a", "b", "c"], num_shards=2)
    fill(first, MARK)
    assert prepare_prediction_sets(tmp_path, "digest", ["c", "a"], num_shards=2) == [first]
    assert marks(tmp_path, ["c", "a"]) == {image: [3.0, 1.0] for image in (11, 12, 13)}


def test_interrupted_set_continues_unless_member_is_removed(tmp_path):
    (first,) = prepare_prediction_sets(tmp_path, "digest", ["a", "b"], num_shards=2)
    fill(first, MARK, shards=[0])
    assert prepare_prediction_sets(tmp_path, "digest", ["a", "b"], num_shards=2) == [first]
    (second,) = prepare_prediction_sets(tmp_path, "digest", ["b"], num_shards=2)
    assert second.members == ("b",)
    assert not shard_path(second.directory, 0).exists()


def test_other_digest_replaces_set(tmp_path):
    (first,) = prepare_prediction_sets(tmp_path, "digest", ["a"], num_shards=2)
    fill(first, MARK)
    (second,) = prepare_prediction_sets(tmp_path, "other", ["a"], num_shards=2)
    assert second.members == ("a",)
    assert list(tmp_path.glob("set-*/shard-*")) == []


def test_unreadable_description_is_ignored(tmp_path):
    (first,) = prepare_prediction_sets(tmp_path, "digest", ["a"], num_shards=2)
    first.description.write_bytes(b'{"digest"')
    assert read_prediction_sets(tmp_path) == []
    (second,) = prepare_prediction_sets(tmp_path, "digest", ["a"], num_shards=2)
    assert second.description.read_bytes() != b'{"digest"'


def test_inconsistent_sets_are_refused(tmp_path):
    (first,) = prepare_prediction_sets(tmp_path, "digest", ["a", "b"], num_shards=2)
    fill(first, MARK)
    with pytest.raises(PredictionError, match=f"{tmp_path}: .*member d"):
        list(read_predictions(tmp_path, ["a", "d"]))
    _, added = prepare_prediction_sets(tmp_path, "digest", ["a", "b", "c"], num_shards=2)
    write_shard(shard_path(added.directory, 0), detections([11, 99], ("c",), MARK), np.array([11, 99]))
    write_shard(shard_path(added.directory, 1), detections([13], ("c",), MARK), np.array([13]))
    with pytest.raises(PredictionError, match=f"{tmp_path}: .*shard 0"):
        list(read_predictions(tmp_path, ["a", "b", "c"]))
    shard_path(added.directory, 0).unlink()
    with pytest.raises(PredictionError, match="shard-00000.parquet: "):
        list(read_predictions(tmp_path, ["a", "b", "c"]))
    write_shard(shard_path(added.directory, 0), detections(IMAGES[0], ("c", "d"), MARK), np.array(IMAGES[0]))
    with pytest.raises(PredictionError, match=r"shard-00000.parquet: .*got 1, .*1 members"):
        list(read_predictions(tmp_path, ["a", "b", "c"]))
    (tmp_path / "members.json").unlink()
    with pytest.raises(PredictionError, match="members.json: "):
        read_members(tmp_path)


@pytest.mark.parametrize("description", [None, b'{"digest"', b"[]", b'{"digest": "another"}'])
def test_prepare_folder_empties_folder_of_other_digest(tmp_path, description):
    folder = tmp_path / "predict"
    prepare_folder(folder, "digest")
    shard_path(folder, 0).write_bytes(b"predictions")
    prepare_folder(folder, "digest")
    assert shard_path(folder, 0).exists()
    (folder / "set.json").unlink()
    if description is not None:
        (folder / "set.json").write_bytes(description)
    prepare_folder(folder, "digest")
    assert [path.name for path in folder.iterdir()] == ["set.json"]
    assert read_prediction_sets(tmp_path) == []
