"""Subset search: how large the rounds are, and rounds of real training, to the end and after SIGKILL."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.runs import CURATE
from safetensors.numpy import load_file

from detcurate.coco.dataset import read_coco
from detcurate.config import curate_settings
from detcurate.errors import SelectionError
from detcurate.io.files import sha256_file
from detcurate.pipeline.search import expected_loss, geometric_limits
from detcurate.select.limits import Budget, image_budget

BUILD_UP = ["CURATE.SEARCH.SCHEME", "build_up", "CURATE.SEARCH.SEED_IMAGES", "4"]
THREE_SEEDS = ["CURATE.RETRAIN.NUM_SEEDS", "3", "CURATE.RETRAIN.ARMS", "('curated', 'random')"]


# How large the rounds are


@pytest.mark.parametrize(
    ("first", "limit", "growth", "limits"),
    [
        (75, 300, 2.0, (75, 150, 300)),
        (50, 400, 2.0, (50, 100, 200, 400)),
        (50, 300, 2.0, (50, 91, 165, 300)),
        (290, 300, 2.0, (290, 300)),
        (10, 300, 30.0, (10, 300)),
    ],
)
def test_geometric_limits_grow_by_one_factor_to_the_budget(first, limit, growth, limits):
    assert geometric_limits(first, image_budget(600, count=limit), growth=growth) == limits


@pytest.mark.parametrize("growth", [1.3, 2.0, 3.7])
@pytest.mark.parametrize("first", [1, 7, 100, 598])
def test_geometric_limits_use_the_fewest_rounds_within_the_growth(first, growth):
    limits = geometric_limits(first, image_budget(600, count=599), growth=growth)
    steps = len(limits) - 1
    assert (limits[0], limits[-1]) == (first, 599)
    assert list(limits) == sorted(limits)
    assert first * growth**steps >= 599 - 1e-6
    assert steps == 1 or first * growth ** (steps - 1) < 599


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (300, "300 images.*100%"),
        (450, "300 images.*150%"),
        (0, "nothing"),
    ],
)
def test_geometric_limits_reject_a_seed_set_as_large_as_the_budget(first, message):
    with pytest.raises(SelectionError, match=message):
        geometric_limits(first, Budget(np.ones(600, np.int64), 300, "300 images"), growth=2.0)


# The whole search, with real Detectron2


def images_of(folder):
    return set(read_coco(folder / "manifest" / "subset.json").image_ids.tolist())


def selection_of(folder):
    return pq.read_table(folder / "select" / "selection.parquet").to_pydict()


@pytest.fixture(scope="module")
def built_up(tmp_path_factory, write_tiny_config):
    """26 images: a seed set of 4, rounds of 7 and 13."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")
    config, output = write_tiny_config(tmp_path_factory.mktemp("search"))
    words = ["--config-file", config, *BUILD_UP, "CURATE.SEARCH.WARM_START", "True", "CURATE.RETRAIN.NUM_SEEDS", "1"]
    finished = subprocess.run([sys.executable, CURATE, *words], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return words, output, finished.stdout


def test_each_round_contains_the_previous_and_has_a_manifest(built_up):
    _, output, _ = built_up
    seed = set(selection_of(output / "search" / "round-0")["image_id"])
    first, last = images_of(output / "search" / "round-1"), images_of(output)
    assert (len(seed), len(first), len(last)) == (4, 7, 13)
    assert seed < first < last


def test_selection_records_the_round_of_each_image(built_up):
    _, output, _ = built_up
    reasons = selection_of(output)["reason"]
    assert reasons == ["seed_set"] * 4 + ["round_1"] * 3 + ["top_n"] * 6
    search = json.loads((output / "manifest" / "provenance.json").read_bytes())["search"]
    assert (search["scheme"], search["warm_start"]) == ("build_up", True)
    assert search["rounds"] == [
        {
            "round": number,
            "images": images,
            "selection_sha256": sha256_file(output / "search" / f"round-{number}" / "select" / "selection.parquet"),
        }
        for number, images in enumerate((4, 7))
    ]


def test_each_round_adds_the_best_remaining_images_by_its_own_scores(built_up):
    _, output, _ = built_up
    for folder, before in ((output / "search" / "round-1", 4), (output, 7)):
        chosen = selection_of(folder)["image_id"]
        scores = pq.read_table(folder / "score" / "images.parquet").to_pydict()
        rest = [
            (-score, image_id)
            for image_id, score in zip(scores["image_id"], scores["image_score"], strict=True)
            if image_id not in chosen[:before]
        ]
        assert chosen[before:] == [image_id for _, image_id in sorted(rest)[: len(chosen) - before]]


def test_each_ensemble_is_trained_on_the_previous_selection(built_up):
    _, output, text = built_up
    assert re.search(r"round 0 select: .*4 random images", text)
    assert re.search(r"round 1 train: 4 members from 2 runs of 4 iterations.* 4 images", text)
    assert re.search(r"^train: 4 members from 2 runs of 4 iterations.* 7 images", text, re.MULTILINE)


def squared_distance(weights, others):
    return sum(float(np.square(weights[key] - others[key]).sum()) for key in weights)


def test_warm_start_begins_with_the_previous_weights_of_the_same_run(built_up, done, tmp_path):
    words, whole, _ = built_up
    name = "iter-0000003.safetensors"
    output = tmp_path / "cold"
    shutil.copytree(whole, output)
    done(*words, "CURATE.SEARCH.WARM_START", "False", "OUTPUT_DIR", output, "--until", "train")
    started = f"initial weights from {name}"
    for run in (0, 1):
        assert started in (whole / "train" / f"run-{run}" / "log.txt").read_text()
        assert started not in (output / "train" / f"run-{run}" / "log.txt").read_text()
        assert started not in (whole / "search" / "round-1" / "train" / f"run-{run}" / "log.txt").read_text()
        last = load_file(whole / "train" / f"run-{run}" / name)
        before = [load_file(whole / "search" / "round-1" / "train" / f"run-{number}" / name) for number in (0, 1)]
        assert squared_distance(last, before[run]) < squared_distance(last, before[1 - run])


def test_full_arm_is_trained_after_an_ensemble_of_a_part(built_up):
    _, output, text = built_up
    assert "trained 3 detectors" in text
    assert not list((output / "retrain").rglob("reused.txt"))


def test_finished_search_is_skipped_and_dry_run_tells_what_changed(built_up, done):
    words, output, _ = built_up
    assert done(*words, "--until", "manifest").count("up to date") == 1 + 1 + 5 + 5
    assert "up to date" in done(*words, "--until", "manifest", "--dry-run").splitlines()[1]
    rows = done(*words, "--until", "manifest", "--dry-run", "CURATE.SCORE.AGGREGATION", "max").splitlines()
    assert rows[1].startswith("search    to run again (aggregation top_k_mean -> max)")
    assert "4 → 7 → 13 images" in rows[1]


def test_search_killed_in_any_round_resumes_to_the_same_manifest(built_up, tmp_path):
    words, whole, _ = built_up
    output = tmp_path / "killed"
    command = [sys.executable, CURATE, *words, "--until", "manifest", "OUTPUT_DIR", output]
    for moment in (
        "search/round-1/train/run-*/resume.pth",
        "search/round-1/select/*",
        "train/run-*/resume.pth",
    ):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        end = time.monotonic() + 300
        while time.monotonic() < end and process.poll() is None and not any(output.glob(moment)):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert any(output.glob(moment))
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    for name in ("subset.json", "provenance.json"):
        assert (output / "manifest" / name).read_bytes() == (whole / "manifest" / name).read_bytes()


def test_search_with_a_box_budget_grows_in_boxes(built_up, done, tmp_path):
    words, whole, _ = built_up
    output = tmp_path / "boxes"
    output.mkdir()
    for name in ("pool", "detcurate.json"):
        (shutil.copytree if (whole / name).is_dir() else shutil.copy)(whole / name, output / name)
    budget = ["CURATE.SELECT.NUM_BOXES", "40", "OUTPUT_DIR", output, "--until", "manifest"]
    assert "4 images → at most 2 times as much → … → 40 boxes" in done(*words, *budget, "--dry-run")
    done(*words, *budget)
    boxes = [read_coco(path).num_boxes for path in sorted(output.glob("search/round-*/manifest/subset.json"))]
    boxes.append(read_coco(output / "manifest" / "subset.json").num_boxes)
    assert boxes == sorted(boxes)
    assert boxes[-1] <= 40


def test_pretrained_arms_start_from_the_weights_of_the_runs(finished_run, done, tmp_path):
    config, output = finished_run.copy(tmp_path, until="manifest")
    text = done("--config-file", config, "CURATE.SEARCH.SCHEME", "pretrain", *THREE_SEEDS)
    assert "trained 6 detectors with equal iterations from the weights of the ensemble's runs" in text
    summary = (output / "report" / "summary.md").read_text()
    assert "from the weights of the ensemble's runs" in summary
    starts = [load_file(output / "train" / f"run-{run}" / "iter-0000003.safetensors") for run in (0, 1)]
    for seed in range(3):
        ends = load_file(output / "retrain" / "curated" / f"seed-{seed}" / "iter-0000003.safetensors")
        near, far = (squared_distance(ends, starts[run]) for run in (seed % 2, 1 - seed % 2))
        assert near < 0.1 * far


# What does not go together


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["CURATE.SEARCH.SCHEME", "grow"], ("CURATE.SEARCH.SCHEME", "'grow'", "'build_up'")),
        (["CURATE.SEARCH.WARM_START", "True"], ("CURATE.SEARCH", "compress")),
        ([*BUILD_UP, "CURATE.SEARCH.SEED_IMAGES", "27"], ("SEED_IMAGES", "26 images", "27")),
        ([*BUILD_UP, "CURATE.SEARCH.SEED_IMAGES", "13"], ("13 images", "100%")),
        ([*BUILD_UP, "CURATE.SEARCH.GROWTH", "1.0"], ("CURATE.SEARCH.GROWTH", "1.0")),
        ([*BUILD_UP, "CURATE.ENSEMBLE.NUM_RUNS", "0"], ("CURATE.ENSEMBLE.NUM_RUNS", "build_up")),
        (["--until", "search"], ("CURATE.SEARCH.SCHEME", "build_up", "compress")),
    ],
)
def test_run_names_a_search_setting_that_is_not_possible(tiny_config, refused, words, parts):
    config, output = tiny_config()
    message = refused("--config-file", config, *words)
    assert [part for part in parts if part not in message] == [], message
    assert not output.exists()


def test_search_rejects_added_members(built_up, done, refused, write_tiny_config, tmp_path):
    _, whole, _ = built_up
    config, output = write_tiny_config(tmp_path)
    done("ensemble", "add", whole / "train", "--config-file", config, "CURATE.ENSEMBLE.NUM_RUNS", "0")
    message = refused("--config-file", config, *BUILD_UP, "--until", "search")
    assert "CURATE.SEARCH.SCHEME" in message
    assert "got 4" in message


@pytest.mark.parametrize(
    ("scheme", "strategy", "share", "warned"),
    [
        ("compress", "top_n", 0.29, True),
        ("compress", "threshold", 0.1, True),
        ("compress", "top_n", 0.3, False),
        ("compress", "strata", 0.1, False),
        ("build_up", "top_n", 0.1, False),
        ("none", "top_n", 0.1, False),
    ],
)
def test_expected_loss_warns_for_compress_with_small_hard_subsets(scheme, strategy, share, warned):
    settings = curate_settings({"SEARCH": {"SCHEME": scheme}, "SELECT": {"STRATEGY": strategy}})
    text = expected_loss(settings, share)
    assert (f"{share:.0%}" in text) if warned else text == ""
