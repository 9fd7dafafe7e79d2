# ruff: noqa: E402  Detectron2 may be absent, and is asked for first
"""A manifest in Detectron2's catalogs, and Detectron2's own loader, trainer and evaluator on it: 4 of 6 images."""

import json
import logging
import random
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from detcurate.coco.dataset import read_coco
from detcurate.coco.manifest import build_provenance, write_manifest
from detcurate.d2 import backbones  # noqa: F401  registers the small backbone
from detcurate.d2.catalog import register_manifest
from detcurate.d2.config import load_config
from detcurate.errors import ConfigError, DatasetError

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "Base-CPU-Tiny.yaml"
IMAGES = ((30, "c.png"), (7, "a.png"), (12, "sub/b.png"), (41, "d.png"), (9, "e.png"), (50, "f.png"))
BOXES = (
    (41, 90, [1, 2, 20, 30], 0),
    (12, 2, [3, 4, 25, 26], 0),
    (41, 2, [30, 6, 27, 28], 1),
    (30, 5, [0, 0, 29.5, 38], 0),
    (41, 5, [40, 20, 22, 22], 0),
    (50, 90, [5, 5, 9, 9], 0),
)
KEPT = (30, 12, 7, 41)  # 7 has no boxes, and 41 three, one of them a crowd
KEPT_TEXTS = tuple(map(str, KEPT))


@pytest.fixture
def manifest(tmp_path):
    """Draw the images, and write a manifest of four of them; categories 90, 2 and 5 stand in that order."""
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for _, name in IMAGES:
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    keys = ("image_id", "category_id", "bbox", "iscrowd")
    boxes = [
        dict(zip(keys, box, strict=True), id=number, area=box[2][2] * box[2][3]) for number, box in enumerate(BOXES, 1)
    ]
    tree = {
        "images": [{"id": number, "file_name": name, "width": 64, "height": 48} for number, name in IMAGES],
        "annotations": boxes,
        "categories": [{"id": 90, "name": "car"}, {"id": 2, "name": "person"}, {"id": 5, "name": "bike"}],
    }  # fmt: skip
    return write(tmp_path, tree)


def write(folder, tree, *, compress=False):
    (folder / "train.json").write_text(json.dumps(tree), encoding="utf-8")
    dataset = read_coco(folder / "train.json")
    kept = [row for row in range(len(dataset)) if str(dataset.original_id(row)).removeprefix("frame-") in KEPT_TEXTS]
    provenance = build_provenance(
        dataset=dataset, image_ids=dataset.image_ids[kept], strategy="top_n", seed=0, budget_asked={"images": 4},
        config_sha256="c" * 64, members=[], scores_sha256="5" * 64, versions={},
    )  # fmt: skip
    write_manifest(folder / "manifest", dataset, dataset.image_ids[kept], provenance, compress=compress)
    return folder / "manifest"


@pytest.fixture
def register(tmp_path):
    """Register as ``register_manifest`` does; the names are taken out of the catalogs in the end."""
    names = []

    def call(name, path, *arguments: object):
        register_manifest(name, path, tmp_path / "images", *arguments)
        names.append(name)
        return name

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def settings(tmp_path, name, *overrides: object):
    words = (
        "DATASETS.TRAIN", f"('{name}',)", "OUTPUT_DIR", str(tmp_path / "output"),
        "INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MIN_SIZE_TEST", "48", "SOLVER.IMS_PER_BATCH", "2",
        "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "MODEL.ROI_HEADS.NUM_CLASSES", "3",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
    )  # fmt: skip
    return load_config(CONFIG, [*words, *map(str, overrides)])


def test_categories_are_numbered_by_ascending_id_whatever_their_order_in_the_file(register, manifest, tmp_path):
    metadata = MetadataCatalog.get(register("curated", manifest))
    assert metadata.thing_classes == ["person", "bike", "car"]
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 5: 1, 90: 2}
    assert metadata.evaluator_type == "coco"
    assert metadata.image_root == str(tmp_path / "images")
    assert metadata.json_file == str(manifest / "subset.json")


def test_records_by_hand(register, manifest, tmp_path):
    records = DatasetCatalog.get(register("curated", manifest))
    assert [record["image_id"] for record in records] == [7, 12, 30, 41]
    assert [Path(record["file_name"]).relative_to(tmp_path / "images").as_posix() for record in records] == [
        "a.png", "sub/b.png", "c.png", "d.png",
    ]  # fmt: skip
    assert [len(record["annotations"]) for record in records] == [0, 1, 1, 3]
    assert records[3]["annotations"][0] == {
        "bbox": [1, 2, 21, 32], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2, "iscrowd": 0,
    }  # fmt: skip
    assert records[3]["annotations"][1]["iscrowd"] == 1


def test_the_annotation_file_itself_and_another_split(register, manifest):
    register("curated", manifest / "subset.json")
    register("pool", manifest.parent / "train.json")
    assert [len(DatasetCatalog.get(name)) for name in ("curated", "pool")] == [4, 6]


def test_a_compressed_manifest(register, manifest):
    plain = DatasetCatalog.get(register("plain", manifest))
    tree = json.loads((manifest.parent / "train.json").read_bytes())
    assert DatasetCatalog.get(register("packed", write(manifest.parent, tree, compress=True))) == plain


def test_policies_reach_the_reader(register, manifest):
    tree = json.loads((manifest / "subset.json").read_bytes())
    tree["annotations"][0]["bbox"][2] = 0
    (manifest / "subset.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(DatasetError, match="invalid_box=repair"):
        register("curated", manifest)
    assert "curated" not in DatasetCatalog.list()
    records = DatasetCatalog.get(register("curated", manifest, {"invalid_box": "repair"}))
    assert sum(len(record["annotations"]) for record in records) == 4


def test_a_name_that_is_taken(register, manifest):
    register("curated", manifest)
    with pytest.raises(ConfigError, match=r"must have a name of its own, got 'curated', which is registered already"):
        register("curated", manifest.parent / "train.json")
    assert len(DatasetCatalog.get("curated")) == 4


def test_what_is_not_there_takes_no_name(register, manifest, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "no.json", tmp_path / "empty"):
        with pytest.raises(DatasetError):
            register("curated", path)
    assert "curated" not in DatasetCatalog.list()


@pytest.mark.parametrize(("filters", "images"), [(False, {7, 12, 30, 41}), (True, {12, 30, 41})])
def test_detectron2s_training_loader_keeps_empty_images_where_it_is_told_to(
    register, manifest, tmp_path, filters, images
):
    cfg = settings(tmp_path, register("curated", manifest), "DATALOADER.FILTER_EMPTY_ANNOTATIONS", filters)
    loader = iter(build_detection_train_loader(cfg, sampler=TrainingSampler(len(images), shuffle=False)))
    seen = [sample for _ in range(len(images)) for sample in next(loader)]  # each twice
    assert {sample["image_id"] for sample in seen} == images
    found = {sample["image_id"]: Counter(sample["instances"].gt_classes.tolist()) for sample in seen}
    expected = {7: {}, 12: {0: 1}, 30: {1: 1}, 41: {2: 1, 1: 1}}  # Detectron2 does not train on crowds
    assert found == {key: expected[key] for key in images}
    assert all(sample["image"].shape == (3, 48, 64) for sample in seen)


@pytest.fixture
def keep_caller_state(monkeypatch):
    """Undo what ``DefaultTrainer`` leaves behind: handlers on Detectron2's loggers and the seeds."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    for logger, handlers, level, propagate in before:
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def test_an_unmodified_default_trainer_trains_and_evaluates_on_it(register, manifest, tmp_path, keep_caller_state):
    name = register("curated", manifest)
    cfg = settings(tmp_path, name)
    torch.manual_seed(0)
    trainer = DefaultTrainer(cfg)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items() if key.endswith("weight")}
    trainer.train()
    assert trainer.iter == cfg.SOLVER.MAX_ITER
    after = trainer.model.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(after[key]).all() for key in before)
    assert (tmp_path / "output" / "model_final.pth").is_file()

    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "output"), use_fast_impl=False)
    results = inference_on_dataset(trainer.model, build_detection_test_loader(cfg, name), evaluator)
    assert {"AP", "AP50", "AP-person", "AP-bike", "AP-car"} <= set(results["bbox"])
    found = json.loads((tmp_path / "output" / "coco_instances_results.json").read_bytes())
    assert found
    assert {record["category_id"] for record in found} <= {2, 5, 90}
    assert {record["image_id"] for record in found} <= set(KEPT)


class Oracle(torch.nn.Module):
    """Answers with the ground truth, crowds left out, and one wrong box on the image without boxes."""

    def __init__(self, records) -> None:
        super().__init__()
        self._records = {record["image_id"]: record for record in records}

    def forward(self, batch):
        return [{"instances": self._answer(self._records[sample["image_id"]])} for sample in batch]

    def _answer(self, record):
        truth = [(box["bbox"], box["category_id"]) for box in record["annotations"] if not box["iscrowd"]]
        truth = truth or [([1.0, 1.0, 9.0, 9.0], 0)]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor([box for box, _ in truth]))
        instances.scores = torch.full((len(truth),), 0.9 if record["annotations"] else 0.95)
        instances.pred_classes = torch.tensor([category for _, category in truth])
        return instances


def without(key):
    def change(tree):
        for record in tree["annotations"]:
            if key != "iscrowd" or not record[key]:
                del record[key]

    return change


def with_texts(tree):
    for image in tree["images"]:
        image["id"] = f"frame-{image['id']}"
    for record in tree["annotations"]:
        record["image_id"] = f"frame-{record['image_id']}"


def renumbered(first):
    def change(tree):
        for number, record in enumerate(tree["annotations"]):
            record["id"] = first + (number if first == 0 else 0)

    return change


def same(tree):
    pass


# What pycocotools fails on, or counts wrong without a word: an id of 0 is no match, of equal ids one remains.
@pytest.mark.parametrize(
    ("change", "compress"),
    [
        pytest.param(same, False, id="plain"),
        pytest.param(same, True, id="gzip"),
        pytest.param(with_texts, False, id="image ids are texts"),
        pytest.param(without("iscrowd"), False, id="no iscrowd"),
        pytest.param(without("area"), False, id="no area"),
        pytest.param(without("id"), False, id="no id"),
        pytest.param(renumbered(0), False, id="an id is 0"),
        pytest.param(renumbered(7), False, id="equal ids"),
    ],
)
def test_detectron2s_evaluator_by_hand(register, manifest, tmp_path, change, compress):
    """The true boxes give AP 100, but for the class that a box on the image without boxes is a false positive of.

    That box comes first, so that the precision is 1/2 at every recall.
    """
    tree = json.loads((manifest.parent / "train.json").read_bytes())
    change(tree)
    name = register("curated", write(manifest.parent, tree, compress=compress))
    loader = build_detection_test_loader(settings(tmp_path, name), name)
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "output"), use_fast_impl=False)
    results = inference_on_dataset(Oracle(DatasetCatalog.get(name)), loader, evaluator)["bbox"]
    found = [results[f"AP-{name}"] for name in ("person", "bike", "car")]
    np.testing.assert_allclose(found, [50.0, 100.0, 100.0])
    np.testing.assert_allclose(results["AP"], 250 / 3)
