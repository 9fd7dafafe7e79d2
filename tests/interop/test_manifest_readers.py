"""Readers of other tools on a manifest: 4 of 6 images, one without boxes, 3 classes with ids 2, 5 and 9."""

import json
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest

from detcurate.coco.dataset import read_coco
from detcurate.manifest.write import build_provenance, write_manifest

SIZES = {30: (64, 48), 7: (62, 46), 12: (63, 47), 41: (65, 49), 9: (60, 44), 3: (61, 45)}
BOXES = [(41, 9, 1.5), (12, 2, 3), (41, 2, 4.25), (30, 9, 2), (12, 5, 6), (41, 9, 7), (9, 2, 1)]
NAMES = {9: "car", 2: "person", 5: "bike"}
KEPT = [7, 12, 30, 41]

# The expected result of every reader: image -> (class, left, top, width, height) of its boxes.
EXPECTED = {
    "7": [],
    "12": [("bike", 6, 5, 10.5, 12), ("person", 3, 5, 10.5, 12)],
    "30": [("car", 2, 5, 10.5, 12)],
    "41": [("car", 1.5, 5, 10.5, 12), ("car", 7, 5, 10.5, 12), ("person", 4.25, 5, 10.5, 12)],
}


@pytest.fixture
def manifest(tmp_path):
    """Write a manifest, with the images beside it in ``images/``."""
    content = {
        "info": {"year": 2024},
        "images": [
            {"id": key, "file_name": f"{key}.png", "width": size[0], "height": size[1]} for key, size in SIZES.items()
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": [left, 5, 10.5, 12], "area": 126,
             "iscrowd": 0}
            for number, (image, category, left) in enumerate(BOXES, start=1)
        ],
        "categories": [{"id": key, "name": name} for key, name in NAMES.items()],
    }  # fmt: skip
    (tmp_path / "images").mkdir()
    for key, (width, height) in SIZES.items():
        cv2.imwrite(str(tmp_path / "images" / f"{key}.png"), np.zeros((height, width, 3), np.uint8))
    source = tmp_path / "train.json"
    source.write_text(json.dumps(content), encoding="utf-8")
    dataset, ids = read_coco(source), np.array(KEPT)
    provenance = build_provenance(
        dataset=dataset,
        image_ids=ids,
        strategy="top_n",
        seed=3,
        requested_budget={"images": 4},
        config_sha256="c" * 64,
        members=[],
        scores_sha256="5" * 64,
        versions={},
    )
    write_manifest(tmp_path / "manifest", dataset, ids, provenance)
    return tmp_path


def test_pycocotools_reads_manifest(manifest, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(manifest / "manifest" / "subset.json"))
    names = {record["id"]: record["name"] for record in coco.loadCats(coco.getCatIds())}
    assert names == NAMES
    found = {
        str(image["id"]): sorted(
            (names[box["category_id"]], *box["bbox"]) for box in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        )
        for image in coco.loadImgs(coco.getImgIds())
    }
    assert found == EXPECTED
    assert coco.getImgIds(catIds=[5]) == [12]


def test_globox_reads_manifest(manifest):
    globox = pytest.importorskip("globox", reason="globox is not installed: pip install 'detcurate[interop]'")
    found = {}
    for annotation in globox.AnnotationSet.from_coco(manifest / "manifest" / "subset.json"):
        name = annotation.image_id.removesuffix(".png")
        assert annotation.image_size == SIZES[int(name)]
        found[name] = sorted((box.label, box.xmin, box.ymin, box.width, box.height) for box in annotation.boxes)
    assert found == EXPECTED


@pytest.mark.filterwarnings("ignore")  # warnings of its dependencies
def test_datumaro_reads_manifest(manifest, tmp_path):
    datumaro = pytest.importorskip("datumaro", reason="Datumaro is not installed: pip install 'detcurate[interop]'")
    folder = tmp_path / "coco-layout"  # Datumaro reads COCO's own layout only
    shutil.copytree(manifest / "images", folder / "images" / "subset")
    (folder / "annotations").mkdir()
    shutil.copy(manifest / "manifest" / "subset.json", folder / "annotations" / "instances_subset.json")
    dataset = datumaro.Dataset.import_from(str(folder), "coco_instances")
    labels = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    assert set(NAMES.values()) <= set(labels)
    found = {
        item.id: sorted(
            (labels[box.label], *box.get_bbox()) for box in item.annotations if box.type == datumaro.AnnotationType.bbox
        )
        for item in dataset
    }
    assert found == EXPECTED
    assert Counter(int(item.attributes["id"]) for item in dataset) == Counter(KEPT)
