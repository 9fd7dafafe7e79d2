"""Every kind of finding by a minimal file: what is done by default, what each policy does, and what is written then."""

from __future__ import annotations

import codecs
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detcurate.coco.dataset import inspect_coco, read_coco
from detcurate.coco.image_files import examine_images, log_image_findings
from detcurate.coco.validation.findings import POLICIES, RULES, Finding, FindingLog, describe_errors, parse_policies
from detcurate.errors import ConfigError, DatasetError
from detcurate.manifest.write import subset_bytes

Content = dict[str, Any]


def coco() -> Content:
    """2 images, 3 categories, 4 annotations: a file in which nothing is found."""
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 48} for number in (7, 8)]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": [1, 2, 30, 40], "area": 7.5, "iscrowd": 0}
        for number, image, category in ((1, 7, 2), (2, 8, 1), (3, 7, 3), (4, 8, 2))
    ]
    categories = [{"id": number, "name": name} for number, name in ((1, "person"), (2, "car"), (3, "bike"))]
    return {"info": {"year": 2024}, "images": images, "annotations": annotations, "categories": categories}


def _set(part: str, position: int, **values: object) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[part][position].update(values)

    return change


def _delete(part: str, position: int, key: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        del content[part][position][key]

    return change


def _append(part: str, **values: object) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[part].append({**content[part][0], **values})

    return change


def _drop(part: str, *positions: int) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[part] = [record for at, record in enumerate(content[part]) if at not in positions]

    return change


def _each(*changes: Callable[[Content], None]) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        for one in changes:
            one(content)

    return change


def _nothing(content: Content) -> None:
    pass


def _normalize(content: Content) -> None:
    for record in content["annotations"]:
        record["bbox"] = [0.1, 0.2, 0.3, 0.4]


@dataclass(frozen=True)
class Case:
    """A file with one kind of finding.

    Args:
        policy: The default.
        allowed: All policies.
        change: What is wrong with the file.
        example: The first example.
        count: How many records.
        repair: What ``repair`` is said to do, and what it does to the file as it was.
        also: Other findings that come with it under ``repair``.
        encode: What makes bytes of the file.
    """

    policy: str
    allowed: str
    change: Callable[[Content], None]
    example: str
    count: int = 1
    repair: tuple[str, Callable[[Content], None]] = ("", _nothing)
    also: tuple[str, ...] = field(default=())
    encode: Callable[[str], bytes] = str.encode


CASES = {
    "not_finite_number": Case(
        "error",
        "error repair",
        _set("annotations", 1, area=np.nan),
        "NaN or Infinity stands 1 times in the file",
        repair=("read NaN and Infinity as null", _set("annotations", 1, area=None)),
        also=("missing_area",),
    ),
    "malformed_record": Case(
        "error",
        "error repair",
        _set("annotations", 1, iscrowd=2),
        "annotations[1].iscrowd must be 0 or 1, got 2 (image_id 8)",
        repair=("drop the record", _drop("annotations", 1)),
    ),
    "string_id": Case(
        "repair",
        "error repair",
        _each(_set("images", 1, id="b"), _set("annotations", 1, image_id="b"), _set("annotations", 3, image_id="b")),
        "images[1].id must be an integer of 64 bits, got 'b'",
        count=3,
        repair=("number them inside; the manifest keeps the texts", _nothing),
    ),
    "large_id": Case(
        "warn",
        "error warn note",
        _each(_append("images", id=2**53, file_name="9.jpg"), _set("annotations", 2, id=2**53 + 1, image_id=2**53)),
        "annotations[2].id is 9007199254740993, above 2^53",
    ),
    "duplicate_image_id": Case(
        "error",
        "error repair",
        _append("images", file_name="other.jpg"),
        "image ids must be unique, got 7 more than once",
        repair=("keep the first record of each id", _drop("images", 2)),
    ),
    "duplicate_category_id": Case(
        "error",
        "error repair",
        _append("categories", name="other"),
        "category ids must be unique, got 1 more than once",
        repair=("keep the first record of each id", _drop("categories", 3)),
    ),
    "duplicate_category_name": Case(
        "error", "error", _append("categories", id=4), "category names must be unique, got 'person' twice"
    ),
    "duplicate_annotation_id": Case(
        "warn",
        "error warn repair note",
        _each(_set("annotations", 2, id=2), _set("annotations", 3, id=2)),
        "annotations[2] must have an id of its own (image_id 7)",
        count=2,
        repair=("number the later ones on", _each(_set("annotations", 2, id=3), _set("annotations", 3, id=4))),
    ),
    "annotation_id_zero": Case(
        "warn",
        "error warn repair note",
        _set("annotations", 1, id=0),
        "annotations[1] should not have id 0 (image_id 8)",
        repair=("give it a new number", _set("annotations", 1, id=5)),
    ),
    "missing_id": Case(
        "warn",
        "error warn repair note",
        _each(_delete("annotations", 1, "id"), _set("annotations", 3, id=None)),
        "annotations[1] must have the field 'id', got none (image_id 8)",
        count=2,
        repair=("number them on", _each(_set("annotations", 1, id=4), _set("annotations", 3, id=5))),
    ),
    "missing_iscrowd": Case(
        "warn",
        "error warn repair note",
        _each(_delete("annotations", 1, "iscrowd"), _set("annotations", 3, iscrowd=None)),
        "annotations[1] should have the field 'iscrowd', got none (image_id 8)",
        count=2,
        repair=("write 0", _each(_set("annotations", 1, iscrowd=0), _set("annotations", 3, iscrowd=0))),
    ),
    "missing_area": Case(
        "warn",
        "error warn repair note",
        _each(_delete("annotations", 1, "area"), _set("annotations", 3, area=None)),
        "annotations[1] should have the field 'area', got none (image_id 8)",
        count=2,
        repair=("write the box's", _each(_set("annotations", 1, area=1200.0), _set("annotations", 3, area=1200.0))),
    ),
    "unknown_image": Case(
        "error",
        "error repair",
        _set("annotations", 1, image_id=9),
        "annotations[1].image_id must be the id of one of the 2 image records, got 9 (annotation id 2)",
        repair=("drop the annotation", _drop("annotations", 1)),
    ),
    "unknown_category": Case(
        "error",
        "error repair",
        _set("annotations", 1, category_id=4),
        "annotations[1].category_id must be the id of one of the 3 category records, got 4 (annotation id 2)",
        repair=("drop the annotation", _drop("annotations", 1)),
    ),
    "category_id_gap": Case(
        "note", "error warn note", _append("categories", id=9, name="bus"), "category ids are not 1 to 4 but 1, 2, 3, 9"
    ),
    "invalid_box": Case(
        "error",
        "error repair",
        _each(_set("annotations", 1, bbox=None), _set("annotations", 2, bbox=[1, 2, 30, 0])),
        "annotations[1].bbox must be four finite numbers [x, y, width, height], got None (image_id 8)",
        count=2,
        repair=("drop the annotation", _drop("annotations", 1, 2)),
    ),
    "box_outside_image": Case(
        "error",
        "error warn repair note",
        _each(_set("annotations", 1, bbox=[64, 2, 3, 4]), _set("annotations", 2, bbox=[1, -40.5, 30, 40.5])),
        "annotations[1].bbox must overlap its image, got [64, 2, 3, 4] (image_id 8)",
        count=2,
        repair=("drop the annotation", _drop("annotations", 1, 2)),
    ),
    "box_partly_outside": Case(
        "warn",
        "error warn repair note",
        _each(_set("annotations", 1, bbox=[-5, 2, 30, 50]), _set("annotations", 3, bbox=[60, -1, 5, 50])),
        "annotations[1].bbox must lie inside its image, got [-5, 2, 30, 50] (image_id 8)",
        repair=("cut the box at the border", _set("annotations", 1, bbox=[0, 2, 25, 46])),
    ),
    "normalized_boxes": Case(
        "error",
        "error warn note",
        _normalize,
        "annotations[0].bbox must be in pixels, not in shares of the image, got [0.1, 0.2, 0.3, 0.4] (image_id 7)",
        count=4,
    ),
    "segmentation_without_box": Case(
        "error",
        "error repair",
        _each(
            _delete("annotations", 1, "bbox"),
            _set("annotations", 1, segmentation=[[10, 12, 40, 12, 40.5, 30], [20, 8, 21, 9, 22, 8]]),
            _set("annotations", 2, bbox=[], segmentation=[[1, 2, 3, 4.5]]),
        ),
        "annotations[1] must have a bbox beside its segmentation, got none (image_id 8)",
        count=2,
        repair=(
            "take the box around the segmentation",
            _each(_set("annotations", 1, bbox=[10, 8, 30.5, 22]), _set("annotations", 2, bbox=[1, 2, 2, 2.5])),
        ),
    ),
    "duplicate_file_name": Case(
        "warn", "error warn note", _set("images", 1, file_name="7.jpg"), "2 images have the file_name '7.jpg'"
    ),
    "absolute_file_name": Case(
        "error",
        "error warn",
        _set("images", 1, file_name="/data/8.jpg"),
        "images[1].file_name must be relative and stay inside the image root, got '/data/8.jpg' (id 8)",
    ),
    "escaping_file_name": Case(
        "error",
        "error",
        _set("images", 1, file_name="a/../../8.jpg"),
        "images[1].file_name must be relative and stay inside the image root, got 'a/../../8.jpg' (id 8)",
    ),
    "no_annotations": Case(
        "warn",
        "error warn note",
        lambda content: content.update(annotations=[]),
        "the file has no annotation that can be used",
    ),
    "empty_image": Case(
        "note",
        "error warn note",
        _each(_append("images", id=9, file_name="9.jpg"), _append("images", id=10, file_name="10.jpg")),
        "2 of 4 images have no annotation that can be used",
        count=2,
    ),
    "crowd_region": Case(
        "note",
        "error warn note",
        _set("annotations", 1, iscrowd=1),
        "annotations[1] is a crowd region (image_id 8)",
    ),
    "byte_order_mark": Case(
        "note",
        "error warn note",
        _nothing,
        "the file begins with a byte order mark",
        encode=lambda text: codecs.BOM_UTF8 + text.encode(),
    ),
}
# What is found in image files rather than in the records; see the second half of this module.
IMAGE_CASES = {
    "missing_image_file": ("error", "error warn"),
    "unreadable_image": ("error", "error warn"),
    "image_size_differs": ("error", "error warn"),
    "unsupported_depth": ("error", "error warn"),
    "other_image_format": ("note", "error warn note"),
    "exif_rotation": ("warn", "error warn note"),
    "link_leaves_root": ("error", "error warn note"),
}


def test_every_kind_of_finding_is_tested():
    assert set(CASES) | set(IMAGE_CASES) == set(RULES)
    assert not set(CASES) & set(IMAGE_CASES)


@pytest.fixture
def write(tmp_path):
    def write(content, encode=str.encode):
        path = tmp_path / "train.json"
        path.write_bytes(encode(json.dumps(content)))
        return path

    return write


@pytest.fixture(params=CASES)
def code(request):
    return request.param


@pytest.fixture
def case(code):
    return CASES[code]


@pytest.fixture
def content(case):
    """The file's content, wrong as the case says."""
    content = coco()
    case.change(content)
    return content


@pytest.fixture
def path(write, case, content):
    return write(content, case.encode)


def subset(dataset):
    return json.loads(subset_bytes(dataset, dataset.image_ids))


def test_nothing_is_found_in_a_file_without_faults(write):
    dataset = read_coco(write(coco()))
    assert dataset.findings == ()
    assert subset(dataset) == coco()


def test_the_rule(code, case):
    rule = RULES[code]
    assert rule.policy == case.policy
    assert rule.allowed == tuple(case.allowed.split())
    assert rule.repair == case.repair[0]
    assert rule.advice


@pytest.mark.parametrize("code", RULES)
def test_a_rule_makes_sense(code):
    rule = RULES[code]
    assert rule.policy in rule.allowed
    assert set(rule.allowed) <= set(POLICIES)
    assert ("repair" in rule.allowed) == bool(rule.repair)
    assert "error" in rule.allowed


def test_the_default(code, case, path):
    if case.policy == "error":
        with pytest.raises(DatasetError):
            read_coco(path)
    else:
        [finding] = read_coco(path).findings
        assert (finding.code, finding.policy, finding.count) == (code, case.policy, case.count)
        assert finding.examples[0] == case.example
        assert len(finding.examples) == min(case.count, 3) or code == "empty_image"
        assert finding.advice == RULES[code].advice


def test_an_error_names_the_record_the_file_and_what_to_do(code, case, path):
    with pytest.raises(DatasetError) as caught:
        read_coco(path, {code: "error"})
    message = str(caught.value)
    assert message.count("\n") == 0
    if code == "not_finite_number":
        line, column = 1, path.read_text().index("NaN") + 1
        assert f"({path}, line {line}, column {column})" in message
        assert message.endswith("write null or drop the record, or set not_finite_number=repair")
        return
    more = f", and {case.count - 1} more such records" if case.count > 1 else ""
    repair = f", or set {code}=repair" if case.repair[0] else ""
    assert message == f"{case.example} ({path}{more}); {RULES[code].advice}{repair}"
    dataset, findings = inspect_coco(path, {code: "error"})  # it tells the same and goes on
    assert [(finding.code, finding.policy, finding.count) for finding in findings] == [(code, "error", case.count)]
    assert dataset.findings == findings


@pytest.mark.parametrize("policy", ["warn", "note"])
def test_a_warning_keeps_the_record(code, case, path, content, policy):
    if policy not in RULES[code].allowed:
        with pytest.raises(ConfigError, match=f"the policy of {code} must be one of {', '.join(RULES[code].allowed)}"):
            read_coco(path, {code: policy})
        return
    dataset = read_coco(path, {code: policy})
    assert [(finding.code, finding.policy, finding.count) for finding in dataset.findings] == [
        (code, policy, case.count)
    ]
    assert (len(dataset), dataset.num_boxes) == (len(content["images"]), len(content["annotations"]))
    assert subset(dataset) == content


def test_a_repair_does_what_it_says(code, case, path, content):
    if not case.repair[0]:
        with pytest.raises(ConfigError, match=f"the policy of {code} must be one of {', '.join(RULES[code].allowed)}"):
            read_coco(path, {code: "repair"})
        return
    dataset = read_coco(path, {code: "repair"})
    expected = copy.deepcopy(content)
    case.repair[1](expected)
    found = [(finding.code, finding.policy, finding.count) for finding in dataset.findings]
    assert found[0] == (code, "repair", case.count)
    assert tuple(name for name, _, _ in found[1:]) == case.also
    assert subset(dataset) == expected
    assert (len(dataset), dataset.num_boxes) == (len(expected["images"]), len(expected["annotations"]))
    rows = np.argsort(dataset.annotation_positions)
    for row, record in zip(rows, expected["annotations"], strict=True):  # the columns say what is written
        x, y, width, height = record["bbox"]
        assert dataset.boxes[row].tolist() == [x, y, x + width, y + height]
        assert dataset.annotation_ids[row] == record["id"]
        assert dataset.areas[row] == (width * height if record["area"] is None else record["area"])


def test_what_was_repaired_is_found_no_more(code, case, path, tmp_path):
    if not case.repair[0] or code == "string_id":  # whose texts are kept
        return
    again = tmp_path / "again.json"
    again.write_bytes(subset_bytes(dataset := read_coco(path, {code: "repair"}), dataset.image_ids))
    assert tuple(finding.code for finding in read_coco(again).findings) == case.also


class TestMoreRepairs:
    """What the minimal files above leave open."""

    def test_images_and_categories_that_cannot_be_read(self, write):
        content = coco()
        content["images"].insert(0, {"id": 5})
        content["categories"].insert(1, {"name": "none"})
        content["annotations"].append({"id": 9, "image_id": 5, "category_id": 2, "bbox": [1, 2, 3, 4]})
        dataset, findings = inspect_coco(write(content))
        assert [(finding.code, finding.count) for finding in findings] == [
            ("malformed_record", 2),
            ("unknown_image", 1),
        ]
        dataset = read_coco(write(content), {"malformed_record": "repair", "unknown_image": "repair"})
        assert subset(dataset) == coco()

    def test_a_file_of_which_nothing_is_left(self, write):
        for part, name in (("images", "image"), ("categories", "category")):
            path = write({**coco(), part: [3]})
            with pytest.raises(DatasetError, match=rf"{part}\[0\] must be an object, got 3"):
                read_coco(path)
            with pytest.raises(DatasetError, match=f"must have at least one {name}, got none"):
                read_coco(path, {"malformed_record": "repair"})

    def test_the_first_record_of_an_id_is_kept_wherever_the_rest_stands(self, write):
        content = coco()
        content["images"] = [*content["images"], *({**content["images"][at], "width": 99} for at in (1, 0, 1))]
        dataset = read_coco(write(content), {"duplicate_image_id": "repair"})
        assert dataset.findings[0].count == 3
        assert dataset.image_positions.tolist() == [0, 1]
        assert dataset.widths.tolist() == [64, 64]

    def test_new_ids_are_free_ones(self, write):
        policies = dict.fromkeys(("missing_id", "annotation_id_zero", "duplicate_annotation_id"), "repair")
        content = coco()
        for record, number in zip(content["annotations"], (0, 12, None, 12), strict=True):
            record["id"] = number
        dataset = read_coco(write(content), policies)
        assert [record["id"] for record in subset(dataset)["annotations"]] == [13, 12, 14, 15]
        content["annotations"][1]["id"] = content["annotations"][3]["id"] = 2**53 - 1  # there is no room above
        dataset = read_coco(write(content), policies)
        assert [record["id"] for record in subset(dataset)["annotations"]] == [1, 2**53 - 1, 2, 3]

    def test_a_cut_box_has_the_area_that_is_left(self, write):
        content = coco()
        content["annotations"][1].update(bbox=[-5, 2, 30, 50], area=None)
        dataset = read_coco(write(content), {"box_partly_outside": "repair", "missing_area": "repair"})
        assert subset(dataset)["annotations"][1]["area"] == 25 * 46

    def test_a_patched_record_keeps_all_else_and_the_order_of_its_keys(self, write):
        content = coco()
        content["annotations"][1].update(id=0, track={"b": [1.0], "a": None}, bbox=[-5, 2, 30, 50])
        text = json.dumps(content).replace('"area": 7.5', '"area": 7.50e0')
        path = write(content)
        path.write_text(text)
        dataset = read_coco(path, {"annotation_id_zero": "repair", "box_partly_outside": "repair"})
        lines = subset_bytes(dataset, dataset.image_ids).decode().splitlines()
        [patched] = [line for line in lines if '"track"' in line]
        assert patched == (
            '{"id":5,"image_id":8,"category_id":1,"bbox":[0.0,2.0,25.0,46.0],"area":7.50e0,"iscrowd":0,'
            '"track":{"b": [1.0], "a": null}},'
        )
        assert sum(line in text for line in (line.rstrip(",") for line in lines) if '"bbox"' in line) == 3

    def test_few_boxes_within_a_pixel_are_no_shares(self, write):
        content = coco()
        for record in content["annotations"][:2]:
            record["bbox"] = [0.1, 0.2, 0.3, 0.4]
        assert read_coco(write(content)).findings == ()
        content["annotations"][2]["bbox"] = [0, 0, 1, 1]
        with pytest.raises(DatasetError, match="must be in pixels, not in shares of the image"):
            read_coco(write(content))

    def test_a_border_of_one_pixel_is_no_matter(self, write):
        content = coco()
        content["annotations"][0]["bbox"] = [-1, -1, 66, 50]
        assert read_coco(write(content), {"box_partly_outside": "repair"}).findings == ()
        content["annotations"][0]["bbox"] = [-1, -1, 66.1, 50]
        assert read_coco(write(content)).findings[0].code == "box_partly_outside"

    def test_a_record_with_another_fault_is_reported_once(self, write):
        content = coco()
        del content["annotations"][1]["bbox"]
        content["annotations"][1].update(segmentation=[[1, 2, 3, 4]], iscrowd=2)
        for policy in ("error", "repair"):
            findings = inspect_coco(write(content), {"segmentation_without_box": policy})[1]
            assert [(finding.code, finding.count) for finding in findings] == [("malformed_record", 1)]


class TestImageFiles:
    @pytest.fixture(params=IMAGE_CASES)
    def found(self, request, write, tmp_path):
        """A code, and what is found of two images of which the second is wrong in that way."""
        code, size = request.param, (64, 48)
        dataset = read_coco(write(coco()))
        picture = Image.new("RGB", size)
        picture.save(tmp_path / "7.jpg")
        if code == "unreadable_image":
            (tmp_path / "8.jpg").write_bytes((tmp_path / "7.jpg").read_bytes()[:300])
        elif code == "image_size_differs":
            Image.new("RGB", (48, 64)).save(tmp_path / "8.jpg")
        elif code == "unsupported_depth":
            Image.new("I;16", size).save(tmp_path / "8.jpg", "PNG")
        elif code == "other_image_format":
            picture.save(tmp_path / "8.jpg", "PNG")
        elif code == "exif_rotation":
            exif = Image.Exif()
            exif[0x0112] = 3
            picture.save(tmp_path / "8.jpg", exif=exif)
        elif code == "link_leaves_root":
            elsewhere = tmp_path.with_name(f"{tmp_path.name}-elsewhere.jpg")
            picture.save(elsewhere)
            (tmp_path / "8.jpg").symlink_to(elsewhere)
        return code, examine_images(dataset, tmp_path, num_processes=1, desc="look")

    def test_the_rule_and_each_policy(self, found, tmp_path):
        code, images = found
        default, allowed = IMAGE_CASES[code]
        assert (RULES[code].policy, RULES[code].allowed, RULES[code].repair) == (default, tuple(allowed.split()), "")
        for policy in POLICIES:
            if policy not in allowed.split():
                with pytest.raises(ConfigError, match=f"the policy of {code} must be one of"):
                    FindingLog({code: policy})
                continue
            log = FindingLog({code: policy})
            log_image_findings(images, log)
            [finding] = log.findings()
            assert (finding.code, finding.policy, finding.count) == (code, policy, 1)
            assert finding.examples[0].startswith("8.jpg (image_id 8): ")
            message = describe_errors([finding], tmp_path)
            assert message == f"{finding.examples[0]} ({tmp_path}); {RULES[code].advice}"

    def test_the_default(self, found):
        log = FindingLog()
        log_image_findings(found[1], log)
        assert [finding.policy for finding in log.findings()] == [IMAGE_CASES[found[0]][0]]


class TestPolicies:
    def test_by_hand(self):
        assert parse_policies(["invalid_box=repair", "large_id=note"]) == {"invalid_box": "repair", "large_id": "note"}
        assert parse_policies([]) == {}
        assert parse_policies(["large_id=note", "large_id=warn"]) == {"large_id": "warn"}

    @pytest.mark.parametrize(
        ("text", "start", "end"),
        [
            (
                "invalid_boxes=repair",
                "a policy must be of a known finding, one of not_finite_number, malformed",
                "'invalid_box'?)",
            ),
            ("xyz=repair", "a policy must be of a known finding, one of ", "got 'xyz=repair'"),
            ("", "a policy must be of a known finding, one of ", "got ''"),
            ("invalid_box", "the policy of invalid_box must be one of error, repair, got ", "'invalid_box'"),
            (
                "invalid_box=ignore",
                "the policy of invalid_box must be one of error, repair, got ",
                "'invalid_box=ignore'",
            ),
            ("large_id=repair", "the policy of large_id must be one of error, warn, note, got ", "'large_id=repair'"),
            (
                "large_id=warn=note",
                "the policy of large_id must be one of error, warn, note, got ",
                "'large_id=warn=note'",
            ),
        ],
    )
    def test_what_is_none(self, text, start, end):
        with pytest.raises(ConfigError) as caught:
            parse_policies([text])
        assert str(caught.value).startswith(start)
        assert str(caught.value).endswith(end)

    def test_the_log_checks_them_too(self):
        with pytest.raises(ConfigError, match="a policy must be of a known finding"):
            FindingLog({"none": "error"})


class TestFindingLog:
    def test_the_worst_come_first_and_three_examples_are_kept(self):
        log = FindingLog({"missing_id": "repair"})
        log.add("empty_image", "five", count=5)
        log.add_many("large_id", range(10), "number {}".format)
        log.add_many("large_id", [], lambda at: pytest.fail("no record, no text"))
        log.add("missing_id", "one")
        log.add_many("missing_id", np.arange(20, 40), "from {}".format)
        log.add("missing_id", "last")
        log.add("unknown_image", "error")
        log.add("large_id", "ten")
        log.add("invalid_box", "another")
        assert [(finding.code, finding.policy, finding.count, finding.examples) for finding in log.findings()] == [
            ("unknown_image", "error", 1, ("error",)),
            ("invalid_box", "error", 1, ("another",)),
            ("missing_id", "repair", 22, ("one", "from 20", "from 21")),
            ("large_id", "warn", 11, ("number 0", "number 1", "number 2")),
            ("empty_image", "note", 5, ("five",)),
        ]
        assert log.repairs("missing_id")
        assert not log.repairs("annotation_id_zero")

    def test_texts(self):
        finding = Finding("missing_area", "warn", 1_201, ("first", "second"), "write it")
        assert finding.sentence() == "missing_area: first (and 1,200 more); write it"
        repaired = Finding("missing_area", "repair", 1, ("first",), "write it")
        assert repaired.sentence() == "missing_area: first; repaired: write the box's"
        assert json.loads(json.dumps(finding.to_dict())) == {
            "code": "missing_area",
            "policy": "warn",
            "count": 1_201,
            "examples": ["first", "second"],
            "advice": "write it",
        }

    def test_several_errors_have_a_line_each(self):
        findings = [
            Finding("invalid_box", "error", 3, ("box",), "mend it"),
            Finding("escaping_file_name", "error", 1, ("name",), "name it"),
        ]
        assert describe_errors(findings, "a.json") == (
            "2 kinds of findings stop the reading of a.json:\n"
            "  box (a.json, and 2 more such records); mend it, or set invalid_box=repair\n"
            "  name (a.json); name it"
        )
