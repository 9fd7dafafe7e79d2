"""The store of predictions: 7 detections of 3 members on 4 images, 2 of them without any, 5 classes."""

import hashlib

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detcurate.errors import PredictionError
from detcurate.predictions.shards import read_shard, shard_path, write_shard
from detcurate.structures import Detections

IMAGES = np.array([12, 5, 90, 7])
COLUMNS = tuple(Detections.__annotations__)


@pytest.fixture
def detections():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (7, 2))
    return Detections(
        image_ids=np.array([90, 5, 90, 90, 5, 90, 5]),
        member=np.array([2, 1, 0, 2, 1, 0, 0], np.int32),
        boxes=np.hstack([corner, corner + rng.uniform(1, 20, (7, 2))]).astype(np.float32),
        scores=np.linspace(0.1, 0.7, 7, dtype=np.float32),
        class_index=np.array([4, 3, 2, 1, 0, 4, 3], np.int32),
        class_probs=rng.dirichlet(np.ones(6), 7).astype(np.float32),
    )


@pytest.fixture
def shard(tmp_path, detections):
    path = shard_path(tmp_path, 0)
    write_shard(path, detections, IMAGES)
    return path


def assert_equal(found, expected):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)


def test_rows_come_back_by_image_and_member_a_members_own_order_kept(shard, detections):
    found, image_ids = read_shard(shard)
    assert_equal(found, detections.take(np.array([6, 1, 4, 2, 5, 0, 3])))
    assert found.image_ids.tolist() == [5, 5, 5, 90, 90, 90, 90]
    assert found.member.tolist() == [0, 1, 1, 0, 0, 2, 2]
    np.testing.assert_array_equal(image_ids, IMAGES, strict=True)


def test_the_file_holds_plain_columns_that_anyone_can_read(shard):
    table = pq.read_table(shard)
    assert {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)} == {
        "image_id": "int64",
        "member": "int32",
        "box": "fixed_size_list<element: float>[4]",
        "score": "float",
        "class_index": "int32",
        "class_probs": "fixed_size_list<element: float>[6]",
    }


def test_equal_detections_are_equal_bytes(shard, detections, tmp_path):
    other = tmp_path / "other.parquet"
    write_shard(other, detections, IMAGES)
    assert other.read_bytes() == shard.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.parquet", "shard-00000.parquet"]


def test_a_shard_without_detections_still_names_its_images(tmp_path):
    write_shard(tmp_path / "x.parquet", Detections.empty(5), IMAGES)
    found, image_ids = read_shard(tmp_path / "x.parquet")
    assert_equal(found, Detections.empty(5))
    assert image_ids.tolist() == IMAGES.tolist()
    write_shard(tmp_path / "y.parquet", Detections.empty(2), np.zeros(0, np.int64))
    found, image_ids = read_shard(tmp_path / "y.parquet")
    assert (len(found), found.num_classes, image_ids.shape, image_ids.dtype) == (0, 2, (0,), np.int64)


def test_a_float64_posterior_is_stored_as_float32(tmp_path, detections):
    columns = {name: getattr(detections, name) for name in COLUMNS}
    wide = Detections(**{**columns, "class_probs": detections.class_probs.astype(np.float64)})
    write_shard(tmp_path / "x.parquet", wide, IMAGES)
    assert read_shard(tmp_path / "x.parquet")[0].class_probs.dtype == np.float32


def test_the_form_of_the_posterior_comes_back(tmp_path, detections):
    foreground = detections.class_probs[:, :-1]
    class_probs = np.column_stack((foreground, 1 - foreground.max(axis=1)))
    sigmoids = Detections(**{**vars(detections), "class_probs": class_probs, "posterior_form": "sigmoid"})
    for rows in (sigmoids, Detections.empty(3, "sigmoid")):
        write_shard(tmp_path / "x.parquet", rows, IMAGES)
        found, _ = read_shard(tmp_path / "x.parquet")
        assert found.posterior_form == "sigmoid"
        assert_equal(found, rows.take(np.lexsort((rows.member, rows.image_ids))))


def test_a_shard_from_before_there_were_forms_is_of_softmax_rows(shard, detections):
    table = pq.read_table(shard)
    described = orjson.loads(table.schema.metadata[b"detcurate"])
    assert described.pop("posterior_form") == "softmax"
    text = orjson.dumps(described)
    metadata = {b"detcurate": text, b"detcurate.sha256": hashlib.sha256(text).hexdigest()}
    pq.write_table(table.replace_schema_metadata(metadata), shard)
    found, image_ids = read_shard(shard)
    assert (found.posterior_form, len(found)) == ("softmax", 7)
    assert image_ids.tolist() == IMAGES.tolist()


def test_a_shard_of_a_form_that_is_not_known_is_refused(shard):
    table = pq.read_table(shard)
    text = orjson.dumps({**orjson.loads(table.schema.metadata[b"detcurate"]), "posterior_form": "logits"})
    metadata = {b"detcurate": text, b"detcurate.sha256": hashlib.sha256(text).hexdigest()}
    pq.write_table(table.replace_schema_metadata(metadata), shard)
    with pytest.raises(PredictionError, match="posterior_form must be one of softmax, sigmoid, got 'logits'"):
        read_shard(shard)


def test_a_truncated_file_is_refused_at_any_length(shard):
    whole = shard.read_bytes()
    for length in (0, 1, 4, 8, *range(9, len(whole), 101), len(whole) - 8, len(whole) - 4, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(
            PredictionError, match=r"(?s)must be a whole Parquet file .*shard-00000.parquet\): .*; delete"
        ):
            read_shard(shard)


def test_no_flipped_bit_changes_what_is_read(shard):
    """A flip is refused, or (in what the reader does not need) without effect; it never gives other detections."""
    whole, (expected, image_ids) = shard.read_bytes(), read_shard(shard)
    refused = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        shard.write_bytes(bytes(damaged))
        try:
            found, found_ids = read_shard(shard)
        except PredictionError:
            refused += 1
            continue
        assert_equal(found, expected)
        np.testing.assert_array_equal(found_ids, image_ids)
    assert refused > len(whole) / 7 / 2


def test_what_is_not_a_shard(tmp_path, shard):
    path = tmp_path / "x.parquet"
    with pytest.raises(PredictionError, match=r"must be a whole Parquet file of detections \(.*x.parquet\)"):
        read_shard(path)
    tables = (pa.table({"image_id": [1, 2]}), pq.read_table(shard).drop_columns("box"), pq.read_table(shard).slice(1))
    for table in tables:
        pq.write_table(table, path)
        with pytest.raises(PredictionError, match=r"\(.*x.parquet\): .*; delete it and run the same command again"):
            read_shard(path)


def test_no_classes():
    with pytest.raises(PredictionError, match=r"class_probs must have C \+ 1 >= 2 columns, got 1"):
        Detections.empty(0)


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path, detections, monkeypatch):
    def fail(table, path, **options: object):
        path.write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "x.parquet", detections, IMAGES)
    assert not list(tmp_path.iterdir())
