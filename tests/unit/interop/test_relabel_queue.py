"""The relabel queue as a COCO file: written, read back, and read by pycocotools."""

import gzip
import json

import pytest
from helpers.export_content import LABELS, label_errors, pool_json, write_pool
from pycocotools.coco import COCO

from detcurate.coco.dataset import read_coco
from detcurate.errors import DatasetError
from detcurate.interop.export.relabel_queue import read_label_errors, read_queue, write_queue


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
