"""The relabel queue as a COCO file: written, read, and read by pycocotools."""

import gzip
import json

import pytest
from helpers.export_content import LABELS, label_errors, pool_json, write_pool
from pycocotools.coco import COCO

from detcurate.coco.dataset import read_coco
from detcurate.errors import DatasetError
from detcurate.interop.export.relabel_queue import read_label_errors, read_queue, write_queue


@pytest.mark.parametrize(("name", "image_key"), [("relabel.json", int), ("relabel.json.gz", lambda key: f"img-{key}")])
def test_write_queue_is_coco_with_all_labels_of_images(tmp_path, name, image_key):
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


def test_read_queue_written_queue_round_trips(tmp_path):
    pool = write_pool(tmp_path, image_key=lambda key: f"img-{key}")
    path = tmp_path / "relabel.json"
    write_queue(path, pool, label_errors(pool), {})
    assert read_label_errors(path, pool) == tuple(label_errors(pool))
    dataset, found = read_queue(path)
    assert found == tuple(label_errors(dataset))
    assert len(dataset) == 2


def test_write_queue_is_read_by_pycocotools(tmp_path, capsys):
    pool = write_pool(tmp_path)
    path = tmp_path / "relabel.json"
    write_queue(path, pool, label_errors(pool), {})
    coco = COCO(str(path))
    assert sorted(coco.getImgIds()) == [12, 41]
    assert len(coco.getAnnIds()) == 5
    seen = coco.loadRes(json.loads(path.read_text())["label_errors"])
    assert [seen.anns[key]["bbox"] for key in seen.getAnnIds(imgIds=[12])] == [[3.5, 5.0, 9.5, 12.5]]


def test_write_queue_equal_queues_give_equal_bytes(tmp_path):
    pool = write_pool(tmp_path)
    for name in ("a.json.gz", "b.json.gz"):
        write_queue(tmp_path / name, pool, label_errors(pool), {"limit": 3})
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_write_queue_large_or_absent_ids_give_free_ids(tmp_path):
    source = pool_json()
    source["annotations"][0]["id"] = 2**53
    del source["annotations"][1]["id"]
    (tmp_path / "train.json").write_text(json.dumps(source))
    pool = read_coco(tmp_path / "train.json")
    path = tmp_path / "relabel.json"
    found = label_errors(write_pool(tmp_path / "plain"))
    write_queue(path, pool, found, {})
    written = json.loads(path.read_text())["label_errors"]
    assert [record["id"] for record in written] == [2, 3, 4]  # 1 is the internal number of the label without an id
    assert written[0]["annotation_id"] is None
    assert read_label_errors(path, pool)[0].label_row == found[0].label_row  # found by its box


def test_read_queue_empty_queue_raises(tmp_path):
    pool = write_pool(tmp_path)
    path = tmp_path / "relabel.json"
    write_queue(path, pool, [], {"limit": 9})
    value = json.loads(path.read_text())
    assert (value["images"], value["annotations"], value["label_errors"]) == ([], [], [])
    assert value["categories"] == pool_json()["categories"]
    assert read_label_errors(path, pool) == ()
    with pytest.raises(DatasetError, match=r"relabel\.json"):
        read_queue(path)


def test_read_queue_other_files_raise(tmp_path):
    pool = write_pool(tmp_path)
    with pytest.raises(DatasetError, match=r"absent\.json.*RELABEL_LIMIT"):
        read_queue(tmp_path / "absent.json")
    with pytest.raises(DatasetError, match=r"train\.json.*label_errors"):
        read_queue(pool.path)
    path = tmp_path / "relabel.json"
    write_queue(path, pool, label_errors(pool), {})
    path.write_text(path.read_text().replace('"inaccurate_box"', '"sideways"'))
    with pytest.raises(DatasetError, match=r"relabel\.json.*rank 3.*'sideways'"):
        read_queue(path)


OLD_NAMES = {"missing_label": "overlooked", "wrong_class": "swapped", "inaccurate_box": "badly_located",
             "label_error_score": "suspicion", "label_errors": "suspicions"}  # fmt: skip


def test_read_queue_of_version_0_1_reads_old_names(tmp_path):
    pool = write_pool(tmp_path)
    path = tmp_path / "relabel.json"
    write_queue(path, pool, label_errors(pool), {})
    text = path.read_text()
    for new, old in OLD_NAMES.items():
        assert f'"{new}"' in text
        text = text.replace(f'"{new}"', f'"{old}"')
    path.write_text(text)
    assert read_label_errors(path, pool) == tuple(label_errors(pool))
    dataset, found = read_queue(path)
    assert found == tuple(label_errors(dataset))
    path.write_text(text.replace('"overlooked"', '"sideways"'))
    with pytest.raises(DatasetError, match=r"rank 2.*'sideways'"):
        read_queue(path)


def test_write_queue_of_old_queue_drops_its_keys(tmp_path):
    """A queue of version 0.1 may itself be the pool of a run."""
    pool = write_pool(tmp_path)
    value = {**pool_json(), "suspicions": [{"kind": "swapped"}], "relabel": {"limit": 7}}
    pool.path.write_text(json.dumps(value))
    pool = read_coco(pool.path)
    write_queue(tmp_path / "relabel.json", pool, label_errors(pool), {"limit": 3})
    written = json.loads((tmp_path / "relabel.json").read_text())
    assert "suspicions" not in written
    assert (len(written["label_errors"]), written["relabel"]) == (3, {"limit": 3})
