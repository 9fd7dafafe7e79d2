"""A small pool for the tests of exports: 5 images of 5 sizes, 4 classes, 7 labels of which one is a crowd region."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detcurate.cli import main
from detcurate.coco.dataset import CocoDataset, read_coco
from detcurate.interop.export.content import Content, queue_rows
from detcurate.interop.export.relabel_queue import LabelError

SIZES = {30: (64, 48), 7: (62, 46), 12: (63, 47), 41: (65, 49), 9: (60, 44)}
NAMES = {9: "car", 2: "person", 5: "bike", 11: "bus"}

# id, image, class, bbox; the last but one is a crowd region, the last goes past the border
LABELS = [
    (101, 41, 9, [1.5, 5, 10.5, 12]),
    (102, 12, 2, [3, 5, 10.25, 12]),
    (103, 41, 2, [30.25, 5, 10.5, 12]),
    (104, 30, 9, [2, 5, 10.5, 12.125]),
    (105, 12, 5, [36, 5, 10.5, 12]),
    (106, 41, 9, [20, 25, 30, 20]),
    (107, 7, 11, [50, 30, 12.75, 10]),
]
CROWD = 106

HARD_NAMES = {9: "a \"b\" 'c'", 2: "<script>alert(1)</script> & co", 5: "車/truck: yes, #1", 11: "מונית\\ no\u200f"}


def file_name(key: int) -> str:
    """Return a file name, for two of the images in a folder."""
    return f"cam {key % 2}/deep/{key}.png" if key in (30, 41) else f"{key}.png"


def pool_json(names=NAMES, image_key=int) -> dict:
    """Return the content of the pool's annotation file."""
    return {
        "info": {"year": 2024},
        "images": [
            {"id": image_key(key), "file_name": file_name(key), "width": size[0], "height": size[1], "weather": "fog"}
            for key, size in SIZES.items()
        ],
        "annotations": [
            {"id": key, "image_id": image_key(image), "category_id": category, "bbox": box, "area": box[2] * box[3],
             "iscrowd": int(key == CROWD), "track": f"t{key}", "segmentation": []}
            for key, image, category, box in LABELS
        ],
        "categories": [{"id": key, "name": name} for key, name in names.items()],
    }  # fmt: skip


def write_pool(folder: Path, **options: Any) -> CocoDataset:
    """Write the pool as ``train.json`` with its images in ``images/``, and read it."""
    for key, (width, height) in SIZES.items():
        path = folder / "images" / file_name(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((height, width, 3), key, np.uint8))
    path = folder / "train.json"
    path.write_text(json.dumps(pool_json(**options), ensure_ascii=False), encoding="utf-8")
    return read_coco(path)


def row_of_image(pool: CocoDataset, key: int) -> int:
    return pool.file_names.index(file_name(key))


def row_of_label(pool: CocoDataset, key: int) -> int:
    return int(np.flatnonzero(pool.annotation_ids == key)[0])


def label_errors(pool: CocoDataset) -> list[LabelError]:
    """Return one label error of each kind, on two of the images, by 6 members."""
    bus, bike, car = (pool.class_names.index(pool_name(pool, key)) for key in (11, 5, 9))
    return [
        LabelError("wrong_class", 0.875, row_of_image(pool, 12), row_of_label(pool, 102), (3.5, 5, 13, 17.5), bike,
                   0.75, 5, 6, True),
        LabelError("missing_label", 0.5, row_of_image(pool, 41), -1, (50, 6.5, 60.5, 20), bus, 0.625, 4, 6, False),
        LabelError("inaccurate_box", 0.25, row_of_image(pool, 41), row_of_label(pool, 101), (4, 8, 12, 20.25), car, 0.5,
                   3, 6, False),
    ]  # fmt: skip


def pool_name(pool: CocoDataset, category: int) -> str:
    return pool.class_names[pool.category_ids.tolist().index(category)]


def content(folder: Path, **options: Any) -> Content:
    """Return the images with label errors, the highest score first: image 12, then 41."""
    pool = write_pool(folder, **options)
    found = label_errors(pool)
    return Content(pool, folder / "images", tuple(found), queue_rows(found))


def curate_played_members(folder: Path, *overrides: object) -> Path:
    """Run the job up to the manifest on 26 rendered images and five simulated members; return ``OUTPUT_DIR``.

    The members predict the rendered truth with some noise, so that the planted label errors have high scores.
    """
    output, config = folder / "output", folder / "played.yaml"
    config.write_text(
        f'OUTPUT_DIR: "{output}"\n'
        "CURATE:\n"
        "  NUM_PROCESSES: 1\n"
        "  RENDER: {NUM_IMAGES: 26, NUM_EVALUATION_IMAGES: 7, WIDTH: 96, HEIGHT: 64}\n"
        '  PREDICT: {RESULTS: "played"}\n'
    )
    assert main(["--config-file", str(config), "--until", "pool"]) == 0
    members = []
    for member in range(5):
        rng, path = np.random.default_rng(member), folder / f"member{member}.json"
        predictions = [
            {"image_id": found["image_id"], "category_id": found["category_id"], "score": float(rng.uniform(0.6, 1)),
             "bbox": (np.array(found["bbox"]) + rng.normal(0, 0.3, 4).clip(-0.5, 0.5)).clip(0.1).tolist()}
            for found in rendered_truth(output)
            if rng.random() < 0.9
        ]  # fmt: skip
        path.write_text(json.dumps(predictions))
        members += ["--member", str(path)]
    assert main(["import", "played", "--config-file", str(config), *members]) == 0
    words = [str(word) for word in overrides]
    assert main(["--config-file", str(config), "--until", "manifest", *words]) == 0
    return output


def rendered_truth(output: Path) -> list[dict]:
    """Return the labels of a rendered pool before errors were planted."""
    labels = json.loads((output / "pool" / "train.json").read_text())["annotations"]
    wrong = json.loads((output / "pool" / "train-defects.json").read_text())
    truth = {label["id"]: label for label in labels if label["id"] not in wrong["spurious_boxes"]}
    for found in wrong["wrong_class"]:
        truth[found["annotation_id"]]["category_id"] = found["true_category_id"]
    for found in wrong["shifted_boxes"]:
        truth[found["annotation_id"]]["bbox"] = found["true_bbox"]
    return [*truth.values(), *wrong["missing_boxes"]]
