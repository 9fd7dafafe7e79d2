"""Reading COCO: hand-made files of 4 images, 3 classes and 5 boxes, in an order that is not that of the ids."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from detcurate.coco.dataset import inspect_coco, read_coco
from detcurate.coco.image_files import examine_images
from detcurate.coco.metadata import image_metadata
from detcurate.errors import ConfigError, DatasetError, SelectionError


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


def message(path, policies=None):
    with pytest.raises(DatasetError) as caught:
        read_coco(path, policies or {})
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
    assert dataset.image_positions.tolist() == [1, 2, 0, 3]
    assert dataset.annotation_positions.tolist() == [1, 4, 3, 0, 2]
    assert dataset.boxes_per_image.tolist() == [0, 2, 1, 2]
    assert dataset.class_counts().tolist() == [2, 1, 2]


def test_dtypes(write):
    dataset = read_coco(write(coco()))
    for name in ("image_ids", "widths", "heights", "frame_index", "category_ids", "annotation_ids", "image_index"):
        assert getattr(dataset, name).dtype == np.int64, name
    assert dataset.class_index.dtype == dataset.annotation_positions.dtype == dataset.image_positions.dtype == np.int64
    assert dataset.boxes.dtype == dataset.areas.dtype == np.float64
    assert dataset.iscrowd.dtype == bool


def test_records_are_aligned_with_the_columns(write):
    dataset = read_coco(write(coco()))
    images, annotations = dataset.open()
    assert (images.name, annotations.name) == ("images", "annotations")
    assert [json.loads(images[position])["id"] for position in dataset.image_positions] == dataset.image_ids.tolist()
    boxes = [json.loads(annotations[position])["bbox"] for position in dataset.annotation_positions]
    assert [box[:2] for box in boxes] == dataset.boxes[:, :2].tolist()


def test_the_rest_of_the_file_is_kept_as_text(write):
    text = (
        json.dumps(coco())
        .replace('{"year": 2024}', '{"year" : 2.0240e3 }')
        .replace(', "categories"', ', "z": null, "categories"')
    )
    rest = read_coco(write(text)).other_top_level
    assert list(rest) == ["info", "images", "annotations", "z", "categories"]
    assert (rest["info"], rest["images"], rest["annotations"], rest["z"]) == (
        b'{"year" : 2.0240e3 }',
        b"",
        b"",
        b"null",
    )
    assert json.loads(rest["categories"]) == coco()["categories"]


def test_more_annotations_than_one_block(write):
    content = coco()
    content["annotations"] = [
        {"id": number, "image_id": 12, "category_id": 2, "bbox": [number, 0, 1, 1]} for number in range(70_001)
    ]
    content["images"][2]["width"] = 100_000
    dataset = read_coco(write(content))
    assert dataset.boxes[:, 0].tolist() == list(range(70_001))
    content["annotations"][70_000]["bbox"] = "none"
    assert "annotations[70000].bbox must be four finite numbers" in message(write(content))
    dataset = read_coco(write(content), {"invalid_box": "repair"})
    assert dataset.annotation_positions.tolist() == list(range(70_000))


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
    assert dataset.annotation_ids[np.argsort(dataset.annotation_positions)].tolist() == [1, 2, 3, 4, 5]


def test_dataset_survives_the_way_to_a_worker_process(write):
    dataset = read_coco(write(coco()))
    copied = pickle.loads(pickle.dumps(dataset))
    for records, same in zip(copied.open(), dataset.open(), strict=True):
        assert [records[at] for at in range(len(records))] == [same[at] for at in range(len(same))]
    assert copied.image_positions.tolist() == dataset.image_positions.tolist()


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
        ("images", 1, {"id": None}, "images[1].id must be an integer or a text, got None"),
        ("images", 1, {"id": True}, "images[1].id must be an integer or a text, got True"),
        ("annotations", 2, {"image_id": [41]}, "annotations[2].image_id must be an integer or a text, got [41]"),
        ("annotations", 2, {"category_id": 2.5}, "annotations[2].category_id must be an integer or a text, got 2.5"),
        ("annotations", 2, {"id": 1.5}, "annotations[2].id must be an integer or a text, got 1.5 (image_id 41)"),
        ("annotations", 2, {"image_id": 2**70}, "annotations[2].image_id must be the id of one of the 4 image records"),
        ("annotations", 2, {"image_id": 2**70}, f"got {2**70}"),
        ("annotations", 2, {"image_id": "drive"}, "must be the id of one of the 4 image records, got drive"),
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
        ("annotations", 3, {"image_id": 99}, "got 99 (annotation id 3)"),
        (
            "annotations",
            1,
            {"category_id": 3},
            "annotations[1].category_id must be the id of one of the 3 category records, got 3",
        ),
        ("annotations", 1, {"bbox": [1, 2, 0, 5]}, "annotations[1].bbox must have a width and a height above 0"),
        ("annotations", 1, {"bbox": [1, 2, 5, -3]}, "got [1, 2, 5, -3] (image_id 12)"),
        ("annotations", 1, {"bbox": [1, 2, 1e-30, 3]}, "must have a width and a height above 0"),
        ("annotations", 1, {"bbox": [1e308, 2, 1e308, 3]}, "must have a width and a height above 0"),
        ("annotations", 1, {"bbox": [0, 0, 1e200, 1e200]}, "must have a width and a height above 0"),
    ],
)
def test_wrong_records_are_named(write, part, position, change, finding):
    content = coco()
    content[part][position].update(change)
    assert finding in message(write(content))


def test_numbers_out_of_range(write):
    text = json.dumps(coco()).replace("[5, 6, 7, 8]", "[5, 6, 1e999, 8]")
    assert "annotations[2].bbox must be four finite numbers [x, y, width, height], got [5, 6, Infinity, 8]" in message(
        write(text)
    )


def test_missing_fields_and_records(write):
    content = coco()
    del content["annotations"][2]["bbox"]
    assert "annotations[2] must have the field 'bbox', got none" in message(write(content))
    assert "images[0] must be an object, got 3" in message(write({**coco(), "images": [3]}))
    assert "must have at least one image, got none" in message(write({**coco(), "images": [], "annotations": []}))
    assert "must have at least one category" in message(write({**coco(), "categories": [], "annotations": []}))


def test_a_number_of_thousands_of_digits_is_named_like_any_other(write):
    text, digits = json.dumps(coco()), "9" * 5_000
    assert "images[1].id must be an integer or a text, got '999" in message(
        write(text.replace('"id": 0', f'"id": {digits}', 1))
    )
    text = text.replace('"area": 11.5', f'"area": 11.5, "track": {digits}')
    assert read_coco(write(text)).num_boxes == 5
    assert "annotations[0].iscrowd must be 0 or 1, got 3" in message(
        write(text.replace('"iscrowd": 1', '"iscrowd": 3'))
    )


def test_each_record_that_is_dropped_is_reported_once(write):
    content = coco()
    content["annotations"][1].update(image_id=99, category_id=99, bbox=[0, 0, 0, 0])
    dataset, findings = inspect_coco(write(content))
    assert [(finding.code, finding.count) for finding in findings if finding.policy == "error"] == [
        ("unknown_image", 1)
    ]
    assert dataset.annotation_positions.tolist() == [4, 3, 0, 2]


def test_all_errors_are_named_at_once(write):
    content = coco()
    content["annotations"][1]["bbox"] = None
    content["annotations"][2]["category_id"] = 3
    content["images"][1]["file_name"] = "/a.jpg"
    text = message(write(content))
    assert text.startswith("3 kinds of findings stop the reading of ")
    assert [line.strip().split(" ")[0] for line in text.splitlines()[1:]] == [
        "annotations[2].category_id",
        "annotations[1].bbox",
        "images[1].file_name",
    ]


def test_unknown_policies(write):
    path = write(coco())
    with pytest.raises(ConfigError, match="a policy must be of a known finding"):
        read_coco(path, {"bad_box": "repair"})
    with pytest.raises(ConfigError, match="the policy of invalid_box must be one of error, repair"):
        read_coco(path, {"invalid_box": "warn"})


class TestTextIds:
    """Texts get the smallest numbers that are free, in the order of the alphabet; texts of digits are their number."""

    def content(self):
        content = coco()
        for record, name in zip(content["images"], ("b", "a", 2, "41"), strict=True):
            record["id"] = name
        for record, name in zip(content["annotations"], ("41", "a", 41, "b", "2"), strict=True):
            record["image_id"] = name
        return content

    def test_by_hand(self, write):
        dataset = read_coco(write(self.content()))
        assert dataset.image_ids.tolist() == [1, 2, 3, 41]
        assert dataset.file_names == ("a.jpg", "sub/b.jpg", "c.jpg", "d.jpg")
        assert dict(dataset.text_ids) == {1: "a", 3: "b"}
        assert [dataset.original_id(row) for row in range(4)] == ["a", 2, "b", 41]
        assert dataset.annotation_positions.tolist() == [1, 4, 3, 0, 2]
        assert dataset.image_index.tolist() == [0, 1, 2, 3, 3]
        [finding] = [finding for finding in dataset.findings if finding.code == "string_id"]
        assert (finding.policy, finding.count) == ("repair", 7)
        assert finding.examples[0] == "images[0].id must be an integer of 64 bits, got 'b'"

    def test_category_and_annotation_ids(self, write):
        content = coco()
        for record, name in zip(content["categories"], ("c", "p", "5"), strict=True):
            record["id"] = name
        for record, name in zip(content["annotations"], ("c", "p", "p", "c", 5), strict=True):
            record["category_id"] = name
        content["annotations"][1]["id"] = "x"
        dataset = read_coco(write(content))
        assert dataset.category_ids.tolist() == [1, 2, 5]
        assert dataset.class_names == ("car", "person", "bike")
        assert dataset.class_index.tolist() == [1, 2, 0, 0, 1]
        # 0 and 3 are taken, "x" is the first that is free; the two without an id are numbered on.
        assert dataset.annotation_ids.tolist() == [1, 5, 3, 0, 4]

    def test_a_missing_id_is_not_a_text(self, write):
        content = coco()
        content["annotations"][4]["id"] = None
        found = {finding.code: finding.count for finding in read_coco(write(content)).findings}
        assert found["missing_id"] == 2
        assert "string_id" not in found

    def test_numbers_of_more_than_64_bits(self, write):
        content = coco()
        content["images"][1]["id"], content["images"][3]["id"] = -(2**63), 2**64
        for record in content["annotations"]:
            if record["image_id"] == 41:
                record["image_id"] = 2**64
        dataset = read_coco(write(content))
        assert dataset.image_ids.tolist() == [1, 2, 12, 30]
        assert dataset.file_names[:2] == ("a.jpg", "d.jpg")
        assert dataset.image_index.tolist() == [1, 1, 2, 2, 3]
        content["annotations"][0]["image_id"] = "none"  # must not become the image with the lowest of all ids
        assert "annotations[0].image_id must be the id of one of the 4 image records, got none" in message(
            write(content)
        )

    def test_the_lowest_of_all_numbers_is_no_image(self, write):
        content = coco()
        content["images"][1]["id"] = -(2**63)
        content["annotations"][1]["image_id"] = -(2**63)
        dataset = read_coco(write(content))
        assert dataset.image_ids.tolist() == [1, 12, 30, 41]
        assert dataset.image_index.tolist() == [0, 1, 2, 3, 3]
        content["annotations"][0]["image_id"] = "none"
        assert "annotations[0].image_id must be the id of one of the 4 image records, got none" in message(
            write(content)
        )

    @pytest.mark.parametrize("others", [41, "41"])
    def test_the_number_of_a_text_is_no_id_of_the_file(self, write, others):
        """Image "a" is 1 inside; an annotation on image 1, which the file does not have, must not become one of "a"."""
        content = self.content()
        content["annotations"][1]["image_id"] = 1
        for at in (0, 2, 3, 4):
            content["annotations"][at]["image_id"] = others
        assert "image_id must be the id of one of the 4 image records, got 1 " in message(write(content))
        content["annotations"][1]["image_id"] = "1"
        assert "image_id must be the id of one of the 4 image records, got 1 " in message(write(content))
        content["annotations"][1]["image_id"] = "a"
        assert read_coco(write(content)).image_index.tolist() == [0, 3, 3, 3, 3]

    def test_a_long_text_among_many_records(self, write):
        content = {**coco(), "annotations": []}
        content["images"] += [{**content["images"][0], "id": 1_000 + number} for number in range(5_000)]
        content["images"][0]["id"] = "x" * 2_000_000
        assert len(read_coco(write(content))) == 5_004

    def test_as_errors(self, write):
        path = write(self.content())
        assert "images[0].id must be an integer of 64 bits, got 'b'" in message(path, {"string_id": "error"})
        assert "and 6 more such records); number the records, or set string_id=repair" in message(
            path, {"string_id": "error"}
        )


@pytest.mark.parametrize(
    ("name", "start"),
    [
        (
            "/etc/passwd",
            "images[3].file_name must be relative and stay inside the image root, got '/etc/passwd' (id 41)",
        ),
        ("C:\\a.jpg", "images[3].file_name must be relative and stay inside the image root, got 'C:"),
        ("../a.jpg", "images[3].file_name must be relative and stay inside the image root, got '../a.jpg' (id 41)"),
        ("sub/../../a.jpg", "images[3].file_name must be relative and stay inside the image root"),
        ("..", "images[3].file_name must be relative and stay inside the image root"),
        ("sub/../d.jpg", None),
        ("..d.jpg", None),
        ("", None),
        ("x" * 5_000, None),
        ("nul\0.jpg", None),
    ],
)
def test_file_names_stay_inside_the_root(write, name, start):
    content = coco()
    content["images"][3]["file_name"] = name
    if start is None:
        assert read_coco(write(content)).file_names[3] == name
    else:
        assert message(write(content)).startswith(start)


class TestImageMetadata:
    def test_by_hand(self, write):
        content = coco()
        content["images"][0].update(weather={"rain": 1.5, "fog": None, "kind": {"wet": True}}, tags=["a"], city="Ulm")
        content["images"][3].update(city="Bonn", weather="dry", id2=0)
        columns = image_metadata(read_coco(write(content)))
        assert list(columns) == ["city", "id2", "weather", "weather.kind.wet", "weather.rain"]
        assert columns["city"] == [None, None, "Ulm", "Bonn"]
        assert columns["weather"] == [None, None, None, "dry"]
        assert columns["weather.rain"] == [None, None, 1.5, None]
        assert columns["weather.kind.wet"] == [None, None, True, None]
        assert columns["id2"] == [None, None, None, 0]

    def test_none(self, write):
        assert image_metadata(read_coco(write(coco()))) == {}

    def test_numbers_that_have_no_room(self, write):
        text = json.dumps(coco()).replace(
            '"file_name": "d.jpg"', '"file_name": "d.jpg", "x": 1e999, "y": ' + "9" * 5_000
        )
        columns = image_metadata(read_coco(write(text)))
        assert columns == {"x": [None, None, None, np.inf], "y": [None, None, None, "9" * 5_000]}

    def test_a_record_that_is_left_out_is_not_read(self, write):
        content = coco()
        content["images"][1] = {"city": "Ulm"}
        content["images"][2] = 3
        content["annotations"] = []
        dataset = read_coco(write(content), {"malformed_record": "repair"})
        assert dataset.image_ids.tolist() == [30, 41]
        assert image_metadata(dataset) == {}


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
    assert examine_images(pool, camvid / "images", num_processes=1, desc="look") == []
    evaluation = read_coco(camvid / "val.json")
    assert (len(evaluation), evaluation.num_boxes) == (171, 2_143)
