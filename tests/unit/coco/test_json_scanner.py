"""The compiled scanner: by hand, and against msgspec on generated records, to the last bit."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detcurate.coco import ABSENT_ID
from detcurate.coco.decode import AnnotationRecord
from detcurate.coco.json_scanner import find_elements, read_elements

PLAIN = '{"id": 7, "image_id": -12, "category_id": 3, "bbox": [1.5, -2e1, 3, 0.25], "area": 9, "iscrowd": 1}'


def columns(n: int):
    """Return the columns of n records, filled with values that must be overwritten."""
    integers = [np.full(n, 99, np.int64) for _ in range(3)]
    return (np.zeros(n, bool), *integers, np.full((n, 4), 99.0), np.full(n, 99.0), np.full(n, 99, np.int8))


def scan(text: str, n: int, limits: list[int] | None = None):
    """Scan a list of n elements, to each limit in turn; return the elements, the columns and the depth."""
    content = text.encode()
    data, spans, filled = np.frombuffer(content, np.uint8), np.zeros((n + 1, 2), np.int64), columns(n + 1)
    state, count = np.array([1, 1]), 0
    for limit in [*(limits or []), len(data)]:
        count = read_elements(data, limit, state, count, spans, *filled)
    assert (state[0], count) == (len(data), n)
    again, plain = np.zeros_like(spans), np.array([1, 1])
    assert find_elements(data, len(data), plain, 0, again) == n
    assert again.tolist() == spans.tolist()
    assert plain[1] == max(state[1], plain[1])  # a plain record counts with its own depth only
    return [content[start:stop].decode() for start, stop in spans[:n]], [c[:n] for c in filled], int(plain[1])


def parse(*texts: str):
    """Return which records were read, and the columns."""
    found, (read, *rest), _ = scan(f"[{','.join(texts)}]", len(texts))
    assert found == [text.strip() for text in texts]
    return read.tolist(), rest


def test_plain_record_is_read():
    read, (ids, image, category, xywh, areas, iscrowd) = parse(PLAIN)
    assert read == [True]
    assert (ids[0], image[0], category[0], areas[0], iscrowd[0]) == (7, -12, 3, 9.0, 1)
    assert xywh[0].tolist() == [1.5, -20.0, 3.0, 0.25]


@pytest.mark.parametrize(
    "text",
    [
        '{"image_id":1,"category_id":2,"bbox":[0,0,1,1]}',
        '{ "x" : {"id": [9, "}]\\"", {}]} , "image_id" :1, "category_id": 2,\n\t"bbox" : [ 0 , 0 ,1, 1 ] , "y": null }',
        '{"image_id":1,"category_id":2,"bbox":[0,0,1,1],"iscrowd":null,"area":null,"name":"id","t":true,"f":-1.5e-300}',
        '{"iscrowd": 0, "image_id": 9, "image_id":1, "category_id":2, "bbox":[0.0,0,1e0,1], "identity": 4, "ID": 5}',
    ],
)
def test_other_fields_are_skipped(text):
    read, (ids, image, category, xywh, areas, iscrowd) = parse(text, PLAIN)
    assert read == [True, True]
    assert (ids[0], image[0], category[0]) == (ABSENT_ID, 1, 2)
    assert xywh[0].tolist() == [0, 0, 1, 1]
    assert np.isnan(areas[0])
    assert iscrowd[0] in (-1, 0)
    assert ids[1] == 7


@pytest.mark.parametrize(
    "text",
    [
        "3",
        "[1, 2]",
        "{}",
        PLAIN.replace('"image_id": -12, ', ""),
        PLAIN.replace('"bbox"', '"box"'),
        PLAIN.replace('"bbox"', '"bb\\u006fx"'),
        PLAIN.replace("7", '"7"'),
        PLAIN.replace("7", "7.0"),
        PLAIN.replace("7", "7e0"),
        PLAIN.replace("7", "1234567890123456789"),
        PLAIN.replace("7", "12345678901234567890123"),
        PLAIN.replace("-12", "null"),
        PLAIN.replace("0.25]", "0.25, 1]"),
        PLAIN.replace(", 0.25]", "]"),
        PLAIN.replace("0.25", "null"),
        PLAIN.replace("0.25", "[]"),
        PLAIN.replace("0.25", "0.12345678901234567890"),
        PLAIN.replace("0.25", "9007199254740993"),
        PLAIN.replace("0.25", "1e300"),
        PLAIN.replace('"area": 9', '"area": -9'),
        PLAIN.replace('"area": 9', '"area": "9"'),
        PLAIN.replace('"iscrowd": 1', '"iscrowd": 2'),
        PLAIN.replace('"iscrowd": 1', '"iscrowd": 1.0'),
    ],
)
def test_unusual_record_is_left_unread(text):
    json.loads(text)
    assert parse(PLAIN, text, PLAIN)[0] == [True, False, True]


@pytest.mark.parametrize("space", ["", " ", "\n", "\t\r\n ", " " * 70])
def test_white_space_is_skipped_everywhere(space):
    fields = [f'"{key}"{space}:{space}{value}' for key, value in (("image_id", 1), ("category_id", 2), ("x", "null"))]
    box = f'"bbox"{space}:{space}[{space}1{space},{space}2.5{space},{space}3e0{space},{space}4{space}]'
    record = "{" + space + f"{space},{space}".join([*fields, box]) + space + "}"
    found, (read, _, image, category, xywh, *_), _ = scan(
        f"[{space}{record}{space},{space}null{space},{space}{{{space}}}{space}]", 3
    )
    assert found == [record, "null", "{" + space + "}"]
    assert read.tolist() == [True, False, False]
    assert (image[0], category[0], xywh[0].tolist()) == (1, 2, [1, 2.5, 3, 4])


@pytest.mark.parametrize("text", ["[]", "[ ]", "[\n\t]"])
def test_empty_list_has_no_element(text):
    assert scan(text, 0)[0] == []


@pytest.mark.parametrize("limit", range(1, 2 * len(PLAIN) + 3))
def test_limit_inside_a_record_or_string_does_not_end_it(limit):
    text = f'[{PLAIN},{{"a": "]}},{{", "b": [{{"c": "\\""}}]}}, {PLAIN}]'
    found, (read, ids, *_), _ = scan(text, 3, [limit])
    assert found == [PLAIN, '{"a": "]},{", "b": [{"c": "\\""}]}', PLAIN]
    assert read.tolist() == [True, False, True]
    assert ids[[0, 2]].tolist() == [7, 7]


def test_scan_continues_after_full_columns():
    content = f"[{PLAIN}, 3, {PLAIN}]".encode()
    data, filled, state, spans = np.frombuffer(content, np.uint8), columns(3), np.array([1, 1]), np.zeros((3, 2), int)
    for count in range(3):
        views = [column[: count + 1] for column in (spans, *filled)]
        assert read_elements(data, len(data), state, count, *views) == count + 1
    assert read_elements(data, len(data), state, 3, spans, *filled) == 3  # full: the end is not reached yet
    assert [content[start:stop].decode() for start, stop in spans] == [PLAIN, "3", PLAIN]
    assert filled[0].tolist() == [True, False, True]


@pytest.mark.parametrize(
    "inner", ["[]", "{}", '[{"a": [1]}]', '{"a": {"b": {}}, "c": []}', '"[[["', '[0, "]]}", {}]', "1"]
)
def test_depth_of_a_list_is_reported(inner):
    depth = {"[]": 3, "{}": 3, '[{"a": [1]}]': 5, '{"a": {"b": {}}, "c": []}': 5, '[0, "]]}", {}]': 4}.get(inner, 2)
    assert scan(f'[{{"x": {inner}}}]', 1)[2] == depth
    content = f'[{PLAIN[:-1]}, "x": {"[" * 300}{inner}{"]" * 300}}}]'.encode()
    data, state = np.frombuffer(content, np.uint8), np.array([1, 1])
    assert read_elements(data, len(data), state, 0, np.zeros((2, 2), int), *columns(2)) == 1
    assert state[1] == depth + 300


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"area": "5", "area ": "6"}, 5.0),
        ({"area": "-0.0"}, -0.0),
        ({"area": "9007199254740991"}, 2.0**53 - 1),
        ({"area": "9007199254740992"}, None),
        ({"area": "900719925474099.1"}, 900719925474099.1),
        ({"area": "1e22"}, 1e22),
        ({"area": "1e23"}, None),
        ({"area": "3E-22"}, 3e-22),
        ({"area": "3e+2"}, 300.0),
        ({"area": "0.1e-22"}, None),
        ({"area": "1e99999999999999999999"}, None),
    ],
)
def test_numbers_at_the_limits_are_exact_or_unread(changes, expected):
    fields = ", ".join(f'"{key}": {value}' for key, value in changes.items())
    read, (_, _, _, _, areas, _) = parse('{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], ' + fields + "}")
    assert read == [expected is not None]
    if expected is not None:
        assert np.float64(expected).tobytes() == areas[0].tobytes()


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ('"id": 3, "id": 4', (4, np.nan, -1)),
        ('"area": 3, "area": null', (ABSENT_ID, np.nan, -1)),
        ('"area": null, "area": 3', (ABSENT_ID, 3.0, -1)),
        ('"iscrowd": 1, "iscrowd": null', (ABSENT_ID, np.nan, -1)),
        ('"iscrowd": null, "iscrowd": true', (ABSENT_ID, np.nan, 1)),
        ('"bbox": [9, 9, 9, 9], "bbox": [0, 0, 1, 1]', (ABSENT_ID, np.nan, -1)),
    ],
)
def test_repeated_field_takes_the_last_value(fields, row):
    text = '{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], ' + fields + "}"
    expected = msgspec.json.decode(text, type=AnnotationRecord)
    read, (ids, _, _, xywh, areas, iscrowd) = parse(text)
    assert read == [True]
    assert np.array_equal((ids[0], areas[0], iscrowd[0]), row, equal_nan=True)
    assert expected.id == row[0]
    assert xywh[0].tolist() == list(expected.bbox)


def test_repeated_field_with_an_invalid_value_is_left_unread():
    for broken in ("-1", '"x"'):
        text = '{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "area": ' + broken + ', "area": 1}'
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=AnnotationRecord)
        assert parse(text)[0] == [False]


numbers = st.one_of(
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**6), max_value=10**6).map(float),
)
records = st.fixed_dictionaries(
    {
        "image_id": st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6)),
        "category_id": st.integers(0, 100),
        "bbox": st.lists(numbers, min_size=4, max_size=4),
    },
    optional={
        "id": st.integers(-(2**63) + 1, 2**63 - 1),
        "area": numbers,
        "iscrowd": st.sampled_from([0, 1, True, False, None]),
        "extra": st.recursive(
            st.one_of(st.text(), numbers, st.none()), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
        ),
    },
)  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(records, min_size=1, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_scanner_reads_the_same_as_msgspec(given_records, indent, ascii_only):
    texts = [json.dumps(record, indent=indent, ensure_ascii=ascii_only) for record in given_records]
    read, (ids, image, category, xywh, areas, iscrowd) = parse(*texts)
    for row, text in enumerate(texts):
        try:
            expected = msgspec.json.decode(text, type=AnnotationRecord)
        except msgspec.ValidationError:
            assert not read[row]
            continue
        if not read[row]:
            continue  # left to msgspec
        assert (ids[row], image[row], category[row]) == (expected.id, expected.image_id, expected.category_id)
        assert xywh[row].tobytes() == np.array(expected.bbox).tobytes()
        area = np.nan if expected.area is None else expected.area
        assert np.array(areas[row]).tobytes() == np.array(area, np.float64).tobytes()
        assert iscrowd[row] == (-1 if expected.iscrowd is None else expected.iscrowd)


def test_common_numbers_are_all_read():
    rng = np.random.default_rng(0)
    values = [repr(round(float(value), places)) for places in (0, 1, 2, 6) for value in rng.uniform(-5000, 5000, 200)]
    texts = [f'{{"image_id": 1, "category_id": 2, "bbox": [{value}, 0, 1, 1]}}' for value in values]
    read, columns = parse(*texts)
    assert all(read)
    assert columns[3][:, 0].tolist() == [float(value) for value in values]
