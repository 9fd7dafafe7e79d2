"""The main job, end to end, with real Detectron2: its files, its skipping, and its resumption after SIGKILL."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from helpers import REPOSITORY

from detcurate.cli import main
from detcurate.coco.dataset import read_coco
from detcurate.ensemble.index import read_index
from detcurate.evaluate.coco_eval import FIGURES
from detcurate.io.files import sha256_file

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

CURATE = REPOSITORY / "tools" / "curate.py"


def manifest_bytes(output):
    return {
        name: (output / "manifest" / name).read_bytes() for name in ("subset.json", "images.txt", "provenance.json")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_tiny_config):
    """One whole run, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    config, output = write_tiny_config(folder)
    printed = subprocess.run(
        [sys.executable, CURATE, "--config-file", config], capture_output=True, text=True, check=False
    )
    assert printed.returncode == 0, printed.stderr
    return config, output, printed.stdout


def test_it_ends_with_the_table_and_the_places(finished):
    _, output, text = finished
    assert "| curated |" in text
    assert f"manifest: {output / 'manifest' / 'subset.json'}" in text
    assert f"report:   {output / 'report' / 'index.html'}" in text


def test_members_are_two_a_run_and_none_twice(finished):
    _, output, _ = finished
    members = read_index(output / "train" / "ensemble.jsonl")
    assert [(member.run, member.iteration, member.seed) for member in members] == [
        (0, 2, 0), (0, 3, 0), (1, 2, 1), (1, 3, 1),
    ]  # fmt: skip
    for member in members:
        assert sha256_file(output / "train" / member.file) == member.sha256


def test_every_image_has_a_score_and_every_component(finished):
    _, output, _ = finished
    table = pq.read_table(output / "score" / "images.parquet")
    assert table.num_rows == 26
    assert {"image_id", "image_score", "mutual_information", "iou_dispersion", "existence_entropy"} <= set(
        table.column_names
    )


def test_the_manifest_is_a_verbatim_subset_with_true_digests(finished):
    _, output, _ = finished
    pool = json.loads((output / "pool" / "train.json").read_text())
    subset = json.loads((output / "manifest" / "subset.json").read_text())
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    kept = {image["id"] for image in subset["images"]}
    assert len(kept) == 13
    assert subset["images"] == [image for image in pool["images"] if image["id"] in kept]
    assert subset["annotations"] == [box for box in pool["annotations"] if box["image_id"] in kept]
    assert provenance["source"]["sha256"] == sha256_file(output / "pool" / "train.json")
    assert provenance["scores_sha256"] == sha256_file(output / "score" / "images.parquet")
    assert [member["iteration"] for member in provenance["ensemble"]] == [2, 3, 2, 3]
    assert str(output) not in json.dumps(provenance)
    assert (output / "manifest" / "images.txt").read_text().splitlines() == [
        image["file_name"] for image in subset["images"]
    ]


def test_the_provenance_tells_what_was_found_and_bought(finished):
    _, output, _ = finished
    subset = json.loads((output / "manifest" / "subset.json").read_text())
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    assert {finding["policy"] for finding in provenance["findings"]} <= {"note", "warn"}
    assert provenance["budget"]["spent"] == {
        "images": 13,
        "boxes": len(subset["annotations"]),
        "cost_seconds": 0.0,
    }
    assert provenance["selection"] == {
        "selected": [{"reason": "top_n", "images": 13}],
        "removed": [{"reason": "budget", "images": 13}],
    }
    # What the renderer wrote into each record, as a team would: counted before and after.
    assert set(provenance["histograms"]) == {
        "classes", "box_size", "sequence", "location", "timeofday", "weather",
    }  # fmt: skip
    for field in ("sequence", "weather"):
        assert sum(count["before"] for count in provenance["histograms"][field].values()) == 26
        assert sum(count["after"] for count in provenance["histograms"][field].values()) == 13


def test_the_run_verifies_with_nothing_absent(finished, capsys):
    _, output, _ = finished
    assert main(["manifest", "verify", str(output / "manifest"), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in checks] == [
        "subset", "images", "counts", "config", "source", "true subset", "histograms", "scores", "members",
    ]  # fmt: skip
    assert {check["status"] for check in checks} == {"ok"}, checks
    assert main(["manifest", "verify", str(output / "manifest")]) == 0
    assert capsys.readouterr().out.endswith("\nthe manifest is what it says it is\n")


def test_a_changed_score_or_member_of_the_run_is_found_by_the_command(finished, tmp_path, capsys):
    _, whole, _ = finished
    output = tmp_path / "copy"
    for name in ("manifest", "pool", "score", "train"):
        shutil.copytree(whole / name, output / name, ignore=shutil.ignore_patterns("images-*", "*.pth"))
    for name, check in (("score/images.parquet", "scores"), ("train/run-1/iter-0000003.safetensors", "members")):
        path = output / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert main(["manifest", "verify", str(output / "manifest"), "--json"]) == 1
        failed = [row["name"] for row in json.loads(capsys.readouterr().out) if row["status"] == "failed"]
        assert failed == [check]
        path.write_bytes(data)


def test_a_compressed_manifest_through_the_whole_run(finished, write_tiny_config, tmp_path, capsys):
    _, whole, _ = finished
    config, output = write_tiny_config(tmp_path)
    shutil.copytree(whole, output)
    words = ["--config-file", str(config), "CURATE.MANIFEST.COMPRESS", "True", "CURATE.SELECT.SECONDS_PER_BOX", "2.5"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"manifest: {output / 'manifest' / 'subset.json.gz'}" in text
    assert "| curated |" in text
    assert sorted(path.name for path in (output / "manifest").iterdir()) == [
        "images.txt", "provenance.json", "relabel.json.gz", "stage.json", "subset.json.gz",
    ]  # fmt: skip
    packed = (output / "manifest" / "subset.json.gz").read_bytes()
    assert gzip.decompress(packed) == (whole / "manifest" / "subset.json").read_bytes()
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    assert provenance["subset"] == json.loads((whole / "manifest" / "provenance.json").read_text())["subset"]
    assert provenance["budget"]["spent"]["cost_seconds"] == 2.5 * provenance["subset"]["num_boxes"]
    assert main(["manifest", "verify", str(output / "manifest"), "--json"]) == 0
    assert {check["status"] for check in json.loads(capsys.readouterr().out)} == {"ok"}
    assert main(words) == 0
    assert capsys.readouterr().out.count("up to date") == 9


def test_a_manifest_with_a_croissant_description(finished, write_tiny_config, tmp_path, capsys):
    pytest.importorskip("mlcroissant", reason="mlcroissant is not installed: pip install 'detcurate[croissant]'")
    _, whole, _ = finished
    config, output = write_tiny_config(tmp_path)
    shutil.copytree(whole, output)
    words = ["--config-file", str(config), "--until", "manifest"]
    assert main([*words, "CURATE.MANIFEST.CROISSANT", "True"]) == 0
    text = json.loads((output / "manifest" / "croissant.json").read_text())
    assert {file["sha256"] for file in text["distribution"]} == {sha256_file(output / "manifest" / "subset.json")}
    assert main(words) == 0
    assert not (output / "manifest" / "croissant.json").exists()
    assert manifest_bytes(output) == manifest_bytes(whole)


def test_the_manifest_says_what_was_done_and_not_what_the_config_says_by_now(
    finished, write_tiny_config, tmp_path, capsys
):
    _, whole, _ = finished
    config, output = write_tiny_config(tmp_path)
    shutil.copytree(whole, output)
    changed = ["CURATE.SELECT.STRATEGY", "random", "CURATE.SELECT.FRACTION", "0.25", "SEED", "8"]
    assert main(["--config-file", str(config), "--only", "manifest", *changed]) == 0
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    assert (provenance["strategy"], provenance["seed"]) == ("top_n", 0)
    assert provenance["budget"]["requested"] == {"fraction": 0.5}
    assert main(["manifest", "verify", str(output / "manifest")]) == 0


def test_the_full_arm_is_the_ensembles_own_runs(finished):
    _, output, _ = finished
    for seed in (0, 1):
        full = output / "retrain" / "full" / f"seed-{seed}" / "iter-0000003.safetensors"
        assert sha256_file(full) == sha256_file(output / "train" / f"run-{seed}" / "iter-0000003.safetensors")


def test_one_more_arm_or_seed_trains_nothing_anew_and_another_setting_all(finished, write_tiny_config, tmp_path):
    _, whole, _ = finished
    config, output = write_tiny_config(tmp_path)
    shutil.copytree(whole, output)
    words = ["--config-file", str(config), "--until", "retrain"]

    def trained():
        return {path.parent: path.stat().st_mtime_ns for path in output.glob("retrain/*/*/iter-0000003.safetensors")}

    before = trained()
    more = ["CURATE.RETRAIN.ARMS", '("curated", "random", "most_boxes")', "CURATE.RETRAIN.NUM_SEEDS", "3"]
    assert main([*words, *more]) == 0
    after = trained()
    assert {path.relative_to(output / "retrain").as_posix() for path in after} == {
        f"{arm}/seed-{seed}" for arm in ("curated", "random", "most_boxes") for seed in range(3)
    }
    kept = {path for path in before if path.parent.name != "full"}
    assert {path for path in after if after[path] == before.get(path)} == kept
    assert main(["--config-file", str(config), "--only", "retrain", *more, "SOLVER.WEIGHT_DECAY", "0.02"]) == 0
    assert not set(trained().values()) & set(after.values())


def test_results_name_every_arm_and_seed(finished):
    _, output, _ = finished
    results = json.loads((output / "report" / "results.json").read_text())
    assert {(row["arm"], row["seed"]) for row in results["models"]} == {
        (arm, seed) for arm in ("curated", "random", "full") for seed in (0, 1)
    }
    assert all(row["num_images"] == (26 if row["arm"] == "full" else 13) for row in results["models"])


def test_a_finished_run_is_skipped_and_a_changed_setting_redoes_what_it_touches(finished, capsys):
    config, output, _ = finished
    before = manifest_bytes(output)
    assert main(["--config-file", str(config), "--until", "manifest"]) == 0
    text = capsys.readouterr().out
    assert text.count("up to date") == 6
    assert manifest_bytes(output) == before
    assert main(["--config-file", str(config), "--until", "manifest", "CURATE.SCORE.AGGREGATION", "max"]) == 0
    text = capsys.readouterr().out
    assert [line.split(":")[0] for line in text.splitlines() if "up to date" in line][:3] == [
        "pool",
        "train",
        "predict",
    ]
    assert "score: runs again (aggregation top_k_mean -> max" in text
    assert main(["--config-file", str(config), "--until", "manifest"]) == 0
    assert manifest_bytes(output) == before


def wait_for(path, process, seconds=90):
    """Wait until something matches ``path`` (a glob below the current folder) or the process has ended."""
    folder, pattern = path
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if any(folder.glob(pattern)):
            return
        time.sleep(0.01)


MOMENTS = (
    "pool/images-train/*",
    "train/run-*/resume.pth",
    "train/run-*/members.jsonl",
    "predict/set-*/shard-*",
)


def test_killed_at_many_moments_it_ends_with_the_same_manifest(finished, write_tiny_config, tmp_path):
    _, whole, _ = finished
    config, output = write_tiny_config(tmp_path)
    command = [sys.executable, CURATE, "--config-file", config, "--until", "manifest"]
    for moment in MOMENTS:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for((output, moment), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert manifest_bytes(output) == manifest_bytes(whole)
    assert not list(output.rglob("*.partial"))


def test_a_damaged_member_is_refused_by_name(finished, write_tiny_config, tmp_path, capsys):
    _, whole, _ = finished
    config, output = write_tiny_config(tmp_path)
    shutil.copytree(whole, output)
    member = output / "train" / "run-1" / "iter-0000002.safetensors"
    damaged = bytearray(member.read_bytes())
    damaged[-1] ^= 1
    member.write_bytes(damaged)
    status = main(["--config-file", str(config), "--only", "predict", "TEST.DETECTIONS_PER_IMAGE", "50"])
    assert status == 2
    message = capsys.readouterr().err
    assert "run-1/iter-0000002.safetensors" in message
    assert "digest" in message


def test_real_frames_from_training_to_the_table(camvid, tmp_path, capsys):
    config = CURATE.parent.parent / "configs" / "camvid_tiny.yaml"
    small = (
        "SOLVER.MAX_ITER 4 SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 0 INPUT.MIN_SIZE_TRAIN (96,) "
        "INPUT.MIN_SIZE_TEST 96 CURATE.ENSEMBLE.MEMBERS_PER_RUN 1 CURATE.RETRAIN.NUM_SEEDS 1"
    ).split()
    places = ["DATASETS.ROOT", str(camvid), "OUTPUT_DIR", str(tmp_path / "out")]
    status = main(["--config-file", str(config), *places, *small])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert "| curated |    265 |" in captured.out
    assert len(read_coco(tmp_path / "out" / "manifest" / "subset.json")) == 265


def test_a_run_that_is_added_is_asked_alone(finished, write_tiny_config, tmp_path):
    _, whole, _ = finished
    config, output = write_tiny_config(tmp_path)
    shutil.copytree(whole, output)
    shards = sorted((output / "predict").glob("set-00/shard-*.parquet"))
    before = [(path.stat().st_mtime_ns, sha256_file(path)) for path in shards]
    status = main(["--config-file", str(config), "--until", "predict", "CURATE.ENSEMBLE.NUM_RUNS", "3"])
    assert status == 0
    assert [(path.stat().st_mtime_ns, sha256_file(path)) for path in shards] == before
    added = json.loads((output / "predict" / "set-01" / "set.json").read_text())["members"]
    assert [name.split("/")[0] for name in added] == ["run-2", "run-2"]
    assert len(json.loads((output / "predict" / "members.json").read_text())) == 6


def test_arms_at_equal_epochs_are_trained_in_proportion_to_their_images(finished, tmp_path):
    config, output, _ = finished
    mine = tmp_path / "epochs"
    shutil.copytree(output, mine)
    options = ["OUTPUT_DIR", str(mine), "CURATE.RETRAIN.EQUAL", "epochs", "CURATE.RETRAIN.NUM_SEEDS", "1"]
    assert main(["--config-file", str(config), *options]) == 0
    models = {model["arm"]: model for model in json.loads((mine / "report" / "results.json").read_bytes())["models"]}
    assert {arm: (model["num_images"], model["iterations"]) for arm, model in models.items()} == {
        "curated": (13, 2), "random": (13, 2), "full": (26, 4),
    }  # fmt: skip
    assert models["curated"]["images_seen"] == 2 * 2
    summary = (mine / "report" / "summary.md").read_text()
    assert "training of each arm: 0.3 epochs, the same for all arms" in summary


def test_the_evaluation_images_are_resampled_for_every_detector(finished):
    _, output, _ = finished
    table = pq.read_table(output / "evaluate" / "replicates.parquet")
    assert table.num_rows == 1000
    named = [name.split("/", 3) for name in table.column_names]
    models = dict.fromkeys((arm, seed) for arm, seed, *_ in named)
    assert list(models) == [(arm, f"seed-{seed}") for arm in ("curated", "random", "full") for seed in (0, 1)]
    assert [name for arm, seed, part, name in named if (arm, seed, part) == ("full", "seed-1", "figures")] == [*FIGURES]
    differences = json.loads((output / "report" / "results.json").read_bytes())["arms"]["differences"]
    assert len(differences["curated - full"]["bootstrap"]) == 2
