# ruff: noqa: E402  Detectron2 may be absent, and is imported first
"""``CURATE.PREDICT.MODE`` through the pipeline: 26 rendered images in 6 shards, 4 members, 7 classes."""

import json
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import numpy as np
import pyarrow.parquet as pq
import torch
from detectron2.data import DatasetMapper
from helpers.runs import DENSE, RETINANET

from detcurate.cli import main
from detcurate.coco.dataset import read_coco
from detcurate.config.declaration import load_config
from detcurate.d2.checkpoints import model_for_weights
from detcurate.d2.infer.posteriors.dense_heads import dense_outputs
from detcurate.d2.infer.reference import reference_predictions
from detcurate.ensemble.index import read_index
from detcurate.io.files import sha256_file
from detcurate.predictions.shards import (
    DENSE_AGGREGATIONS,
    References,
    read_dense,
    read_embeddings,
    read_references,
    shard_path,
)
from detcurate.predictions.store import read_members, read_predictions
from detcurate.score.associate import associate
from detcurate.score.disagreement import binary_entropy
from detcurate.structures import Detections
from detcurate.structures.boxes import box_iou

NUM_SHARDS, C = 6, 7
TWO = ["CURATE.NUM_PROCESSES", "2"]
REFERENCE = ["CURATE.PREDICT.MODE", "reference"]


def run(config, until, *words: str):
    """Run the stages up to one, and return the exit status."""
    return main(["--config-file", str(config), "--until", until, *words])


def files(folder):
    """Return the modification time and the digest of each shard: both differ if it was written again."""
    return {path.name: (path.stat().st_mtime_ns, sha256_file(path)) for path in sorted(folder.glob("shard-*.parquet"))}


def digests(folder):
    return {name: digest for name, (_, digest) in files(folder).items()}


def all_references(output):
    parts = [read_references(shard_path(output / "predict" / "reference", n)) for n in range(NUM_SHARDS)]
    columns = {name: np.concatenate([getattr(one, name) for one, _ in parts]) for name in References.__annotations__}
    return References(**columns), np.concatenate([image_ids for _, image_ids in parts])


@pytest.fixture(scope="module")
def clusters(finished_run):
    """The OUTPUT_DIR of a pool that was scored in the default mode."""
    return finished_run.output


@pytest.fixture(scope="module")
def reference_run(finished_run, tmp_path_factory):
    """A run that was predicted again in the mode ``reference``, up to the manifest."""
    config, output = finished_run.copy(tmp_path_factory.mktemp("reference"), until="manifest")
    assert run(config, "manifest", *REFERENCE) == 0
    return replace(finished_run, config=config, output=output)


@pytest.fixture(scope="module")
def references(reference_run):
    """Its OUTPUT_DIR."""
    return reference_run.output


@pytest.fixture(scope="module")
def densely(one_stage_run):
    """The OUTPUT_DIR of a pool that was scored in the mode ``dense``, with embeddings."""
    return one_stage_run.output


# cluster


def test_cluster_adds_no_setting_to_the_stage(clusters):
    settings = json.loads((clusters / "predict" / "stage.json").read_text())["settings"]
    assert not [key for key in settings if "MODE" in key.split(".")]
    assert "mode" not in settings["CURATE.PREDICT"]
    assert sorted(path.name for path in (clusters / "predict").iterdir()) == [
        "members.json", "set-00", "stage.json",
    ]  # fmt: skip


# reference


def test_reference_predicts_every_label_with_every_member(references):
    pool = read_coco(references / "pool" / "train.json")
    found, image_ids = all_references(references)
    assert image_ids.tolist() == pool.image_ids.tolist()
    assert found.class_probs.shape[1:] == (4, C + 1)
    kept = ~pool.iscrowd
    for row, image_id in enumerate(pool.image_ids.tolist()):
        requested = found.given[(found.image_ids == image_id) & found.is_truth]
        np.testing.assert_allclose(requested, pool.boxes[kept & (pool.image_index == row)], rtol=0, atol=1e-4)
    assert found.is_truth.sum() == kept.sum()
    objects = pq.read_table(references / "score" / "objects.parquet")
    np.testing.assert_array_equal(objects["image_id"].to_numpy(), found.image_ids)
    images = pq.read_table(references / "score" / "images.parquet")
    assert images["num_objects"].to_numpy().sum() == len(found)


def test_reference_adds_clusters_that_no_label_covers(references):
    found, _ = all_references(references)
    pool, directory = read_coco(references / "pool" / "train.json"), references / "predict"
    members = read_members(directory)
    detections = Detections.concatenate([part for part, _ in read_predictions(directory, members)])
    clusters = associate(detections, num_members=4)
    num_left_out = 0
    for row, image_id in enumerate(pool.image_ids.tolist()):
        of_image = found.image_ids == image_id
        requested, consensus = found.given[of_image & ~found.is_truth], clusters.boxes[clusters.image_ids == image_id]
        covered = box_iou(consensus, pool.boxes[pool.image_index == row]).max(axis=1, initial=0) >= 0.5
        np.testing.assert_array_equal(requested, consensus[~covered])
        num_left_out += covered.sum()
    assert num_left_out > 0


def test_reference_rows_equal_each_member_alone(references):
    found, _ = all_references(references)
    pool = read_coco(references / "pool" / "train.json")
    cfg = load_config(references / "config.yaml", ["MODEL.ROI_HEADS.NUM_CLASSES", str(C)])
    sample = DatasetMapper(cfg, is_train=False)(
        {
            "file_name": str(references / "pool" / "images-train" / pool.file_names[3]),
            "image_id": 1,
            "width": 96,
            "height": 64,
        }  # fmt: skip
    )
    rows = found.image_ids == pool.image_ids[3]
    for number, member in enumerate(read_index(references / "train" / "ensemble.jsonl")):
        model = model_for_weights(cfg, references / "train" / member.file)
        with torch.inference_mode():
            (prediction,) = reference_predictions(model, [sample], [found.given[rows]])
        np.testing.assert_allclose(found.class_probs[rows, number], prediction.class_probs, atol=1e-5)
        np.testing.assert_allclose(found.boxes[rows, number], prediction.boxes, atol=1e-3)


def test_change_of_mode_keeps_the_predictions_of_the_other(clusters, references, reference_run, tmp_path):
    assert files(references / "predict" / "set-00") == files(clusters / "predict" / "set-00")
    config, output = reference_run.copy(tmp_path, until="manifest")
    before = files(output / "predict" / "reference")
    assert run(config, "score") == 0
    for name in ("images.parquet", "objects.parquet"):
        assert (output / "score" / name).read_bytes() == (clusters / "score" / name).read_bytes()
    assert run(config, "score", *REFERENCE) == 0
    assert files(output / "predict" / "reference") == before
    for name in ("images.parquet", "objects.parquet"):
        assert (output / "score" / name).read_bytes() == (references / "score" / name).read_bytes()
        assert (output / "score" / name).read_bytes() != (clusters / "score" / name).read_bytes()


def test_reference_predicts_a_missing_shard_alone_with_equal_bytes(references, reference_run, tmp_path, capsys):
    config, output = reference_run.copy(tmp_path, until="manifest")
    folder = output / "predict" / "reference"
    before = files(folder)
    shard_path(folder, 2).unlink()
    assert run(config, "manifest", *REFERENCE) == 0
    text = capsys.readouterr().out
    assert "predict: continues after an interruption" in text
    assert text.count("up to date") == 5
    after = files(folder)
    assert [name for name in after if after[name] != before[name]] == ["shard-00002.parquet"]
    assert digests(folder) == digests(references / "predict" / "reference")


def test_reference_with_two_processes_and_members_in_groups_gives_equal_bytes(references, reference_run, tmp_path):
    config, output = reference_run.copy(tmp_path, until="manifest")
    shutil.rmtree(output / "predict" / "reference")
    assert run(config, "predict", *REFERENCE, "CURATE.PREDICT.MEMORY_GB", "1e-9", *TWO) == 0
    assert digests(output / "predict" / "reference") == digests(references / "predict" / "reference")


def test_reference_with_an_added_run_predicts_all_boxes_again(references, reference_run, tmp_path):
    config, output = reference_run.copy(tmp_path, until="manifest")
    before = files(output / "predict" / "set-00")
    assert run(config, "score", *REFERENCE, "CURATE.ENSEMBLE.NUM_RUNS", "3") == 0
    assert files(output / "predict" / "set-00") == before
    found, _ = all_references(output)
    assert found.class_probs.shape[1:] == (6, C + 1)
    old, _ = all_references(references)
    truth = [one.class_probs[one.is_truth] for one in (found, old)]
    np.testing.assert_allclose(truth[0][:, :4], truth[1], atol=1e-6)


def test_reference_with_another_iou_threshold_predicts_again(references, reference_run, tmp_path):
    config, output = reference_run.copy(tmp_path, until="manifest")
    assert run(config, "predict", *REFERENCE, "CURATE.SCORE.IOU_THRESHOLD", "0.9") == 0
    found, _ = all_references(output)
    assert len(found) > len(all_references(references)[0])
    assert files(output / "predict" / "set-00") == files(references / "predict" / "set-00")


def test_reference_of_equal_members_has_no_disagreement(write_tiny_config, tmp_path):
    """A rate of 0 and frozen statistics leave all checkpoints of a run as they began."""
    config, output = write_tiny_config(tmp_path)
    same = [
        "SOLVER.BASE_LR", "0.0", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(2,)",
        "MODEL.RESNETS.NORM", "FrozenBN", "CURATE.ENSEMBLE.NUM_RUNS", "1",
    ]  # fmt: skip
    assert run(config, "score", *REFERENCE, *same) == 0
    assert len({member.sha256 for member in read_index(output / "train" / "ensemble.jsonl")}) == 1
    table = pq.read_table(output / "score" / "objects.parquet")
    assert table.num_rows > 26
    for name in ("mutual_information", "iou_dispersion", "existence_entropy"):
        np.testing.assert_allclose(table[name].to_numpy(), 0, atol=1e-9)


def test_score_names_a_damaged_reference_shard(reference_run, tmp_path, capsys):
    config, output = reference_run.copy(tmp_path, until="manifest")
    path = shard_path(output / "predict" / "reference", 4)
    path.write_bytes(path.read_bytes()[:-9])
    words = ["--config-file", str(config), "--only", "score", *REFERENCE, "CURATE.SCORE.AGGREGATION", "max"]
    assert main(words) == 2
    assert "predict/reference/shard-00004.parquet" in capsys.readouterr().err
    shutil.rmtree(path.parent)
    assert main(words) == 2
    assert "predict/reference/shard-00000.parquet" in capsys.readouterr().err


# dense


def test_explain_dense_image_has_no_objects(densely, done):
    assert "(CURATE.PREDICT.MODE dense)" in done("explain", 3, densely)
    assert json.loads(done("explain", 3, densely, "--json"))["objects"] is None


def test_dense_rows_equal_float64_oracle(densely):
    """One image, its members' maps stacked in float64."""
    pool = read_coco(densely / "pool" / "train.json")
    cfg = load_config(densely / "config.yaml", ["MODEL.RETINANET.NUM_CLASSES", str(C)])
    image_ids, scores = read_dense(shard_path(densely / "predict" / "dense", 0))
    assert image_ids.tolist() == pool.image_ids[:5].tolist()
    sample = DatasetMapper(cfg, is_train=False)(
        {
            "file_name": str(densely / "pool" / "images-train" / pool.file_names[3]),
            "image_id": 1,
            "width": 96,
            "height": 64,
        }  # fmt: skip
    )
    probs = []
    for member in read_index(densely / "train" / "ensemble.jsonl"):
        model = model_for_weights(cfg, densely / "train" / member.file)
        with torch.inference_mode():
            features = model.backbone(model.preprocess_image([sample]).tensor)
            outputs = dense_outputs(model, features, [sample])
        probs.append(np.concatenate([level[0].double().sigmoid().numpy() for level in outputs.logits]))
    information = binary_entropy(np.mean(probs, axis=0)) - np.mean([binary_entropy(one) for one in probs], axis=0)
    ranked = -np.sort(-information.ravel())  # 96x64 is a multiple of 32: no anchor lies in a padding
    expected = {"max": ranked[0], "top_k_mean": ranked[:3].mean(), "sum": ranked.sum()}
    assert ranked[0] > 1e-3
    for name in DENSE_AGGREGATIONS:
        np.testing.assert_allclose(scores[name][3], expected[name], rtol=1e-3, atol=1e-6)


def test_dense_rows_become_image_scores(densely, capsys):
    pool = read_coco(densely / "pool" / "train.json")
    table = pq.read_table(densely / "score" / "images.parquet")
    assert table.column_names == ["image_id", "image_score", "mutual_information", "num_objects"]
    assert table["image_id"].to_pylist() == pool.image_ids.tolist()
    rows = [read_dense(shard_path(densely / "predict" / "dense", n))[1]["top_k_mean"] for n in range(NUM_SHARDS)]
    np.testing.assert_array_equal(table["mutual_information"].to_numpy(), np.concatenate(rows))
    assert table["num_objects"].to_pylist() == pool.boxes_per_image.tolist()
    assert not (densely / "score" / "objects.parquet").exists()
    assert not list((densely / "predict").glob("set-*"))
    stage_metadata = json.loads((densely / "score" / "stage.json").read_text())
    assert stage_metadata["settings"]["measures"] == ["mutual_information"]
    assert "number of labelled boxes" in stage_metadata["summary"]
    assert main(["manifest", "verify", str(densely / "manifest")]) == 0


def test_dense_writes_embeddings_of_all_images(densely):
    parts = [
        read_embeddings(shard_path(densely / "predict" / "dense" / "embeddings", number))
        for number in range(NUM_SHARDS)
    ]
    assert np.concatenate([image_ids for image_ids, _ in parts]).tolist() == list(range(1, 27))


def test_select_uses_dense_embeddings(one_stage_run, tmp_path):
    config, output = one_stage_run.copy(tmp_path, until="manifest")
    words = [*DENSE, "CURATE.PREDICT.EMBEDDINGS", "True", "CURATE.SELECT.STRATEGY", "k_center"]
    assert run(config, "select", *words) == 0
    reasons = pq.read_table(output / "select" / "selection.parquet")["reason"].to_pylist()
    assert set(reasons) == {"k_center"}


def test_dense_predicts_a_missing_shard_and_nothing_for_another_aggregation(densely, one_stage_run, tmp_path):
    config, output = one_stage_run.copy(tmp_path, until="manifest")
    words = [*DENSE, "CURATE.PREDICT.EMBEDDINGS", "True"]
    folder = output / "predict" / "dense"
    before = files(folder)
    assert run(config, "score", *words, "CURATE.SCORE.AGGREGATION", "sum") == 0
    assert files(folder) == before
    table = pq.read_table(output / "score" / "images.parquet")
    assert table["mutual_information"][2].as_py() == read_dense(shard_path(folder, 0))[1]["sum"][2]
    shard_path(folder, 5).unlink()
    # Members that are not in memory together give the same sums, to the last bit.
    assert run(config, "predict", *words, "CURATE.PREDICT.MEMORY_GB", "1e-9") == 0
    after = files(folder)
    assert [name for name in after if after[name] != before[name]] == ["shard-00005.parquet"]
    assert digests(folder) == digests(densely / "predict" / "dense")


def test_dense_with_an_added_run_predicts_all_again(one_stage_run, tmp_path):
    config, output = one_stage_run.copy(tmp_path, until="manifest")
    before = files(output / "predict" / "dense")
    assert run(config, "predict", *DENSE, "CURATE.PREDICT.EMBEDDINGS", "True", "CURATE.ENSEMBLE.NUM_RUNS", "3") == 0
    after = files(output / "predict" / "dense")
    assert before.keys() == after.keys()
    assert not [name for name in after if after[name][1] == before[name][1]]


# Validation


ONE_MEMBER = ["CURATE.ENSEMBLE.NUM_RUNS", "1", "CURATE.ENSEMBLE.MEMBERS_PER_RUN", "1"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([*RETINANET, *REFERENCE], ("CURATE.PREDICT.MODE", "reference", "RetinaNet")),
        (["CURATE.PREDICT.MODE", "dense"], ("CURATE.PREDICT.MODE", "dense", "GeneralizedRCNN")),
        ([*DENSE, "CURATE.SCORE.AGGREGATION", "mean"], ("CURATE.SCORE.AGGREGATION", "got mean", "top_k_mean")),
        (
            [*DENSE, "CURATE.SCORE.MEASURES", "('entropy',)", "CURATE.SCORE.WEIGHTS", "(1.0,)"],
            ("CURATE.SCORE.MEASURES", "got entropy", "mutual_information"),
        ),
        (
            [*REFERENCE, "CURATE.SCORE.CALIBRATION_IMAGES", "9"],
            ("CURATE.SCORE.CALIBRATION_IMAGES", "reference", "got 9"),
        ),
        ([*DENSE, "CURATE.SCORE.TOP_K", "2"], ("CURATE.SCORE.TOP_K", "dense", "got 2")),
        (
            [*REFERENCE, "CURATE.SCORE.MEASURES", "('el2n',)", "CURATE.SCORE.WEIGHTS", "(1.0,)"],
            ("CURATE.SCORE.MEASURES", "got el2n", "mutual_information"),
        ),
        (["CURATE.PREDICT.MODE", "sparse"], ("CURATE.PREDICT.MODE", "'sparse'", "'cluster', 'reference' or 'dense'")),
        ([*DENSE, *ONE_MEMBER], ("CURATE.PREDICT.MODE", "at least 2 members", "got 1")),
        ([*REFERENCE, *ONE_MEMBER], ("one member", "entropy")),
    ],
)
def test_validate_names_a_setting_that_the_mode_excludes(tiny_config, refused, words, parts):
    config, output = tiny_config()
    message = refused("--config-file", config, *words)
    assert [part for part in parts if part not in message] == []
    assert not output.exists()


def test_reference_scores_one_member_by_entropy(finished_run, tmp_path):
    config, output = finished_run.copy(tmp_path, until="train")
    entropy = ["CURATE.SCORE.MEASURES", "('entropy',)", "CURATE.SCORE.WEIGHTS", "(1.0,)"]
    assert run(config, "score", *REFERENCE, *ONE_MEMBER, *entropy) == 0
    assert len(read_members(output / "predict")) == 1
    assert pq.read_table(output / "score" / "objects.parquet")["entropy"].to_numpy().max() > 0


def test_dry_run_names_passes_and_scored_elements_of_the_mode(tiny_config, done):
    config, output = tiny_config()
    words = ("--config-file", config, "--until", "score", "--dry-run")
    text = done(*words, *REFERENCE)
    assert "104 forward passes, and as many about given boxes" in text
    assert "over the reference boxes of an image" in text
    assert "mutual_information; top_k_mean over the anchors and classes of an image" in done(*words, *DENSE)
    assert not output.exists()
