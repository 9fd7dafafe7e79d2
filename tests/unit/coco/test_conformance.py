"""Conformance of the COCO reader: a row for each fault of a file, with its finding, policies and repaired records.

Every row runs with the compiled scanner and without it.
"""

from __future__ import annotations

import codecs
import copy
import gzip
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from detcurate.coco import records
from detcurate.coco.dataset import inspect_coco, read_coco
from detcurate.coco.validation.findings import POLICIES, RULES
from detcurate.errors import ConfigError, DatasetError
from detcurate.manifest.write import subset_bytes

DELETE = object()


def coco() -> dict[str, Any]:
    """2 images, 3 categories, 4 annotations: a file without findings."""
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 48} for number in (7, 8)]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": [1, 2, 30, 40], "area": 7.5, "iscrowd": 0}
        for number, image, category in ((1, 7, 2), (2, 8, 1), (3, 7, 3), (4, 8, 2))
    ]
    categories = [{"id": number, "name": name} for number, name in ((1, "person"), (2, "car"), (3, "bike"))]
    return {"info": {"year": 2024}, "images": images, "annotations": annotations, "categories": categories}


def raw(text: str) -> str:
    """A JSON text that Python does not write."""
    return f"@@{text}@@"


def encode(content: dict[str, Any]) -> str:
    return re.sub(r'"@@(.*?)@@"', r"\1", json.dumps(content))


def edit(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a file with other values at ``part.position.field``; ``+`` appends an edited first record."""
    content = copy.deepcopy(content)
    for place, value in changes.items():
        part, at, key = [*place.split("."), "", ""][:3]
        if not at:
            content[part] = value
        elif at == "+":
            content[part].append({**content[part][0], **value} if isinstance(value, dict) else value)
        elif not key and value is DELETE:
            del content[part][int(at)]
        elif value is DELETE:
            del content[part][int(at)][key]
        else:
            content[part][int(at)][key] = value
    return content


def loads(text: str | bytes) -> Any:
    """Decode JSON, numbers of very many digits as text."""
    return json.loads(text, parse_int=lambda digits: digits if len(digits) > 640 else int(digits))


@dataclass(frozen=True)
class Row:
    """One fault.

    Args:
        code: The finding.
        changes: The fault, as edits of the base file.
        example: Texts that the first example holds: the place and the value, separated by |.
        repaired: The repair, as edits of the faulty file; None where there is none.
        count: The number of records.
        also: Codes of other findings.
    """

    code: str
    changes: dict[str, Any]
    example: str
    repaired: dict[str, Any] | None = None
    count: int = 1
    also: tuple[str, ...] = ()


def malformed(part: str, changes: dict[str, Any] | Any, example: str) -> Row:
    """A record that is appended to the base file and dropped by the repair."""
    position = {"images": 2, "annotations": 4, "categories": 3}[part]
    return Row(
        "malformed_record", {f"{part}.+": changes}, f"{part}[{position}]{example}", {f"{part}.{position}": DELETE}
    )


def box(value: Any, example: str) -> Row:
    return Row(
        "invalid_box", {"annotations.1.bbox": value}, f"annotations[1].bbox|{example}|8", {"annotations.1": DELETE}
    )


def reference(key: str, value: Any, *also: str) -> Row:
    changes, example = {f"annotations.1.{key}": value}, f"annotations[1].{key}|{value}|2"
    return Row(f"unknown_{key[:-3]}", changes, example, {"annotations.1": DELETE}, also=also)


DROP_1_2 = {"annotations.2": DELETE, "annotations.1": DELETE}
TEXT_IDS = {"images.1.id": "b", "annotations.1.image_id": "b", "annotations.3.image_id": "b"}
SEGMENTATION = [[10, 12, 40, 12, 40.5, 30], [20, 8, 21, 9, 22, 8]]
DIGITS = "9" * 5_000

ROWS = {
    "NaN": Row("not_finite_number", {"annotations.1.area": np.nan}, "1 NaN", {"annotations.1.area": None},
        also=("missing_area",)),
    "NaN and Infinity outside strings": Row(
        "not_finite_number", {"annotations.1.extra": [-np.inf, "NaN", "\\\" -Infinity"], "info": np.inf}, "2 NaN",
        {"annotations.1.extra": [None, "NaN", "\\\" -Infinity"], "info": None}, count=2),
    **{f"{part} holds {value!r}": malformed(part, value, f"|{value!r}")
       for part in ("images", "annotations", "categories") for value in (3, None, "{}", [1, 2], True)},
    "image id null": malformed("images", {"id": None}, ".id|None"),
    "image id true": malformed("images", {"id": True}, ".id|True"),
    "image id of 5,000 digits": malformed("images", {"id": raw(DIGITS)}, ".id|'999"),
    "width 0": malformed("images", {"id": 9, "width": 0}, ".width|0|9"),
    "width 2^31": malformed("images", {"id": 9, "width": 2**31}, f".width|{2**31}|9"),
    "height null": malformed("images", {"id": 9, "height": None}, ".height|None|9"),
    "frame index -1": malformed("images", {"id": 9, "frame_index": -1}, ".frame_index|-1|9"),
    "sequence 1.5": malformed("images", {"id": 9, "sequence": 1.5}, ".sequence|1.5|9"),
    "file name 7": malformed("images", {"id": 9, "file_name": 7}, ".file_name|7|9"),
    "category name null": malformed("categories", {"id": 4, "name": None}, ".name|None|4"),
    "image_id is a list": malformed("annotations", {"image_id": [41]}, ".image_id|[41]"),
    "category_id 2.5": malformed("annotations", {"category_id": 2.5}, ".category_id|2.5|7"),
    "annotation id 1.5": malformed("annotations", {"id": 1.5}, ".id|1.5|7"),
    "area -1": malformed("annotations", {"area": -1}, ".area|-1|7"),
    "area of 1e999": malformed("annotations", {"area": raw("1e999")}, ".area|7"),
    "iscrowd 2": malformed("annotations", {"iscrowd": 2, "track": raw(DIGITS)}, ".iscrowd|2|7"),
    "iscrowd 2 and no box": malformed("annotations", {"iscrowd": 2, "bbox": [], "segmentation": SEGMENTATION},
        ".iscrowd|2"),
    "no box": Row("malformed_record", {"annotations.1.bbox": DELETE}, "annotations[1]|'bbox'|8",
        {"annotations.1": DELETE}),
    "no image_id": Row("malformed_record", {"annotations.1.image_id": DELETE}, "annotations[1]|'image_id'|2",
        {"annotations.1": DELETE}),
    "text ids": Row("string_id", TEXT_IDS, "images[1].id|'b'", {}, count=3),
    "id of 64 bits": Row("string_id", {key: 2**64 for key in TEXT_IDS}, f"images[1].id|{2**64}", {}, count=3),
    "lowest id of 64 bits": Row("string_id", {key: -(2**63) for key in TEXT_IDS}, f"images[1].id|{-(2**63)}", {},
        count=3),
    "ids above 2^53": Row("large_id", {"images.+": {"id": 2**53, "file_name": "9.jpg"}, "annotations.2.id": 2**53 + 1,
                                       "annotations.2.image_id": 2**53}, "annotations[2].id|9007199254740993"),
    "image id twice": Row("duplicate_image_id", {"images.+": {"file_name": "other.jpg"}}, "image|7",
        {"images.2": DELETE}),
    "category id twice": Row("duplicate_category_id", {"categories.+": {"name": "other"}}, "category|1",
        {"categories.3": DELETE}),
    "category name twice": Row("duplicate_category_name", {"categories.+": {"id": 4}}, "'person'|2"),
    "annotation id thrice": Row("duplicate_annotation_id", {"annotations.2.id": 2, "annotations.3.id": 2},
        "annotations[2]|image_id 7",
                                {"annotations.2.id": 3, "annotations.3.id": 4}, count=2),
    "annotation id 0": Row("annotation_id_zero", {"annotations.1.id": 0}, "annotations[1]|0|image_id 8",
        {"annotations.1.id": 5}),
    "no annotation id": Row("missing_id", {"annotations.1.id": DELETE, "annotations.3.id": None},
        "annotations[1]|'id'|image_id 8",
                            {"annotations.1.id": 4, "annotations.3.id": 5}, count=2),
    "no iscrowd": Row("missing_iscrowd", {"annotations.1.iscrowd": DELETE, "annotations.3.iscrowd": None},
        "annotations[1]|'iscrowd'|8",
                      {"annotations.1.iscrowd": 0, "annotations.3.iscrowd": 0}, count=2),
    "no area": Row("missing_area", {"annotations.1.area": DELETE, "annotations.3.area": None},
        "annotations[1]|'area'|image_id 8",
                   {"annotations.1.area": 1200.0, "annotations.3.area": 1200.0}, count=2),
    "unknown image": reference("image_id", 9),
    "unknown image of 71 bits": reference("image_id", 2**70, "string_id"),
    "unknown image with a text id": reference("image_id", "drive", "string_id"),
    "unknown category": reference("category_id", 4),
    "gap in the category ids": Row("category_id_gap", {"categories.+": {"id": 9, "name": "bus"}}, "4|1, 2, 3, 9"),
    "box of 3": box([1, 2, 3], "[1, 2, 3]"),
    "box with null": box([1, 2, 3, None], "[1, 2, 3, null]"),
    "box null": box(None, "None"),
    "box of 1e999": box([5, 6, raw("1e999"), 8], "[5, 6, Infinity, 8]"),
    "box of a text": box("none", "'none'"),
    "box of no width": box([1, 2, 0, 5], "[1, 2, 0, 5]"),
    "box of negative height": box([1, 2, 5, -3], "[1, 2, 5, -3]"),
    "box of a width that is rounded away": box([1, 2, 1e-30, 3], "[1, 2, 1e-30, 3]"),
    "box with an infinite corner": box([1e308, 2, 1e308, 3], "1e+308"),
    "box of infinite area": box([0, 0, 1e200, 1e200], "1e+200"),
    "box outside its image": Row("box_outside_image", {"annotations.1.bbox": [64, 2, 3, 4], "annotations.2.bbox": [1,
        -40.5, 30, 40.5]},
                                 "annotations[1].bbox|[64, 2, 3, 4]|8", DROP_1_2, count=2),
    "box partly outside": Row("box_partly_outside", {"annotations.1.bbox": [-5, 2, 30, 50], "annotations.3.bbox": [60,
        -1, 5, 50]},
                              "annotations[1].bbox|[-5, 2, 30, 50]|8", {"annotations.1.bbox": [0, 2, 25, 46]}),
    "box 1.1 px outside": Row("box_partly_outside", {"annotations.0.bbox": [-1, -1, 66.1, 50]},
        "annotations[0].bbox|66.1|7",
                              {"annotations.0.bbox": [0, 0, 64, 48]}),
    "cut box without area": Row("box_partly_outside", {"annotations.1.bbox": [-5, 2, 30, 50],
        "annotations.1.area": None},
                                "annotations[1].bbox|8", {"annotations.1.bbox": [0, 2, 25, 46]},
                                    also=("missing_area",)),
    "normalized boxes": Row("normalized_boxes", {f"annotations.{at}.bbox": [0.1, 0.2, 0.3, 0.4] for at in range(4)},
                            "annotations[0].bbox|[0.1, 0.2, 0.3, 0.4]|7", count=4),
    "most boxes normalized": Row("normalized_boxes", {f"annotations.{at}.bbox": [0, 0, 1, 1] for at in range(3)},
                                 "annotations[0].bbox|[0, 0, 1, 1]|7", count=3),
    "segmentation without a box": Row(
        "segmentation_without_box",
        {"annotations.1.bbox": DELETE, "annotations.1.segmentation": SEGMENTATION, "annotations.2.bbox": [],
         "annotations.2.segmentation": [[1, 2, 3, 4.5]]},
        "annotations[1]|8", {"annotations.1.bbox": [10, 8, 30.5, 22], "annotations.2.bbox": [1, 2, 2, 2.5]}, count=2),
    "file name twice": Row("duplicate_file_name", {"images.1.file_name": "7.jpg"}, "'7.jpg'|2"),
    **{f"file name {name}": Row("absolute_file_name", {"images.1.file_name": name}, f"images[1].file_name|{name!r}|8")
       for name in ("/data/8.jpg", "C:\\a.jpg")},
    **{f"file name {name}": Row("escaping_file_name", {"images.1.file_name": name}, f"images[1].file_name|{name!r}|8")
       for name in ("a/../../8.jpg", "../a.jpg", "..")},
    "no annotations": Row("no_annotations", {"annotations": []}, ""),
    "images without boxes": Row("empty_image", {"images.+": {"id": 9, "file_name": "9.jpg"},
        "annotations": coco()["annotations"][:1]},
                                "2 of 3", count=2),
    "crowd region": Row("crowd_region", {"annotations.1.iscrowd": 1}, "annotations[1]|image_id 8"),
    "byte order mark": Row("byte_order_mark", {}, ""),
}  # fmt: skip
IMAGE_FILES = {  # tests/unit/coco/test_image_files.py
    "missing_image_file",
    "unreadable_image",
    "image_size_differs",
    "unsupported_depth",
    "other_image_format",
    "exif_rotation",
    "link_leaves_root",
}
CLEAN = {
    **{
        f"file name {name[:9]!r}": {"images.1.file_name": name} for name in ("s/../d.jpg", "..d", "", "x" * 5_000, "\0")
    },
    "box within a pixel of its image": {"annotations.0.bbox": [-1, -1, 66, 50]},
    "few normalized boxes": {"annotations.0.bbox": [0.1, 0.2, 0.3, 0.4], "annotations.1.bbox": [0, 0, 1, 1]},
    "a number of 5,000 digits": {"annotations.1.track": raw(DIGITS)},
    "keys that look like syntax": {
        'a":"b': 1,
        ":": ":",
        "": {":": [":"]},
        "\\": "\\",
        "images ": [],
        "é": "\U0001f697",
    },
    "nested keys repeat top-level ones": {"info": {"images": {"images": [], "annotations": 3}}},
    "lists nested 200 deep": {"info": raw("[" * 200 + "]" * 200)},
}


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def scanner(request, monkeypatch):
    """Read files of any size with the compiled scanner, or without it."""
    for name in ("_COMPILED_FROM", "_COMPILED_FROM_IMPORTED"):
        monkeypatch.setattr(records, name, 0 if request.param == "compiled" else 1 << 62)


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "train.json"
        path.unlink(missing_ok=True)
        content = encode(content) if isinstance(content, dict) else content
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def message(path, policies=None):
    with pytest.raises(DatasetError) as caught:
        read_coco(path, policies or {})
    assert str(path) in str(caught.value)
    return str(caught.value)


def subset(dataset):
    return json.loads(
        subset_bytes(dataset, dataset.image_ids), parse_int=lambda digits: digits if len(digits) > 640 else int(digits)
    )


def summary(findings):
    return {finding.code: (finding.policy, finding.count) for finding in findings}


def assert_columns(dataset, content):
    """The columns hold the values of the records."""
    assert (len(dataset), dataset.num_boxes) == (len(content["images"]), len(content["annotations"]))
    rows = np.argsort(dataset.annotation_positions)
    for row, record in zip(rows, content["annotations"], strict=True):
        x, y, width, height = record["bbox"]
        assert dataset.boxes[row].tolist() == [x, y, x + width, y + height]
        assert dataset.areas[row] == (width * height if record.get("area") is None else record["area"])
        assert dataset.iscrowd[row] == bool(record.get("iscrowd"))


def test_rows_cover_every_finding():
    assert {row.code for row in ROWS.values()} | IMAGE_FILES == set(RULES)


@pytest.mark.parametrize("policy", [None, *POLICIES])
@pytest.mark.parametrize("name", ROWS)
def test_reader_conforms_to_the_table(name, policy, write, tmp_path):
    row, rule = ROWS[name], RULES[ROWS[name].code]
    content = edit(coco(), row.changes)
    text = encode(content).encode()
    path = write(codecs.BOM_UTF8 + text if row.code == "byte_order_mark" else text)
    policies = {row.code: policy} if policy else {}
    policy = policy or rule.policy
    assert (row.repaired is not None) == ("repair" in rule.allowed)
    if policy not in rule.allowed:
        with pytest.raises(ConfigError) as refused:
            read_coco(path, policies)
        assert all(text in str(refused.value) for text in (row.code, policy, *rule.allowed))
        return
    if policy == "error":
        found = message(path, policies)
        assert rule.advice in found or row.code == "not_finite_number"
        assert (f"{row.code}=repair" in found) == (row.repaired is not None)
        if row.code == "not_finite_number":  # see BROKEN for its line and column
            return
        assert all(part in found for part in row.example.split("|"))
        findings = inspect_coco(path, policies)[1]
    else:
        dataset = read_coco(path, policies)
        findings = dataset.findings
        expected = edit(content, row.repaired) if policy == "repair" else content
        expected = loads(encode(expected))
        assert subset(dataset) == expected
        assert_columns(dataset, expected)
    others = summary(findings)
    assert others.pop(row.code) == (policy, row.count)
    assert tuple(others) == row.also
    [finding] = [finding for finding in findings if finding.code == row.code]
    assert all(part in finding.examples[0] for part in row.example.split("|"))
    assert len(finding.examples) <= 3
    if policy == "repair" and row.code != "string_id":  # text ids are kept in the manifest
        again = tmp_path / "again.json"
        again.write_bytes(subset_bytes(dataset, dataset.image_ids))
        assert set(summary(read_coco(again).findings)) <= set(row.also)


@pytest.mark.parametrize("name", CLEAN)
def test_clean_file_has_no_finding(name, write):
    content = json.loads(
        encode(edit(coco(), CLEAN[name])), parse_int=lambda digits: digits if len(digits) > 640 else int(digits)
    )
    dataset = read_coco(write(edit(coco(), CLEAN[name])), {"box_partly_outside": "repair"})
    assert dataset.findings == ()
    assert subset(dataset) == content
    assert dataset.file_names == tuple(record["file_name"] for record in content["images"])


TEXT = encode(coco())
PACKED = gzip.compress(TEXT.encode(), mtime=0)
BROKEN = {
    "nothing": (b"", "empty"),
    "white space": (b" \n", "empty"),
    "only a byte order mark": (codecs.BOM_UTF8, "empty"),
    "white space in gzip": (gzip.compress(b" ", mtime=0), "empty"),
    "trailing comma": ('{"images": [\n{"id": 1,}\n]}', "line 2, column 10"),
    "byte order mark is no column": (codecs.BOM_UTF8 + b"{x", "line 1, column 2"),
    "truncated text": ('{"images": [\n\n{"id": 1}', "end before the JSON is complete"),
    **{f"{tail!r} after the end": (TEXT + tail, "trailing characters") for tail in ("{}", "x", "]", "\n" + TEXT, ",",
        "\0")},
    "NaN": ('{"images": [],\n "annotations": [{"area": NaN}]}', "line 2, column 27|not_finite_number=repair"),
    "Infinity": ('{"images":\n\n[{"x": Infinity}]}', "line 3, column 8|not_finite_number=repair"),
    "-Infinity": ('{"images":\n\n[{"x": -Infinity}]}', "line 3, column 9|not_finite_number=repair"),
    "only NaN": ("NaN", "line 1, column 1"),
    "half a character": (TEXT.replace("7.jpg", "\\ud800"), "hex escape"),
    "UTF-16": (codecs.BOM_UTF16_LE + "{}".encode("utf-16-le"), "UTF-8"),
    "no UTF-8 in gzip": (gzip.compress(b'{"info":\n"\xff"}', mtime=0), "UTF-8|line 2, column 2"),
    "no JSON in gzip": (gzip.compress(b'{"info":\nx}', mtime=0), "line 2, column 1"),
    **{f"gzip of {length} bytes": (PACKED[:length], "broken gzip") for length in (2, 9, 60, len(PACKED) - 1)},
    "wrong checksum": (PACKED[:-8] + bytes(4) + PACKED[-4:], "broken gzip|CRC"),
    "more after gzip": (PACKED + b"{}", "broken gzip"),
    "deep lists in info": (TEXT.replace('{"year": 2024}', "[" * 201 + "]" * 201),
        "too many nested lists|line 1, column 10"),
    "deep lists in a record": (TEXT.replace("7.5", "[" * 199 + "]" * 199), "too many nested lists"),
    "deep objects": ('{"info":' + '{"a":' * 990 + "3" + "}" * 990 + "}", "too many nested lists"),
    "open lists": ('{"info":' + "[" * 200_000, "too many nested lists"),
    "a list": ("[]", "array"),
    "null": ("null", "null"),
    **{f"{key} is an object": ({**coco(), key: {}}, f"{key}|object") for key in ("images", "annotations",
        "categories")},
    **{f"missing {key}": ({name: value for name, value in coco().items() if name != key}, f"{key}|'info'")
       for key in ("images", "annotations", "categories")},
    **{f"no {part} left": ({**coco(), part: []}, one) for part, one in (("images", "image"), ("categories",
        "category"))},
    **{f"{key} twice": (f'{{"{key}": {value}, {TEXT[1:]}', f"repeated|{key}")
       for key, value in (("info", '{"a": 1, "b": ":"}'), ("images", "[]"), ("annotations", '"\\":"'), ("categories",
           "3"))},
    "info twice, at the end": (TEXT[:-1] + ', "info": null}', "repeated|info"),
    "images twice, once escaped": (TEXT[:-1] + r', "im\u0061ges": []}', "repeated|images"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_refused(name, write):
    content, parts = BROKEN[name]
    found = message(write(content), {"malformed_record": "repair"})
    assert all(part in found for part in parts.split("|")), found


@pytest.mark.parametrize("at", ["info", "images", "annotations"])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
def test_unread_field_that_is_not_utf8_is_refused(write, at, bad):
    """A decoder skips the values that it does not need, and a subset would copy them."""
    content = edit(coco(), {"info": {"x": "!"}, "images.0.x": "!", "annotations.0.x": "!"})
    texts = {key: json.dumps(value).encode() for key, value in content.items()}
    texts[at] = texts[at].replace(b'"!"', b'\n "' + bad + b'"')
    text = b"{" + b",".join(b'"%s":%s' % (key.encode(), value) for key, value in texts.items()) + b"}"
    found = message(write(text))
    assert "UTF-8" in found
    assert "line 2, column 3" in found
    assert read_coco(write(text.replace(bad, "é".encode()))).num_boxes == 4


@pytest.mark.parametrize(("old", "new"), [("]}", "]"), ("NaN", "NaNa"), ("NaN", "nan"), ('"file', 'x"file')])
def test_repair_of_nan_fixes_nothing_else(write, old, new):
    text = TEXT.replace("7.5", "NaN", 1).replace(old, new)
    assert "not valid JSON" in message(write(text), {"not_finite_number": "repair"})


def test_nan_in_a_box_is_an_invalid_box(write):
    path = write(TEXT.replace("[1, 2, 30, 40]", "[1, NaN, 30, 40]", 1))
    assert "[1, null, 30, 40]" in message(path, {"not_finite_number": "repair"})


def test_all_errors_are_reported_at_once(write):
    changes = {"annotations.1.bbox": None, "annotations.2.category_id": 9, "images.1.file_name": "/a.jpg"}
    lines = message(write(edit(coco(), changes))).splitlines()
    assert [line.split(": ")[1] for line in lines[1:]] == [
        "annotations[2].category_id",
        "annotations[1].bbox",
        "images[1].file_name",
    ]


def test_dropped_record_is_reported_once(write):
    changes = {"annotations.1.image_id": 99, "annotations.1.category_id": 99, "annotations.1.bbox": [0, 0, 0, 0]}
    dataset, findings = inspect_coco(write(edit(coco(), changes)))
    assert summary(findings) == {"unknown_image": ("error", 1)}
    assert sorted(dataset.annotation_positions.tolist()) == [0, 2, 3]


def test_unreadable_image_makes_its_annotations_unknown(write):
    changes = {
        "images.+": {"id": 9, "width": 0},
        "categories.+": {"id": None},
        "annotations.+": {"id": 9, "image_id": 9},
    }
    path = write(edit(coco(), changes))
    assert summary(inspect_coco(path)[1]) == {"malformed_record": ("error", 2), "unknown_image": ("error", 1)}
    dataset = read_coco(path, {"malformed_record": "repair", "unknown_image": "repair"})
    assert subset(dataset) == coco()


@pytest.mark.parametrize("part", ["images", "categories"])
def test_file_without_readable_images_or_categories_is_refused(write, part):
    path = write({**coco(), part: [3]})
    assert f"{part}[0]" in message(path)
    assert f"{part}[0]" not in message(path, {"malformed_record": "repair"})


def test_first_record_of_a_repeated_id_is_kept_in_any_order(write):
    changes = {"images.+": {"id": 8, "width": 99}}
    content = edit(edit(coco(), changes), {"images.+": {"width": 99}})
    dataset = read_coco(write(edit(content, changes)), {"duplicate_image_id": "repair"})
    assert dataset.findings[0].count == 3
    assert dataset.image_positions.tolist() == [0, 1]
    assert dataset.widths.tolist() == [64, 64]


@pytest.mark.parametrize(("highest", "expected"), [(12, [13, 12, 14, 15]), (2**53 - 1, [1, 2**53 - 1, 2, 3])])
def test_new_annotation_ids_are_unused(write, highest, expected):
    ids = {f"annotations.{at}.id": number for at, number in enumerate((0, highest, None, highest))}
    policies = dict.fromkeys(("missing_id", "annotation_id_zero", "duplicate_annotation_id"), "repair")
    dataset = read_coco(write(edit(coco(), ids)), policies)
    assert [record["id"] for record in subset(dataset)["annotations"]] == expected


def test_cut_box_gets_the_remaining_area(write):
    changes = {"annotations.1.bbox": [-5, 2, 30, 50], "annotations.1.area": None}
    dataset = read_coco(write(edit(coco(), changes)), {"box_partly_outside": "repair", "missing_area": "repair"})
    assert subset(dataset)["annotations"][1]["area"] == 25 * 46


def test_patched_record_keeps_other_fields_and_the_order_of_keys(write):
    changes = {
        "annotations.1.id": 0,
        "annotations.1.track": {"b": [1.0], "a": None},
        "annotations.1.bbox": [-5, 2, 30, 50],
    }
    text = encode(edit(coco(), changes)).replace('"area": 7.5', '"area": 7.50e0')
    dataset = read_coco(write(text), {"annotation_id_zero": "repair", "box_partly_outside": "repair"})
    lines = subset_bytes(dataset, dataset.image_ids).decode().splitlines()
    [patched] = [line for line in lines if '"track"' in line]
    assert patched == (
        '{"id":5,"image_id":8,"category_id":1,"bbox":[0.0,2.0,25.0,46.0],"area":7.50e0,"iscrowd":0,'
        '"track":{"b": [1.0], "a": null}},'
    )
    assert sum(line.rstrip(",") in text for line in lines if '"bbox"' in line) == 3
