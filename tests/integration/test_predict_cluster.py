# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""Inference of the mode ``cluster``: 5 rendered images and 4 of other sizes, 3 members, 7 classes."""

import dataclasses
import hashlib
import threading
import time

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from PIL import Image
from safetensors.torch import load_file, save_file

from detcurate.coco.dataset import read_coco
from detcurate.config.declaration import load_config, load_config_text
from detcurate.d2.checkpoints import model_for_weights
from detcurate.d2.infer import cluster as runner
from detcurate.d2.infer.cluster import predict_cluster
from detcurate.d2.infer.models import MemberModels
from detcurate.d2.infer.posteriors import predict_posteriors
from detcurate.d2.infer.worker import PredictionJob
from detcurate.d2.train.hooks import save_weights
from detcurate.errors import DatasetError, EnsembleError, PredictionError
from detcurate.io.leases import Leases, shard_lease
from detcurate.predictions.shards import read_shard, shard_path
from detcurate.structures import Detections
from detcurate.synthetic import SyntheticConfig, write_dataset

C = 7
OTHERS = ((31, 80, 120), (32, 120, 80), (33, 80, 120), (34, 64, 64))  # image_id, width, height


@pytest.fixture(scope="module")
def job(tmp_path_factory, write_tiny_config):
    """One job of all images and members."""
    folder = tmp_path_factory.mktemp("pool")
    config, _ = write_tiny_config(folder)
    cfg = load_config(config, ["MODEL.ROI_HEADS.NUM_CLASSES", str(C), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.12"])
    write_dataset(folder, SyntheticConfig(num_images=5, width=96, height=64))
    dataset = read_coco(folder / "train.json")
    images = [
        (int(image_id), str(folder / "images-train" / name), 96, 64)
        for image_id, name in zip(dataset.image_ids, dataset.file_names, strict=True)
    ]
    rng = np.random.default_rng(0)
    for image_id, width, height in OTHERS:
        path = folder / f"{image_id}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        images.append((image_id, str(path), width, height))
    members = []
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        model = build_model(cfg)
        with torch.no_grad():
            model.roi_heads.box_predictor.bbox_pred.weight.mul_(100)
        save_weights(model, folder / f"{seed}.safetensors")
        members.append((folder / f"{seed}.safetensors", digest(folder / f"{seed}.safetensors")))
    job = PredictionJob(
        config=cfg.dump(),
        members=tuple(members),
        image_ids=np.zeros(0, np.int64),
        file_names=(),
        sizes=np.zeros((0, 2), np.int64),
        num_classes=C,
        shard_size=100,
        batch_size=4,
        device="cpu",
        directory=folder / "absent",
    )
    return with_images(job, images)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_images(job, images):
    """Return the job for other images, of image_id, path, width and height each."""
    return dataclasses.replace(
        job,
        image_ids=np.array([image[0] for image in images], np.int64),
        file_names=tuple(image[1] for image in images),
        sizes=np.array([image[2:] for image in images], np.int64).reshape(-1, 2),
    )


def all_records(job):
    return [record for number in range(len(job.shards)) for record in job.records(number)]


def predict(job, directory, **changes: object):
    """Run a changed job in a directory; return the detections, the images covered, and the reported progress."""
    progress = []
    changed = dataclasses.replace(job, directory=directory, **changes)
    predict_cluster(changed, progress.append)
    shards = [read_shard(path) for path in changed.shards]
    assert sorted(path.name for path in directory.iterdir()) == [path.name for path in changed.shards]
    return (
        Detections.concatenate([shard[0] for shard in shards]),
        np.concatenate([shard[1] for shard in shards]),
        progress,
    )


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    return predict(job, tmp_path_factory.mktemp("whole"))[0]


def assert_columns(found, expected):
    """Integers and order are equal; a convolution sums in another order for another batch, hence 1e-4 of a pixel."""
    for name in ("image_ids", "member", "class_index"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=1e-4)
    for name in ("scores", "class_probs"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)


def test_shard_covers_all_images_and_members(job, tmp_path):
    detections, image_ids, progress = predict(job, tmp_path / "x")
    assert image_ids.tolist() == [1, 2, 3, 4, 5, 31, 32, 33, 34]
    assert sum(progress) == 9
    assert max(progress) <= job.batch_size
    assert detections.num_classes == C
    seen = set(zip(detections.image_ids.tolist(), detections.member.tolist(), strict=True))
    assert seen == {(image_id, member) for image_id in image_ids.tolist() for member in range(3)}


def test_detections_equal_detectron2_image_by_image(job, whole):
    cfg = load_config_text(job.config)
    mapper = DatasetMapper(cfg, is_train=False)
    for member, (path, _) in enumerate(job.members):
        model = model_for_weights(cfg, path)
        for record in all_records(job):
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
def test_detections_do_not_depend_on_the_batch_size(job, whole, tmp_path, batch_size):
    found, _, progress = predict(job, tmp_path / "x", batch_size=batch_size)
    assert_columns(found, whole)
    assert max(progress) == min(batch_size, 6)  # six are of one shape once resized


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("num_decoders", [0, 3])
def test_detections_do_not_depend_on_shard_size_and_decoders(job, whole, tmp_path, size, num_decoders):
    found, image_ids, progress = predict(job, tmp_path / "x", shard_size=size, num_decoders=num_decoders)
    assert image_ids.tolist() == job.image_ids.tolist()
    assert sum(progress) == 9
    assert_columns(found, whole)


@pytest.mark.parametrize("memory_gb", [1e-9, 0.0045])
def test_detections_do_not_depend_on_the_memory_limit(job, whole, tmp_path, memory_gb):
    found, _, progress = predict(job, tmp_path / "x", memory_gb=memory_gb, shard_size=5)
    assert sum(progress) == 9
    assert_columns(found, whole)


def test_repeated_job_gives_equal_bytes(job, tmp_path):
    for name in ("x", "y"):
        predict(job, tmp_path / name)
    assert shard_path(tmp_path / "x", 0).read_bytes() == shard_path(tmp_path / "y", 0).read_bytes()


def test_member_numbers_follow_the_order_of_the_job(job, whole, tmp_path):
    found, *_ = predict(job, tmp_path / "x", members=job.members[::-1])
    for member in range(3):
        assert_columns(
            dataclasses.replace(found.take(found.member == 2 - member), member=whole.member[whole.member == member]),
            whole.take(whole.member == member),
        )


def test_existing_shards_are_not_changed(job, tmp_path):
    shard_path(tmp_path, 0).write_bytes(b"not even a shard")
    progress = []
    gone = tuple((tmp_path / "gone.safetensors", sha256) for _, sha256 in job.members)
    predict_cluster(dataclasses.replace(job, directory=tmp_path, members=gone), progress.append)
    assert shard_path(tmp_path, 0).read_bytes() == b"not even a shard"
    assert progress == []


def test_shard_with_a_lease_of_another_process_is_waited_for(job, whole, tmp_path):
    """The other one gives up after a second without having made it; then it is made here."""
    other, lease = Leases(tmp_path / "x"), shard_lease(shard_path(tmp_path, 1).name)
    with other:
        assert other.acquire(lease)
        release = threading.Timer(1.0, other.release, [lease])
        release.start()
        begun = time.monotonic()
        found, *_ = predict(job, tmp_path / "x", shard_size=3)
        assert time.monotonic() - begun > 1.0
    assert_columns(found, whole)


def test_shard_covers_images_without_detections(job, tmp_path):
    config = load_config_text(job.config).clone()
    config.defrost()
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0
    detections, image_ids, _ = predict(job, tmp_path / "x", config=config.dump())
    assert len(detections) == 0
    assert len(image_ids) == 9


@pytest.mark.parametrize("defect", ["absent", "truncated", "another size"])
def test_unreadable_image_is_named(job, tmp_path, defect):
    path = tmp_path / "broken.png"
    Image.new("RGB", (80, 120)).save(path)
    if defect == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif defect == "absent":
        path.unlink()
    images = [(1, str(path), 80, 120), (77, str(path), 80, 120 - (defect == "another size"))]
    bad = with_images(job, images[1:])
    with pytest.raises(DatasetError, match=r"(?s)broken.png.*image_id 77"):
        predict(bad, tmp_path / "x")
    assert list((tmp_path / "x").iterdir()) == []


def test_changed_damaged_and_missing_members_are_named(job, tmp_path):
    path, sha256 = job.members[1]
    copy = tmp_path / "iter-0000004.safetensors"
    copy.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EnsembleError, match=rf"(?s)(?=.*{sha256[:12]}).*iter-0000004.safetensors"):
        predict(job, tmp_path / "x", members=(job.members[0], (copy, sha256)))
    with pytest.raises(EnsembleError, match="iter-0000004.safetensors"):
        predict(job, tmp_path / "x", members=((copy, digest(copy)),))
    copy.unlink()
    with pytest.raises(EnsembleError, match="iter-0000004.safetensors"):
        predict(job, tmp_path / "x", members=((copy, sha256),))
    assert not list((tmp_path / "x").iterdir())


def test_member_of_another_architecture_is_named(job, tmp_path):
    cfg = load_config_text(job.config).clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = C + 1
    other = tmp_path / "other.safetensors"
    save_weights(build_model(cfg), other)
    with pytest.raises(EnsembleError, match="other.safetensors"):
        predict(job, tmp_path / "x", members=(*job.members, (other, digest(other))))
    assert not list((tmp_path / "x").iterdir())


def test_shared_trunk_gives_equal_bits(job, tmp_path):
    """Members that share stem, res2 and res3 give exactly the detections of each alone."""
    cfg = load_config_text(job.config)
    first = load_file(job.members[0][0])
    shared = ("backbone.bottom_up.stem.", "backbone.bottom_up.res2.", "backbone.bottom_up.res3.")
    members = []
    for number, (path, _) in enumerate(job.members):
        state = {name: first[name] if name.startswith(shared) else tensor for name, tensor in load_file(path).items()}
        file = tmp_path / f"{number}.safetensors"
        save_file(state, file)
        members.append((file, digest(file)))
    models = MemberModels(cfg.clone(), members, memory_gb=1, precision="fp32")
    assert models.num_shared_blocks == 3
    assert MemberModels(cfg.clone(), job.members, memory_gb=1, precision="fp32").num_shared_blocks == 0
    together, *_ = predict(job, tmp_path / "together", members=tuple(members))
    grouped, *_ = predict(job, tmp_path / "grouped", members=tuple(members), memory_gb=1e-9)
    assert_same_bits(grouped, together)
    for number, member in enumerate(members):
        alone, *_ = predict(job, tmp_path / f"alone-{number}", members=(member,))
        rows = together.take(together.member == number)
        assert_same_bits(alone, dataclasses.replace(rows, member=np.zeros(len(rows), np.int32)))


def assert_same_bits(found, expected):
    for name in Detections.__annotations__:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_out_of_memory_halves_the_batch(job, whole, tmp_path, monkeypatch):
    sizes = []

    def limited(model, batch, num_classes, **how: object):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no room")
        return predict_posteriors(model, batch, num_classes, **how)

    monkeypatch.setattr(runner, "predict_posteriors", limited)
    found, *_ = predict(job, tmp_path / "x")
    assert_columns(found, whole)
    assert max(sizes) == 4
    monkeypatch.setattr(runner, "predict_posteriors", lambda *_, **__: limited(None, range(3), 0))
    with pytest.raises(PredictionError, match=r"cpu.*3 members.*image_id.*no room.*CURATE.PREDICT.MEMORY_GB"):
        predict(job, tmp_path / "y")


def test_bf16_scores_are_close_to_fp32(job, whole, tmp_path):
    found, *_ = predict(job, tmp_path / "x", precision="bf16")
    assert found.scores.dtype == np.float32
    assert abs(float(found.scores.mean()) - float(whole.scores.mean())) < 0.01
    assert len(found) == pytest.approx(len(whole), rel=0.1)
