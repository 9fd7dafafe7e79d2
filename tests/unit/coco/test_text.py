"""The bytes of an annotation file: where its records stand, and what is said of a file that is broken."""

import codecs
import dataclasses
import gzip
import hashlib
import json
import mmap

import numpy as np
import pytest

from detcurate.coco import annotations as lists
from detcurate.coco import text as mapped_module
from detcurate.coco import text as module
from detcurate.coco.annotations import find_records
from detcurate.coco.dataset import read_coco
from detcurate.coco.text import decode_top_level, open_source
from detcurate.errors import DatasetError

IMAGE = {"id": 4, "file_name": "a.jpg", "width": 64, "height": 48}
ANNOTATION = {"id": 1, "image_id": 4, "category_id": 2, "bbox": [1, 2, 30, 40], "area": 7.5, "iscrowd": 0}


def coco(**changes: object):
    """1 image, 2 categories, 3 annotations."""
    annotations = [{**ANNOTATION, "id": number} for number in (1, 2, 3)]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}]
    return {"images": [IMAGE], "annotations": annotations, "categories": categories, **changes}


@pytest.fixture
def write(tmp_path):
    def write(content, name="train.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def elements(write):
    """Return a function that gives the elements of the list that a text holds."""

    def elements(text):
        source = open_source(write(b'{"before": [1, [2]], "list":' + text.encode() + b', "after": {"list": [3]}}'))
        records = find_records(source, "list", decode_top_level(source))
        assert records.spans.dtype == np.int64
        assert records.spans.shape == (len(records), 2)
        return [records[at].decode() for at in range(len(records))]

    return elements


def message(path, policies=None):
    with pytest.raises(DatasetError) as caught:
        read_coco(path, policies or {})
    assert str(path) in str(caught.value)
    return str(caught.value)


def summary(dataset):
    """What two readings of the same records must agree on."""
    values = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(dataset)}
    for name in ("path", "sha256", "findings"):
        del values[name]
    values["image_spans"], values["annotation_spans"] = values.pop("spans")
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


class TestSpans:
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
        ],
    )
    def test_by_hand(self, elements, text, expected):
        assert elements(text) == expected

    @pytest.mark.parametrize("number", [1, 15, 16, 17, 1_000])
    def test_any_number_of_elements(self, elements, number):
        assert elements("[" + ",".join(map(str, range(number))) + "]") == [str(at) for at in range(number)]

    @pytest.mark.parametrize("chunk", [1, 2, 13, 100])
    @pytest.mark.parametrize("room", [1, 2, 50])
    def test_neither_a_chunk_nor_the_room_for_the_spans_ends_an_element(self, elements, monkeypatch, chunk, room):
        monkeypatch.setattr(lists, "CHUNK", chunk)
        monkeypatch.setattr(lists, "_ROOM", room)
        values = [{"a": 'x"}],' * at, "b": [at, {}]} if at % 3 else "," * at for at in range(40)]
        assert [json.loads(element) for element in elements(json.dumps(values, indent=1))] == values

    @pytest.mark.parametrize("indent", [None, 0, 3])
    def test_every_value_is_found_whatever_the_layout(self, elements, indent):
        rng = np.random.default_rng(0)
        letters = list('ab"\\[]{},: \n\té\U0001f697')

        def value(depth):
            kind = rng.integers(0, 6 if depth else 3)
            if kind < 3:
                return [None, int(rng.integers(-9, 9)), "".join(rng.choice(letters, rng.integers(0, 6)))][kind]
            values = [value(depth - 1) for _ in range(rng.integers(0, 4))]
            return values if kind < 5 else {str(at): value for at, value in enumerate(values)}

        values = [value(3) for _ in range(300)]
        text = json.dumps(values, indent=indent, ensure_ascii=bool(indent))
        assert [json.loads(element) for element in elements(text)] == values

    def test_lists_nested_too_deep(self, elements, write):
        """Deeper ones would stop Python's own JSON reader, which is what messages are made with."""
        [element] = elements("[" * 200 + "]" * 200)
        assert json.loads(element)
        with pytest.raises(DatasetError, match=r"got too many nested lists \(.*train.json, line 1, column 29\)"):
            elements("[" * 201 + "]" * 201)
        for brackets in ("[" * 990 + "]" * 990, '{"a":' * 990 + "3" + "}" * 990, "[" * 10**6):
            with pytest.raises(DatasetError, match="got too many nested lists"):
                elements(f"[{brackets}]")

    def test_blocks(self, write, monkeypatch):
        monkeypatch.setattr(module, "_BLOCK", 3)
        source = open_source(write('{"list": [0, 1 ,2, 3,\n4, 5, 6]}'))
        records = find_records(source, "list", decode_top_level(source))
        blocks = [(start, stop, json.loads(text)) for start, stop, text in records.blocks()]
        assert blocks == [(0, 3, [0, 1, 2]), (3, 6, [3, 4, 5]), (6, 7, [6])]

    def test_no_blocks(self, write):
        source = open_source(write('{"list": []}'))
        assert list(find_records(source, "list", decode_top_level(source)).blocks()) == []

    def test_one_element_as_python_has_it(self, write):
        source = open_source(write('{"list": [{"a": [1.5, null]}, %s, 1e999]}' % ("9" * 641)))
        records = find_records(source, "list", decode_top_level(source))
        assert [records.value(at) for at in range(3)] == [{"a": [1.5, None]}, "9" * 641, np.inf]


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
@pytest.mark.parametrize("element", ["3", "null", '"{}"', "[1, 2]", "true"])
def test_elements_that_are_no_objects(write, part, element):
    text = json.dumps(coco())
    text = text.replace(f'"{part}": [', f'"{part}": [{element}, ')
    shown = {"null": "None", '"{}"': "'{}'", "true": "True"}.get(element, element)
    assert f"{part}[0] must be an object, got {shown} (" in message(write(text))
    dataset = read_coco(write(text), {"malformed_record": "repair"})
    assert [(finding.code, finding.count) for finding in dataset.findings] == [("malformed_record", 1)]
    assert (len(dataset), dataset.num_boxes, len(dataset.class_names)) == (1, 3, 2)
    assert dataset.image_positions.tolist() == [int(part == "images")]
    assert dataset.annotation_positions.tolist() == [number + (part == "annotations") for number in range(3)]


class TestFormats:
    def test_byte_order_mark(self, write):
        plain = read_coco(write(json.dumps(coco())))
        path = write(codecs.BOM_UTF8 + json.dumps(coco()).encode())
        marked = read_coco(path)
        assert [finding.code for finding in marked.findings] == ["byte_order_mark"]
        assert marked.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert summary(marked) == summary(plain)
        assert [json.loads(marked.open()[1][at])["id"] for at in range(3)] == [1, 2, 3]

    def test_a_byte_order_mark_is_no_column(self, write):
        assert "line 1, column 2)" in message(write(codecs.BOM_UTF8 + b"{x"))

    def test_nothing_but_a_byte_order_mark(self, write):
        assert "must hold a COCO dataset, got an empty file" in message(write(codecs.BOM_UTF8))

    def test_utf_16(self, write):
        assert "got bytes that are not UTF-8" in message(write(codecs.BOM_UTF16_LE + "{}".encode("utf-16-le")))

    @pytest.mark.parametrize("name", ["train.json.gz", "train.json"])
    @pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
    def test_gzip_by_its_content(self, write, name, mark):
        plain = read_coco(write(mark + json.dumps(coco()).encode(), "plain.json"))
        path = write(gzip.compress(mark + json.dumps(coco()).encode()), name)
        packed = read_coco(path)
        assert packed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert summary(packed) == summary(plain)
        assert [bytes(packed.open()[1][at]) for at in range(3)] == [bytes(plain.open()[1][at]) for at in range(3)]

    def test_gzip_of_several_members(self, write):
        text = json.dumps(coco()).encode()
        assert read_coco(write(gzip.compress(text[:40]) + gzip.compress(text[40:]))).num_boxes == 3

    def test_broken_gzip(self, write):
        packed = gzip.compress(json.dumps(coco()).encode())
        for length in range(2, len(packed)):
            assert "must be whole gzip, got " in message(write(packed[:length]))
        assert "compress it again" in message(write(packed[:-1]))
        assert "got CRC check failed" in message(write(packed[:-8] + bytes(4) + packed[-4:]))
        assert "must be whole gzip, got " in message(write(packed + b"{}"))

    def test_broken_text_inside_gzip(self, write):
        assert "got an empty file" in message(write(gzip.compress(b" ")))
        assert "line 2, column 2" in message(write(gzip.compress(b'{"info":\n"\xff"}')))
        assert "line 2, column 1" in message(write(gzip.compress(b'{"info":\nx}')))


class TestBrokenText:
    @pytest.mark.parametrize("tail", ["{}", "x", "]", "\n" + json.dumps(coco()), ",", "\0"])
    def test_more_after_the_end(self, write, tail):
        text = json.dumps(coco())
        assert f"got trailing characters ({write(text + tail)}, line " in message(write(text + tail))
        assert read_coco(write(text + " \n\r\t")).num_boxes == 3

    @pytest.mark.parametrize(
        ("text", "line", "column"),
        [
            ('{"images": [],\n "annotations": [{"area": NaN}]}', 2, 27),
            ('{"images":\n\n[{"x": Infinity}]}', 3, 8),
            ('{"images":\n\n[{"x": -Infinity}]}', 3, 9),
            ("NaN", 1, 1),
        ],
    )
    def test_nan_and_infinity(self, write, text, line, column):
        found = message(write(text))
        assert f"line {line}, column {column}); NaN and Infinity are not JSON: write null or drop the record" in found

    def test_nan_and_infinity_as_null(self, write):
        text = json.dumps(coco()).replace('"area": 7.5', '"area": NaN')
        text = text.replace('"a.jpg"', r'"-NaN \" NaN, \\", "NaN": [-Infinity, Infinity,NaN], "x": "Infinity"')
        assert "NaN and Infinity are not JSON" in message(write(text), {"not_finite_number": "error"})
        dataset = read_coco(write(text), {"not_finite_number": "repair"})
        found = {finding.code: (finding.policy, finding.count) for finding in dataset.findings}
        assert found == {"not_finite_number": ("repair", 6), "missing_area": ("warn", 3)}
        assert dataset.file_names == (r'-NaN " NaN, ' + "\\",)
        assert dataset.areas.tolist() == [1_200.0] * 3
        [image] = [json.loads(dataset.open()[0][0])]
        assert image["NaN"] == [None, None, None]
        assert image["x"] == "Infinity"

    def test_nan_in_a_box_is_a_wrong_box(self, write):
        text = json.dumps(coco()).replace("[1, 2, 30, 40]", "[1, NaN, 30, 40]", 1)
        found = message(write(text), {"not_finite_number": "repair"})
        assert found.startswith(
            "annotations[0].bbox must be four finite numbers [x, y, width, height], got [1, null, 30"
        )

    @pytest.mark.parametrize(("old", "new"), [("]}", "]"), ("NaN", "NaNa"), ("NaN", "nan"), ('"file', 'x"file')])
    def test_the_repair_of_nan_mends_nothing_else(self, write, old, new):
        text = json.dumps(coco()).replace('"area": 7.5', '"area": NaN', 1).replace(old, new)
        assert "must be valid JSON, got " in message(write(text), {"not_finite_number": "repair"})

    @pytest.mark.parametrize("at", ["info", "images", "annotations"])
    @pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
    def test_bytes_that_are_not_utf_8_in_a_field_that_nobody_reads(self, write, at, bad):
        """A decoder passes over what it does not need, and a subset would copy it."""
        content = coco(info={"x": "\n"})
        content["images"] = [{**IMAGE, "x": "\n"}]
        content["annotations"] = [{**ANNOTATION, "x": "\n"}]
        texts = {key: json.dumps(value).encode() for key, value in content.items()}
        texts[at] = texts[at].replace(rb'"\n"', b'\n "' + bad + b'"')
        text = b"{" + b",".join(b'"%s":%s' % (key.encode(), value) for key, value in texts.items()) + b"}"
        assert "got bytes that are not UTF-8 (" in message(write(text))
        assert "line 2, column 3); save it as UTF-8" in message(write(text))
        assert read_coco(write(text.replace(bad, "é".encode()))).num_boxes == 1

    @pytest.mark.parametrize("piece", [1, 2, 3, 4, 5, 7])
    def test_characters_cut_by_the_end_of_a_piece(self, write, monkeypatch, piece):
        monkeypatch.setattr(mapped_module, "_PIECE", piece)
        text = json.dumps(coco(info="aé€\U0001f697éb€"), ensure_ascii=False).encode()
        dataset = read_coco(write(text))
        assert dataset.sha256 == hashlib.sha256(text).hexdigest()
        for character in ("é", "€", "\U0001f697"):
            at = text.index(character.encode())
            for length in range(1, len(character.encode())):
                broken = text[: at + length] + b"a" + text[at + length :]
                assert f"line 1, column {at + 1})" in message(write(broken))
        at = text.rindex("€".encode())
        assert f"got bytes that are not UTF-8 ({write(text[: at + 1])}, line 1, column {at + 1})" in message(
            write(text[: at + 1])
        )

    def test_half_a_character(self, write):
        text = json.dumps(coco(images=[{**IMAGE, "x": "\ud800"}]))
        assert "got unexpected end of hex escape" in message(write(text))


class TestTopLevelKeys:
    @pytest.mark.parametrize("key", ["info", "images", "annotations", "categories", "x"])
    @pytest.mark.parametrize("value", ["[]", "3", '{"a": 1, "b": ":"}', '"\\":"', "null"])
    def test_a_key_that_stands_twice(self, write, key, value):
        text = json.dumps(coco(info=None, x={"a": 1}))
        found = message(write(f'{{"{key}": {value}, {text[1:]}'))
        assert found.startswith("a top-level key must stand once, got one of ")
        assert key in found
        assert found.endswith("join the two values")
        assert "must stand once" in message(write(f'{text[:-1]}, "{key}": {value}}}'))

    def test_the_same_key_written_in_two_ways(self, write):
        assert "must stand once" in message(write(json.dumps(coco())[:-1] + r', "im\u0061ges": []}'))

    def test_keys_that_look_like_syntax(self, write):
        others = {'a":"b': 1, ":": ":", "": {":": [":"]}, "\\": "\\", "images ": [], "é\n": "\U0001f697"}
        dataset = read_coco(write(json.dumps(coco(**others))))
        assert {key: json.loads(text) for key, text in dataset.other_top_level.items() if key in others} == others

    def test_nested_keys_may_repeat(self, write):
        assert read_coco(write(json.dumps(coco(info={"images": {"images": []}})))).num_boxes == 3


class TestMapping:
    @pytest.fixture
    def mapped(self, monkeypatch):
        """Files of any size are mapped."""
        monkeypatch.setattr(mapped_module, "_MAP_FROM", 1)

    def test_only_large_files_are_mapped(self, write, monkeypatch):
        path = write(json.dumps(coco()))
        assert isinstance(open_source(path).content.obj, bytes)
        monkeypatch.setattr(mapped_module, "_MAP_FROM", path.stat().st_size)
        assert isinstance(open_source(path).content.obj, mmap.mmap)
        monkeypatch.setattr(mapped_module, "_MAP_FROM", path.stat().st_size + 1)
        assert isinstance(open_source(path).content.obj, bytes)

    @pytest.mark.parametrize("pack", [bytes, codecs.BOM_UTF8.__add__, gzip.compress])
    def test_the_same_records(self, write, monkeypatch, pack):
        content = coco(info={"x": "é€"})
        content["annotations"] = [{**ANNOTATION, "id": number, "x": "é" * 50} for number in range(1, 2_001)]
        path = write(pack(json.dumps(content, ensure_ascii=False).encode()))
        read = read_coco(path)
        monkeypatch.setattr(mapped_module, "_MAP_FROM", 1)
        monkeypatch.setattr(module, "_BLOCK", 300)
        monkeypatch.setattr(mapped_module, "_PIECE", 1_000)
        mapped = read_coco(path)
        assert mapped.sha256 == read.sha256
        assert summary(mapped) == summary(read)
        annotations = mapped.open()[1]
        annotations.source.release()  # what it gives back must be there again
        assert [json.loads(annotations[at])["id"] for at in range(2_000)] == list(range(1, 2_001))

    @pytest.mark.parametrize("chunk", [1, 100, 5_000])
    @pytest.mark.parametrize("room", [1, 70])
    @pytest.mark.usefixtures("mapped")
    def test_the_same_annotations_whatever_the_chunk(self, write, monkeypatch, chunk, room):
        """Plain ones, one that is none, those that are decoded, and most of a block of them."""
        content = coco()
        content["annotations"] = [
            {**ANNOTATION, "id": at, "x": ["]},{" * (at % 7)], "image_id": "4" if at % 11 == 3 or 140 < at < 200 else 4}
            for at in range(1, 300)
        ]
        content["annotations"][17] = "no record"
        del content["annotations"][80]["bbox"]
        path = write(json.dumps(content))
        whole = read_coco(path, {"malformed_record": "repair"})
        monkeypatch.setattr(lists, "CHUNK", chunk)
        monkeypatch.setattr(lists, "_ROOM", room)
        monkeypatch.setattr(module, "_BLOCK", 70)
        again = read_coco(path, {"malformed_record": "repair"})
        assert summary(again) == summary(whole)
        assert again.findings == whole.findings
        assert again.annotation_ids.tolist() == [at for at in range(1, 300) if at not in (18, 81)]

    @pytest.mark.usefixtures("mapped")
    def test_the_digest_of_a_mapped_file(self, write, monkeypatch):
        monkeypatch.setattr(mapped_module, "CHUNK", 10)
        text = json.dumps(coco()).encode()
        assert open_source(write(text)).sha256 == hashlib.sha256(text).hexdigest()
        zipped = gzip.compress(text)
        assert open_source(write(zipped)).sha256 == hashlib.sha256(zipped).hexdigest()

    @pytest.mark.usefixtures("mapped")
    def test_broken_files(self, write, tmp_path):
        assert "got an empty file" in message(write(b""))
        assert "got an empty file" in message(write(b" "))
        assert "line 2, column 10" in message(write('{"images": [\n{"id": 1,}\n]}'))
        assert "line 2, column 2" in message(write(b'{"info":\n"\xff"}'))
        assert "must be whole gzip" in message(write(gzip.compress(b"{}")[:-1]))
        assert "must be readable, got No such file" in message(tmp_path / "none.json")
        assert "must be readable, got Is a directory" in message(tmp_path)

    @pytest.mark.usefixtures("mapped")
    def test_nan_as_null(self, write):
        text = json.dumps(coco()).replace('"area": 7.5', '"area": NaN')
        dataset = read_coco(write(text), {"not_finite_number": "repair"})
        assert dataset.areas.tolist() == [1_200.0] * 3


@pytest.mark.parametrize("threshold", [1, 32 << 20])
def test_a_file_that_was_changed_after_it_was_read(write, monkeypatch, threshold):
    monkeypatch.setattr(mapped_module, "_MAP_FROM", threshold)
    path = write(json.dumps(coco()))
    dataset = read_coco(path)
    dataset.open()
    text = path.read_bytes()
    path.unlink()
    changed = text.replace(b'"id": 3', b'"id": 4')
    assert len(changed) == len(text)
    write(changed)
    with pytest.raises(
        DatasetError, match=r"must not change after it was read, got sha256 \w{12}… for \w{12}…"
    ) as caught:
        dataset.open()
    assert f"({path}); run the same command again" in str(caught.value)
    path.unlink()
    with pytest.raises(DatasetError, match="must be readable, got No such file or directory"):
        dataset.open()
    write(text)
    assert len(dataset.open()[1]) == 3
