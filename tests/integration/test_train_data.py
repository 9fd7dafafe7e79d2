# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""The pool as Detectron2 sees it: 4 images, 3 classes, 5 boxes, one of them a crowd; and the stream of samples."""

import copy
import gzip
import itertools
import json
import random

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import cv2
import numpy as np
import torch
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances

from detcurate.coco.dataset import read_coco
from detcurate.config.declaration import load_config
from detcurate.d2 import registration  # noqa: F401  registers the small backbone
from detcurate.d2.train.data import SampleStream, SeededDataset, detection_dicts, register_manifest
from detcurate.errors import ConfigError, DatasetError
from detcurate.manifest.write import write_subset


@pytest.fixture
def dataset(tmp_path):
    images = [(30, "c.jpg", 64, 48), (7, "a.jpg", 62, 46), (12, "sub/b.jpg", 63, 47), (41, "d.jpg", 65, 49)]
    boxes = [(41, 9, [1, 2, 10, 20], 0), (12, 2, [3, 4, 5, 6], 0), (41, 2, [5, 6, 7, 8], 1), (30, 5, [0, 0, 9.5, 8], 0)]
    boxes.append((41, 5, [2, 2, 2, 2], 0))
    text = {
        "images": [dict(zip(("id", "file_name", "width", "height"), image, strict=True)) for image in images],
        "annotations": [
            dict(
                zip(("image_id", "category_id", "bbox", "iscrowd"), box, strict=True),
                id=number,
                area=box[2][2] * box[2][3],
            )
            for number, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 9, "name": "car"}, {"id": 2, "name": "person"}, {"id": 5, "name": "bike"}],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(text))
    return read_coco(path)


def take(stream, count):
    return list(itertools.islice(stream, count))


def indices(codes, num_images):
    return [code % num_images for code in codes]


def test_detection_dicts_by_hand(dataset, tmp_path):
    records = detection_dicts(dataset, tmp_path / "images")
    assert [(record["image_id"], record["width"], record["height"]) for record in records] == [
        (7, 62, 46), (12, 63, 47), (30, 64, 48), (41, 65, 49),
    ]  # fmt: skip
    assert records[1]["file_name"] == str(tmp_path / "images" / "sub" / "b.jpg")
    found = [[(box["category_id"], box["bbox"], box["iscrowd"]) for box in record["annotations"]] for record in records]
    assert found == [
        [],
        [(0, [3, 4, 8, 10], 0)],
        [(1, [0, 0, 9.5, 8], 0)],
        [(2, [1, 2, 11, 22], 0), (0, [5, 6, 12, 14], 1), (1, [2, 2, 4, 4], 0)],
    ]
    assert {box["bbox_mode"] for record in records for box in record["annotations"]} == {BoxMode.XYXY_ABS}


def test_detection_dicts_of_some_images_are_in_pool_order(dataset, tmp_path):
    whole = detection_dicts(dataset, tmp_path)
    assert detection_dicts(dataset, tmp_path, np.array([41, 7])) == [whole[0], whole[3]]
    assert detection_dicts(dataset, tmp_path, np.zeros(0, np.int64)) == []


def test_detection_dicts_equal_detectron2s_loader(dataset, tmp_path):
    """Its own COCO reader is the oracle; it keeps images without objects too, and only the box's mode differs."""
    from detectron2.data.datasets import load_coco_json

    theirs = {record["image_id"]: record for record in load_coco_json(str(dataset.path), str(tmp_path / "images"))}
    for record in detection_dicts(dataset, tmp_path / "images"):
        other = theirs.pop(record["image_id"])
        assert {key: record[key] for key in ("file_name", "width", "height")} == {
            key: other[key] for key in ("file_name", "width", "height")
        }
        ids = {old: new for new, old in enumerate(dataset.category_ids.tolist())}
        for ours, box in zip(record["annotations"], other["annotations"], strict=True):
            assert ours["category_id"] == ids[box["category_id"]]
            assert ours["bbox"] == BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS)
            assert ours["iscrowd"] == box["iscrowd"]
    assert theirs == {}


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 20, 700])
def test_sample_stream_from_a_position_is_the_tail(start):
    whole = take(SampleStream(7, seed=3), start + 30)
    assert take(SampleStream(7, seed=3, start=start), 30) == whole[start:]


def test_sample_stream_epochs_are_permutations():
    codes = take(SampleStream(7, seed=3), 7 * 40)
    epochs = np.array(indices(codes, 7)).reshape(40, 7)
    assert (np.sort(epochs, axis=1) == np.arange(7)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 30
    assert [code // 7 for code in codes] == list(range(7 * 40))


@pytest.mark.parametrize("start", [0, 9])
def test_sample_stream_ranks_interleave(start):
    whole = take(SampleStream(7, seed=3, start=start), 30)
    shares = [take(SampleStream(7, seed=3, start=start, rank=rank, world_size=3), 10) for rank in range(3)]
    assert [code for turn in zip(*shares, strict=True) for code in turn] == whole


def test_sample_stream_depends_on_the_seed_and_restarts():
    stream = SampleStream(7, seed=3)
    first = take(stream, 20)
    assert take(stream, 20) == first
    assert take(SampleStream(7, seed=4), 20) != first
    assert indices(take(SampleStream(1, seed=3), 4), 1) == [0, 0, 0, 0]


def test_sample_stream_iterators_are_independent():
    stream = SampleStream(5, seed=3)
    expected = take(stream, 23)
    slow, fast = iter(stream), iter(stream)
    found = [(next(slow), take(fast, 2))[0] for _ in range(23)]
    assert found == expected


def random_numbers(record):
    return record["image_id"], random.random(), np.random.random(), torch.rand(()).item()


def test_seeded_dataset_sample_depends_on_the_position_only():
    records = [{"image_id": image_id} for image_id in (7, 12, 30)]
    samples = SeededDataset(records, random_numbers, seed=5)
    expected = [samples[code] for code in range(12)]
    assert len(samples) == 3
    assert [sample[0] for sample in expected] == [7, 12, 30] * 4
    for code in (11, 0, 5, 5):
        random.random(), np.random.random(), torch.rand(3)
        assert samples[code] == expected[code]
    assert SeededDataset(records, random_numbers, seed=5)[8] == expected[8]
    assert SeededDataset(records, random_numbers, seed=6)[8] != expected[8]
    by_position = [{sample[1:] for sample in expected[3 * p : 3 * p + 3]} for p in range(4)]
    assert [len(draws) for draws in by_position] == [1, 1, 1, 1]
    assert len(set.union(*by_position)) == 4


def test_seeded_dataset_keeps_the_torch_generator():
    samples = SeededDataset([{"image_id": 7}], random_numbers, seed=5)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    samples[4]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of loader workers, from Python 3.12 on
@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_samples_do_not_depend_on_the_number_of_workers(num_workers):
    from detectron2.data import build_detection_train_loader

    records = [{"image_id": image_id} for image_id in (7, 12, 30, 41, 50)]
    samples, stream = SeededDataset(records, random_numbers, seed=5), SampleStream(5, seed=3, start=4)
    loader = build_detection_train_loader(
        dataset=samples, mapper=None, sampler=stream, total_batch_size=3, num_workers=num_workers,
        aspect_ratio_grouping=False,
    )  # fmt: skip
    found = [sample for batch in itertools.islice(loader, 4) for sample in batch]
    assert found == [samples[code] for code in take(stream, 12)]


@pytest.fixture
def registered(dataset, tmp_path):
    """Return a function that registers a subset of 3 images, one of them empty; the name is taken back afterwards."""
    names = []
    for key, name, width, height in ((7, "a", 62, 46), (12, "sub/b", 63, 47), (30, "c", 64, 48), (41, "d", 65, 49)):
        path = tmp_path / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((height, width, 3), key, np.uint8))

    def register(file="subset.json", name="detcurate-test", ids=(7, 30, 41)):
        path = tmp_path / "manifest" / file
        write_subset(path, read_coco(dataset.path), np.array(ids))
        names.append(name)
        register_manifest(name, path, tmp_path / "images")
        return name

    yield register
    for name in names:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def tiny(write_tiny_config, tmp_path):
    """Return a function that gives the tiny CPU config for a registered set, as a user's own script would have it."""
    path, _ = write_tiny_config(tmp_path)

    def configure(name, *overrides: str):
        small = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()", "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
        return load_config(path, [*small, "OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", "2", *overrides])

    return configure


def test_register_manifest_gives_the_trainers_dicts(registered, dataset, tmp_path):
    name = registered()
    expected = detection_dicts(dataset, tmp_path / "images", np.array([7, 30, 41]))
    assert DatasetCatalog.get(name) == expected
    assert [record["image_id"] for record in expected] == [7, 30, 41]
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["person", "bike", "car"]
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 5: 1, 9: 2}
    assert metadata.json_file == str(tmp_path / "manifest" / "subset.json")
    assert metadata.image_root == str(tmp_path / "images")
    assert metadata.evaluator_type == "coco"


def test_register_manifest_takes_a_folder(registered, tmp_path):
    registered()
    name = "detcurate-test-folder"
    try:
        register_manifest(name, tmp_path / "manifest", tmp_path / "images")
        assert DatasetCatalog.get(name) == DatasetCatalog.get("detcurate-test")
        assert MetadataCatalog.get(name).json_file == str(tmp_path / "manifest" / "subset.json")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_register_manifest_applies_policies(dataset, tmp_path):
    text = json.loads(dataset.path.read_text())
    text["annotations"][0]["bbox"] = [1, 2, 0, 4]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(text))
    name = "detcurate-test-policies"
    with pytest.raises(DatasetError, match="width"):
        register_manifest(name, path, tmp_path)
    assert name not in DatasetCatalog.list()
    try:
        register_manifest(name, path, tmp_path, {"invalid_box": "repair"})
        assert sum(len(record["annotations"]) for record in DatasetCatalog.get(name)) == 4
        assert not hasattr(MetadataCatalog.get(name), "json_file")  # Detectron2's own reader would take the box
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_register_manifest_rejects_a_registered_name(registered):
    name = registered()
    before = DatasetCatalog.get(name)
    with pytest.raises(ConfigError, match="'detcurate-test'"):
        registered()
    assert DatasetCatalog.get(name) == before


@pytest.mark.parametrize(("filter_empty", "expected"), [(False, [7, 30, 41]), (True, [30, 41])])
def test_registered_images_without_boxes_are_kept_without_the_filter(registered, tiny, filter_empty, expected):
    name = registered()
    records = get_detection_dataset_dicts([name], filter_empty=filter_empty)
    assert [record["image_id"] for record in records] == expected
    cfg = tiny(name, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", str(filter_empty), "SOLVER.IMS_PER_BATCH", "3")
    loader = build_detection_train_loader(cfg)
    seen = {sample["image_id"] for batch in itertools.islice(loader, 4) for sample in batch}
    assert sorted(seen) == expected


def test_registered_boxes_come_from_detectron2s_loader(registered, tiny):
    cfg = tiny(registered(), "INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.RANDOM_FLIP", "none", "SOLVER.IMS_PER_BATCH", "3")
    batch = next(iter(build_detection_train_loader(cfg)))
    sample = next(sample for sample in batch if sample["image_id"] == 41)
    assert sample["image"].shape == (3, 49, 65)
    # The crowd is left out of training, as Detectron2 does with every set.
    assert sample["instances"].gt_classes.tolist() == [2, 1]
    assert sample["instances"].gt_boxes.tensor.tolist() == [[1, 2, 11, 22], [2, 2, 4, 4]]


def test_default_trainer_trains_and_evaluates_on_a_manifest(registered, tiny, tmp_path):
    name = registered()
    cfg = tiny(name, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "SOLVER.AMP.ENABLED", "False")
    trainer = DefaultTrainer(cfg)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert trainer.iter == 2
    changed = [key for key, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[key])]
    assert any(key.startswith("roi_heads.box_predictor") for key in changed)
    assert (tmp_path / "out" / "model_final.pth").is_file()
    loader = build_detection_test_loader(cfg, name)
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "evaluate"), use_fast_impl=False)
    results = inference_on_dataset(trainer.model, loader, evaluator)
    assert {"AP", "AP50", "AP-person", "AP-bike", "AP-car"} <= set(results["bbox"])


def perfect(records):
    """What a detector that knows the labels would say; crowds are none of its business."""
    for record in records:
        boxes = [box for box in record["annotations"] if not box["iscrowd"]]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor([box["bbox"] for box in boxes]).reshape(-1, 4))
        instances.pred_classes = torch.tensor([box["category_id"] for box in boxes], dtype=torch.int64)
        instances.scores = torch.ones(len(boxes))
        yield record, {"instances": instances}


def _text_ids(text):
    for record in text["images"]:
        record["id"] = f"frame-{record['id']}"
    for record in text["annotations"]:
        record["image_id"] = f"frame-{record['image_id']}"


CHANGES = {
    "as it is": lambda text: None,
    "text ids": _text_ids,
    "no areas": lambda text: [record.pop("area") for record in text["annotations"]],
    "no crowd flags": lambda text: [record.pop("iscrowd") for record in text["annotations"] if not record["iscrowd"]],
    "no ids": lambda text: [record.pop("id") for record in text["annotations"]],
    "id 0": lambda text: text["annotations"][0].update(id=0),
    "one id": lambda text: [record.update(id=4) for record in text["annotations"]],
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("change", CHANGES)
def test_coco_evaluator_scores_a_perfect_detector_100(dataset, registered, tmp_path, change, suffix):
    """It reads the file itself where it can; where it cannot, or would count wrong, it is given the dicts."""
    text = json.loads(dataset.path.read_text())
    CHANGES[change](text)
    dataset.path.write_text(json.dumps(text))
    changed = read_coco(dataset.path)
    ids = [
        row for row in changed.image_ids.tolist() if changed.file_names[changed.subset_rows([row])[0]] != "sub/b.jpg"
    ]
    name = registered(f"subset.json{suffix}", ids=ids)
    assert hasattr(MetadataCatalog.get(name), "json_file") == (change == "as it is" and not suffix)
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "evaluate"), use_fast_impl=False)
    evaluator.reset()
    for record, prediction in perfect(DatasetCatalog.get(name)):
        evaluator.process([record], [prediction])
    figures = evaluator.evaluate()["bbox"]
    assert figures["AP"] == pytest.approx(100)
    assert [figures["AP-bike"], figures["AP-car"]] == pytest.approx([100, 100])
    assert np.isnan(figures["AP-person"])  # its only box here is a crowd


def test_register_manifest_compressed_gives_equal_dicts(registered, tmp_path):
    plain = DatasetCatalog.get(registered())
    assert DatasetCatalog.get(registered("subset.json.gz", name="detcurate-test-gz")) == plain
    packed = (tmp_path / "manifest" / "subset.json.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "manifest" / "subset.json").read_bytes()
