"""The tables of a run: written, read in whole or in part, validated; damage and columns of version 0.1."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detcurate.errors import PredictionError
from detcurate.pipeline.object_table import ObjectsTable
from detcurate.pipeline.tables import ImagesTable, RelabelTable, RemovedTable, ReplicatesTable, SelectionTable
from detcurate.structures import ImageScores

TABLES = (ImagesTable, ObjectsTable, SelectionTable, RemovedTable, RelabelTable, ReplicatesTable)
REMOVED = {
    "image_id": [3, 5, 8, 9, 12],
    "image_score": [0.5, 0.25, 0.125, 0.75, 1.0],
    "reason": ["budget", "near_duplicate", "budget", "near_duplicate", "budget"],
    "replaced_by": pa.array([None, 7, None, 2, None], pa.int32()),
}


@pytest.fixture
def removed(tmp_path):
    """Rows in groups of two: images 3 and 5, 8 and 9, 12."""
    table = RemovedTable.within(tmp_path)
    table.write(REMOVED)
    pq.write_table(pq.read_table(table.path), table.path, row_group_size=2)
    return table


@pytest.mark.parametrize("kind", TABLES)
def test_columns_names_are_unique_and_documented(kind):
    names = [column.name for column in kind.columns()]
    assert len(set(names)) == len(names) > 0
    assert all(column.meaning.endswith(".") for column in kind.columns())


def test_write_uses_declared_types(removed):
    schema = pq.read_schema(removed.path)
    assert schema.types == [column.dtype for column in RemovedTable.columns()]
    assert removed.names() == ("image_id", "image_score", "reason", "replaced_by")


def test_write_without_required_column_names_it(tmp_path):
    with pytest.raises(PredictionError, match="rank"):
        SelectionTable.within(tmp_path).write({"image_id": [1], "image_score": [0.5], "reason": ["top_n"]})
    assert not (tmp_path / "selection.parquet").exists()


def test_read_returns_all_or_some_columns(removed):
    found = removed.read()
    assert list(found) == list(REMOVED)
    assert found["image_id"].tolist() == REMOVED["image_id"]
    assert np.isnan(found["replaced_by"]).tolist() == [True, False, True, False, True]
    assert list(removed.read(["reason", "image_id", "not a column"])) == ["image_id", "reason"]


@pytest.mark.parametrize(
    ("image_ids", "expected"), [([9, 12], [9, 12]), ([4], []), ([3, 12], [3, 12]), ([], []), ([1, 99], [])]
)
def test_rows_of_images_are_filtered(removed, image_ids, expected):
    rows = removed.rows(np.array(image_ids, np.int64), names=["image_id", "reason"])
    assert rows["image_id"].to_pylist() == expected
    assert rows.column_names == ["image_id", "reason"]


def test_rows_of_images_read_only_their_row_groups(removed, monkeypatch):
    read = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda file, group, **options: read.append(group) or whole(file, group, **options),
    )
    assert removed.rows(np.array([8]))["image_score"].to_pylist() == [0.125]
    assert read == [1]


def test_batches_yield_all_rows_in_order(removed):
    parts = list(removed.batches(["image_id"]))
    assert [image_id for part in parts for image_id in part["image_id"].to_pylist()] == REMOVED["image_id"]


def test_read_reasons_of_version_0_1_in_the_words_of_today(tmp_path):
    old = ["floor class bus=2", "cap class car=5", "noise_guard", "top_n", "floor_plan"]
    columns = {"image_id": [1, 2, 3, 4, 5], "image_score": [0.5] * 5, "reason": old, "because": [None] * 5}
    table = RemovedTable(tmp_path / "removed.parquet")
    pq.write_table(pa.table({**columns, "because": pa.array([None] * 5, pa.int64())}), table.path)
    expected = ["minimum class bus=2", "maximum class car=5", "label_noise", "top_n", "floor_plan"]
    assert table.read()["reason"].tolist() == expected


def test_read_old_column_names(tmp_path):
    """Version 0.1 named ``replaced_by`` ``because``."""
    columns = {("because" if name == "replaced_by" else name): values for name, values in REMOVED.items()}
    pq.write_table(pa.table(columns), tmp_path / "removed.parquet")
    table = RemovedTable.within(tmp_path)
    assert table.names()[-1] == "replaced_by"
    assert np.nan_to_num(table.read()["replaced_by"], nan=-1).tolist() == [-1, 7, -1, 2, -1]
    assert table.rows(np.array([5]), names=["replaced_by", "image_id"])["replaced_by"].to_pylist() == [7]


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "text", "other columns"])
def test_read_damaged_file_names_it(removed, damage):
    content = removed.path.read_bytes()
    if damage == "absent":
        removed.path.unlink()
    elif damage == "other columns":
        pq.write_table(pa.table({"image_id": [1], "reason": ["budget"]}), removed.path)
    else:
        removed.path.write_bytes({"empty": b"", "cut": content[:-9], "text": b"image_id,reason"}[damage])
    for read in (removed.read, lambda: removed.rows(np.array([3])), lambda: list(removed.batches())):
        with pytest.raises(PredictionError, match=r"removed\.parquet"):
            read()


def test_scores_are_written_and_read_back(tmp_path):
    columns = {"entropy": np.array([0.5, 0.25]), "num_objects": np.array([3, 0])}
    table = ImagesTable.within(tmp_path)
    table.write_scores(ImageScores(np.array([4, 7]), np.array([1.0, 0.0]), columns))
    found = table.scores()
    assert (found.image_ids.tolist(), found.image_score.tolist()) == ([4, 7], [1.0, 0.0])
    assert {name: values.tolist() for name, values in found.components.items()} == {
        "entropy": [0.5, 0.25],
        "num_objects": [3, 0],
    }
    assert found.components["num_objects"].dtype == np.int64


def test_replicates_have_any_columns(tmp_path):
    table = ReplicatesTable.within(tmp_path)
    columns = {"full/seed-0/figures/AP": np.array([1.0, np.nan]), "full/seed-0/per_class/a/b": np.array([2.0, 3.0])}
    table.write(columns)
    np.testing.assert_equal(table.read(), columns)
