# ruff: noqa: E402  Detectron2 may be absent, and is asked for first
"""``CURATE.PREDICT.MODE`` through the pipeline: 26 rendered images in 6 shards, 4 members, 7 classes."""

import json
import re
import shutil

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import numpy as np
import pyarrow.parquet as pq
import torch
from detectron2.data import DatasetMapper
from helpers.one_stage import RETINANET

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
from detcurate.score.disagreement import yes_no_entropy
from detcurate.structures import Detections
from detcurate.structures.boxes import box_iou

NUM_SHARDS, C = 6, 7
TWO = ["CURATE.NUM_PROCESSES", "2"]
REFERENCE, DENSE = ["CURATE.PREDICT.MODE", "reference"], [*RETINANET, "CURATE.PREDICT.MODE", "dense"]


def run(config, until, *words: str):
    """Run the stages in this process, unless told otherwise: a worker takes seconds to start."""
    return main(["--config-file", str(config), "--until", until, "CURATE.NUM_PROCESSES", "1", *words])


def copy_of(whole, write_tiny_config, folder):
    config, output = write_tiny_config(folder)
    shutil.copytree(whole, output)
    return config, output


def files(folder):
    """Return what tells a file that was made again from one that was left: its time and its bytes."""
    return {path.name: (path.stat().st_mtime_ns, sha256_file(path)) for path in sorted(folder.glob("shard-*.parquet"))}


def digests(folder):
    return {name: digest for name, (_, digest) in files(folder).items()}


def all_references(output):
    parts = [read_references(shard_path(output / "predict" / "reference", n)) for n in range(NUM_SHARDS)]
    columns = {name: np.concatenate([getattr(one, name) for one, _ in parts]) for name in References.__annotations__}
    return References(**columns), np.concatenate([image_ids for _, image_ids in parts])


@pytest.fixture(scope="module")
def clusters(tmp_path_factory, write_tiny_config):
    """A pool that was scored in the default mode."""
    config, output = write_tiny_config(tmp_path_factory.mktemp("cluster"))
    assert run(config, "score") == 0
    return output


@pytest.fixture(scope="module")
def references(clusters, tmp_path_factory, write_tiny_config):
    """The same, then scored in the mode ``reference``."""
    config, output = copy_of(clusters, write_tiny_config, tmp_path_factory.mktemp("reference"))
    assert run(config, "manifest", *REFERENCE) == 0
    return output


@pytest.fixture(scope="module")
def densely(tmp_path_factory, write_tiny_config):
    """A pool that was scored in the mode ``dense``, with embeddings."""
    config, output = write_tiny_config(tmp_path_factory.mktemp("dense"))
    assert run(config, "manifest", *DENSE, "CURATE.PREDICT.EMBEDDINGS", "True") == 0
    return output


# cluster


def test_the_default_mode_leaves_no_trace(clusters):
    settings = json.loads((clusters / "predict" / "stage.json").read_text())["settings"]
    assert not [key for key in settings if "MODE" in key.split(".")]
    assert "mode" not in settings["CURATE.PREDICT"]
    assert sorted(path.name for path in (clusters / "predict").iterdir()) == [
        "members.json", "set-00", "stage.json",
    ]  # fmt: skip


# reference


def test_every_label_is_an_object_and_every_member_has_answered(references):
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


def test_consensus_boxes_are_those_of_the_clusters_that_no_label_covers(references):
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


def test_the_answers_are_those_of_each_member_alone(references):
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


def test_the_passes_stay_and_back_in_the_default_mode_all_is_as_it_was(
    clusters, references, write_tiny_config, tmp_path
):
    assert files(references / "predict" / "set-00") == files(clusters / "predict" / "set-00")
    config, output = copy_of(references, write_tiny_config, tmp_path)
    before = files(output / "predict" / "reference")
    assert run(config, "score") == 0
    for name in ("images.parquet", "objects.parquet"):
        assert (output / "score" / name).read_bytes() == (clusters / "score" / name).read_bytes()
    assert run(config, "score", *REFERENCE) == 0
    assert files(output / "predict" / "reference") == before
    for name in ("images.parquet", "objects.parquet"):
        assert (output / "score" / name).read_bytes() == (references / "score" / name).read_bytes()
        assert (output / "score" / name).read_bytes() != (clusters / "score" / name).read_bytes()


def test_a_shard_that_is_gone_is_asked_again_alone_with_the_same_bytes(references, write_tiny_config, tmp_path, capsys):
    config, output = copy_of(references, write_tiny_config, tmp_path)
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


def test_two_processes_and_members_in_groups_give_the_same_bytes(references, write_tiny_config, tmp_path):
    config, output = copy_of(references, write_tiny_config, tmp_path)
    shutil.rmtree(output / "predict" / "reference")
    assert run(config, "predict", *REFERENCE, "CURATE.PREDICT.MEMORY_GB", "1e-9", *TWO) == 0
    assert digests(output / "predict" / "reference") == digests(references / "predict" / "reference")


def test_a_run_that_is_added_is_asked_alone_and_then_all_about_the_boxes(references, write_tiny_config, tmp_path):
    config, output = copy_of(references, write_tiny_config, tmp_path)
    before = files(output / "predict" / "set-00")
    assert run(config, "score", *REFERENCE, "CURATE.ENSEMBLE.NUM_RUNS", "3") == 0
    assert files(output / "predict" / "set-00") == before
    found, _ = all_references(output)
    assert found.class_probs.shape[1:] == (6, C + 1)
    old, _ = all_references(references)
    truth = [one.class_probs[one.is_truth] for one in (found, old)]
    np.testing.assert_allclose(truth[0][:, :4], truth[1], atol=1e-6)


def test_another_threshold_of_the_association_asks_again(references, write_tiny_config, tmp_path):
    config, output = copy_of(references, write_tiny_config, tmp_path)
    assert run(config, "predict", *REFERENCE, "CURATE.SCORE.IOU_THRESHOLD", "0.9") == 0
    found, _ = all_references(output)
    assert len(found) > len(all_references(references)[0])
    assert files(output / "predict" / "set-00") == files(references / "predict" / "set-00")


def test_members_that_are_the_same_disagree_on_nothing(write_tiny_config, tmp_path):
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


def test_a_damaged_shard_is_named(references, write_tiny_config, tmp_path, capsys):
    config, output = copy_of(references, write_tiny_config, tmp_path)
    path = shard_path(output / "predict" / "reference", 4)
    path.write_bytes(path.read_bytes()[:-9])
    words = ["--config-file", str(config), "--only", "score", *REFERENCE, "CURATE.SCORE.AGGREGATION", "max"]
    assert main(words) == 2
    assert "predict/reference/shard-00004.parquet is damaged" in capsys.readouterr().err
    shutil.rmtree(path.parent)
    assert main(words) == 2
    assert "predict/reference/shard-00000.parquet is missing" in capsys.readouterr().err


# dense


def test_an_image_without_objects_is_explained(densely, done):
    assert "it was scored without objects (CURATE.PREDICT.MODE dense)" in done("explain", 3, densely)
    assert json.loads(done("explain", 3, densely, "--json"))["objects"] is None


def test_dense_rows_against_all_members_at_once(densely):
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
    information = yes_no_entropy(np.mean(probs, axis=0)) - np.mean([yes_no_entropy(one) for one in probs], axis=0)
    ranked = -np.sort(-information.ravel())  # 96x64 is a multiple of 32: no anchor lies in a padding
    expected = {"max": ranked[0], "top_k_mean": ranked[:3].mean(), "sum": ranked.sum()}
    assert ranked[0] > 1e-3
    for name in DENSE_AGGREGATIONS:
        np.testing.assert_allclose(scores[name][3], expected[name], rtol=1e-3, atol=1e-6)


def test_dense_rows_become_the_images_scores_and_the_manifest(densely, capsys):
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


def test_dense_embeddings_lie_beside_the_rows(densely):
    parts = [
        read_embeddings(shard_path(densely / "predict" / "dense" / "embeddings", number))
        for number in range(NUM_SHARDS)
    ]
    assert np.concatenate([image_ids for image_ids, _ in parts]).tolist() == list(range(1, 27))


def test_dense_embeddings_are_selected_by(densely, write_tiny_config, tmp_path):
    config, output = copy_of(densely, write_tiny_config, tmp_path)
    words = [*DENSE, "CURATE.PREDICT.EMBEDDINGS", "True", "CURATE.SELECT.STRATEGY", "k_center"]
    assert run(config, "select", *words) == 0
    reasons = pq.read_table(output / "select" / "selection.parquet")["reason"].to_pylist()
    assert set(reasons) == {"k_center"}


def test_another_aggregation_asks_nobody_and_a_lost_shard_is_made_again(densely, write_tiny_config, tmp_path):
    config, output = copy_of(densely, write_tiny_config, tmp_path)
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


def test_a_member_that_is_added_has_all_asked_again(densely, write_tiny_config, tmp_path):
    config, output = copy_of(densely, write_tiny_config, tmp_path)
    before = files(output / "predict" / "dense")
    assert run(config, "predict", *DENSE, "CURATE.PREDICT.EMBEDDINGS", "True", "CURATE.ENSEMBLE.NUM_RUNS", "3") == 0
    after = files(output / "predict" / "dense")
    assert before.keys() == after.keys()
    assert not [name for name in after if after[name][1] == before[name][1]]


# What does not go together


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*RETINANET, *REFERENCE],
            "mode reference must have a two-stage detector .* got RetinaNet; set CURATE.PREDICT",
        ),
        (
            ["CURATE.PREDICT.MODE", "dense"],
            "mode dense must have a one-stage detector, .* got GeneralizedRCNN; set CUR",
        ),
        (
            [*DENSE, "CURATE.SCORE.AGGREGATION", "mean"],
            "AGGREGATION must be one of max, top_k_mean, sum .* got mean",
        ),
        (
            [*DENSE, "CURATE.SCORE.MEASURES", "('entropy',)"],
            "CURATE.SCORE.MEASURES must be mutual_information alone with CURATE.PREDICT.MODE dense, got entropy; .*set",
        ),
        (
            [*REFERENCE, "CURATE.SCORE.CALIBRATION_IMAGES", "9"],
            "CURATE.SCORE.CALIBRATION_IMAGES must be 0 with CURATE.PREDICT.MODE reference, got 9: the mode does",
        ),
        ([*DENSE, "CURATE.SCORE.TOP_K", "2"], "CURATE.SCORE.TOP_K must be 3 with CURATE.PREDICT.MODE dense, got 2"),
        (
            [*REFERENCE, "CURATE.SCORE.MEASURES", "('el2n',)"],
            "MEASURES must be among mutual_information, .* with CURATE.PREDICT.MODE reference, got el2n; what compares",
        ),
        (
            ["CURATE.PREDICT.MODE", "sparse"],
            "CURATE.PREDICT.MODE: must be 'cluster', 'reference' or 'dense' .got 'sparse'",
        ),
    ],
)
def test_what_does_not_go_with_the_mode_is_said_before_anything_is_done(
    write_tiny_config, tmp_path, capsys, words, message
):
    config, output = write_tiny_config(tmp_path)
    assert run(config, "report", *words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not output.exists()


def test_one_member_has_nobody_to_disagree_with(write_tiny_config, tmp_path, capsys):
    config, output = write_tiny_config(tmp_path)
    one = ["CURATE.ENSEMBLE.NUM_RUNS", "1", "CURATE.ENSEMBLE.MEMBERS_PER_RUN", "1"]
    assert run(config, "score", *DENSE, *one) == 2
    assert "the mode dense must have at least 2 members, got 1" in capsys.readouterr().err
    assert not (output / "predict" / "dense").exists()
    entropy = ["CURATE.SCORE.MEASURES", "('entropy',)"]
    assert run(config, "score", *REFERENCE, *one, *entropy) == 0
    assert pq.read_table(output / "score" / "objects.parquet")["entropy"].to_numpy().max() > 0
    assert run(config, "score", *REFERENCE, *one) == 2
    assert "measures of an ensemble of one member must be among entropy" in capsys.readouterr().err


def test_the_plan_says_what_the_mode_does(write_tiny_config, tmp_path, capsys):
    config, output = write_tiny_config(tmp_path)
    assert run(config, "score", "--dry-run", *REFERENCE) == 0
    text = capsys.readouterr().out
    assert "104 forward passes, and as many about given boxes" in text
    assert "over the reference boxes of an image" in text
    assert run(config, "score", "--dry-run", *DENSE) == 0
    assert "mutual_information; top_k_mean over the anchors and classes of an image" in capsys.readouterr().out
    assert not output.exists()
