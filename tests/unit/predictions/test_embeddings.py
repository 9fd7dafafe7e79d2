"""The store of embeddings: 6 images, 5 features."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detcurate.errors import PredictionError
from detcurate.predictions.shards import read_embeddings, write_embeddings

IMAGES = np.array([12, 5, 90, 7, 2**40, 1])


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).normal(0, 3, (6, 5)).astype(np.float16)


@pytest.fixture
def path(tmp_path, embeddings):
    write_embeddings(tmp_path / "embeddings.parquet", IMAGES, embeddings)
    return tmp_path / "embeddings.parquet"


def test_rows_come_back_in_their_order(path, embeddings):
    image_ids, found = read_embeddings(path)
    np.testing.assert_array_equal(image_ids, IMAGES, strict=True)
    np.testing.assert_array_equal(found, embeddings, strict=True)


def test_the_file_holds_plain_columns_that_anyone_can_read(path):
    table = pq.read_table(path)
    assert {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)} == {
        "image_id": "int64",
        "embedding": "fixed_size_list<element: halffloat>[5]",
    }


def test_equal_rows_are_equal_bytes_and_nothing_else_is_left(path, embeddings):
    other = path.with_name("other.parquet")
    write_embeddings(other, IMAGES, embeddings)
    assert other.read_bytes() == path.read_bytes()
    assert sorted(one.name for one in path.parent.iterdir()) == ["embeddings.parquet", "other.parquet"]


def test_no_image_keeps_the_number_of_features(tmp_path):
    write_embeddings(tmp_path / "x.parquet", np.zeros(0, np.int64), np.zeros((0, 3), np.float16))
    image_ids, found = read_embeddings(tmp_path / "x.parquet")
    assert (image_ids.shape, found.shape, found.dtype) == ((0,), (0, 3), np.float16)


def test_a_truncated_file_is_refused_at_any_length(path):
    whole = path.read_bytes()
    for length in (0, 4, *range(9, len(whole), 53), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(PredictionError, match=r"(?s)whole Parquet file of one .*embeddings.parquet\): .*; delete"):
            read_embeddings(path)


def test_no_flipped_bit_changes_what_is_read(path, embeddings):
    whole, refused = path.read_bytes(), 0
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(bytes(damaged))
        try:
            image_ids, found = read_embeddings(path)
        except PredictionError:
            refused += 1
            continue
        np.testing.assert_array_equal(image_ids, IMAGES, strict=True)
        np.testing.assert_array_equal(found, embeddings, strict=True)
    assert refused > len(whole) / 5 / 2


def test_what_is_not_a_file_of_embeddings(tmp_path, path):
    other = tmp_path / "x.parquet"
    with pytest.raises(PredictionError, match=r"must be a whole Parquet file of one vector an image \(.*x.parquet\)"):
        read_embeddings(other)
    for table in (pa.table({"image_id": [1, 2]}), pq.read_table(path).slice(1)):
        pq.write_table(table, other)
        with pytest.raises(PredictionError, match=r"\(.*x.parquet\): .*; delete it and run the same command again"):
            read_embeddings(other)


def test_columns_that_do_not_go_together_are_named(tmp_path, embeddings):
    nan, infinite = embeddings.copy(), embeddings.copy()
    nan[3, 1], infinite[[2, 5], 0] = np.nan, np.inf
    cases = (
        (
            IMAGES,
            embeddings[:5],
            r"embeddings must be float16 of shape \(6, D\), D at least 1, got float16 of .* \(5, 5\)",
        ),
        (IMAGES, embeddings.astype(np.float32), "got float32 of shape"),
        (IMAGES, embeddings[:, :0], r"of shape \(6, 0\)"),
        (IMAGES, embeddings[:, 0], r"of shape \(6,\)"),
        (IMAGES.astype(float), embeddings, r"image_ids must be \(B,\) integers, got shape \(6,\) and dtype float64"),
        (IMAGES[:, None], embeddings, r"image_ids must be \(B,\) integers, got shape \(6, 1\)"),
        (IMAGES, nan, r"embeddings must be finite, got NaN or infinity in 1 rows \(image_id 7\)"),
        (IMAGES, infinite, r"in 2 rows \(image_id 90\)"),
        (np.array([1, 2, 3, 2, 5, 6]), embeddings, "image_ids must be unique, got image_id 2 more than once"),
    )
    for image_ids, rows, message in cases:
        with pytest.raises(PredictionError, match=message):
            write_embeddings(tmp_path / "x.parquet", image_ids, rows)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, embeddings, monkeypatch):
    def fail(table, path, **options: object):
        path.write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        write_embeddings(tmp_path / "x.parquet", IMAGES, embeddings)
    assert not list(tmp_path.iterdir())
