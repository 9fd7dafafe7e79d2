"""Reading COCO: hand-made files of 4 images, 3 classes and 5 boxes, in an order that is not that of the ids."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from detcurate.coco.dataset import check_images, read_coco
from detcurate.errors import DatasetError, SelectionError


def coco():
    """4 images, 3 classes, 5 annotations; image 0 has none, ids have gaps, annotation 0 exists."""
    return {
        "info": {"year": 2024},
        "images": [
            {"id": 30, "file_name": "c.jpg", "width": 64, "height": 48, "sequence": "drive", "frame_index": 7},
            {"id": 0, "file_name": "a.jpg", "width": 62, "height": 46},
            {"id": 12, "file_name": "sub/b.jpg", "width": 63, "height": 47, "sequence": 5},
            {"id": 41, "file_name": "d.jpg", "width": 65, "height": 49},
        ],
        "annotations": [
            {"id": 0, "image_id": 41, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 11.5, "iscrowd": 1},
            {"id": 8, "image_id": 12, "category_id": 2, "bbox": [0.5, 0, 10, 20]},
            {"image_id": 41, "category_id": 2, "bbox": [5, 6, 7, 8]},
            {"id": 3, "image_id": 30, "category_id": 9, "bbox": [0, 0, 2, 2], "iscrowd": False},
            {"image_id": 12, "category_id": 5, "bbox": [-1, -2, 3, 4], "area": None},
        ],
        "categories": [{"id": 9, "name": "car"}, {"id": 2, "name": "person"}, {"id": 5, "name": "bike"}],
    }


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "train.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def message(path):
    with pytest.raises(DatasetError) as caught:
        read_coco(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_columns_by_hand(write):
    path = write(coco())
    dataset = read_coco(path)
    assert len(dataset) == 4
    assert dataset.num_boxes == 5
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.image_ids.tolist() == [0, 12, 30, 41]
    assert dataset.file_names == ("a.jpg", "sub/b.jpg", "c.jpg", "d.jpg")
    assert dataset.widths.tolist() == [62, 63, 64, 65]
    assert dataset.heights.tolist() == [46, 47, 48, 49]
    assert dataset.sequences == (None, "5", "drive", None)
    assert dataset.frame_index.tolist() == [-1, -1, 7, -1]
    assert dataset.category_ids.tolist() == [2, 5, 9]
    assert dataset.class_names == ("person", "bike", "car")
    # By image, within one by the file; the two without an id are numbered on from the highest, 8.
    assert dataset.annotation_ids.tolist() == [8, 10, 3, 0, 9]
    assert dataset.image_index.tolist() == [1, 1, 2, 3, 3]
    assert dataset.class_index.tolist() == [0, 1, 2, 2, 0]
    assert dataset.boxes.tolist() == [
        [0.5, 0, 10.5, 20],
        [-1, -2, 2, 2],
        [0, 0, 2, 2],
        [1, 2, 4, 6],
        [5, 6, 12, 14],
    ]
    assert dataset.areas.tolist() == [200, 12, 4, 11.5, 56]
    assert dataset.iscrowd.tolist() == [False, False, False, True, False]
    assert dataset.image_file_order.tolist() == [1, 2, 0, 3]
    assert dataset.annotation_file_order.tolist() == [1, 4, 3, 0, 2]
    assert dataset.boxes_per_image.tolist() == [0, 2, 1, 2]
    assert dataset.class_counts().tolist() == [2, 1, 2]


def test_dtypes(write):
    dataset = read_coco(write(coco()))
    for name in ("image_ids", "widths", "heights", "frame_index", "category_ids", "annotation_ids", "image_index"):
        assert getattr(dataset, name).dtype == np.int64, name
    assert dataset.class_index.dtype == dataset.annotation_file_order.dtype == np.int64
    assert dataset.boxes.dtype == dataset.areas.dtype == np.float64
    assert dataset.iscrowd.dtype == bool


def test_raw_records_are_aligned_with_the_columns(write):
    dataset = read_coco(write(coco()))
    assert [json.loads(bytes(raw))["id"] for raw in dataset.raw_images] == dataset.image_ids.tolist()
    boxes = [json.loads(bytes(raw))["bbox"] for raw in dataset.raw_annotations]
    assert [box[:2] for box in boxes] == dataset.boxes[:, :2].tolist()
    assert list(dataset.raw_top_level) == ["info", "images", "annotations", "categories"]


def test_more_annotations_than_one_block(write):
    content = coco()
    content["annotations"] = [
        {"id": number, "image_id": 12, "category_id": 2, "bbox": [number, 0, 1, 1]} for number in range(70_001)
    ]
    dataset = read_coco(write(content))
    assert dataset.boxes[:, 0].tolist() == list(range(70_001))
    content["annotations"][70_000]["bbox"] = "none"
    assert "annotations[70000].bbox must be four finite numbers" in message(write(content))


def test_no_annotations(write):
    dataset = read_coco(write({**coco(), "annotations": []}))
    assert dataset.boxes.shape == (0, 4)
    assert dataset.boxes_per_image.tolist() == [0, 0, 0, 0]
    assert dataset.class_counts().tolist() == [0, 0, 0]


def test_repeated_annotation_ids_are_kept(write):
    content = coco()
    content["annotations"][3]["id"] = 8
    assert read_coco(write(content)).annotation_ids.tolist() == [8, 10, 8, 0, 9]


def test_annotations_without_any_id_are_numbered_from_one(write):
    content = coco()
    for record in content["annotations"]:
        record.pop("id", None)
    dataset = read_coco(write(content))
    assert dataset.annotation_ids[np.argsort(dataset.annotation_file_order)].tolist() == [1, 2, 3, 4, 5]


def test_dataset_survives_the_way_to_a_worker_process(write):
    dataset = read_coco(write(coco()))
    copied = pickle.loads(pickle.dumps(dataset))
    assert [bytes(raw) for raw in copied.raw_images] == [bytes(raw) for raw in dataset.raw_images]


def test_subset_rows(write):
    dataset = read_coco(write(coco()))
    assert dataset.subset_rows(np.array([41, 0, 30])).tolist() == [3, 0, 2]
    assert dataset.subset_rows(np.array([])).tolist() == []
    with pytest.raises(SelectionError, match=r"image_ids must be images of .*train.json, got 7, 99"):
        dataset.subset_rows(np.array([7, 12, 99]))
    with pytest.raises(SelectionError, match="image_ids must be unique, got 1 repeated"):
        dataset.subset_rows(np.array([12, 0, 12]))


def test_unreadable_files(tmp_path, write):
    assert "must be readable, got No such file or directory" in message(tmp_path / "absent.json")
    assert "must be readable, got Is a directory" in message(tmp_path)
    assert "got an empty file" in message(write(""))
    assert "got an empty file" in message(write(" \n"))


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ('{"images": [\n{"id": 1,}\n]}', "line 2, column 10"),
        ('{"images": [\n\n{"id": 1}', "got an end before the JSON is complete"),
        ('{"images": [],\n "annotations": [{"area": NaN}]}', "line 2, column 27); NaN and Infinity are not JSON"),
        ('{"images": [], "annotations": [{"area": -Infinity}]}', "NaN and Infinity are not JSON"),
        ('{"images": []}\n{"images": []}', "got trailing characters"),
        (b'{"info":\n"\xff"}', "got bytes that are not UTF-8"),
        (b'{"info":\n"\xff"}', "line 2, column 2"),
        ('{"info":' + "[" * 200_000, "too many nested lists"),
    ],
)
def test_broken_json_is_named_with_its_line(write, text, finding):
    assert finding in message(write(text))


def test_files_of_another_format(write):
    assert "must be a COCO object with images, annotations and categories, got array" in message(write("[]"))
    assert "got null" in message(write("null"))
    for key in ("images", "annotations", "categories"):
        content = coco()
        del content[key]
        assert f"must have the key '{key}', got the keys ['info'" in message(write(content))
        assert f"{key} must be a list, got object" in message(write({**coco(), key: {}}))


@pytest.mark.parametrize(
    ("part", "position", "change", "finding"),
    [
        ("images", 1, {"id": "0"}, "images[1].id must be an integer, got '0'"),
        ("images", 1, {"id": "0"}, "COCO ids are integers, not texts: number the records"),
        ("annotations", 2, {"image_id": "41"}, "annotations[2].image_id must be an integer, got '41'"),
        ("annotations", 2, {"category_id": 2.5}, "annotations[2].category_id must be an integer, got 2.5"),
        ("annotations", 2, {"image_id": 2**70}, "annotations[2].image_id must be an integer"),
        (
            "annotations",
            4,
            {"bbox": [1, 2, 3]},
            "bbox must be four finite numbers [x, y, width, height], got [1, 2, 3]",
        ),
        ("annotations", 4, {"bbox": [1, 2, 3, None]}, "annotations[4].bbox must be four finite numbers"),
        ("annotations", 4, {"bbox": None}, "annotations[4].bbox must be four finite numbers"),
        ("annotations", 4, {"bbox": None}, "image_id 12"),
        ("annotations", 0, {"area": -1}, "annotations[0].area must be a finite number of at least 0, got -1"),
        ("annotations", 0, {"iscrowd": 2}, "annotations[0].iscrowd must be 0 or 1, got 2"),
        ("images", 3, {"width": 0}, "images[3].width must be an integer above 0, got 0"),
        ("images", 3, {"height": None}, "images[3].height must be an integer above 0, got None"),
        ("images", 3, {"frame_index": -1}, "images[3].frame_index must be an integer of at least 0, got -1"),
        ("images", 3, {"file_name": 7}, "images[3].file_name must be a text, got 7"),
        ("categories", 2, {"name": None}, "categories[2].name must be a text, got None"),
        ("images", 2, {"id": 30}, "image ids must be unique, got 30 more than once"),
        ("categories", 1, {"id": 9}, "category ids must be unique, got 9 more than once"),
        ("categories", 1, {"name": "car"}, "category names must be unique, got 'car' twice"),
        (
            "annotations",
            3,
            {"image_id": 31},
            "annotations[3].image_id must be the id of one of the 4 image records, got 31",
        ),
        ("annotations", 3, {"image_id": 99}, "annotation id 3; 1 such annotations"),
        (
            "annotations",
            1,
            {"category_id": 3},
            "annotations[1].category_id must be the id of one of the 3 category records, got 3",
        ),
        ("annotations", 1, {"bbox": [1, 2, 0, 5]}, "annotations[1].bbox must have a width and a height above 0"),
        ("annotations", 1, {"bbox": [1, 2, 5, -3]}, "got [1.0, 2.0, 5.0, -3.0]"),
        ("annotations", 1, {"bbox": [1, 2, 1e-30, 3]}, "must have a width and a height above 0"),
        ("annotations", 1, {"bbox": [1e308, 2, 1e308, 3]}, "must have a width and a height above 0"),
    ],
)
def test_wrong_records_are_named(write, part, position, change, finding):
    content = coco()
    content[part][position].update(change)
    assert finding in message(write(content))


def test_numbers_out_of_range(write):
    text = json.dumps(coco()).replace("[5, 6, 7, 8]", "[5, 6, 1e999, 8]")
    assert "annotations[2].bbox must be four finite numbers [x, y, width, height], got [5, 6, inf, 8]" in message(
        write(text)
    )


def test_missing_fields_and_records(write):
    content = coco()
    del content["annotations"][2]["bbox"]
    assert "annotations[2] must have the field 'bbox', got none" in message(write(content))
    assert "images[0] must be an object, got 3" in message(write({**coco(), "images": [3]}))
    assert "must have at least one image, got none" in message(write({**coco(), "images": [], "annotations": []}))
    assert "must have at least one category" in message(write({**coco(), "categories": [], "annotations": []}))


def test_check_images(tmp_path, write):
    dataset = read_coco(write(coco()))
    root = tmp_path / "images"
    with pytest.raises(DatasetError, match="image_root must be a directory"):
        check_images(dataset, root)
    (root / "sub").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"4 of 4 missing: a\.jpg, sub/b\.jpg, c\.jpg, …"):
        check_images(dataset, root)
    for name in dataset.file_names[1:]:
        (root / name).touch()
    with pytest.raises(DatasetError, match=r"1 of 4 missing: a\.jpg \("):
        check_images(dataset, root)
    (root / "a.jpg").touch()
    check_images(dataset, root)


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        ("/etc/passwd", True),
        ("../a.jpg", True),
        ("sub/../../a.jpg", True),
        ("..", True),
        ("sub/../d.jpg", False),
        ("..d.jpg", False),
        ("", False),
        ("x" * 5_000, False),
        ("nul\0.jpg", False),
    ],
)
def test_file_names_stay_inside_the_root(tmp_path, write, name, outside):
    content = coco()
    content["images"][3]["file_name"] = name
    dataset = read_coco(write(content))
    finding = "must be relative and stay inside the image root, got 1" if outside else "missing"
    with pytest.raises(DatasetError, match=finding):
        check_images(dataset, tmp_path)


def test_camvid(camvid):
    pool = read_coco(camvid / "train.json")
    assert (len(pool), pool.num_boxes) == (530, 6_778)
    assert pool.class_names == ("car", "pedestrian", "bicyclist", "signsymbol")
    assert set(pool.sequences) == {"0016E5", "0006R0", "0001TP"}
    text = json.loads((camvid / "train.json").read_text(encoding="utf-8"))
    assert pool.boxes_per_image.sum() == len(text["annotations"])
    by_id = {record["id"]: record for record in text["annotations"]}
    for row in range(0, pool.num_boxes, 97):
        record = by_id[int(pool.annotation_ids[row])]
        assert pool.image_ids[pool.image_index[row]] == record["image_id"]
        assert pool.category_ids[pool.class_index[row]] == record["category_id"]
        x, y, width, height = record["bbox"]
        assert pool.boxes[row].tolist() == [x, y, x + width, y + height]
    check_images(pool, camvid / "images")
    evaluation = read_coco(camvid / "val.json")
    assert (len(evaluation), evaluation.num_boxes) == (171, 2_143)
