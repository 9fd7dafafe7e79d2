# ruff: noqa: E402  Detectron2 may be absent, and is asked for first
"""Shards of predictions: 5 rendered images and 4 of other sizes, 3 members of the tiny detector, 7 classes."""

import dataclasses
import hashlib

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from PIL import Image

from detcurate.coco.dataset import read_coco
from detcurate.coco.synthetic import SyntheticConfig, write_dataset
from detcurate.d2 import runner
from detcurate.d2.catalog import detection_dicts
from detcurate.d2.config import load_config, load_config_text
from detcurate.d2.hooks import save_weights
from detcurate.d2.runner import PredictionJob, predict_shard
from detcurate.d2.weights import model_for_weights
from detcurate.errors import DatasetError, EnsembleError
from detcurate.predictions import read_shard
from detcurate.structures import Detections

C = 7
OTHERS = ((31, 80, 120), (32, 120, 80), (33, 80, 120), (34, 64, 64))  # image_id, width, height


@pytest.fixture(scope="module")
def job(tmp_path_factory, write_tiny_config):
    """One job of all images and members."""
    folder = tmp_path_factory.mktemp("pool")
    config, _ = write_tiny_config(folder)
    cfg = load_config(config, ["MODEL.ROI_HEADS.NUM_CLASSES", str(C), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.12"])
    write_dataset(folder, SyntheticConfig(num_images=5, width=96, height=64))
    records = detection_dicts(read_coco(folder / "train.json"), folder / "images-train")
    rng = np.random.default_rng(0)
    for image_id, width, height in OTHERS:
        path = folder / f"{image_id}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        records.append({"file_name": str(path), "image_id": image_id, "width": width, "height": height})
    members = []
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        model = build_model(cfg)
        with torch.no_grad():
            model.roi_heads.box_predictor.bbox_pred.weight.mul_(100)
        save_weights(model, folder / f"{seed}.safetensors")
        members.append((folder / f"{seed}.safetensors", digest(folder / f"{seed}.safetensors")))
    return PredictionJob(cfg.dump(), tuple(members), tuple(records), C, 4, "cpu", folder / "absent.parquet")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def predict(job, path, **changes: object):
    """Predict a changed job into ``path``; return what was read, and how much progress was told."""
    told = []
    predict_shard(dataclasses.replace(job, path=path, **changes), told.append)
    return *read_shard(path), told


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    return predict(job, tmp_path_factory.mktemp("whole") / "shard-00000.parquet")[0]


def assert_columns(found, expected):
    """Integers and order are equal; a convolution sums in another order for another batch, hence 1e-4 of a pixel."""
    for name in ("image_ids", "member", "class_index"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=1e-4)
    for name in ("scores", "class_probs"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)


def test_a_shard_covers_its_images_and_all_members(job, tmp_path):
    detections, image_ids, told = predict(job, tmp_path / "x.parquet")
    assert image_ids.tolist() == [1, 2, 3, 4, 5, 31, 32, 33, 34]
    assert sum(told) == 9
    assert max(told) <= job.batch_size
    assert detections.num_classes == C
    seen = set(zip(detections.image_ids.tolist(), detections.member.tolist(), strict=True))
    assert seen == {(image_id, member) for image_id in image_ids.tolist() for member in range(3)}


def test_rows_are_what_detectron2_answers_image_by_image(job, whole):
    cfg = load_config_text(job.config)
    mapper = DatasetMapper(cfg, is_train=False)
    for member, (path, _) in enumerate(job.members):
        model = model_for_weights(cfg, path)
        for record in job.records:
            with torch.inference_mode():
                instances = model([mapper(record)])[0]["instances"]
            rows = whole.take((whole.member == member) & (whole.image_ids == record["image_id"]))
            assert len(rows) == len(instances)
            np.testing.assert_allclose(rows.boxes, instances.pred_boxes.tensor.numpy(), rtol=0, atol=1e-4)
            np.testing.assert_allclose(rows.scores, instances.scores.numpy(), rtol=0, atol=1e-6)
            np.testing.assert_array_equal(rows.class_index, instances.pred_classes.numpy())
            assert rows.boxes.min() >= 0
            assert (rows.boxes.max(axis=0) <= np.tile((record["width"], record["height"]), 2)).all()


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_the_batch_size_changes_nothing(job, whole, tmp_path, batch_size):
    found, _, told = predict(job, tmp_path / "x.parquet", batch_size=batch_size)
    assert_columns(found, whole)
    assert max(told) == min(batch_size, 6)  # six are of one shape once resized


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_size_of_the_shards_changes_nothing(job, whole, tmp_path, size):
    parts = [
        predict(job, tmp_path / f"{start}.parquet", records=job.records[start : start + size])[0]
        for start in range(0, len(job.records), size)
    ]
    assert_columns(Detections.concatenate(parts), whole)


def test_the_same_job_gives_the_same_bytes(job, tmp_path):
    predict(job, tmp_path / "x.parquet")
    runner._models.clear()
    predict(job, tmp_path / "y.parquet")
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()


def test_the_order_of_the_members_is_their_number(job, whole, tmp_path):
    found, *_ = predict(job, tmp_path / "x.parquet", members=job.members[::-1])
    for member in range(3):
        assert_columns(
            dataclasses.replace(found.take(found.member == 2 - member), member=whole.member[whole.member == member]),
            whole.take(whole.member == member),
        )


def test_a_shard_that_is_there_is_left_as_it_is(job, tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"not even a shard")
    told = []
    gone = tuple((tmp_path / "gone.safetensors", sha256) for _, sha256 in job.members)
    predict_shard(dataclasses.replace(job, path=path, members=gone), told.append)
    assert path.read_bytes() == b"not even a shard"
    assert sum(told) == len(job.records)


def test_images_without_detections_are_covered(job, tmp_path):
    config = load_config_text(job.config).clone()
    config.defrost()
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0
    detections, image_ids, _ = predict(job, tmp_path / "x.parquet", config=config.dump())
    assert len(detections) == 0
    assert len(image_ids) == 9


@pytest.mark.parametrize("defect", ["absent", "truncated", "another size"])
def test_an_image_that_cannot_be_read_is_named(job, tmp_path, defect):
    path = tmp_path / "broken.png"
    Image.new("RGB", (80, 120)).save(path)
    if defect == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif defect == "absent":
        path.unlink()
    record = {"file_name": str(path), "image_id": 77, "width": 80, "height": 120 - (defect == "another size")}
    with pytest.raises(
        DatasetError, match=r"(?s)must decode to the size of its record, got .*broken.png, image_id 77\)"
    ):
        predict(job, tmp_path / "x.parquet", records=(*job.records, record))
    assert not (tmp_path / "x.parquet").exists()


def test_members_that_are_not_what_the_ledger_says(job, tmp_path):
    runner._models.clear()
    path, sha256 = job.members[1]
    copy = tmp_path / "iter-0000004.safetensors"
    copy.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        EnsembleError, match=rf"the digest of the ledger, {sha256[:12]}…, got .*iter-0000004.safetensors"
    ):
        predict(job, tmp_path / "x.parquet", members=(job.members[0], (copy, sha256)))
    with pytest.raises(
        EnsembleError, match=r"must hold the weights of the config's model \(.*iter-0000004.safetensors"
    ):
        predict(job, tmp_path / "x.parquet", members=((copy, digest(copy)),))
    copy.unlink()
    with pytest.raises(EnsembleError, match=r"must exist, got no file .*iter-0000004.safetensors"):
        predict(job, tmp_path / "x.parquet", members=((copy, sha256),))
    assert not list(tmp_path.iterdir())


def test_a_member_of_another_architecture_is_refused(job, tmp_path):
    cfg = load_config_text(job.config).clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = C + 1
    other = tmp_path / "other.safetensors"
    save_weights(build_model(cfg), other)
    with pytest.raises(
        EnsembleError, match=r"(?s)a member must hold the weights of the config's model \(.*other.safet"
    ):
        predict(job, tmp_path / "x.parquet", members=(*job.members, (other, digest(other))))
    assert not (tmp_path / "x.parquet").exists()


def test_models_are_built_once_for_all_shards_and_anew_for_others(job, tmp_path):
    predict(job, tmp_path / "0.parquet", records=job.records[:1])
    first = list(runner._models.values())
    predict(job, tmp_path / "1.parquet", records=job.records[1:2])
    assert [model is other for model, other in zip(first[0], *runner._models.values(), strict=True)] == [True] * 3
    predict(job, tmp_path / "2.parquet", records=job.records[:1], members=job.members[:2])
    assert [len(models) for models in runner._models.values()] == [2]
    assert not any(model.training for models in runner._models.values() for model in models)
