"""The plain records read from the text: by hand, and against msgspec on generated records, to the last bit."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detcurate.coco.decode import ABSENT_ID, AnnotationRecord
from detcurate.coco.fast import order_by_image, parse_annotations

PLAIN = '{"id": 7, "image_id": -12, "category_id": 3, "bbox": [1.5, -2e1, 3, 0.25], "area": 9, "iscrowd": 1}'


def parse(*texts: str):
    """Return which records were read, and the columns."""
    content = ",".join(texts).encode() + b"  "
    stops = np.cumsum([len(text.encode()) + 1 for text in texts]) - 1
    spans = np.column_stack((stops - [len(text.encode()) for text in texts], stops))
    n = len(texts)
    ids, image, category = np.full(n, ABSENT_ID), np.zeros(n, np.int64), np.zeros(n, np.int64)
    xywh, areas, iscrowd = np.zeros((n, 4)), np.full(n, np.nan), np.full(n, -1, np.int8)
    read = parse_annotations(np.frombuffer(content, np.uint8), spans, ids, image, category, xywh, areas, iscrowd)
    return read.tolist(), (ids, image, category, xywh, areas, iscrowd)


def test_a_plain_record():
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
def test_what_else_stands_in_a_record_is_passed_over(text):
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
def test_what_is_not_plain_is_left_to_the_slow_way(text):
    json.loads(text)
    assert parse(PLAIN, text, PLAIN)[0] == [True, False, True]


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
def test_it_reads_what_msgspec_reads(given_records, indent, ascii_only):
    texts = [json.dumps(record, indent=indent, ensure_ascii=ascii_only) for record in given_records]
    read, (ids, image, category, xywh, areas, iscrowd) = parse(*texts)
    for row, text in enumerate(texts):
        try:
            expected = msgspec.json.decode(text, type=AnnotationRecord)
        except msgspec.ValidationError:
            assert not read[row]
            continue
        if not read[row]:
            continue  # the slow way reads it
        assert (ids[row], image[row], category[row]) == (expected.id, expected.image_id, expected.category_id)
        assert xywh[row].tobytes() == np.array(expected.bbox).tobytes()
        area = np.nan if expected.area is None else expected.area
        assert np.array(areas[row]).tobytes() == np.array(area, np.float64).tobytes()
        assert iscrowd[row] == (-1 if expected.iscrowd is None else expected.iscrowd)


def test_common_numbers_are_all_read_here():
    rng = np.random.default_rng(0)
    values = [repr(round(float(value), places)) for places in (0, 1, 2, 6) for value in rng.uniform(-5000, 5000, 200)]
    texts = [f'{{"image_id": 1, "category_id": 2, "bbox": [{value}, 0, 1, 1]}}' for value in values]
    read, columns = parse(*texts)
    assert all(read)
    assert columns[3][:, 0].tolist() == [float(value) for value in values]


def test_order_by_image():
    image_index = np.array([2, 0, 2, 4, 0])
    assert order_by_image(image_index, np.array([0, 1, 2, 4]), 5).tolist() == [1, 4, 0, 2]
    assert order_by_image(image_index, np.zeros(0, np.int64), 5).tolist() == []
