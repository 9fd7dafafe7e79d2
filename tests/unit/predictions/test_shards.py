"""Shards and embeddings: round trips, damage, invalid columns.

Detections: 7 of 3 members on 4 images, 2 of them empty, 5 classes. References: 5 boxes on 3 of 4 images, 3 members, 2
classes. Embeddings: 6 images, 5 features.
"""

import hashlib

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detcurate.errors import PredictionError
from detcurate.predictions.shards import (
    DENSE_AGGREGATIONS,
    References,
    missing_shards,
    read_dense,
    read_embeddings,
    read_references,
    read_shard,
    shard_path,
    write_dense,
    write_embeddings,
    write_references,
    write_shard,
)
from detcurate.structures import Detections

IMAGES = np.array([12, 5, 90, 7])
COLUMNS = tuple(Detections.__annotations__)
R, E, C = 5, 3, 2
REFERENCE_IMAGES = np.array([4, 7, 9, 30])
EMBEDDED_IMAGES = np.array([12, 5, 90, 7, 2**40, 1])


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


def test_read_shard_sorts_by_image_and_member(shard, detections):
    found, image_ids = read_shard(shard)
    assert_equal(found, detections.take(np.array([6, 1, 4, 2, 5, 0, 3])))
    assert found.image_ids.tolist() == [5, 5, 5, 90, 90, 90, 90]
    assert found.member.tolist() == [0, 1, 1, 0, 0, 2, 2]
    np.testing.assert_array_equal(image_ids, IMAGES, strict=True)


def test_shard_has_plain_parquet_columns(shard):
    table = pq.read_table(shard)
    assert {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)} == {
        "image_id": "int64",
        "member": "int32",
        "box": "fixed_size_list<element: float>[4]",
        "score": "float",
        "class_index": "int32",
        "class_probs": "fixed_size_list<element: float>[6]",
    }


def test_equal_detections_give_equal_bytes(shard, detections, tmp_path):
    other = tmp_path / "other.parquet"
    write_shard(other, detections, IMAGES)
    assert other.read_bytes() == shard.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.parquet", "shard-00000.parquet"]


def test_shard_without_detections_keeps_images(tmp_path):
    write_shard(tmp_path / "x.parquet", Detections.empty(5), IMAGES)
    found, image_ids = read_shard(tmp_path / "x.parquet")
    assert_equal(found, Detections.empty(5))
    assert image_ids.tolist() == IMAGES.tolist()
    write_shard(tmp_path / "y.parquet", Detections.empty(2), np.zeros(0, np.int64))
    found, image_ids = read_shard(tmp_path / "y.parquet")
    assert (len(found), found.num_classes, image_ids.shape, image_ids.dtype) == (0, 2, (0,), np.int64)


def test_float64_posterior_is_stored_as_float32(tmp_path, detections):
    columns = {name: getattr(detections, name) for name in COLUMNS}
    wide = Detections(**{**columns, "class_probs": detections.class_probs.astype(np.float64)})
    write_shard(tmp_path / "x.parquet", wide, IMAGES)
    assert read_shard(tmp_path / "x.parquet")[0].class_probs.dtype == np.float32


def test_posterior_form_round_trips(tmp_path, detections):
    foreground = detections.class_probs[:, :-1]
    class_probs = np.column_stack((foreground, 1 - foreground.max(axis=1)))
    sigmoids = Detections(**{**vars(detections), "class_probs": class_probs, "posterior_form": "sigmoid"})
    for rows in (sigmoids, Detections.empty(3, "sigmoid")):
        write_shard(tmp_path / "x.parquet", rows, IMAGES)
        found, _ = read_shard(tmp_path / "x.parquet")
        assert found.posterior_form == "sigmoid"
        assert_equal(found, rows.take(np.lexsort((rows.member, rows.image_ids))))


def test_shard_of_older_version_is_softmax(shard, detections):
    table = pq.read_table(shard)
    described = orjson.loads(table.schema.metadata[b"detcurate"])
    assert described.pop("posterior_form") == "softmax"
    text = orjson.dumps(described)
    metadata = {b"detcurate": text, b"detcurate.sha256": hashlib.sha256(text).hexdigest()}
    pq.write_table(table.replace_schema_metadata(metadata), shard)
    found, image_ids = read_shard(shard)
    assert (found.posterior_form, len(found)) == ("softmax", 7)
    assert image_ids.tolist() == IMAGES.tolist()


def test_unknown_posterior_form_is_refused(shard):
    table = pq.read_table(shard)
    text = orjson.dumps({**orjson.loads(table.schema.metadata[b"detcurate"]), "posterior_form": "logits"})
    metadata = {b"detcurate": text, b"detcurate.sha256": hashlib.sha256(text).hexdigest()}
    pq.write_table(table.replace_schema_metadata(metadata), shard)
    with pytest.raises(PredictionError, match="posterior_form.*'logits'"):
        read_shard(shard)


def test_truncated_shard_is_refused_at_any_length(shard):
    whole = shard.read_bytes()
    for length in (0, 1, 4, 8, *range(9, len(whole), 101), len(whole) - 8, len(whole) - 4, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(PredictionError, match="shard-00000.parquet: "):
            read_shard(shard)


def test_flipped_bit_never_changes_detections(shard):
    """A flip is refused, or has no effect in bytes that the reader ignores."""
    whole, (expected, image_ids) = shard.read_bytes(), read_shard(shard)
    refused = 0
    for position in range(0, len(whole), 21):
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
    assert refused > len(whole) / 21 / 2


def test_other_file_is_refused_as_shard(tmp_path, shard):
    path = tmp_path / "x.parquet"
    with pytest.raises(PredictionError, match="x.parquet: "):
        read_shard(path)
    tables = (pa.table({"image_id": [1, 2]}), pq.read_table(shard).drop_columns("box"), pq.read_table(shard).slice(1))
    for table in tables:
        pq.write_table(table, path)
        with pytest.raises(PredictionError, match="x.parquet: "):
            read_shard(path)


def test_detections_without_classes_are_refused():
    with pytest.raises(PredictionError, match="class_probs"):
        Detections.empty(0)


def test_failed_write_of_shard_leaves_nothing(tmp_path, detections, monkeypatch):
    def fail(table, path, **options: object):
        path.write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "x.parquet", detections, IMAGES)
    assert not list(tmp_path.iterdir())


def test_missing_shards_are_listed_in_order(shard):
    assert missing_shards(shard.parent, 3) == [1, 2]


@pytest.fixture
def references():
    rng = np.random.default_rng(0)
    return References(
        image_ids=np.array([4, 4, 9, 30, 30]),
        is_truth=np.array([True, False, False, True, True]),
        given=rng.uniform(0, 50, (R, 4)).astype(np.float32),
        boxes=rng.uniform(0, 50, (R, E, 4)).astype(np.float32),
        class_probs=rng.dirichlet(np.ones(C + 1), (R, E)).astype(np.float32),
    )


def test_references_round_trip(references, tmp_path):
    path = tmp_path / "shard-00000.parquet"
    write_references(path, references, REFERENCE_IMAGES)
    found, image_ids = read_references(path)
    for name in References.__annotations__:
        np.testing.assert_array_equal(getattr(found, name), getattr(references, name), strict=True)
    np.testing.assert_array_equal(image_ids, REFERENCE_IMAGES, strict=True)
    assert found.index.tolist() == [0, 1, 0, 0, 1]
    assert len(found) == R


def test_references_have_row_per_box_and_member(references, tmp_path):
    write_references(tmp_path / "x.parquet", references, REFERENCE_IMAGES)
    write_references(tmp_path / "y.parquet", references, REFERENCE_IMAGES)
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["image_id"].to_pylist() == [4] * 6 + [9] * 3 + [30] * 6
    assert table["member"].to_pylist() == [0, 1, 2] * R
    assert table["reference"].to_pylist() == [0] * 3 + [1] * 3 + [0] * 6 + [1] * 3
    assert table["source"].to_pylist() == ["ground_truth"] * 3 + ["consensus"] * 6 + ["ground_truth"] * 6
    np.testing.assert_array_equal(table["box"].to_pylist(), references.boxes.reshape(-1, 4))


def test_references_without_boxes_keep_images(references, tmp_path):
    none = References(*(getattr(references, name)[:0] for name in References.__annotations__))
    write_references(tmp_path / "x.parquet", none, REFERENCE_IMAGES)
    found, image_ids = read_references(tmp_path / "x.parquet")
    assert found.class_probs.shape == (0, E, C + 1)
    assert found.index.tolist() == []
    assert image_ids.tolist() == REFERENCE_IMAGES.tolist()


def test_references_with_wrong_shape_are_refused(references):
    columns = {name: getattr(references, name) for name in References.__annotations__}
    for name in ("image_ids", "is_truth", "given", "boxes"):
        with pytest.raises(PredictionError, match=rf"References.{name}: .*\(4,"):
            References(**{**columns, name: columns[name][1:]})
    with pytest.raises(PredictionError, match=r"References.class_probs: .*\(5, 3, 1\)"):
        References(**{**columns, "class_probs": columns["class_probs"][:, :, :1]})


@pytest.mark.parametrize("defect", ["absent", "truncated", "other kind"])
def test_damaged_references_are_refused(references, tmp_path, defect):
    path, other = tmp_path / "shard-00003.parquet", tmp_path / "other.parquet"
    write_dense(other, REFERENCE_IMAGES, {name: np.arange(4.0) for name in DENSE_AGGREGATIONS})
    write_references(path, references, REFERENCE_IMAGES)
    data = {"absent": None, "truncated": path.read_bytes()[:300], "other kind": other.read_bytes()}[defect]
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(PredictionError, match="shard-00003.parquet: .*reference boxes"):
        read_references(path)


def test_dense_scores_round_trip_and_references_are_refused(references, tmp_path):
    scores = {name: np.arange(4.0) + number for number, name in enumerate(DENSE_AGGREGATIONS)}
    write_dense(tmp_path / "x.parquet", REFERENCE_IMAGES, scores)
    image_ids, found = read_dense(tmp_path / "x.parquet")
    assert image_ids.tolist() == REFERENCE_IMAGES.tolist()
    assert {name: column.tolist() for name, column in found.items()} == {
        name: column.tolist() for name, column in scores.items()
    }
    write_references(tmp_path / "y.parquet", references, REFERENCE_IMAGES)
    with pytest.raises(PredictionError, match="y.parquet: .*dense scores"):
        read_dense(tmp_path / "y.parquet")


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).normal(0, 3, (6, 5)).astype(np.float16)


@pytest.fixture
def embeddings_file(tmp_path, embeddings):
    write_embeddings(tmp_path / "embeddings.parquet", EMBEDDED_IMAGES, embeddings)
    return tmp_path / "embeddings.parquet"


def test_embeddings_round_trip_in_order(embeddings_file, embeddings):
    image_ids, found = read_embeddings(embeddings_file)
    np.testing.assert_array_equal(image_ids, EMBEDDED_IMAGES, strict=True)
    np.testing.assert_array_equal(found, embeddings, strict=True)


def test_embeddings_have_plain_parquet_columns(embeddings_file):
    table = pq.read_table(embeddings_file)
    assert {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)} == {
        "image_id": "int64",
        "embedding": "fixed_size_list<element: halffloat>[5]",
    }


def test_equal_embeddings_give_equal_bytes(embeddings_file, embeddings):
    other = embeddings_file.with_name("other.parquet")
    write_embeddings(other, EMBEDDED_IMAGES, embeddings)
    assert other.read_bytes() == embeddings_file.read_bytes()
    assert sorted(one.name for one in embeddings_file.parent.iterdir()) == ["embeddings.parquet", "other.parquet"]


def test_embeddings_of_no_image_keep_number_of_features(tmp_path):
    write_embeddings(tmp_path / "x.parquet", np.zeros(0, np.int64), np.zeros((0, 3), np.float16))
    image_ids, found = read_embeddings(tmp_path / "x.parquet")
    assert (image_ids.shape, found.shape, found.dtype) == ((0,), (0, 3), np.float16)


def test_truncated_embeddings_are_refused_at_any_length(embeddings_file):
    whole = embeddings_file.read_bytes()
    for length in (0, 4, *range(9, len(whole), 53), len(whole) - 1):
        embeddings_file.write_bytes(whole[:length])
        with pytest.raises(PredictionError, match="embeddings.parquet: "):
            read_embeddings(embeddings_file)


def test_flipped_bit_never_changes_embeddings(embeddings_file, embeddings):
    whole, refused = embeddings_file.read_bytes(), 0
    for position in range(0, len(whole), 15):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        embeddings_file.write_bytes(bytes(damaged))
        try:
            image_ids, found = read_embeddings(embeddings_file)
        except PredictionError:
            refused += 1
            continue
        np.testing.assert_array_equal(image_ids, EMBEDDED_IMAGES, strict=True)
        np.testing.assert_array_equal(found, embeddings, strict=True)
    assert refused > len(whole) / 15 / 2


def test_other_file_is_refused_as_embeddings(tmp_path, embeddings_file):
    other = tmp_path / "x.parquet"
    with pytest.raises(PredictionError, match="x.parquet: "):
        read_embeddings(other)
    for table in (pa.table({"image_id": [1, 2]}), pq.read_table(embeddings_file).slice(1)):
        pq.write_table(table, other)
        with pytest.raises(PredictionError, match="x.parquet: "):
            read_embeddings(other)


def test_invalid_embeddings_are_refused(tmp_path, embeddings):
    nan, infinite = embeddings.copy(), embeddings.copy()
    nan[3, 1], infinite[[2, 5], 0] = np.nan, np.inf
    cases = (
        (
            EMBEDDED_IMAGES,
            embeddings[:5],
            r"embeddings: .*\(5, 5\)",
        ),
        (EMBEDDED_IMAGES, embeddings.astype(np.float32), "embeddings: .*float32"),
        (EMBEDDED_IMAGES, embeddings[:, :0], r"embeddings: .*\(6, 0\)"),
        (EMBEDDED_IMAGES, embeddings[:, 0], r"embeddings: .*\(6,\)"),
        (EMBEDDED_IMAGES.astype(float), embeddings, "image_ids: .*float64"),
        (EMBEDDED_IMAGES[:, None], embeddings, r"image_ids: .*\(6, 1\)"),
        (EMBEDDED_IMAGES, nan, "embeddings: .*1 rows.*image_id 7"),
        (EMBEDDED_IMAGES, infinite, "embeddings: .*2 rows.*image_id 90"),
        (np.array([1, 2, 3, 2, 5, 6]), embeddings, "image_ids: .*image_id 2 "),
    )
    for image_ids, rows, message in cases:
        with pytest.raises(PredictionError, match=message):
            write_embeddings(tmp_path / "x.parquet", image_ids, rows)
    assert not list(tmp_path.iterdir())


def test_failed_write_of_embeddings_leaves_nothing(tmp_path, embeddings, monkeypatch):
    def fail(table, path, **options: object):
        path.write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        write_embeddings(tmp_path / "x.parquet", EMBEDDED_IMAGES, embeddings)
    assert not list(tmp_path.iterdir())
