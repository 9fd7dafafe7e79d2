"""Properties of any COCO file, valid or damaged: no crash, no record lost without a finding, no byte changed.

``DETCURATE_EXAMPLES=50`` makes 50 times as many examples, and different ones each time.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detcurate.coco import records
from detcurate.coco.dataset import CocoDataset, image_metadata, inspect_coco, read_coco
from detcurate.coco.validation.findings import RULES, Finding
from detcurate.errors import DatasetError
from detcurate.manifest.write import subset_bytes

TIMES = int(os.environ.get("DETCURATE_EXAMPLES", "1"))
ALL_REPAIRED = {code: "repair" for code, rule in RULES.items() if "repair" in rule.allowed}
LISTS = ("images", "annotations", "categories")
DROPPING = (
    "malformed_record",
    "invalid_box",
    "box_outside_image",
    "unknown_image",
    "unknown_category",
    "duplicate_image_id",
    "duplicate_category_id",
)


def examples(number: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=number * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("properties") / "train.json"


class Huge(str):
    """A number with more digits than Python reads."""


def loads(text: str | bytes) -> Any:
    """Decode with Python's reader, NaN as null."""
    return json.loads(
        text, parse_int=lambda digits: int(digits) if len(digits) < 700 else Huge(digits), parse_constant=lambda _: None
    )


# ------------------------------------------------------------------------------------------------------- documents
# A record maps keys to JSON texts: some are texts that Python does not write.

NAMES = st.text(st.characters(codec="utf-8"), max_size=6)
TEXTS = NAMES.map(json.dumps) | NAMES.map(lambda name: json.dumps(name, ensure_ascii=False))
NUMBERS = st.integers(-3, 12) | st.integers(-(2**63) - 2, 2**64) | st.sampled_from([2**53, 2**53 + 1, 2**70, -(2**63)])
IDS = st.integers(0, 5).map(str) | NUMBERS.map(str) | NUMBERS.map(lambda number: f'"{number}"') | TEXTS
EXTRAS = st.recursive(
    TEXTS | st.sampled_from(["null", "true", "1.50", "-0", "1e999", "1E2", "9" * 5_000, "-1e-999", '"]},{[\\""']),
    lambda value: (
        st.lists(value, max_size=3).map(lambda values: f"[{', '.join(values)}]")
        | st.dictionaries(TEXTS, value, max_size=3).map(
            lambda values: "{" + ", ".join(f"{key} :{value}" for key, value in values.items()) + "}"
        )
    ),
    max_leaves=5,
)
WRONG = st.sampled_from(
    """null true false 0 -1 1.5 1.0 9223372036854775808 -9223372036854775808 1e999 -1e999 1e-999 "" "x" "7" "007" [] [1]
    {} {"a":{"b":[]}} [1,2,3] [1,2,3,4,5] ["1","2","3","4"] [1,2,3,null] [1,2,3,true] [1,2,3,1e999] [1,2,0,4] [1,2,3,-4]
    [0,0,1e200,1e200] [1e308,0,1e308,5] [0,0,1e-30,1] [-9,-9,4,4] [-9,-9,20,20] [40,0,5,5] [39.5,0,5,5] [0,0,1,1]
    NaN -Infinity [1,NaN,3,4]""".split()
    + ["1" + "0" * 70, "9" * 5_000, f"[1,2,3,{'9' * 400}]", '"\\ud83d\\ude97"']
)
SIDES = st.integers(0, 20).map(str) | st.floats(0, 20).map(repr)


@st.composite
def boxes(draw) -> str:
    x, y = draw(SIDES), draw(SIDES)
    width, height = draw(st.integers(1, 15)), draw(st.floats(0.5, 9))
    return f"[{x},{y}, {width} ,{height}]"


@st.composite
def record(draw, fields, optional) -> dict[str, str]:
    values = {key: draw(value) for key, value in fields.items()}
    values.update({key: draw(value) for key, value in optional.items() if draw(st.booleans())})
    if draw(st.integers(0, 3)) == 0:
        values["extra"] = draw(EXTRAS)
    return {key: values[key] for key in draw(st.permutations(list(values)))}


POLYGONS = st.lists(st.integers(0, 30).map(str), min_size=6, max_size=6).map(lambda numbers: f"[[{','.join(numbers)}]]")
FLAGS = st.sampled_from(["0", "1", "true", "false", "null"])
OPTIONAL = {
    "images": {
        "sequence": TEXTS | st.integers(0, 9).map(str),
        "frame_index": st.sampled_from(["0", "7", "null", "9223372036854775807"]),
    },
    "annotations": {
        "area": st.sampled_from(["null", "0", "7.50", "1e2"]),
        "iscrowd": FLAGS,
        "segmentation": POLYGONS | st.just("[]"),
    },
    "categories": {"supercategory": TEXTS},
}


@st.composite
def documents(draw, ids=IDS) -> dict[str, list[dict[str, str]]]:
    """Valid records that refer to each other."""
    image_ids = draw(st.lists(ids, min_size=1, max_size=5, unique_by=normal_text))
    category_ids = draw(st.lists(ids, min_size=1, max_size=3, unique_by=normal_text))
    names = draw(st.lists(NAMES, min_size=len(category_ids), max_size=len(category_ids), unique=True))
    sizes = {"width": st.integers(35, 90).map(str), "height": st.integers(30, 40).map(str)}
    files = {"file_name": NAMES.map(lambda name: json.dumps(f"d{re.sub(r'[/.:]', '', name)}.jpg"))}
    annotation = {"image_id": st.sampled_from(image_ids), "category_id": st.sampled_from(category_ids), "bbox": boxes()}
    return {
        "images": [draw(record({"id": st.just(i), **files, **sizes}, OPTIONAL["images"])) for i in image_ids],
        "annotations": draw(
            st.lists(record(annotation, {"id": ids | st.just("null"), **OPTIONAL["annotations"]}), max_size=6)
        ),
        "categories": [
            draw(record({"id": st.just(i), "name": st.just(json.dumps(name))}, OPTIONAL["categories"]))
            for i, name in zip(category_ids, names, strict=True)
        ],
    }


@st.composite
def faulty_documents(draw) -> dict[str, list[Any]]:
    """Documents with up to 4 faults: wrong or missing values, and repeated records."""
    document = draw(documents())
    for _ in range(draw(st.integers(0, 4))):
        part = draw(st.sampled_from([name for name in (*LISTS, "annotations", "annotations") if document[name]]))
        at = draw(st.integers(0, len(document[part]) - 1))
        chosen = document[part][at]
        fault = draw(st.sampled_from(["value", "value", "value", "delete", "repeat", "replace"]))
        if not isinstance(chosen, dict) or fault == "replace":
            document[part][at] = draw(WRONG)
        elif fault == "repeat":
            document[part].insert(draw(st.integers(0, len(document[part]))), dict(chosen))
        elif keys := [key for key in chosen if key != "segmentation"]:  # test_decode.py has broken ones
            key = draw(st.sampled_from(keys))
            if fault == "delete":
                del chosen[key]
            else:
                chosen[key] = draw(WRONG | IDS)
    return document


def record_text(values: Any) -> str:
    if isinstance(values, str):
        return values
    return "{" + ", ".join(f'"{key}": {value}' for key, value in values.items()) + "}"


@st.composite
def layouts(draw, document) -> str:
    """The text of a document, with keys in any order and any white space between the records."""
    spaces = st.sampled_from(["", " ", "\n", "\r\n\t ", "  \n"])
    parts = {
        name: "[" + ",".join(draw(spaces) + record_text(values) + draw(spaces) for values in document[name]) + "]"
        for name in LISTS
    }
    parts |= {"info": draw(EXTRAS), "licenses": "[ ]"}
    keys = draw(st.permutations(list(parts)))
    return draw(spaces) + "{" + ",".join(f'{draw(spaces)}"{key}"{draw(spaces)}:{parts[key]}' for key in keys) + "}\n"


# ---------------------------------------------------------------------------------------------------------- oracle


def normal(value: Any) -> Any:
    """Return the value by which ids are compared."""
    if isinstance(value, str):
        if not re.fullmatch(r"0|-?[1-9][0-9]{0,18}", value):
            return value
        value = int(value)
    return value if -(2**63) < value < 2**63 else str(value)


def normal_text(text: str) -> Any:
    return normal(loads(text))


def is_int(value: Any, low: float = -np.inf, high: float = np.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_id(value: Any) -> bool:
    return is_int(value) or (isinstance(value, str) and not isinstance(value, Huge))


def is_number(value: Any) -> bool:
    if is_int(value):
        return abs(value) < 10**308
    return isinstance(value, float) and bool(np.isfinite(value))


def is_image(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and is_id(record.get("id"))
        and isinstance(record.get("file_name"), str)
        and not isinstance(record.get("file_name"), Huge)
        and all(is_int(record.get(key), 1, 2**31 - 1) for key in ("width", "height"))
        and (record.get("sequence") is None or is_id(record["sequence"]))
        and (record.get("frame_index") is None or is_int(record["frame_index"], 0, 2**63 - 1))
    )


def is_category(record: Any) -> bool:
    return isinstance(record, dict) and is_id(record.get("id")) and type(record.get("name")) is str


def box_of(record: dict[str, Any], *, repair: bool) -> list[float] | None:
    """The xywh box of an annotation, or ``None``."""
    box, segmentation = record.get("bbox"), record.get("segmentation")
    if not box and repair and segmentation:
        points = np.array(segmentation, float).reshape(-1, 2)
        return [*points.min(axis=0), *np.ptp(points, axis=0)]
    return box if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) else None


def is_annotation(record: Any, sizes: dict[Any, tuple[int, int]], categories: set[Any], *, repair: bool) -> bool:
    if not (
        isinstance(record, dict)
        and all(is_id(record.get(key)) for key in ("image_id", "category_id"))
        and (record.get("id") is None or is_id(record["id"]))
        and (record.get("area") is None or (is_number(record["area"]) and record["area"] >= 0))
        and (record.get("iscrowd") is None or isinstance(record["iscrowd"], bool) or is_int(record["iscrowd"], 0, 1))
        and normal(record["image_id"]) in sizes
        and normal(record["category_id"]) in categories
    ):
        return False
    box = box_of(record, repair=repair)
    if box is None:
        return False
    x, y, box_width, box_height = map(float, box)
    width, height = sizes[normal(record["image_id"])]
    has_size = x + box_width > x and y + box_height > y and box_width * box_height < 1e308 and x + box_width < 1e308
    return has_size and x + box_width > 0 and y + box_height > 0 and x < width and y < height


def first_of_each(records: list[Any], is_fine: Callable[[Any], bool]) -> dict[Any, int]:
    """Return id -> position of the first valid record."""
    found: dict[Any, int] = {}
    for position, one in enumerate(records):
        if is_fine(one):
            found.setdefault(normal(one["id"]), position)
    return found


def expected_positions(content: dict[str, Any], *, repair: bool) -> tuple[list[int], list[int], list[int]]:
    """Return the positions of the images, annotations and categories to keep."""
    images = first_of_each(content["images"], is_image)
    categories = first_of_each(content["categories"], is_category)
    sizes = {key: (content["images"][at]["width"], content["images"][at]["height"]) for key, at in images.items()}
    annotations = [
        position
        for position, one in enumerate(content["annotations"])
        if is_annotation(one, sizes, set(categories), repair=repair)
    ]
    return sorted(images.values()), annotations, sorted(categories.values())


# ------------------------------------------------------------------------------------------------------ properties


def assert_nothing_is_lost(content: dict[str, Any], dataset: CocoDataset, findings: tuple[Finding, ...]) -> None:
    """Records = kept + reported: each dropped record is reported once."""
    dropped = sum(
        finding.count
        for finding in findings
        if (finding.code in DROPPING and finding.policy in ("error", "repair"))
        or (finding.code == "segmentation_without_box" and finding.policy == "error")
    )
    kept = len(dataset) + dataset.num_boxes + len(dataset.class_names)
    assert kept + dropped == sum(len(content[name]) for name in LISTS), findings
    of_annotations = {code: 0 for code in ("invalid_box", "unknown_image", "unknown_category", "box_outside_image")}
    of_annotations |= {f.code: f.count for f in findings if f.code in of_annotations}
    assert sum(of_annotations.values()) <= len(content["annotations"]) - dataset.num_boxes


def assert_consistent(content: dict[str, Any], dataset: CocoDataset, *, repair: bool) -> None:
    """Compare the columns with the records as Python reads them."""
    assert (np.diff(dataset.image_ids) > 0).all()
    assert (np.diff(dataset.category_ids) > 0).all()
    assert (np.diff(dataset.image_index) >= 0).all()
    assert np.isfinite(dataset.boxes).all()
    assert np.isfinite(dataset.areas).all()
    assert (dataset.boxes[:, :2] < dataset.boxes[:, 2:]).all()
    names = {normal(one["id"]): one["name"] for one in reversed(content["categories"]) if is_category(one)}
    for row, position in enumerate(dataset.image_positions.tolist()):
        one = content["images"][position]
        assert normal(dataset.original_id(row)) == normal(one["id"])
        assert (dataset.file_names[row], dataset.widths[row]) == (one["file_name"], one["width"])
    for row, position in enumerate(dataset.annotation_positions.tolist()):
        one = content["annotations"][position]
        image = content["images"][dataset.image_positions[dataset.image_index[row]]]
        assert normal(one["image_id"]) == normal(image["id"])
        assert dataset.class_names[dataset.class_index[row]] == names[normal(one["category_id"])]
        assert dataset.iscrowd[row] == bool(one.get("iscrowd"))
        if not repair:
            x, y, width, height = map(float, one["bbox"])
            assert dataset.boxes[row].tolist() == [x, y, x + width, y + height]
            if isinstance(one.get("id"), int) and -(2**63) < one["id"] < 2**63:
                assert dataset.annotation_ids[row] == one["id"]
        if one.get("area") is not None:
            assert dataset.areas[row] == one["area"]
    if repair:
        assert len(np.unique(dataset.annotation_ids)) == dataset.num_boxes


def assert_subset_is_whole(dataset: CocoDataset) -> None:
    written = loads(subset_bytes(dataset, dataset.image_ids))
    assert list(written) == list(dataset.other_top_level)
    assert len(written["images"]) == len(dataset)
    assert len(written["annotations"]) == dataset.num_boxes
    assert len(written["categories"]) == len(dataset.class_names)
    assert all(len(column) == len(dataset) for column in image_metadata(dataset).values())


@examples(250)
@given(st.data())
def test_every_record_is_kept_or_reported(path, data):
    text = data.draw(layouts(data.draw(faulty_documents())))
    path.write_bytes(text.encode())
    content = loads(text)
    has_nan = content != json.loads(text, parse_int=str, parse_constant=str) and re.search(r"NaN|Infinity", text)
    for policies in ({}, ALL_REPAIRED):
        repair = bool(policies)
        images, annotations, categories = expected_positions(content, repair=repair)
        try:
            dataset, findings = inspect_coco(path, policies)
        except DatasetError as error:
            assert str(path) in str(error)
            assert not images or not categories or (has_nan and not repair)
            continue
        assert sorted(dataset.image_positions.tolist()) == images
        assert sorted(dataset.annotation_positions.tolist()) == annotations
        assert len(dataset.class_names) == len(categories)
        assert_nothing_is_lost(content, dataset, findings)
        assert_consistent(content, dataset, repair=repair)
        if any(finding.policy == "error" for finding in findings):
            with pytest.raises(DatasetError, match=re.escape(str(path))):
                read_coco(path, policies)
        else:
            assert read_coco(path, policies).findings == findings
            assert_subset_is_whole(dataset)


@examples(150)
@given(st.data())
def test_subset_of_all_images_equals_a_clean_file(path, data):
    document = data.draw(documents())
    text = data.draw(layouts(document))
    path.write_bytes(text.encode())
    dataset = read_coco(path, {"normalized_boxes": "note"})
    whole = subset_bytes(dataset, dataset.image_ids)
    assert loads(whole) == loads(text)
    lines = whole.decode().split("\n")
    for name, positions in (("images", dataset.image_positions), ("annotations", dataset.annotation_positions)):
        texts = [record_text(values) for values in document[name]]
        assert sorted(positions.tolist()) == list(range(len(texts)))
        start = next(
            at for at, line in enumerate(lines) if line.startswith(f'{{"{name}": [') or line.startswith(f'"{name}": [')
        )
        assert [line.rstrip(",") for line in lines[start + 1 : start + 1 + len(texts)]] == texts
    path.write_bytes(whole)
    again = read_coco(path, {"normalized_boxes": "note"})
    assert subset_bytes(again, again.image_ids) == whole
    assert_nothing_is_lost(loads(text), dataset, dataset.findings)


@examples(60)
@given(st.data())
def test_subset_holds_the_records_of_its_images(path, data):
    document = data.draw(documents())
    text = data.draw(layouts(document))
    path.write_bytes(text.encode())
    dataset = read_coco(path, {"normalized_boxes": "note"})
    chosen = data.draw(st.lists(st.sampled_from(dataset.image_ids.tolist()), min_size=1, unique=True))
    written = loads(subset_bytes(dataset, np.array(chosen)))
    content = loads(text)
    rows = dataset.subset_rows(np.array(chosen))
    kept = {normal(content["images"][at]["id"]) for at in dataset.image_positions[rows].tolist()}
    content["images"] = [one for one in content["images"] if normal(one["id"]) in kept]
    content["annotations"] = [one for one in content["annotations"] if normal(one["image_id"]) in kept]
    assert written == content


# --------------------------------------------------------------------------------------------------------- damage

WHOLE = json.dumps(
    {
        "info": {"year": 2024, "note": '{"é": [1]}'},
        "images": [
            {"id": 30, "file_name": "c.jpg", "width": 64, "height": 48, "sequence": "drivé", "frame_index": 7},
            {"id": "zwölf", "file_name": "sub/b.jpg", "width": 63, "height": 47, "weather": {"rain": 1.5, "wet": None}},
            {"id": 41, "file_name": "d\\.jpg", "width": 65, "height": 49},
        ],
        "annotations": [
            {"id": 0, "image_id": 41, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 11.5, "iscrowd": 1},
            {"id": 8, "image_id": "zwölf", "category_id": 2, "bbox": [0.5, 0, 10, 20]},
            {"image_id": "41", "category_id": 2, "bbox": [5, 6, 7, 8], "segmentation": [[5, 6, 12, 14, 5, 14]]},
            {"id": 9, "image_id": 41, "category_id": 2, "segmentation": {"counts": [9, 5, 8], "size": [4, 6]}},
            {"id": 3, "image_id": 30, "category_id": 9, "bbox": [0, 0, 2.25, 2], "iscrowd": False, "area": None},
        ],
        "categories": [{"id": 9, "name": "car"}, {"id": 2, "name": "person"}],
    },
    ensure_ascii=False,
    indent=1,
).encode()
TOKENS = tuple(
    """null true {} [] "" NaN -Infinity 1e999 -1 0 0.5 9223372036854775808 -9223372036854775808 [[1,2,3,4]] "30"
    "images" {"counts":[1,2],"size":[0,0]} {"counts":"04","size":[2,2]} , : ] } { [ "\\" \\ """.split()
)
TOKENS += ("9" * 5_000, "[" * 300, "[" * 300 + "]" * 300, "\0", "\ufeff", '"\\ud800"', '"\\u00zz"', "\n")
CHANGES = st.tuples(
    st.sampled_from(["flip", "delete", "insert", "token", "value", "truncate", "repeat"]),
    st.integers(0, len(WHOLE)),
    st.integers(0, 2**16 - 1),
)


def damage(data: bytes, kind: str, at: int, number: int) -> bytes:
    at = min(at, len(data))
    if kind == "flip":
        return data[:at] + bytes(byte ^ (1 << number % 8) for byte in data[at : at + 1]) + data[at + 1 :]
    if kind == "delete":
        return data[:at] + data[at + 1 + number % 40 :]
    if kind == "insert":
        return data[:at] + bytes([number % 256]) + data[at:]
    if kind == "token":
        return data[:at] + TOKENS[number % len(TOKENS)].encode() + data[at:]
    if kind == "truncate":
        return data[:at]
    if kind == "repeat":
        return data[:at] + data[at - number % 200 if at > number % 200 else 0 : at] + data[at:]
    # Another value for the field at or after this position.
    found = re.compile(rb'(?<=: )("(\\.|[^"\\])*"|[-0-9.a-zA-Z]+|\[[^\[\]]*\])').search(data, at)
    if found is None:
        return data
    return data[: found.start()] + TOKENS[number % len(TOKENS)].encode() + data[found.end() :]


def assert_refused_or_read_whole(path: Path, data: bytes) -> None:
    """Read a damaged file: either a DatasetError with its path, or a complete dataset."""
    path.write_bytes(data)
    for policies in ({}, ALL_REPAIRED):
        try:
            dataset, findings = inspect_coco(path, policies)
        except DatasetError as error:
            assert str(path) in str(error)
            continue
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        content = loads(text.decode("utf-8-sig"))
        assert_nothing_is_lost(content, dataset, findings)
        assert_consistent(content, dataset, repair=bool(policies))
        if not any(finding.policy == "error" for finding in findings):
            assert_subset_is_whole(read_coco(path, policies))


def test_undamaged_file_is_read(path):
    path.write_bytes(WHOLE)
    dataset = read_coco(path, {"segmentation_without_box": "repair"})
    assert (len(dataset), dataset.num_boxes) == (3, 5)
    assert_refused_or_read_whole(path, WHOLE)


@examples(1_000)
@given(st.lists(CHANGES, min_size=1, max_size=4))
def test_damaged_file_is_refused_or_read_whole(path, changes):
    data = WHOLE
    for change in changes:
        data = damage(data, *change)
    assert_refused_or_read_whole(path, data)


@examples(150)
@given(st.lists(CHANGES, min_size=1, max_size=2))
def test_damaged_gzip_file_is_refused_or_read_whole(path, changes):
    data = gzip.compress(WHOLE, mtime=0)
    for change in changes:
        data = damage(data, *change)
    assert_refused_or_read_whole(path, data)


def result(path: Path, policies) -> object:
    """Return the error, or the findings and the columns, of reading a file."""
    try:
        dataset, findings = inspect_coco(path, policies)
    except DatasetError as error:
        return str(error)
    columns = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(dataset)}
    return findings, {
        name: value.tobytes() if isinstance(value, np.ndarray) else repr(value) for name, value in columns.items()
    }


def assert_scanners_agree(path: Path, block: int) -> None:
    """Read a file with the compiled scanner and without it."""
    for policies in ({}, ALL_REPAIRED):
        results = []
        for limit in (0, 1 << 62):
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(records, "_BLOCK", block)
                monkeypatch.setattr(records, "_COMPILED_FROM", limit)
                monkeypatch.setattr(records, "_COMPILED_FROM_IMPORTED", limit)
                results.append(result(path, policies))
        assert results[0] == results[1]


@examples(500)
@given(st.lists(CHANGES, min_size=1, max_size=4), st.integers(1, 4))
def test_both_scanners_read_a_damaged_file_alike(path, changes, block):
    data = WHOLE
    for change in changes:
        data = damage(data, *change)
    path.write_bytes(data)
    assert_scanners_agree(path, block)


@examples(100)
@given(st.data())
def test_both_scanners_read_a_faulty_file_alike(path, data):
    path.write_bytes(data.draw(layouts(data.draw(faulty_documents()))).encode())
    assert_scanners_agree(path, data.draw(st.integers(1, 4)))
