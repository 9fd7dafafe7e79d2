"""Location of records: spans by hand and on random values, blocks, and nesting depth, with both scanners."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detcurate.coco import records as module
from detcurate.coco.json_scanner import after_value
from detcurate.coco.records import decode_top_level, find_records, nesting_depth
from detcurate.coco.text import open_source

LETTERS = 'ab"\\[]{},: \n\té\U0001f697'
VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(LETTERS, max_size=6),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(LETTERS, max_size=3), value, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=["compiled", "plain"])
def scanner(request, monkeypatch):
    """Read files of any size with the compiled scanner, or without it."""
    for name in ("_COMPILED_FROM", "_COMPILED_FROM_IMPORTED"):
        monkeypatch.setattr(module, name, 0 if request.param == "compiled" else 1 << 62)


@pytest.fixture
def find(tmp_path):
    """Return a function that locates the elements of a list, given as text."""

    def find(text):
        path = tmp_path / "train.json"
        path.write_bytes(b'{"before": [1, [2]], "list":' + text.encode() + b', "after": {"list": [3]}}')
        source = open_source(path)
        found = find_records(source, "list", decode_top_level(source))
        assert found.spans.dtype == np.int64
        assert found.spans.shape == (len(found), 2)
        return found

    return find


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        (" [ \n\t\r ] ", []),
        ("[{}]", ["{}"]),
        ("[[]]", ["[]"]),
        ('[""]', ['""']),
        ("[ \n{ } ,\t[ ] , \r\n3 ]", ["{ }", "[ ]", "3"]),
        ('[{"a": [1, {"b": [2, 3]}], "c": {}}, 4]', ['{"a": [1, {"b": [2, 3]}], "c": {}}', "4"]),
        ('[{"a": "]}, ["}, {"a": "{[,"}]', ['{"a": "]}, ["}', '{"a": "{[,"}']),
        (r'[{"a": "\"]\\"}, "\\\"", "\\"]', [r'{"a": "\"]\\"}', r'"\\\""', r'"\\"']),
        (r'["\\\\", "\\\\\"", "\u005d\n"]', [r'"\\\\"', r'"\\\\\""', r'"\u005d\n"']),
        ("[null,true,false,-1.5e+3,0]", ["null", "true", "false", "-1.5e+3", "0"]),
        ('["ä", "\U0001f697,"]', ['"ä"', '"\U0001f697,"']),
        *[(str(list(range(number))), [str(at) for at in range(number)]) for number in (1, 15, 16, 17, 1_000)],
    ],
)
@pytest.mark.usefixtures("scanner")
def test_find_records_returns_each_element(find, text, expected):
    found = find(text)
    assert [found[at].decode() for at in range(len(found))] == expected


@pytest.mark.parametrize("chunk", [1, 2, 13, 100])
@pytest.mark.parametrize("room", [1, 2, 50])
@pytest.mark.parametrize("scanner", ["compiled"], indirect=True)
@pytest.mark.usefixtures("scanner")
def test_find_records_is_independent_of_chunks_and_room(find, monkeypatch, chunk, room):
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "_ROOM", room)
    values = [{"a": 'x"}],' * at, "b": [at, {}]} if at % 3 else "," * at for at in range(40)]
    found = find(json.dumps(values, indent=1))
    assert [found.value(at) for at in range(len(found))] == values


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(VALUES, max_size=20), st.sampled_from([None, 0, 3]), st.booleans())
def test_both_scanners_find_the_same_elements_and_depth(tmp_path_factory, values, indent, ascii_only):
    path = tmp_path_factory.getbasetemp() / "list.json"
    text = json.dumps({"list": values}, indent=indent, ensure_ascii=ascii_only).encode()
    path.write_bytes(text)
    spans = []
    for limit in (0, 1 << 62):
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name in ("_COMPILED_FROM", "_COMPILED_FROM_IMPORTED"):
                monkeypatch.setattr(module, name, limit)
            source = open_source(path)
            found = find_records(source, "list", decode_top_level(source))
        assert [json.loads(found[at]) for at in range(len(found))] == values
        spans.append(found.spans.tolist())
    assert spans[0] == spans[1]
    assert nesting_depth(memoryview(text)) == after_value(np.frombuffer(text, np.uint8), 0)[1]


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("3", 0),
        ('"[["', 0),
        ("[]", 1),
        ('[{"a": "]]"}, "\\"["]', 2),
        (r'["\\", [["\\\"]"]]]', 3),
        ("[" * 300 + "]" * 300, 300),
    ],
)
def test_nesting_depth_by_hand(text, depth):
    assert nesting_depth(memoryview(text.encode())) == depth


def test_blocks_hold_neighbouring_records(find, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 3)
    blocks = [(start, stop, json.loads(text)) for start, stop, text in find("[0, 1 ,2, 3,\n4, 5, 6]").blocks()]
    assert blocks == [(0, 3, [0, 1, 2]), (3, 6, [3, 4, 5]), (6, 7, [6])]
    assert list(find("[]").blocks()) == []


def test_value_keeps_a_very_long_number_as_text(find):
    found = find('[{"a": [1.5, null]}, %s, 1e999]' % ("9" * 641))
    assert [found.value(at) for at in range(3)] == [{"a": [1.5, None]}, "9" * 641, np.inf]


@pytest.mark.parametrize(
    ("imported", "num_bytes", "repays"),
    [(False, 40 << 20, False), (False, 90 << 20, True), (True, 1 << 20, False), (True, 40 << 20, True)],
)
def test_compiled_scanner_is_loaded_for_large_texts_only(monkeypatch, imported, num_bytes, repays):
    monkeypatch.setattr(module.sys, "modules", {"numba": None} if imported else {})
    assert module.repays_compiled(num_bytes) is repays
