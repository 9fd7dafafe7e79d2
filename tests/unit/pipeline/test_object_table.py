"""``objects.parquet``: 3 clusters and 2 labels on 3 images, 4 members, 5 classes, and other libraries' readers."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detcurate.io.parquet import matrix_of
from detcurate.pipeline.object_table import KINDS, ObjectsTable, object_schema, object_scores, object_table
from detcurate.score.label_errors import LABEL_ERRORS
from detcurate.score.measures import LABEL_MEASURES, MEASURES
from detcurate.structures import ObjectScores

CLASSES = ("car", "truck", "bus", "pedestrian", "cyclist")
MEASURED = ("entropy", "el2n")


def rows_of(image_ids, annotation_ids, votes, class_index, measures, **consensus: object):
    g = len(image_ids)
    votes = np.asarray(votes, np.int16).reshape(g, 4)
    return ObjectScores(
        image_ids=np.asarray(image_ids, np.int64),
        boxes=(np.arange(4 * g).reshape(g, 4) + 0.5).astype(np.float32),
        num_fired=(votes >= 0).sum(axis=1),
        class_index=np.asarray(class_index, np.int32),
        confidence=np.linspace(0.25, 0.75, g),
        votes=votes,
        annotation_ids=np.asarray(annotation_ids, np.int64),
        measures={name: np.asarray(values, np.float64) for name, values in measures.items()},
        **consensus,
    )


def parts():
    clusters = rows_of(
        [9, 4, 9],
        [70, -1, -1],
        [[0, 0, 5, -1], [3, -1, -1, -1], [1, 2, 2, 1]],
        [0, 3, 2],
        {"entropy": [0.5, 0.25, 0.125], "missing_label": [0, 0.75, 0.5]},
    )
    labels = rows_of(
        [6, 9],
        [0, 70],
        [[-1, -1, -1, -1], [0, 0, 5, -1]],
        [4, 1],
        {"el2n": [1.25, 0.5], "wrong_class": [0, 0.375], "inaccurate_box": [0, 0.0625]},
        consensus_boxes=np.array([[0, 0, 0, 0], [1, 2, 3, 4]], np.float32),
        consensus_class=np.array([-1, 2], np.int32),
        consensus_confidence=np.array([0, 0.875]),
        consensus_votes=np.array([0, 3], np.int32),
    )
    return clusters, labels


@pytest.fixture
def table():
    return object_table(*parts(), CLASSES)


@pytest.fixture
def path(table, tmp_path):
    pq.write_table(table, tmp_path / "objects.parquet")
    return tmp_path / "objects.parquet"


# By image, clusters before labels, in the order of their record; null where a row cannot have a value
EXPECTED = {
    "image_id": [4, 6, 9, 9, 9],
    "kind": ["cluster", "ground_truth", "cluster", "cluster", "ground_truth"],
    "annotation_id": [None, 0, 70, None, 70],
    "x1": [4.5, 0.5, 0.5, 8.5, 4.5],
    "y1": [5.5, 1.5, 1.5, 9.5, 5.5],
    "x2": [6.5, 2.5, 2.5, 10.5, 6.5],
    "y2": [7.5, 3.5, 3.5, 11.5, 7.5],
    "class_index": [3, 4, 0, 2, 1],
    "class_name": ["pedestrian", "cyclist", "car", "bus", "truck"],
    "confidence": [0.5, 0.25, 0.25, 0.75, 0.75],
    "num_fired": [1, 0, 3, 4, 3],
    "votes": [[3, -1, -1, -1], [-1, -1, -1, -1], [0, 0, 5, -1], [1, 2, 2, 1], [0, 0, 5, -1]],
    **{f"consensus_{side}": [None] * 4 + [at] for at, side in enumerate(("x1", "y1", "x2", "y2"), start=1)},
    "consensus_class": [None] * 4 + [2],
    "consensus_confidence": [None] * 4 + [0.875],
    "consensus_votes": [None] * 4 + [3],
    "entropy": [0.25, None, 0.5, 0.125, None],
    "el2n": [None, 1.25, None, None, 0.5],
    "missing_label": [0.75, None, 0, 0.5, None],
    "wrong_class": [None, 0, None, None, 0.375],
    "inaccurate_box": [None, 0, None, None, 0.0625],
}


def test_object_table_rows_by_hand(table):
    assert table.column_names == list(EXPECTED)
    assert table.to_pydict() == EXPECTED
    table.validate(full=True)


def test_object_schema_equals_schema_of_rows():
    schema = object_schema(CLASSES, MEASURED, 4)
    assert schema == object_table(*parts(), CLASSES).schema
    names = pa.dictionary(pa.int32(), pa.string())
    expected = {"image_id": pa.int64(), "kind": names, "annotation_id": pa.int64(), "class_name": names}
    expected |= {"votes": pa.list_(pa.int16(), 4), "num_fired": pa.int32(), "confidence": pa.float32()}
    for name, kind in expected.items():
        assert schema.field(name).type.equals(kind)
    assert all(schema.field(name).type == pa.float32() for name in (*MEASURED, *LABEL_ERRORS, "x1", "y1", "x2", "y2"))


@pytest.mark.parametrize("num_members", [1, 6])
def test_object_schema_has_a_documented_column_per_measure(num_members):
    schema = object_schema(CLASSES, (*MEASURES, *LABEL_MEASURES), num_members)
    assert schema.names[-len(MEASURES) - len(LABEL_MEASURES) - 3 :] == [*MEASURES, *LABEL_MEASURES, *LABEL_ERRORS]
    declared = {column.name: column for column in ObjectsTable.columns()}
    assert list(declared) == schema.names
    assert all(declared[name].dtype == schema.field(name).type for name in schema.names if name != "votes")
    assert all(len(column.meaning) > 9 for column in declared.values())


def test_object_table_parts_append_to_one_file(tmp_path):
    """Parts of one run share the dictionaries of kinds and classes, whichever of them they hold."""
    schema = object_schema(CLASSES, MEASURED, 4)
    clusters, labels = parts()
    nothing = {
        "consensus_boxes": np.zeros((0, 4), np.float32),
        "consensus_class": np.zeros(0, np.int32),
        "consensus_confidence": np.zeros(0),
        "consensus_votes": np.zeros(0, np.int32),
    }
    no_clusters = rows_of([], [], [], [], dict.fromkeys(clusters.measures, []))
    no_labels = rows_of([], [], [], [], dict.fromkeys(labels.measures, []), **nothing)
    pairs = ((clusters, no_labels), (no_clusters, no_labels), (no_clusters, labels))
    with pq.ParquetWriter(tmp_path / "objects.parquet", schema) as writer:
        for pair in pairs:
            writer.write_table(object_table(*pair, CLASSES))
    joined = ObjectsTable(tmp_path / "objects.parquet").rows()
    assert joined.num_rows == 5
    assert joined["kind"].to_pylist() == [KINDS[0]] * 3 + [KINDS[1]] * 2
    assert joined["class_name"].to_pylist() == ["pedestrian", "car", "bus", "cyclist", "truck"]


def test_object_scores_restores_rows(path):
    found = object_scores(ObjectsTable(path).rows())
    assert found.annotation_ids.tolist() == [-1, 0, 70, -1, 70]
    assert found.votes.tolist() == EXPECTED["votes"]
    assert found.consensus_class.tolist() == [-1, -1, -1, -1, 2]
    assert found.consensus_votes.tolist() == [0, 0, 0, 0, 3]
    np.testing.assert_array_equal(found.consensus_boxes[:4], found.boxes[:4])
    assert found.consensus_boxes[4].tolist() == [1, 2, 3, 4]
    assert found.measures["wrong_class"].tolist() == [0, 0, 0, 0, 0.375]


# Other libraries


def test_numpy_reads_votes_as_matrix(path):
    assert matrix_of(pq.read_table(path)["votes"], 4).tolist() == EXPECTED["votes"]


def test_pandas_reads_objects(path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.read_parquet(path)
    assert frame["class_name"].tolist() == EXPECTED["class_name"]
    assert [None if pandas.isna(value) else value for value in frame["entropy"]] == EXPECTED["entropy"]
    assert [votes.tolist() for votes in frame["votes"]] == EXPECTED["votes"]
    means = frame.groupby("kind", observed=True)["confidence"].mean()
    assert means.to_dict() == {"cluster": 0.5, "ground_truth": 0.5}


def test_duckdb_reads_objects(path):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    columns = "class_name, votes[1], annotation_id"
    query = f"SELECT {columns} FROM read_parquet(?) WHERE missing_label > 0.1 ORDER BY missing_label"
    assert duckdb.execute(query, [str(path)]).fetchall() == [("bus", 1, None), ("pedestrian", 3, None)]
    count = "SELECT count(*), count(annotation_id), count(el2n) FROM read_parquet(?)"
    assert duckdb.execute(count, [str(path)]).fetchall() == [(5, 3, 2)]


def test_polars_reads_objects(path):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = polars.read_parquet(path)
    assert frame["class_name"].to_list() == EXPECTED["class_name"]
    assert frame["votes"].to_list() == EXPECTED["votes"]
    assert frame["wrong_class"].to_list() == EXPECTED["wrong_class"]
    noisy = polars.scan_parquet(path).filter(polars.col("wrong_class") > 0.1).collect()
    assert noisy["annotation_id"].to_list() == [70]
