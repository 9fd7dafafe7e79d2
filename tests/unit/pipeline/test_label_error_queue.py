"""The relabel queue: the rows with the highest label-error scores, and the corrections that the consensus proposes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.export_content import pool_json, row_of_image, row_of_label, write_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from detcurate.coco.dataset import image_labels, read_coco
from detcurate.errors import PredictionError
from detcurate.interop.export.relabel_queue import LABEL_ERROR_KINDS
from detcurate.io.parquet import fixed_lists
from detcurate.pipeline.label_error_queue import find_label_errors, worst_rows
from detcurate.pipeline.object_table import ObjectsTable, object_table
from detcurate.score.scoring import score_labelled_objects
from detcurate.structures import Detections, ObjectScores

MEMBERS = 3


def detections_of(rows, num_classes=4):
    """Return detections of rows (image_id, member, box, class_index, probability); the rest is background."""
    probs = np.zeros((len(rows), num_classes + 1), np.float32)
    for at, (_, _, _, class_index, probability) in enumerate(rows):
        probs[at, class_index], probs[at, -1] = probability, 1 - probability
    return Detections(
        image_ids=np.array([row[0] for row in rows], np.int64),
        member=np.array([row[1] for row in rows], np.int32),
        boxes=np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[4] for row in rows], np.float32),
        class_index=np.array([row[3] for row in rows], np.int32),
        class_probs=probs,
    )


# class_index: person 0, bike 1, car 2, bus 3
SEEN = [
    *((41, member, [50, 6, 60, 20], 3, p) for member, p in ((0, 0.875), (1, 0.75))),  # an unlabelled bus
    *((12, member, [3, 5, 13.25, 17], 1, 0.9375) for member in range(3)),  # labelled person 102, seen as a bike
    *((30, member, [5, 8, 16, 20], 2, 0.9375) for member in range(3)),  # car 104, labelled elsewhere
    *((7, member, [50, 30, 62, 40], 3, 0.9375) for member in range(3)),  # bus 107, whose label is cut at the border
    (41, 2, [21, 26, 40, 40], 2, 0.9375),  # in the crowd region
]


def write_objects(path, pool, rows):
    clusters, labels = score_labelled_objects(
        detections_of(rows), image_labels(pool, pool.image_ids), num_members=MEMBERS, measures=["entropy"]
    )
    pq.write_table(object_table(clusters, labels, pool.class_names), path, row_group_size=2)
    return ObjectsTable(path)


@pytest.fixture
def scored(tmp_path):
    """The pool, and the table of objects of three members, in row groups of two rows."""
    pool = write_pool(tmp_path)
    return pool, write_objects(tmp_path / "objects.parquet", pool, SEEN)


def find(pool, objects, **options: object):
    return find_label_errors(objects, pool, **{"limit": 100, "selected_ids": np.array([41, 7]), **options})


def test_find_label_errors_proposes_consensus_of_each_kind(scored):
    """Expected values by hand."""
    pool, objects = scored
    found, counts = find(pool, objects)
    wrong_class, inaccurate, missing, other, *rest = found
    assert wrong_class.kind == "wrong_class"
    assert wrong_class.label_error_score == pytest.approx(0.9375)  # p̄(bike) - p̄(person)
    assert (wrong_class.image_row, wrong_class.label_row) == (row_of_image(pool, 12), row_of_label(pool, 102))
    assert wrong_class.box == pytest.approx((3, 5, 13.25, 17))
    assert pool.class_names[wrong_class.class_index] == "bike"
    assert (wrong_class.num_votes, wrong_class.num_members) == (3, MEMBERS)
    assert wrong_class.score == pytest.approx(0.9375)
    assert not wrong_class.is_selected
    # c (1 - o/t), c = (0.875 + 0.75) / 3; the label 106 is a crowd region, and so not a label
    assert (missing.kind, missing.label_row) == ("missing_label", -1)
    assert missing.label_error_score == pytest.approx(1.625 / 3)
    assert missing.box == pytest.approx((50, 6, 60, 20))
    assert (pool.class_names[missing.class_index], missing.num_votes) == ("bus", 2)
    assert missing.score == pytest.approx(1.625 / 3)
    assert missing.is_selected
    # label 104 is [2, 5, 12.5, 17.125]: 7.5 x 9.125 in common with a consensus of 11 x 12
    iou = 68.4375 / (132 + 127.3125 - 68.4375)
    assert (inaccurate.kind, inaccurate.label_row) == ("inaccurate_box", row_of_label(pool, 104))
    assert inaccurate.label_error_score == pytest.approx(0.9375 * (1 - iou), abs=1e-6)
    assert inaccurate.box == pytest.approx((5, 8, 16, 20))
    assert (pool.class_names[inaccurate.class_index], inaccurate.num_votes) == ("car", 3)
    # the same cluster overlaps its label by less than half, so it is a missing label too
    assert (other.kind, other.image_row) == ("missing_label", row_of_image(pool, 30))
    scores = [label_error.label_error_score for label_error in found]
    assert scores == sorted(scores, reverse=True)
    assert {label_error.kind for label_error in rest} <= {"inaccurate_box"}
    assert counts == {"missing_label": 2, "wrong_class": 1, "inaccurate_box": counts["inaccurate_box"]}


def test_find_label_errors_limit_keeps_highest_scores(scored):
    pool, objects = scored
    everything, counts = find(pool, objects)
    for limit in (1, 2, len(everything)):
        found, same = find(pool, objects, limit=limit)
        assert found == everything[:limit]
        assert same == counts


def test_find_label_errors_wrong_class_without_votes_omitted(tmp_path):
    """All three members predict background first, bike second: a high score without a class to propose."""
    pool = write_pool(tmp_path)
    rows = [(12, member, [3, 5, 13.25, 17], 1, 0.25) for member in range(3)]
    found, counts = find(pool, write_objects(tmp_path / "objects.parquet", pool, rows))
    assert counts["wrong_class"] == 1
    assert "wrong_class" not in {label_error.kind for label_error in found}


def test_find_label_errors_labels_with_one_id_differ_by_class_and_box(scored, tmp_path):
    """``annotation_ids`` of a pool may repeat: every label error still names its own label."""
    pool, _ = scored
    expected = [label_error.label_row for label_error in find(*scored)[0]]
    source = pool_json()
    for record in source["annotations"]:
        record.pop("id")
    (tmp_path / "no-ids.json").write_text(json.dumps(source))
    same = read_coco(tmp_path / "no-ids.json")
    object.__setattr__(same, "annotation_ids", np.full_like(same.annotation_ids, 5))
    objects = write_objects(tmp_path / "same-ids.parquet", same, SEEN)
    assert [label_error.label_row for label_error in find(same, objects)[0]] == expected


@given(
    st.lists(
        st.tuples(*(st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]) for _ in LABEL_ERROR_KINDS)), min_size=1, max_size=30
    ),
    st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_worst_rows_equal_head_of_sort(tmp_path_factory, rows, limit):
    path = tmp_path_factory.mktemp("worst") / "objects.parquet"
    ids = np.arange(len(rows)) // 3 + 5
    nothing = ObjectScores(
        image_ids=np.zeros(0, np.int64),
        boxes=np.zeros((0, 4), np.float32),
        num_fired=np.zeros(0, np.int64),
        class_index=np.zeros(0, np.int32),
        confidence=np.zeros(0),
        votes=np.zeros((0, 2), np.int16),
        annotation_ids=np.zeros(0, np.int64),
        measures={},
    )
    base = object_table(nothing, nothing, ("car",)).schema.empty_table()
    empty = {name: pa.nulls(len(rows), base.schema.field(name).type) for name in base.column_names}
    empty["votes"] = fixed_lists(np.zeros((len(rows), 2), np.int16))
    kinds = {kind: pa.array([row[at] for row in rows], pa.float32()) for at, kind in enumerate(LABEL_ERROR_KINDS)}
    pq.write_table(pa.table({**empty, "image_id": ids, **kinds}), path, row_group_size=4)
    found = worst_rows(ObjectsTable(path), limit=limit)
    expected = sorted(
        (-value, int(ids[number]), number, code)
        for number, row in enumerate(rows)
        for code, value in enumerate(row)
        if value
    )[:limit]
    assert [(-score, code) for score, code in zip(found.label_error_score, found.kind, strict=True)] == [
        (score, code) for score, _, _, code in expected
    ]
    if expected:
        assert found.rows["image_id"].to_pylist() == [image_id for _, image_id, _, _ in expected]
        for kind_row, (_, _, number, code) in zip(found.rows.to_pylist(), expected, strict=True):
            assert kind_row[LABEL_ERROR_KINDS[code]] == rows[number][code]
    assert found.found == {kind: sum(bool(row[at]) for row in rows) for at, kind in enumerate(LABEL_ERROR_KINDS)}


@pytest.mark.parametrize("change", ["label", "image"])
def test_find_label_errors_of_another_pool_refused(scored, tmp_path, change):
    _, objects = scored
    other = pool_json()
    if change == "label":
        other["annotations"] = [record for record in other["annotations"] if record["id"] != 102]
    else:
        other["images"] = [record for record in other["images"] if record["id"] != 12]
        other["annotations"] = [record for record in other["annotations"] if record["image_id"] != 12]
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(PredictionError, match=r"other\.json") as raised:
        find(read_coco(tmp_path / "other.json"), objects)
    assert "12" in str(raised.value)


def test_has_label_errors_depends_on_columns(scored, tmp_path):
    _, objects = scored
    assert objects.has_label_errors()
    assert not ObjectsTable(tmp_path / "absent.parquet").has_label_errors()
    table = pq.read_table(objects.path).drop_columns(["wrong_class"])
    pq.write_table(table, tmp_path / "reference.parquet")
    assert not ObjectsTable(tmp_path / "reference.parquet").has_label_errors()


def test_find_label_errors_empty_table_finds_none(scored, tmp_path):
    pool, objects = scored
    pq.write_table(pq.read_table(objects.path).slice(0, 0), tmp_path / "none.parquet")
    found = find(pool, ObjectsTable(tmp_path / "none.parquet"))
    assert found == ([], dict.fromkeys(LABEL_ERROR_KINDS, 0))


def test_find_label_errors_damaged_table_names_file(scored, tmp_path):
    pool, objects = scored
    (tmp_path / "broken.parquet").write_bytes(objects.path.read_bytes()[:100])
    with pytest.raises(PredictionError, match=r"broken\.parquet"):
        find(pool, ObjectsTable(tmp_path / "broken.parquet"))
