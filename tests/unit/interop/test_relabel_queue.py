"""The relabel queue: which suspicions are listed, what the consensus says, and how the file stands as COCO."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.export_content import LABELS, label_errors, pool_json, row_of_image, row_of_label, write_pool
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from detcurate.coco.dataset import image_labels, read_coco
from detcurate.errors import DatasetError, PredictionError
from detcurate.interop.export.relabel_queue import LABEL_ERROR_KINDS, read_label_errors, read_queue, write_queue
from detcurate.pipeline.suspected_labels import find_label_errors, has_label_errors, worst_rows
from detcurate.pipeline.tables import object_table
from detcurate.score.scoring import score_labelled_objects
from detcurate.structures import Detections

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
    *((41, member, [50, 6, 60, 20], 3, p) for member, p in ((0, 0.875), (1, 0.75))),  # a bus that nobody labelled
    *((12, member, [3, 5, 13.25, 17], 1, 0.9375) for member in range(3)),  # labelled person 102, seen as a bike
    *((30, member, [5, 8, 16, 20], 2, 0.9375) for member in range(3)),  # car 104, labelled elsewhere
    *((7, member, [50, 30, 62, 40], 3, 0.9375) for member in range(3)),  # bus 107, as labelled but for the border
    (41, 2, [21, 26, 40, 40], 2, 0.9375),  # in the crowd region
]


@pytest.fixture
def scored(tmp_path):
    """The pool, and the table of objects of three members, in row groups of two rows."""
    pool = write_pool(tmp_path)
    clusters, labels = score_labelled_objects(
        detections_of(SEEN), image_labels(pool, pool.image_ids), num_members=MEMBERS, measures=["entropy"]
    )
    path = tmp_path / "objects.parquet"
    pq.write_table(object_table(clusters, labels, pool.class_names), path, row_group_size=2)
    return pool, path


def find(pool, path, **options: object):
    options = {"limit": 100, "iou_threshold": 0.5, "selected_ids": np.array([41, 7]), **options}
    return find_label_errors(path, pool, **options)


def test_three_suspicions_by_hand(scored):
    pool, path = scored
    found, counts = find(pool, path)
    wrong_class, located, missing_label, other, *rest = found
    assert wrong_class.kind == "wrong_class"
    assert wrong_class.label_error_score == pytest.approx(0.9375)  # p̄(bike) - p̄(person)
    assert (wrong_class.image_row, wrong_class.label_row) == (row_of_image(pool, 12), row_of_label(pool, 102))
    assert wrong_class.box == pytest.approx((3, 5, 13.25, 17))
    assert (pool.class_names[wrong_class.class_index], wrong_class.num_votes, wrong_class.num_members) == (
        "bike",
        3,
        MEMBERS,
    )
    assert wrong_class.score == pytest.approx(0.9375)
    assert not wrong_class.is_selected
    # c (1 - o/t), c = (0.875 + 0.75) / 3; the label 106 is a crowd region, and so no label
    assert (missing_label.kind, missing_label.label_row) == ("missing_label", -1)
    assert missing_label.label_error_score == pytest.approx(1.625 / 3)
    assert missing_label.box == pytest.approx((50, 6, 60, 20))
    assert (pool.class_names[missing_label.class_index], missing_label.num_votes) == ("bus", 2)
    assert missing_label.is_selected
    # label 104 is [2, 5, 12.5, 17.125]: 7.5 x 9.125 in common with a consensus of 11 x 12
    iou = 68.4375 / (132 + 127.3125 - 68.4375)
    assert (located.kind, located.label_row) == ("inaccurate_box", row_of_label(pool, 104))
    assert located.label_error_score == pytest.approx(0.9375 * (1 - iou), abs=1e-6)
    assert located.box == pytest.approx((5, 8, 16, 20))
    assert (pool.class_names[located.class_index], located.num_votes) == ("car", 3)
    # the same place is no label's: nobody labelled a car there by half
    assert (other.kind, other.image_row) == ("missing_label", row_of_image(pool, 30))
    assert [label_error.label_error_score for label_error in found] == sorted(
        (s.label_error_score for s in found), reverse=True
    )
    assert {label_error.kind for label_error in rest} <= {"inaccurate_box"}  # 107 by its border, no more
    assert counts == {"missing_label": 2, "wrong_class": 1, "inaccurate_box": counts["inaccurate_box"]}


def test_the_limit_keeps_the_worst(scored):
    pool, path = scored
    everything, counts = find(pool, path)
    for limit in (1, 2, len(everything)):
        found, same = find(pool, path, limit=limit)
        assert found == everything[:limit]
        assert same == counts


def test_a_swap_that_no_member_votes_for_is_left_out(tmp_path):
    """All three answer background, and of the rest bike has the most: suspicious, but there is nothing to tell."""
    pool = write_pool(tmp_path)
    detections = detections_of([(12, member, [3, 5, 13.25, 17], 1, 0.25) for member in range(3)])
    clusters, labels = score_labelled_objects(
        detections, image_labels(pool, pool.image_ids), num_members=MEMBERS, measures=["entropy"]
    )
    path = tmp_path / "objects.parquet"
    pq.write_table(object_table(clusters, labels, pool.class_names), path)
    found, counts = find(pool, path)
    assert counts["wrong_class"] == 1
    assert "wrong_class" not in {label_error.kind for label_error in found}


@given(
    st.lists(
        st.tuples(*(st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]) for _ in LABEL_ERROR_KINDS)), min_size=1, max_size=30
    ),
    st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_worst_rows_are_those_of_a_sort(tmp_path_factory, rows, limit):
    path = tmp_path_factory.mktemp("worst") / "objects.parquet"
    columns = {kind: pa.array([row[at] for row in rows], pa.float32()) for at, kind in enumerate(LABEL_ERROR_KINDS)}
    ids = np.arange(len(rows)) // 3 + 5
    pq.write_table(pa.table({"image_id": ids, **columns}), path, row_group_size=4)
    found = worst_rows(path, limit=limit)
    expected = sorted(
        (-value, int(ids[number]), number, code)
        for number, row in enumerate(rows)
        for code, value in enumerate(row)
        if value
    )[:limit]
    got = zip(-found.label_error_score, found.image_ids, found.table_row, found.kind, strict=True)
    assert [tuple(values) for values in got] == expected
    assert found.found == {kind: sum(bool(row[at]) for row in rows) for at, kind in enumerate(LABEL_ERROR_KINDS)}


def test_a_table_of_another_pool(scored, tmp_path):
    pool, path = scored
    other = pool_json()
    other["annotations"] = [record for record in other["annotations"] if record["id"] != 105]
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(PredictionError, match=r"the objects must be of the labels of .*other\.json, got others"):
        find(read_coco(tmp_path / "other.json"), path)


def test_a_table_without_suspicions_or_without_rows(scored, tmp_path):
    pool, path = scored
    table = pq.read_table(path)
    assert has_label_errors(path)
    assert not has_label_errors(tmp_path / "absent.parquet")
    pq.write_table(table.drop_columns(["wrong_class"]), tmp_path / "reference.parquet")
    assert not has_label_errors(tmp_path / "reference.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    assert find(pool, tmp_path / "none.parquet") == ([], dict.fromkeys(LABEL_ERROR_KINDS, 0))
    (tmp_path / "broken.parquet").write_bytes(path.read_bytes()[:100])
    with pytest.raises(PredictionError, match=r"a table must be a whole Parquet file \(.*broken\.parquet\)"):
        find(pool, tmp_path / "broken.parquet")


# The file


@pytest.mark.parametrize(("name", "image_key"), [("relabel.json", int), ("relabel.json.gz", lambda key: f"img-{key}")])
def test_the_file_is_coco_with_all_labels_of_the_images_word_for_word(tmp_path, name, image_key):
    pool = write_pool(tmp_path, image_key=image_key)
    found = label_errors(pool)
    path = tmp_path / name
    write_queue(path, pool, found, {"limit": 3})
    text = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    value, source = json.loads(text), pool_json(image_key=image_key)
    kept = {image_key(12), image_key(41)}
    for key, of in (("images", "id"), ("annotations", "image_id")):
        assert value[key] == [record for record in source[key] if record[of] in kept]
    assert value["categories"] == source["categories"]
    assert value["info"] == source["info"]
    assert value["relabel"] == {"limit": 3}
    assert value["label_errors"][0] == {
        "id": 108, "rank": 1, "kind": "wrong_class", "label_error_score": 0.875, "image_id": image_key(12),
        "category_id": 5, "category_name": "bike", "bbox": [3.5, 5.0, 9.5, 12.5], "area": 118.75, "iscrowd": 0,
        "score": 0.75,
        "num_votes": 5, "num_members": 6, "selected": True, "annotation_id": 102,
        "labelled_bbox": [3.0, 5.0, 10.25, 12.0], "labelled_category_id": 2,
    }  # fmt: skip
    missing_label = value["label_errors"][1]
    assert [missing_label[key] for key in ("annotation_id", "labelled_bbox", "labelled_category_id")] == [None] * 3
    ids = [record["id"] for record in value["label_errors"]]
    assert len(set(ids)) == 3
    assert set(ids).isdisjoint(key for key, *_ in LABELS)


def test_it_is_read_back(tmp_path):
    pool = write_pool(tmp_path, image_key=lambda key: f"img-{key}")
    path = tmp_path / "relabel.json"
    write_queue(path, pool, label_errors(pool), {})
    assert read_label_errors(path, pool) == tuple(label_errors(pool))
    dataset, found = read_queue(path)
    assert found == tuple(label_errors(dataset))
    assert len(dataset) == 2


def test_pycocotools_reads_it_and_its_suspicions_as_results(tmp_path, capsys):
    pool = write_pool(tmp_path)
    path = tmp_path / "relabel.json"
    write_queue(path, pool, label_errors(pool), {})
    coco = COCO(str(path))
    assert sorted(coco.getImgIds()) == [12, 41]
    assert len(coco.getAnnIds()) == 5
    seen = coco.loadRes(json.loads(path.read_text())["label_errors"])
    assert [seen.anns[key]["bbox"] for key in seen.getAnnIds(imgIds=[12])] == [[3.5, 5.0, 9.5, 12.5]]


def test_equal_queues_are_equal_bytes(tmp_path):
    pool = write_pool(tmp_path)
    for name in ("a.json.gz", "b.json.gz"):
        write_queue(tmp_path / name, pool, label_errors(pool), {"limit": 3})
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_ids_that_are_large_or_absent(tmp_path):
    source = pool_json()
    source["annotations"][0]["id"] = 2**53
    del source["annotations"][1]["id"]
    (tmp_path / "train.json").write_text(json.dumps(source))
    pool = read_coco(tmp_path / "train.json")
    path = tmp_path / "relabel.json"
    found = label_errors(write_pool(tmp_path / "plain"))
    write_queue(path, pool, found, {})
    written = json.loads(path.read_text())["label_errors"]
    assert [record["id"] for record in written] == [2, 3, 4]  # 1 is for the label that has none
    assert written[0]["annotation_id"] is None
    assert read_label_errors(path, pool)[0].label_row == found[0].label_row  # found by its box


def test_a_queue_of_nothing(tmp_path):
    pool = write_pool(tmp_path)
    path = tmp_path / "relabel.json"
    write_queue(path, pool, [], {"limit": 9})
    value = json.loads(path.read_text())
    assert (value["images"], value["annotations"], value["label_errors"]) == ([], [], [])
    assert value["categories"] == pool_json()["categories"]
    assert read_label_errors(path, pool) == ()
    with pytest.raises(DatasetError, match="the relabel queue must hold a suspicion, got none"):
        read_queue(path)


def test_files_that_are_no_queue(tmp_path):
    pool = write_pool(tmp_path)
    with pytest.raises(DatasetError, match=r"the relabel queue must be a file, got none .*RELABEL_LIMIT above 0"):
        read_queue(tmp_path / "absent.json")
    with pytest.raises(DatasetError, match=r"the relabel queue must be JSON from detcurate .*label_errors"):
        read_queue(pool.path)
    path = tmp_path / "relabel.json"
    write_queue(path, pool, label_errors(pool), {})
    path.write_text(path.read_text().replace('"inaccurate_box"', '"sideways"'))
    with pytest.raises(
        DatasetError, match=r"missing_label, wrong_class, inaccurate_box of an image .* got 'sideways'.*rank 3"
    ):
        read_queue(path)
