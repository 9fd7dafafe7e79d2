"""The Croissant description of a manifest, read by the reference reader of MLCommons."""

import json
import logging
import sys

import numpy as np
import pytest

from detcurate.coco.dataset import read_coco
from detcurate.errors import ConfigError
from detcurate.io.files import sha256_file
from detcurate.manifest.croissant import CROISSANT_FILE, write_croissant
from detcurate.manifest.write import build_provenance, write_manifest

# A deprecation among the dependencies of the reader.
pytestmark = [pytest.mark.filterwarnings("ignore:.*ConjunctiveGraph:DeprecationWarning")]

CONTENT = {
    "images": [
        {"id": key, "file_name": name, "width": width, "height": 48}
        for key, name, width in ((30, "sub/c.jpg", 64), (7, "ä.jpg", 62), (12, "b.jpg", 63), (41, "d.jpg", 65))
    ],
    "annotations": [
        {"id": number, "image_id": image, "category_id": category, "bbox": [left, 2, 7, 5], "area": 35, "iscrowd": 0}
        for number, (image, category, left) in enumerate(((41, 9, 0.5), (12, 2, 1), (41, 2, 3), (30, 9, 4)), start=1)
    ],
    "categories": [{"id": 9, "name": "car"}, {"id": 2, "name": "person"}, {"id": 5, "name": "bike"}],
}


@pytest.fixture
def mlcroissant():
    return pytest.importorskip("mlcroissant", reason="mlcroissant is not installed: pip install 'detcurate[croissant]'")


def described(folder, content=CONTENT, ids=(41, 7), compress=False):
    source = folder / "train.json"
    folder.mkdir(parents=True, exist_ok=True)
    source.write_text(json.dumps(content), encoding="utf-8")
    dataset = read_coco(source)
    provenance = build_provenance(
        dataset=dataset,
        image_ids=np.array(ids),
        strategy="top_n",
        seed=3,
        requested_budget={"images": 2},
        config_sha256="c" * 64,
        members=[],
        scores_sha256="5" * 64,
        versions={},
    )
    written = write_manifest(folder / "manifest", dataset, np.array(ids), provenance, compress=compress)
    return write_croissant(folder / "manifest", provenance, written[0].name)


def rows(dataset, name):
    decode = lambda value: value.decode() if isinstance(value, bytes) else value  # noqa: E731
    return [{key.split("/")[1]: decode(value) for key, value in record.items()} for record in dataset.records(name)]


@pytest.mark.parametrize("compress", [False, True])
def test_croissant_reference_reader_returns_records(mlcroissant, tmp_path, compress):
    path = described(tmp_path, compress=compress)
    assert path == tmp_path / "manifest" / CROISSANT_FILE
    dataset = mlcroissant.Dataset(path)
    assert rows(dataset, "images") == [
        {"id": 7, "file_name": "ä.jpg", "width": 62, "height": 48},
        {"id": 41, "file_name": "d.jpg", "width": 65, "height": 48},
    ]
    assert rows(dataset, "annotations") == [
        {"id": 1, "image_id": 41, "category_id": 9, "bbox": [0.5, 2, 7, 5]},
        {"id": 3, "image_id": 41, "category_id": 2, "bbox": [3, 2, 7, 5]},
    ]
    assert rows(dataset, "categories") == CONTENT["categories"]


def test_croissant_validates_without_errors(mlcroissant, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        metadata = mlcroissant.Dataset(described(tmp_path)).metadata
    assert not metadata.ctx.issues.errors
    # Owner and date of publication of the data are unknown to detcurate.
    for issue in metadata.ctx.issues.warnings:
        assert any(word in issue for word in ("citeAs", "datePublished", "license", "version"))


def test_croissant_names_file_and_source(mlcroissant, tmp_path):
    path = described(tmp_path, compress=True)
    text = json.loads(path.read_text(encoding="utf-8"))
    assert text["name"] == "subset of train.json"
    assert f"2 of 4 images of train.json (sha256 {sha256_file(tmp_path / 'train.json')})" in text["description"]
    assert "the strategy top_n" in text["description"]
    assert {file["contentUrl"] for file in text["distribution"]} == {"subset.json.gz"}
    assert {file["sha256"] for file in text["distribution"]} == {sha256_file(tmp_path / "manifest" / "subset.json.gz")}
    assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_croissant_equal_manifests_give_equal_bytes(mlcroissant, tmp_path):
    assert described(tmp_path / "one").read_bytes() == described(tmp_path / "two", ids=(7, 41)).read_bytes()


def test_croissant_subset_without_boxes_has_no_annotations(mlcroissant, tmp_path):
    dataset = mlcroissant.Dataset(described(tmp_path, ids=(7,)))
    assert [row["id"] for row in rows(dataset, "images")] == [7]
    assert rows(dataset, "annotations") == []


def test_croissant_annotations_with_missing_ids_omit_field(mlcroissant, tmp_path):
    annotations = [{k: v for k, v in box.items() if k != "id" or v != 3} for box in CONTENT["annotations"]]
    dataset = mlcroissant.Dataset(described(tmp_path, {**CONTENT, "annotations": annotations}))
    assert [set(row) for row in rows(dataset, "annotations")] == [{"image_id", "category_id", "bbox"}] * 2


def test_croissant_text_ids_are_texts(mlcroissant, tmp_path):
    images = [{**image, "id": f"frame-{image['id']}"} for image in CONTENT["images"]]
    annotations = [{**box, "image_id": f"frame-{box['image_id']}"} for box in CONTENT["annotations"]]
    content = {**CONTENT, "images": images, "annotations": annotations}
    dataset = mlcroissant.Dataset(described(tmp_path, content, ids=(1, 3)))  # of frame-12 and frame-41, by text
    assert [row["id"] for row in rows(dataset, "images")] == ["frame-12", "frame-41"]
    assert [row["image_id"] for row in rows(dataset, "annotations")] == ["frame-41", "frame-12", "frame-41"]


def test_croissant_without_mlcroissant_names_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlcroissant", None)
    with pytest.raises(ConfigError, match=r"CROISSANT.*mlcroissant.*'detcurate\[croissant\]'"):
        described(tmp_path)
    assert not (tmp_path / "manifest" / CROISSANT_FILE).exists()
