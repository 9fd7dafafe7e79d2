"""``detcurate validate``: output, exit status and errors."""

import json

import cv2
import numpy as np
import pytest
from helpers.commands import SIZES, coco, rows

from detcurate.cli import main
from detcurate.coco.validation.findings import RULES


def bad():
    """Two errors, one warning and two notes."""
    content = coco()
    content["annotations"][0]["bbox"] = [1, 2, 0, 20]
    content["annotations"][1]["category_id"] = 3
    content["annotations"][2]["category_id"] = 4
    content["annotations"][3]["id"] = 0
    return content


BAD = [
    ("error", "unknown_category", "2"),
    ("error", "invalid_box", "1"),
    ("warn", "annotation_id_zero", "1"),
    ("note", "category_id_gap", "1"),
    ("note", "empty_image", "1"),
]


def test_validate_file_without_findings_exits_0(write, printed):
    content = coco(keys=(30, 12, 41), categories=[{"id": number, "name": f"{number}"} for number in range(1, 10)])
    path = write(content)
    status, text = printed("validate", path)
    assert (status, text) == (0, f"{path}: 3 images, 6 boxes, 9 classes are usable\n\nno findings\n")


def test_validate_file_url_gives_the_same_output(write, printed):
    path = write(coco())
    status, text = printed("validate", path.as_uri())
    assert (status, text.replace(path.as_uri(), str(path))) == printed("validate", path)


def test_validate_prints_a_table_and_each_finding(write, printed):
    path = write(bad())
    status, text = printed("validate", path)
    assert status == 1
    assert text.startswith(f"{path}: 4 images, 3 boxes, 3 classes are usable\n")
    assert rows(text, ["policy", "finding", "records"]) == BAD
    assert text.endswith("\n2 of 5 findings are errors\n")
    lines = text.split("\n")
    at = next(at for at, line in enumerate(lines) if line.startswith("unknown_category: "))
    assert lines[at + 1] == "    --policy unknown_category=repair would drop the annotation"
    assert lines[at + 2].startswith("    annotations[1].category_id: no such category (got 3,")
    assert lines[at + 3].startswith("    annotations[2].category_id")


def test_validate_policy_changes_exit_status(write, printed):
    path = write(bad())
    status, text = printed("validate", path, "--policy", "invalid_box=repair", "--policy", "unknown_category=repair")
    assert status == 0
    assert rows(text, ["policy", "finding", "records"])[:2] == [
        ("repair", "unknown_category", "2"),
        ("repair", "invalid_box", "1"),
    ]
    assert "    repaired: drop the annotation" in text
    assert text.endswith("no finding is an error\n")
    status, text = printed("validate", path, "--policy", "empty_image=error")
    assert status == 1
    assert "3 of 5 findings are errors" in text


def test_validate_counts_further_examples(write, printed):
    content = coco()
    for box in content["annotations"]:
        del box["iscrowd"]
    _, text = printed("validate", write(content))
    at = text.split("\n").index("    and 3 more")
    assert "annotations[2]" in text.split("\n")[at - 1]


def test_validate_json_has_facts_and_findings(write, printed):
    path = write(bad())
    status, text = printed("validate", path, "--json")
    found = json.loads(text)
    assert status == 1
    assert {key: found[key] for key in ("file", "num_images", "num_boxes", "class_names")} == {
        "file": str(path),
        "num_images": 4,
        "num_boxes": 3,
        "class_names": ["person", "bike", "car"],
    }
    assert [(f["policy"], f["code"], str(f["count"])) for f in found["findings"]] == BAD
    assert found["findings"][0]["advice"] == RULES["unknown_category"].advice
    assert len(found["findings"][0]["examples"]) == 2


@pytest.fixture
def images(tmp_path):
    """Image files for three of the four records, one of another size."""
    for key in (30, 7, 12):
        width, height = SIZES[key]
        cv2.imwrite(str(tmp_path / f"{key}.png"), np.zeros((height, width + (key == 7), 3), np.uint8))
    return tmp_path


def test_validate_images_reports_missing_and_resized_files(write, printed, images):
    path = write(coco())
    status, text = printed("validate", path, "--images", images, "--num-processes", "1")
    assert status == 1
    assert rows(text, ["policy", "finding", "records"]) == [
        ("error", "missing_image_file", "1"),
        ("error", "image_size_differs", "1"),
        ("note", "category_id_gap", "1"),
        ("note", "empty_image", "1"),
    ]
    assert "41.png (image_id 41): file not found" in text
    assert "7.png (image_id 7): the image is 63x46, its record says 62x46" in text
    policies = ("--policy", "missing_image_file=warn", "--policy", "image_size_differs=warn")
    assert printed("validate", path, "--images", images, "--num-processes", "1", *policies)[0] == 0
    assert printed("validate", path)[0] == 0


def test_validate_cache_prevents_decoding_again(write, printed, images, monkeypatch):
    words = ["validate", write(coco()), "--images", images, "--num-processes", "1", "--cache", images / "cache.json"]
    first = printed(*words)
    assert (images / "cache.json").is_file()

    def fail(*_: object, **__: object):
        raise AssertionError("a known image must not be decoded again")

    monkeypatch.setattr("detcurate.coco.image_files.Image.open", fail)
    assert printed(*words) == first


def test_validate_camvid_has_no_error(camvid, printed):
    status, text = printed("validate", camvid / "train.json")
    assert status == 0
    assert "530 images, 6,778 boxes, 4 classes are usable" in text
    assert "3 of 530 images have no" in text


def test_validate_cache_that_is_a_folder_is_rejected(write, images, capsys):
    path = write(coco())
    arguments = ["validate", path, "--images", images, "--num-processes", "1", "--cache", images]
    assert main([str(word) for word in arguments]) == 2
    assert f"detcurate: {images}: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["no.json"], ["no.json", "No such file"]),
        (["{}"], ["{}", "Is a directory"]),
        (["s3://key:hunter2@pool/train.json"], ["FILE", "s3://"]),
        (["{}/train.json", "--policy", "invalid_bx=warn"], ["invalid_bx", "'invalid_box'"]),
        (["{}/train.json", "--policy", "invalid_box"], ["invalid_box", "error, repair"]),
        (["{}/train.json", "--policy", "invalid_box=warn"], ["invalid_box=warn", "error, repair"]),
        (["{}/train.json", "--images", "{}/nowhere"], ["image_root", "{}/nowhere"]),
        (["{}/train.json", "--cache", "c.json"], ["--cache", "--images"]),
        (["{}/train.json", "--num-processes", "-1"], ["--num-processes", "-1"]),
        (["{}/broken.json"], ["broken.json", "line 2"]),
        (["{}/empty.json"], ["empty.json", "empty"]),
    ],
)
def test_validate_error_names_the_option_or_file(tmp_path, write, rejected, words, parts):
    write(coco())
    write('{"images": [],\n"annotations": [,]}', "broken.json")
    write(" ", "empty.json")
    message = rejected("validate", *(word.replace("{}", str(tmp_path)) for word in words))
    for part in parts:
        assert part.replace("{}", str(tmp_path)) in message
    assert "hunter2" not in message
