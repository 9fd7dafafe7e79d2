"""Columns of a COCO file: 4 images, 3 classes and 5 boxes, in an order that is not that of the ids."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from detcurate.coco.dataset import image_labels, image_metadata, read_coco
from detcurate.coco.image_files import examine_images
from detcurate.errors import DatasetError, SelectionError
from detcurate.structures.boxes import xywh_to_xyxy


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


def test_read_coco_columns_by_hand(write):
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
    # By image, within one as in the file; the two without an id get numbers above the highest, 8.
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


def test_read_coco_columns_have_documented_dtypes(write):
    dataset = read_coco(write(coco()))
    for name in ("image_ids", "widths", "heights", "frame_index", "category_ids", "annotation_ids", "image_index"):
        assert getattr(dataset, name).dtype == np.int64, name
    assert dataset.class_index.dtype == dataset.annotation_positions.dtype == dataset.image_positions.dtype == np.int64
    assert dataset.boxes.dtype == dataset.areas.dtype == np.float64
    assert dataset.iscrowd.dtype == bool


def test_open_returns_records_aligned_with_columns(write):
    dataset = read_coco(write(coco()))
    images, annotations = dataset.open()
    assert (images.name, annotations.name) == ("images", "annotations")
    assert [json.loads(images[position])["id"] for position in dataset.image_positions] == dataset.image_ids.tolist()
    boxes = [json.loads(annotations[position])["bbox"] for position in dataset.annotation_positions]
    assert [box[:2] for box in boxes] == dataset.boxes[:, :2].tolist()


def test_other_top_level_keeps_the_text_of_other_keys(write):
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


def test_read_coco_reads_more_annotations_than_one_block(write):
    content = coco()
    content["annotations"] = [
        {"id": number, "image_id": 12, "category_id": 2, "bbox": [number, 0, 1, 1]} for number in range(70_001)
    ]
    content["images"][2]["width"] = 100_000
    dataset = read_coco(write(content))
    assert dataset.boxes[:, 0].tolist() == list(range(70_001))
    content["annotations"][70_000]["bbox"] = "none"
    assert "annotations[70000].bbox" in message(write(content))
    dataset = read_coco(write(content), {"invalid_box": "repair"})
    assert dataset.annotation_positions.tolist() == list(range(70_000))


def test_read_coco_of_no_annotations_has_empty_columns(write):
    dataset = read_coco(write({**coco(), "annotations": []}))
    assert dataset.boxes.shape == (0, 4)
    assert dataset.boxes_per_image.tolist() == [0, 0, 0, 0]
    assert dataset.class_counts().tolist() == [0, 0, 0]


def test_repeated_annotation_ids_are_kept(write):
    content = coco()
    content["annotations"][3]["id"] = 8
    assert read_coco(write(content)).annotation_ids.tolist() == [8, 10, 8, 0, 9]


def test_annotations_without_ids_are_numbered_from_one(write):
    content = coco()
    for record in content["annotations"]:
        record.pop("id", None)
    dataset = read_coco(write(content))
    assert dataset.annotation_ids[np.argsort(dataset.annotation_positions)].tolist() == [1, 2, 3, 4, 5]


def test_dataset_can_be_pickled(write):
    dataset = read_coco(write(coco()))
    copied = pickle.loads(pickle.dumps(dataset))
    for records, same in zip(copied.open(), dataset.open(), strict=True):
        assert [records[at] for at in range(len(records))] == [same[at] for at in range(len(same))]
    assert copied.image_positions.tolist() == dataset.image_positions.tolist()


def test_subset_rows_are_in_the_order_given(write):
    dataset = read_coco(write(coco()))
    assert dataset.subset_rows(np.array([41, 0, 30])).tolist() == [3, 0, 2]
    assert dataset.subset_rows(np.array([])).tolist() == []
    with pytest.raises(SelectionError, match=r"image_ids: .*train.json .*7, 99"):
        dataset.subset_rows(np.array([7, 12, 99]))
    with pytest.raises(SelectionError, match="image_ids: .* 1 repeated"):
        dataset.subset_rows(np.array([12, 0, 12]))


class TestTextIds:
    """Texts get the smallest unused numbers in alphabetical order; texts of digits are that number."""

    def content(self):
        content = coco()
        for record, name in zip(content["images"], ("b", "a", 2, "41"), strict=True):
            record["id"] = name
        for record, name in zip(content["annotations"], ("41", "a", 41, "b", "2"), strict=True):
            record["image_id"] = name
        return content

    def test_text_image_ids_by_hand(self, write):
        dataset = read_coco(write(self.content()))
        assert dataset.image_ids.tolist() == [1, 2, 3, 41]
        assert dataset.file_names == ("a.jpg", "sub/b.jpg", "c.jpg", "d.jpg")
        assert dict(dataset.text_ids) == {1: "a", 3: "b"}
        assert [dataset.original_id(row) for row in range(4)] == ["a", 2, "b", 41]
        assert dataset.annotation_positions.tolist() == [1, 4, 3, 0, 2]
        assert dataset.image_index.tolist() == [0, 1, 2, 3, 3]
        [finding] = [finding for finding in dataset.findings if finding.code == "string_id"]
        assert (finding.policy, finding.count) == ("repair", 7)
        assert finding.examples[0].startswith("images[0].id: ")

    def test_text_category_and_annotation_ids_by_hand(self, write):
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
        # 0 and 3 are used, "x" is the first unused number; the two without an id get numbers above.
        assert dataset.annotation_ids.tolist() == [1, 5, 3, 0, 4]

    def test_missing_id_is_not_reported_as_text(self, write):
        content = coco()
        content["annotations"][4]["id"] = None
        found = {finding.code: finding.count for finding in read_coco(write(content)).findings}
        assert found["missing_id"] == 2
        assert "string_id" not in found

    def test_ids_beyond_64_bits_count_as_texts(self, write):
        content = coco()
        content["images"][1]["id"], content["images"][3]["id"] = -(2**63), 2**64
        for record in content["annotations"]:
            if record["image_id"] == 41:
                record["image_id"] = 2**64
        dataset = read_coco(write(content))
        assert dataset.image_ids.tolist() == [1, 2, 12, 30]
        assert dataset.file_names[:2] == ("a.jpg", "d.jpg")
        assert dataset.image_index.tolist() == [1, 1, 2, 2, 3]
        content["annotations"][0]["image_id"] = "none"  # must not become the image with the lowest id
        assert "annotations[0].image_id: no such image (got none" in message(write(content))

    def test_lowest_64_bit_id_is_not_the_absent_id(self, write):
        content = coco()
        content["images"][1]["id"] = -(2**63)
        content["annotations"][1]["image_id"] = -(2**63)
        dataset = read_coco(write(content))
        assert dataset.image_ids.tolist() == [1, 12, 30, 41]
        assert dataset.image_index.tolist() == [0, 1, 2, 3, 3]
        content["annotations"][0]["image_id"] = "none"
        assert "annotations[0].image_id: no such image (got none" in message(write(content))

    @pytest.mark.parametrize("others", [41, "41"])
    def test_number_assigned_to_a_text_is_no_id_of_the_file(self, write, others):
        """Image "a" is numbered 1; an annotation of image 1, which is not in the file, must not become one of "a"."""
        content = self.content()
        content["annotations"][1]["image_id"] = 1
        for at in (0, 2, 3, 4):
            content["annotations"][at]["image_id"] = others
        assert "annotations[1].image_id: no such image (got 1," in message(write(content))
        content["annotations"][1]["image_id"] = "1"
        assert "annotations[1].image_id: no such image (got 1," in message(write(content))
        content["annotations"][1]["image_id"] = "a"
        assert read_coco(write(content)).image_index.tolist() == [0, 3, 3, 3, 3]

    def test_very_long_text_id_is_read(self, write):
        content = {**coco(), "annotations": []}
        content["images"] += [{**content["images"][0], "id": 1_000 + number} for number in range(5_000)]
        content["images"][0]["id"] = "x" * 2_000_000
        assert len(read_coco(write(content))) == 5_004


class TestImageMetadata:
    def test_image_metadata_by_hand(self, write):
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

    def test_image_metadata_of_plain_records_is_empty(self, write):
        assert image_metadata(read_coco(write(coco()))) == {}

    def test_image_metadata_keeps_numbers_beyond_64_bits(self, write):
        text = json.dumps(coco()).replace(
            '"file_name": "d.jpg"', '"file_name": "d.jpg", "x": 1e999, "y": ' + "9" * 5_000
        )
        columns = image_metadata(read_coco(write(text)))
        assert columns == {"x": [None, None, None, np.inf], "y": [None, None, None, "9" * 5_000]}

    def test_image_metadata_skips_dropped_records(self, write):
        content = coco()
        content["images"][1] = {"city": "Ulm"}
        content["images"][2] = 3
        content["annotations"] = []
        dataset = read_coco(write(content), {"malformed_record": "repair"})
        assert dataset.image_ids.tolist() == [30, 41]
        assert image_metadata(dataset) == {}


class TestImageLabels:
    """11 images with up to 5 boxes, some of them without any, in no order."""

    IMAGE_IDS = (50, 3, 17, 8, 21, 90, 4, 33, 12, 60, 7)
    CATEGORIES = (9, 2, 5, 40)

    @pytest.fixture
    def annotations(self):
        rng = np.random.default_rng(0)
        return [
            {
                "id": number * 3,
                "image_id": int(image_id),
                "category_id": int(rng.choice(self.CATEGORIES)),
                "bbox": rng.uniform(1, 20, 4).round(2).tolist(),
                "iscrowd": int(rng.random() < 0.3),
            }
            for number, image_id in enumerate(rng.choice(self.IMAGE_IDS[:8], 23))
        ]

    @pytest.fixture
    def dataset(self, annotations, tmp_path):
        path = tmp_path / "train.json"
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in self.IMAGE_IDS]
        categories = [{"id": i, "name": f"kind {i}"} for i in self.CATEGORIES]
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return read_coco(path)

    @pytest.mark.parametrize("image_ids", [[3], [12, 7], [90, 3, 60, 50, 8], IMAGE_IDS, sorted(IMAGE_IDS), []])
    def test_image_labels_equal_a_loop(self, dataset, annotations, image_ids):
        labels = image_labels(dataset, np.array(image_ids, np.int64))
        rows = [record for image_id in image_ids for record in annotations if record["image_id"] == image_id]
        assert labels.image_ids.tolist() == [record["image_id"] for record in rows]
        assert labels.annotation_ids.tolist() == [record["id"] for record in rows]
        assert labels.class_index.tolist() == [sorted(self.CATEGORIES).index(one["category_id"]) for one in rows]
        assert labels.iscrowd.tolist() == [bool(record["iscrowd"]) for record in rows]
        assert labels.iscrowd.dtype == bool
        boxes = np.array([record["bbox"] for record in rows]).reshape(-1, 4)
        np.testing.assert_allclose(labels.boxes, xywh_to_xyxy(boxes))

    @pytest.mark.parametrize(("image_ids", "shown"), [([3, 99], "99"), ([3, 8, 3], "1 repeated")])
    def test_image_labels_refuse_unknown_and_repeated_ids(self, dataset, image_ids, shown):
        with pytest.raises(SelectionError, match=f"image_ids: .*{shown}"):
            image_labels(dataset, np.array(image_ids))


def test_camvid_columns_equal_its_records(camvid):
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
