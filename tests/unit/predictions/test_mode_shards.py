"""The stores of the two other modes: 5 reference boxes on 3 of 4 images, 3 members, 2 classes; 4 dense rows."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from detcurate.errors import PredictionError
from detcurate.predictions.shards import (
    DENSE_AGGREGATIONS,
    References,
    read_dense,
    read_references,
    write_dense,
    write_references,
)

R, E, C = 5, 3, 2
IMAGES = np.array([4, 7, 9, 30])


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


def test_references_come_back(references, tmp_path):
    path = tmp_path / "shard-00000.parquet"
    write_references(path, references, IMAGES)
    found, image_ids = read_references(path)
    for name in References.__annotations__:
        np.testing.assert_array_equal(getattr(found, name), getattr(references, name), strict=True)
    np.testing.assert_array_equal(image_ids, IMAGES, strict=True)
    assert found.index.tolist() == [0, 1, 0, 0, 1]
    assert len(found) == R


def test_the_file_has_a_row_a_box_and_member(references, tmp_path):
    write_references(tmp_path / "x.parquet", references, IMAGES)
    write_references(tmp_path / "y.parquet", references, IMAGES)
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["image_id"].to_pylist() == [4] * 6 + [9] * 3 + [30] * 6
    assert table["member"].to_pylist() == [0, 1, 2] * R
    assert table["reference"].to_pylist() == [0] * 3 + [1] * 3 + [0] * 6 + [1] * 3
    assert table["source"].to_pylist() == ["ground_truth"] * 3 + ["consensus"] * 6 + ["ground_truth"] * 6
    np.testing.assert_array_equal(table["box"].to_pylist(), references.boxes.reshape(-1, 4))


def test_images_without_a_box_are_covered(references, tmp_path):
    none = References(*(getattr(references, name)[:0] for name in References.__annotations__))
    write_references(tmp_path / "x.parquet", none, IMAGES)
    found, image_ids = read_references(tmp_path / "x.parquet")
    assert found.class_probs.shape == (0, E, C + 1)
    assert found.index.tolist() == []
    assert image_ids.tolist() == IMAGES.tolist()


def test_columns_of_another_length_are_refused(references):
    columns = {name: getattr(references, name) for name in References.__annotations__}
    for name in ("image_ids", "is_truth", "given", "boxes"):
        with pytest.raises(PredictionError, match=rf"References.{name} must have shape \(5,"):
            References(**{**columns, name: columns[name][1:]})
    with pytest.raises(PredictionError, match=r"class_probs must have shape \(R, E, C \+ 1\), got \(5, 3, 1\)"):
        References(**{**columns, "class_probs": columns["class_probs"][:, :, :1]})


@pytest.mark.parametrize("defect", ["absent", "truncated", "of another kind"])
def test_a_shard_that_cannot_be_used_is_named(references, tmp_path, defect):
    path, other = tmp_path / "shard-00003.parquet", tmp_path / "other.parquet"
    write_dense(other, IMAGES, {name: np.arange(4.0) for name in DENSE_AGGREGATIONS})
    write_references(path, references, IMAGES)
    data = {"absent": None, "truncated": path.read_bytes()[:300], "of another kind": other.read_bytes()}[defect]
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(PredictionError, match=r"about reference boxes \(.*shard-00003.parquet\): .*; delete it"):
        read_references(path)


def test_dense_rows_come_back_and_references_are_none(references, tmp_path):
    scores = {name: np.arange(4.0) + number for number, name in enumerate(DENSE_AGGREGATIONS)}
    write_dense(tmp_path / "x.parquet", IMAGES, scores)
    image_ids, found = read_dense(tmp_path / "x.parquet")
    assert image_ids.tolist() == IMAGES.tolist()
    assert {name: column.tolist() for name, column in found.items()} == {
        name: column.tolist() for name, column in scores.items()
    }
    write_references(tmp_path / "y.parquet", references, IMAGES)
    with pytest.raises(PredictionError, match="dense scores"):
        read_dense(tmp_path / "y.parquet")
