"""The text of a file: compression, mapping, encoding and digest. Broken texts are in test_conformance.py."""

import codecs
import dataclasses
import gzip
import hashlib
import json
import mmap
import subprocess
import sys

import numpy as np
import pytest

from detcurate.coco import records
from detcurate.coco import text as module
from detcurate.coco.dataset import read_coco
from detcurate.coco.text import open_source
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
        path.unlink(missing_ok=True)  # a mapped file must not be truncated
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


@pytest.fixture
def mapped(monkeypatch):
    """Map files of any size."""
    monkeypatch.setattr(module, "_MAP_FROM", 1)


def columns(dataset):
    """The values on which two readings of the same records must agree."""
    values = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(dataset)}
    for name in ("path", "sha256", "findings"):
        del values[name]
    values["image_spans"], values["annotation_spans"] = values.pop("spans")
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


@pytest.mark.parametrize("name", ["train.json.gz", "train.json"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_reader_accepts_gzip_and_byte_order_mark(write, name, mark, pack):
    text = json.dumps(coco()).encode()
    plain = read_coco(write(text, "plain.json"))
    path = write(pack(mark + text), name)
    dataset = read_coco(path)
    assert [finding.code for finding in dataset.findings] == ["byte_order_mark"] * bool(mark)
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert columns(dataset) == columns(plain)
    assert [dataset.open()[1][at] for at in range(3)] == [plain.open()[1][at] for at in range(3)]


def test_reader_joins_gzip_members(write):
    text = json.dumps(coco()).encode()
    assert read_coco(write(gzip.compress(text[:40]) + gzip.compress(text[40:]))).num_boxes == 3


def test_truncated_gzip_is_refused_at_any_length(write):
    packed = gzip.compress(json.dumps(coco()).encode())
    for length in range(2, len(packed)):
        with pytest.raises(DatasetError, match="train.json"):
            read_coco(write(packed[:length]))


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 5, 7])
def test_utf8_check_is_independent_of_pieces(write, monkeypatch, piece):
    monkeypatch.setattr(module, "_PIECE", piece)
    text = json.dumps(coco(info="aé€\U0001f697éb€"), ensure_ascii=False).encode()
    assert read_coco(write(text)).sha256 == hashlib.sha256(text).hexdigest()
    for character in ("é", "€", "\U0001f697"):
        at = text.index(character.encode())
        for length in range(1, len(character.encode())):
            for broken in (text[: at + length] + b"a" + text[at + length :], text[: at + length]):
                with pytest.raises(DatasetError, match=rf"line 1, column {at + 1} .*UTF-8"):
                    open_source(write(broken))


def test_open_source_maps_large_files_only(write, monkeypatch):
    path = write(coco())
    assert isinstance(open_source(path).content.obj, bytes)
    monkeypatch.setattr(module, "_MAP_FROM", path.stat().st_size)
    assert isinstance(open_source(path).content.obj, mmap.mmap)
    monkeypatch.setattr(module, "_MAP_FROM", path.stat().st_size + 1)
    assert isinstance(open_source(path).content.obj, bytes)


@pytest.mark.parametrize("pack", [bytes, codecs.BOM_UTF8.__add__, gzip.compress])
def test_mapped_file_gives_the_same_records(write, monkeypatch, pack):
    content = coco(info={"x": "é€"})
    content["annotations"] = [{**ANNOTATION, "id": number, "x": "é" * 50} for number in range(1, 2_001)]
    path = write(pack(json.dumps(content, ensure_ascii=False).encode()))
    read = read_coco(path)
    monkeypatch.setattr(module, "_MAP_FROM", 1)
    monkeypatch.setattr(records, "_BLOCK", 300)
    monkeypatch.setattr(module, "_PIECE", 1_000)
    mapped = read_coco(path)
    assert mapped.sha256 == read.sha256
    assert columns(mapped) == columns(read)
    annotations = mapped.open()[1]
    annotations.source.release()  # released pages are read again
    assert [json.loads(annotations[at])["id"] for at in range(2_000)] == list(range(1, 2_001))


@pytest.mark.parametrize("chunk", [1, 100, 5_000])
@pytest.mark.parametrize("room", [1, 70])
@pytest.mark.usefixtures("mapped")
def test_annotations_are_independent_of_chunks_and_scanner(write, monkeypatch, chunk, room):
    """Plain records, one that is no record, single ones that are decoded, and most of a block of them."""
    content = coco()
    content["annotations"] = [
        {**ANNOTATION, "id": at, "x": ["]},{" * (at % 7)], "image_id": "4" if at % 11 == 3 or 140 < at < 200 else 4}
        for at in range(1, 300)
    ]
    content["annotations"][17] = "no record"
    del content["annotations"][80]["bbox"]
    path = write(content)
    whole = read_coco(path, {"malformed_record": "repair"})  # a small file: without the compiled scanner
    for name, value in (("CHUNK", chunk), ("_ROOM", room), ("_BLOCK", 70), ("_COMPILED_FROM", 0)):
        monkeypatch.setattr(records, name, value)
    monkeypatch.setattr(records, "_COMPILED_FROM_IMPORTED", 0)
    again = read_coco(path, {"malformed_record": "repair"})
    assert columns(again) == columns(whole)
    assert again.findings == whole.findings
    assert again.annotation_ids.tolist() == [at for at in range(1, 300) if at not in (18, 81)]


@pytest.mark.usefixtures("mapped")
def test_digest_of_a_mapped_file_covers_every_chunk(write, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    for text in (json.dumps(coco()).encode(), gzip.compress(json.dumps(coco()).encode())):
        assert open_source(write(text)).sha256 == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "empty"),
        (b" ", "empty"),
        (b'{"images": [\n{"id": 1,}\n]}', "line 2, column 10"),
        (b'{"info":\n"\xff"}', "line 2, column 2"),
        (gzip.compress(b"{}", mtime=0)[:-1], "gzip"),
    ],
)
@pytest.mark.usefixtures("mapped")
def test_broken_mapped_file_is_refused(write, content, place):
    with pytest.raises(DatasetError, match=f"train.json.*{place}"):
        read_coco(write(content))


@pytest.mark.usefixtures("mapped")
def test_mapped_file_with_nan_can_be_repaired(write):
    text = json.dumps(coco()).replace("7.5", "NaN").encode()
    assert read_coco(write(text), {"not_finite_number": "repair"}).areas.tolist() == [1_200.0] * 3


def test_missing_file_and_directory_are_refused(tmp_path):
    for path, reason in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DatasetError, match=reason) as caught:
            read_coco(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("threshold", [1, 32 << 20])
def test_open_refuses_a_file_that_changed_after_it_was_read(write, monkeypatch, threshold):
    monkeypatch.setattr(module, "_MAP_FROM", threshold)
    path = write(coco())
    dataset = read_coco(path)
    text = path.read_bytes()
    changed = write(text.replace(b'"id": 3', b'"id": 4'))
    with pytest.raises(DatasetError, match=r"train.json: .*sha256 \w{12}… .*\w{12}…"):
        dataset.open()
    changed.unlink()
    with pytest.raises(DatasetError, match="No such file"):
        dataset.open()
    write(text)
    assert len(dataset.open()[1]) == 3


def test_small_file_is_read_without_numba_and_pyarrow(write):
    program = (
        "import sys; from pathlib import Path; from detcurate.coco.dataset import read_coco; "
        "print(read_coco(Path(sys.argv[1])).num_boxes, *{'numba', 'pyarrow', 'pydantic', 'cv2'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, write(coco())]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["3"]
