"""The files of each export format by hand, and names of every kind."""

import json
import os
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml
from helpers import REPOSITORY
from helpers.export_content import (
    HARD_NAMES,
    NAMES,
    content,
    file_name,
    label_errors,
    pool_json,
    row_of_image,
    write_pool,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detcurate.coco.dataset import read_coco
from detcurate.errors import DatasetError
from detcurate.interop.corrections.readers import read_corrected
from detcurate.interop.export.content import Content, queue_rows
from detcurate.interop.export.cvat import write_cvat
from detcurate.interop.export.fiftyone import write_fiftyone
from detcurate.interop.export.formats import FORMATS, Options, write_export
from detcurate.interop.export.label_studio import write_label_studio
from detcurate.interop.export.relabel_queue import label_error_records
from detcurate.interop.export.yolo import image_name, label_name, write_yolo


def relative_files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_content_images_by_hand(tmp_path):
    first, second = content(tmp_path).images()
    assert (first.file_name, first.image_id, first.width, first.height) == ("12.png", 12, 63, 47)
    assert [label.annotation_id for label in first.labels] == [102, 105]
    assert [len(label.label_errors) for label in first.labels] == [1, 0]
    assert (second.file_name, second.image_id) == ("cam 1/deep/41.png", 41)
    assert [label.annotation_id for label in second.labels] == [101, 103]  # 106 is a crowd region
    assert [label_error.kind for label_error in second.label_errors] == ["missing_label", "inaccurate_box"]


def test_content_labels_are_clipped_to_image(tmp_path):
    pool = write_pool(tmp_path)
    (image,) = Content(pool, tmp_path, (), np.array([row_of_image(pool, 7)])).images()
    assert image.labels[0].box == (50, 30, 62, 40)  # 62.75 in the file, on an image of 62


# CVAT


def test_write_cvat_by_hand(tmp_path):
    found = content(tmp_path)
    annotations, labels = write_cvat(tmp_path / "out", found)
    root = ET.parse(annotations).getroot()
    assert root.tag == "annotations"
    assert root.findtext("version") == "1.1"
    names = [element.text for element in root.findall("meta/task/labels/label/name")]
    assert names == ["person", "bike", "car", "bus"]
    images = root.findall("image")
    assert [dict(image.attrib) for image in images] == [
        {"id": "0", "name": "12.png", "width": "63", "height": "47"},
        {"id": "1", "name": "cam 1/deep/41.png", "width": "65", "height": "49"},
    ]
    boxes = [
        (box.get("label"), *(box.get(side) for side in ("xtl", "ytl", "xbr", "ybr")),
         {attribute.get("name"): attribute.text or "" for attribute in box})
        for box in images[1]
    ]  # fmt: skip
    assert boxes == [
        ("car", "1.50", "5.00", "12.00", "17.00",
         {"annotation_id": "101", "label_error": "inaccurate_box 0.25: car by 3 of 6", "proposal": "false"}),
        ("person", "30.25", "5.00", "40.75", "17.00",
         {"annotation_id": "103", "label_error": "", "proposal": "false"}),
        ("bus", "50.00", "6.50", "60.50", "20.00",
         {"annotation_id": "", "label_error": "missing_label 0.50: bus by 4 of 6", "proposal": "true"}),
        ("car", "4.00", "8.00", "12.00", "20.25",
         {"annotation_id": "", "label_error": "inaccurate_box 0.25: car by 3 of 6", "proposal": "true"}),
    ]  # fmt: skip
    wrong_class = images[0][0].findall("attribute")
    assert wrong_class[1].text == "wrong_class 0.88: bike by 5 of 6"
    assert len(images[0]) == 2  # a wrong class is named in the attribute, without a second box
    specified = json.loads(labels.read_text())
    assert [label["name"] for label in specified] == names
    assert [attribute["name"] for attribute in specified[0]["attributes"]] == [
        "annotation_id",
        "label_error",
        "proposal",
    ]


@pytest.mark.parametrize("writer", [write_cvat, write_label_studio])
def test_write_class_name_not_allowed_in_xml_raises(tmp_path, writer):
    found = content(tmp_path, names={**NAMES, 9: "ca\x02r"})
    with pytest.raises(DatasetError, match=r"train\.json.*class name.*'ca\\x02r'"):
        writer(tmp_path / "out", found)


# Label Studio


def test_write_label_studio_by_hand(tmp_path):
    tasks_file, config = write_label_studio(tmp_path / "out", content(tmp_path), url="https://images/?f=")
    first, second = json.loads(tasks_file.read_text())
    assert second["data"] == {
        "image": "https://images/?f=cam%201/deep/41.png",
        "file_name": "cam 1/deep/41.png",
        "image_id": 41,
        "label_error": "missing_label 0.50: bus by 4 of 6",
    }
    (annotation,) = second["annotations"]
    assert [region["id"] for region in annotation["result"]] == ["annotation-101#0", "annotation-103#1"]
    region = annotation["result"][0]
    value = region["value"]
    assert value["rectanglelabels"] == ["car"]
    assert [value[key] for key in ("x", "y", "width", "height")] == pytest.approx(
        [150 / 65, 500 / 49, 1050 / 65, 1200 / 49]
    )
    assert (region["original_width"], region["original_height"]) == (65, 49)
    assert region["meta"] == {"text": ["inaccurate_box 0.25: car by 3 of 6"]}
    (prediction,) = second["predictions"]
    assert prediction["score"] == 0.5
    assert [(seen["score"], seen["value"]["rectanglelabels"]) for seen in prediction["result"]] == [
        (0.625, ["bus"]), (0.5, ["car"])
    ]  # fmt: skip
    assert first["predictions"][0]["result"][0]["value"]["rectanglelabels"] == ["bike"]
    view = ET.parse(config).getroot()
    assert view.find("Header").get("value").removeprefix("$") in second["data"]
    assert [label.get("value") for label in view.iter("Label")] == ["person", "bike", "car", "bus"]


# FiftyOne


def test_write_fiftyone_by_hand(tmp_path):
    labels, errors = write_fiftyone(tmp_path / "out", content(tmp_path))
    value, source = json.loads(labels.read_text()), pool_json()
    assert value["annotations"] == [record for record in source["annotations"] if record["image_id"] in (12, 41)]
    seen = json.loads(errors.read_text())
    assert seen["categories"] == sorted(source["categories"], key=lambda record: record["id"])
    assert [image["id"] for image in seen["images"]] == [12, 41]
    assert [(record["image_id"], record["kind"], record["category_id"]) for record in seen["annotations"]] == [
        (12, "wrong_class", 5), (41, "missing_label", 11), (41, "inaccurate_box", 9)
    ]  # fmt: skip


# YOLO


def test_write_yolo_by_hand(tmp_path):
    found = content(tmp_path)
    pool = found.dataset
    val = Content(pool, found.image_root, (), np.array([row_of_image(pool, 7), row_of_image(pool, 9)]))
    (data,) = write_export("yolo", tmp_path / "out", {"train": found, "val": val}, Options(images="link"))
    assert yaml.safe_load(data.read_text()) == {
        "train": "images/train", "val": "images/val", "names": {0: "person", 1: "bike", 2: "car", 3: "bus"}
    }  # fmt: skip
    assert relative_files(tmp_path / "out") == [
        "data.yaml",
        "images/train/12.png",
        "images/train/cam 1/deep/41.png",
        "images/val/7.png",
        "images/val/9.png",
        "labels/train/12.txt",
        "labels/train/cam 1/deep/41.txt",
        "labels/val/7.txt",
        "labels/val/9.txt",
        "predictions/train/12.txt",
        "predictions/train/cam 1/deep/41.txt",
    ]
    rows = np.loadtxt(tmp_path / "out" / "labels/train/cam 1/deep/41.txt")
    assert rows.tolist() == [
        pytest.approx([2, 6.75 / 65, 11 / 49, 10.5 / 65, 12 / 49], abs=1e-7),
        pytest.approx([0, 35.5 / 65, 11 / 49, 10.5 / 65, 12 / 49], abs=1e-7),
    ]
    assert (tmp_path / "out" / "labels/val/9.txt").read_text() == ""  # an image without objects has an empty file
    seen = np.loadtxt(tmp_path / "out" / "predictions/train/cam 1/deep/41.txt")
    assert seen[:, [0, 5]].tolist() == [[3, 0.625], [2, 0.5]]
    same = (found.image_root / "12.png").read_bytes()
    assert (tmp_path / "out" / "images/train/12.png").read_bytes() == same


def test_write_yolo_without_val_has_comment(tmp_path):
    write_yolo(tmp_path / "out", {"train": content(tmp_path)})
    text = (tmp_path / "out" / "data.yaml").read_text()
    assert text.startswith("# val repeats the training images")
    assert yaml.safe_load(text)["val"] == "images/train"


@given(
    st.lists(st.sampled_from(["images", "a", "labels", "b.c", "a/..", "."]), max_size=4),
    st.sampled_from(["train", "val"]),
)
def test_label_name_is_path_where_yolo_expects_labels(folders, part):
    """The reference is ultralytics.data.utils.img2label_paths: it replaces the last /images/ and the suffix."""
    name = "/".join([*folders, "7.jpg"])
    path = os.sep + image_name(part, name)
    expected = "/labels/".join(path.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt"
    assert "/" + label_name(part, name) == expected


def test_write_yolo_names_differing_in_suffix_raise(tmp_path):
    source = pool_json()
    source["images"][0]["file_name"] = "12.jpg"
    (tmp_path / "train.json").write_text(json.dumps(source))
    pool = read_coco(tmp_path / "train.json")
    with pytest.raises(DatasetError, match=r"train\.json.*'12.png' and '12.jpg'"):
        write_yolo(tmp_path / "out", {"train": Content(pool, tmp_path, (), np.arange(len(pool)))})


# All formats


@pytest.mark.parametrize("name", FORMATS)
def test_write_export_folder_is_complete_or_absent(tmp_path, name):
    found = content(tmp_path)
    write_export(name, tmp_path / "new" / "out", {"train": found}, Options(images="link"))
    with pytest.raises(DatasetError, match=r"output.*out"):
        write_export(name, tmp_path / "new" / "out", {"train": found}, Options())
    (tmp_path / "images" / file_name(41)).unlink()
    with pytest.raises(DatasetError, match=r"41\.png.*image_id 41"):
        write_export(name, tmp_path / "new" / "other", {"train": found}, Options(images="link"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize(
    "bad", ["../secret.png", "a/../../secret.png", "/etc/passwd", "C:\\x.png", "a\\..\\..\\x.png", ""]
)
def test_content_file_name_outside_image_root_raises(tmp_path, bad):
    source = pool_json()
    source["images"][2]["file_name"] = "fine.png"
    (tmp_path / "train.json").write_text(json.dumps(source))
    pool = read_coco(tmp_path / "train.json")
    names = tuple(bad if name == "fine.png" else name for name in pool.file_names)
    object.__setattr__(pool, "file_names", names)  # as if a reader had accepted it
    with pytest.raises(DatasetError, match=r"train\.json.*file_name"):
        Content(pool, tmp_path, (), np.arange(len(pool)))


def corrected_names(path):
    return {box.class_name for image in read_corrected(path).images for box in image.boxes}


def names_in(tmp_path, found):
    """Return the class names of each format, read in the way of its tool."""
    out = tmp_path / "out"
    for name in FORMATS:
        write_export(name, out / name, {"train": found}, Options())
    config = ET.parse(out / "label-studio" / "label_config.xml").getroot()
    coco = json.loads((out / "fiftyone" / "label_errors.json").read_text(encoding="utf-8"))
    return {
        "cvat": [element["name"] for element in json.loads((out / "cvat" / "labels.json").read_text(encoding="utf-8"))],
        "cvat boxes": corrected_names(out / "cvat" / "annotations.xml"),
        "label studio": [label.get("value") for label in config.iter("Label")],
        "label studio boxes": corrected_names(out / "label-studio" / "tasks.json"),
        "fiftyone": [record["name"] for record in coco["categories"]],
        "yolo": list(yaml.safe_load((out / "yolo" / "data.yaml").read_text(encoding="utf-8"))["names"].values()),
    }


def check_names(folder, names):
    found = content(folder, names=names)
    expected = list(found.class_names)
    on_boxes = {
        label_name for image in found.images() for label_name in (expected[box.class_index] for box in image.labels)
    }
    got = names_in(folder, found)
    assert {key: value for key, value in got.items() if not key.endswith("boxes")} == dict.fromkeys(
        ("cvat", "label studio", "fiftyone", "yolo"), expected
    )
    assert got["cvat boxes"] == got["label studio boxes"] == on_boxes


def test_write_export_keeps_hard_class_names(tmp_path):
    check_names(tmp_path, HARD_NAMES)


_NOT_XML = "".join(map(chr, {*range(32), 0xFFFE, 0xFFFF} - {9, 10, 13}))
_TEXT = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters=_NOT_XML),
    min_size=1,
    max_size=12,
)


@given(st.lists(_TEXT, min_size=4, max_size=4, unique=True))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_write_export_keeps_any_class_name(tmp_path_factory, texts):
    check_names(tmp_path_factory.mktemp("names"), dict(zip(NAMES, texts, strict=True)))


def test_queue_rows_are_sorted_by_highest_score(tmp_path):
    pool = write_pool(tmp_path)
    assert queue_rows(label_errors(pool)).tolist() == [row_of_image(pool, 12), row_of_image(pool, 41)]
    assert queue_rows([]).tolist() == []


DOCUMENT = (REPOSITORY / "docs" / "how-to" / "label-errors.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FORMATS)
def test_document_has_row_for_each_format(name):
    assert f"\n| `{name}` |" in DOCUMENT


def test_document_explains_each_field_of_label_error(tmp_path):
    pool = write_pool(tmp_path)
    for field in label_error_records(pool, label_errors(pool))[0]:
        assert f"`{field}`" in DOCUMENT or field in ("id", "area", "iscrowd")
