"""Readers of untrusted files with random input: a result or a ``DetcurateError``."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_coco import one_input as read_as_coco
from fuzz_shard import one_input as read_as_shard
from helpers.fuzzing import CORPUS, reads_or_refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detcurate.config.declaration import load_config
from detcurate.interop.corrections.readers import read_corrected

HERE = Path(__file__).parent
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("1e999"),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=5), below, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("name", sorted(path.name for path in (CORPUS / "coco").iterdir()))
def test_corpus_of_annotation_files_is_read_or_refused(name):
    read_as_coco((CORPUS / "coco" / name).read_bytes())


@pytest.mark.parametrize("name", sorted(path.name for path in (CORPUS / "shard").iterdir()))
def test_corpus_of_shards_is_read_or_refused(name):
    read_as_shard((CORPUS / "shard" / name).read_bytes())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values, st.sampled_from(["id", "file_name", "width", "bbox", "image_id", "area", "iscrowd", "segmentation"]))
def test_random_value_in_coco_field_is_read_or_refused(value, key):
    import json

    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 2], "area": 6, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "car"}],
    }
    for record in (coco["images"][0], coco["annotations"][0]):
        record[key] = value
    read_as_coco(json.dumps(coco).encode())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")), st.booleans())
def test_random_bytes_as_corrected_labels_are_read_or_refused(data, is_list):
    reads_or_refuses(read_corrected, (b"[" if is_list else b"<") + data, ".xml")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values)
def test_random_value_as_label_studio_task_is_read_or_refused(value):
    import json

    for task in (value, {"data": value, "annotations": value}, {"data": {"image": "a"}, "annotations": [value]}):
        reads_or_refuses(read_corrected, json.dumps([task]).encode(), ".json")
    result = [{"type": "rectanglelabels", "value": value, "original_width": value, "original_height": value}]
    task = {"data": {"image": "a"}, "annotations": [{"result": result}]}
    reads_or_refuses(read_corrected, json.dumps([task]).encode(), ".json")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet="{}[]&*!<:,-?|>'\"#% \nabSEED01.~", max_size=60))
def test_random_text_as_config_is_read_or_refused(text):
    reads_or_refuses(load_config, text.encode(), ".yaml")


@pytest.mark.parametrize("harness", ["fuzz_coco.py", "fuzz_shard.py"])
@pytest.mark.parametrize("engine", ["random", "atheris"])
def test_fuzzing_finds_no_escaping_error(harness, engine, request, tmp_path):
    """The harness runs in its own process, which a reader in C can crash."""
    is_whole = bool(request.config.getoption("--faults", default=False))
    if engine == "atheris" and not is_whole:
        pytest.skip("long fault test: run `make faults`")
    if engine == "atheris" and importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install atheris")
    seconds = 60 if is_whole else 2
    command = [sys.executable, HERE / harness, "--seconds", str(seconds), "--found", tmp_path / "finding"]
    if engine == "atheris":
        command.append("--atheris")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    found = [path.read_bytes() for path in tmp_path.iterdir()]
    assert done.returncode == 0, (found[:1], done.stderr[-3000:])
