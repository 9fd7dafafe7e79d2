"""Labels of an annotation file: 11 images with up to 5 boxes, some of them without any, in no order."""

import json

import numpy as np
import pytest

from detcurate.coco.dataset import image_labels, read_coco
from detcurate.errors import SelectionError
from detcurate.structures.boxes import xywh_to_xyxy

IMAGE_IDS = [50, 3, 17, 8, 21, 90, 4, 33, 12, 60, 7]
CATEGORIES = [9, 2, 5, 40]


@pytest.fixture(scope="module")
def annotations():
    rng = np.random.default_rng(0)
    return [
        {
            "id": number * 3,
            "image_id": int(image_id),
            "category_id": int(rng.choice(CATEGORIES)),
            "bbox": rng.uniform(1, 20, 4).round(2).tolist(),
            "iscrowd": int(rng.random() < 0.3),
        }
        for number, image_id in enumerate(rng.choice(IMAGE_IDS[:8], 23))
    ]


@pytest.fixture(scope="module")
def dataset(annotations, tmp_path_factory):
    path = tmp_path_factory.mktemp("coco") / "train.json"
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in IMAGE_IDS]
    categories = [{"id": i, "name": f"kind {i}"} for i in CATEGORIES]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_coco(path)


@pytest.mark.parametrize("image_ids", [[3], [12, 7], [90, 3, 60, 50, 8], IMAGE_IDS, sorted(IMAGE_IDS), []])
def test_labels_against_a_loop(dataset, annotations, image_ids):
    labels = image_labels(dataset, np.array(image_ids, np.int64))
    rows = [record for image_id in image_ids for record in annotations if record["image_id"] == image_id]
    assert labels.image_ids.tolist() == [record["image_id"] for record in rows]
    assert labels.annotation_ids.tolist() == [record["id"] for record in rows]
    assert labels.class_index.tolist() == [sorted(CATEGORIES).index(record["category_id"]) for record in rows]
    assert labels.iscrowd.tolist() == [bool(record["iscrowd"]) for record in rows]
    boxes = np.array([record["bbox"] for record in rows]).reshape(-1, 4)
    np.testing.assert_allclose(labels.boxes, xywh_to_xyxy(boxes))


def test_images_without_boxes_and_no_image_give_no_row(dataset):
    assert len(image_labels(dataset, np.array([12, 60, 7]))) == 0
    labels = image_labels(dataset, np.zeros(0, np.int64))
    assert labels.boxes.shape == (0, 4) and labels.iscrowd.dtype == bool


def test_an_image_that_is_not_in_the_file_or_named_twice_is_refused(dataset):
    with pytest.raises(SelectionError, match=r"image_ids must be images of .*train.json, got .*99"):
        image_labels(dataset, np.array([3, 99]))
    with pytest.raises(SelectionError, match="image_ids must be unique, got 1 repeated"):
        image_labels(dataset, np.array([3, 8, 3]))
