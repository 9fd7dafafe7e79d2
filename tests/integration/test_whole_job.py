"""The whole job with real Detectron2: the files of every stage, skipped stages, and resumption after SIGKILL."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from helpers import REPOSITORY
from helpers.runs import CURATE

from detcurate.cli import main
from detcurate.coco.dataset import read_coco
from detcurate.ensemble.index import read_index
from detcurate.evaluate.coco_eval import FIGURES
from detcurate.io.files import sha256_file

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")


def manifest_bytes(output):
    return {
        name: (output / "manifest" / name).read_bytes() for name in ("subset.json", "images.txt", "provenance.json")
    }


def test_run_prints_the_table_and_where_its_outputs_are(finished_run):
    assert "| curated |" in finished_run.printed
    for path in ("manifest/subset.json", "report/index.html"):
        assert str(finished_run.output / path) in finished_run.printed


def test_train_saves_two_members_a_run_once_each(finished_run):
    output = finished_run.output
    members = read_index(output / "train" / "ensemble.jsonl")
    assert [(member.run, member.iteration, member.seed) for member in members] == [
        (0, 2, 0), (0, 3, 0), (1, 2, 1), (1, 3, 1),
    ]  # fmt: skip
    for member in members:
        assert sha256_file(output / "train" / member.file) == member.sha256


def test_score_gives_every_image_all_components(finished_run):
    output = finished_run.output
    table = pq.read_table(output / "score" / "images.parquet")
    assert table.num_rows == 26
    assert {"image_id", "image_score", "mutual_information", "iou_dispersion", "existence_entropy"} <= set(
        table.column_names
    )


def test_manifest_is_a_verbatim_subset_with_matching_digests(finished_run):
    output = finished_run.output
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


def test_provenance_counts_findings_selection_and_histograms(finished_run):
    output = finished_run.output
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
    # Fields that the renderer writes into each record.
    assert set(provenance["histograms"]) == {
        "classes", "box_size", "sequence", "location", "timeofday", "weather",
    }  # fmt: skip
    for field in ("sequence", "weather"):
        assert sum(count["before"] for count in provenance["histograms"][field].values()) == 26
        assert sum(count["after"] for count in provenance["histograms"][field].values()) == 13


def test_verify_finished_run_passes_every_check(finished_run, capsys):
    output = finished_run.output
    assert main(["manifest", "verify", str(output / "manifest"), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in checks] == [
        "subset", "images", "counts", "config", "source", "true subset", "histograms", "scores", "members",
    ]  # fmt: skip
    assert {check["status"] for check in checks} == {"ok"}, checks
    assert main(["manifest", "verify", str(output / "manifest")]) == 0
    capsys.readouterr()


def test_verify_changed_scores_or_member_fails_that_check(finished_run, tmp_path, capsys):
    _, output = finished_run.copy(tmp_path, until="manifest")
    for name, check in (("score/images.parquet", "scores"), ("train/run-1/iter-0000003.safetensors", "members")):
        path = output / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert main(["manifest", "verify", str(output / "manifest"), "--json"]) == 1
        failed = [row["name"] for row in json.loads(capsys.readouterr().out) if row["status"] == "failed"]
        assert failed == [check]
        path.write_bytes(data)


def test_compressed_manifest_has_equal_content(finished_run, tmp_path, capsys):
    config, output = finished_run.copy(tmp_path)
    words = ["--config-file", str(config), "CURATE.MANIFEST.COMPRESS", "True", "CURATE.SELECT.SECONDS_PER_BOX", "2.5"]
    words += ["CURATE.RETRAIN.NUM_SEEDS", "1"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"manifest: {output / 'manifest' / 'subset.json.gz'}" in text
    assert "| curated |" in text
    assert sorted(path.name for path in (output / "manifest").iterdir()) == [
        "images.txt", "provenance.json", "relabel.json.gz", "stage.json", "subset.json.gz",
    ]  # fmt: skip
    packed = (output / "manifest" / "subset.json.gz").read_bytes()
    assert gzip.decompress(packed) == (finished_run.output / "manifest" / "subset.json").read_bytes()
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    assert (
        provenance["subset"] == json.loads((finished_run.output / "manifest" / "provenance.json").read_text())["subset"]
    )
    assert provenance["budget"]["spent"]["cost_seconds"] == 2.5 * provenance["subset"]["num_boxes"]
    assert main(["manifest", "verify", str(output / "manifest"), "--json"]) == 0
    assert {check["status"] for check in json.loads(capsys.readouterr().out)} == {"ok"}
    assert main(words) == 0
    assert capsys.readouterr().out.count("up to date") == 9


def test_croissant_description_is_written_and_removed_with_its_setting(finished_run, tmp_path):
    pytest.importorskip("mlcroissant", reason="mlcroissant is not installed: pip install 'detcurate[croissant]'")
    config, output = finished_run.copy(tmp_path)
    words = ["--config-file", str(config), "--until", "manifest"]
    assert main([*words, "CURATE.MANIFEST.CROISSANT", "True"]) == 0
    text = json.loads((output / "manifest" / "croissant.json").read_text())
    assert {file["sha256"] for file in text["distribution"]} == {sha256_file(output / "manifest" / "subset.json")}
    assert main(words) == 0
    assert not (output / "manifest" / "croissant.json").exists()
    assert manifest_bytes(output) == manifest_bytes(finished_run.output)


def test_manifest_records_the_selection_that_was_made_with_a_changed_config(finished_run, tmp_path):
    config, output = finished_run.copy(tmp_path)
    changed = ["CURATE.SELECT.STRATEGY", "random", "CURATE.SELECT.FRACTION", "0.25", "SEED", "8"]
    assert main(["--config-file", str(config), "--only", "manifest", *changed]) == 0
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    assert (provenance["strategy"], provenance["seed"]) == ("top_n", 0)
    assert provenance["budget"]["requested"] == {"fraction": 0.5}
    assert main(["manifest", "verify", str(output / "manifest")]) == 0


def test_retrain_reuses_the_ensembles_runs_as_full_arm(finished_run):
    output = finished_run.output
    for seed in (0, 1):
        full = output / "retrain" / "full" / f"seed-{seed}" / "iter-0000003.safetensors"
        assert sha256_file(full) == sha256_file(output / "train" / f"run-{seed}" / "iter-0000003.safetensors")


def test_retrain_keeps_detectors_with_more_arms_and_repeats_all_with_another_setting(finished_run, tmp_path):
    config, output = finished_run.copy(tmp_path)
    words = ["--config-file", str(config), "--until", "retrain"]

    another = ["CURATE.RETRAIN.NUM_SEEDS", "1", "SOLVER.WEIGHT_DECAY", "0.02"]

    def trained():
        return {path.parent: path.stat().st_mtime_ns for path in output.glob("retrain/*/*/iter-0000003.safetensors")}

    before = trained()
    more = ["CURATE.RETRAIN.ARMS", '("curated", "most_boxes")', "CURATE.RETRAIN.NUM_SEEDS", "3"]
    assert main([*words, *more]) == 0
    after = trained()
    assert {path.relative_to(output / "retrain").as_posix() for path in after} == {
        f"{arm}/seed-{seed}" for arm in ("curated", "most_boxes") for seed in range(3)
    }
    kept = {path for path in before if path.parent.name == "curated"}
    assert {path for path in after if after[path] == before.get(path)} == kept
    assert main(["--config-file", str(config), "--only", "retrain", *more, *another]) == 0
    assert not set(trained().values()) & set(after.values())


def test_results_hold_every_arm_and_seed(finished_run):
    output = finished_run.output
    results = json.loads((output / "report" / "results.json").read_text())
    assert {(row["arm"], row["seed"]) for row in results["models"]} == {
        (arm, seed) for arm in ("curated", "random", "full") for seed in (0, 1)
    }
    assert all(row["num_images"] == (26 if row["arm"] == "full" else 13) for row in results["models"])


def test_finished_stages_are_skipped_and_a_changed_setting_repeats_its_stage(finished_run, tmp_path, capsys):
    config, output = finished_run.copy(tmp_path)
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


def wait_for(folder, pattern, process, seconds=300):
    """Wait until a file matches ``pattern`` below ``folder``, or the process has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if any(folder.glob(pattern)):
            return
        time.sleep(0.01)


MOMENTS = {
    "pool/images-train/*": "1",
    "train/run-*/resume.pth": "2",
    "train/run-*/members.jsonl": "1",
    "predict/set-*/shard-*": "1",
}
"""The file that a kill waits for -> the number of processes of the killed command."""


def test_run_killed_in_every_stage_resumes_to_the_same_manifest(finished_run, write_tiny_config, tmp_path):
    config, output = write_tiny_config(tmp_path)
    command = [sys.executable, CURATE, "--config-file", config, "--until", "manifest"]
    for moment, num_processes in MOMENTS.items():
        process = subprocess.Popen(
            [*command, "CURATE.NUM_PROCESSES", num_processes],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(output, moment, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert manifest_bytes(output) == manifest_bytes(finished_run.output)
    assert not list(output.rglob("*.partial"))


def test_predict_names_a_damaged_member(finished_run, tmp_path, refused):
    config, output = finished_run.copy(tmp_path)
    member = output / "train" / "run-1" / "iter-0000002.safetensors"
    damaged = bytearray(member.read_bytes())
    damaged[-1] ^= 1
    member.write_bytes(damaged)
    message = refused("--config-file", config, "--only", "predict", "TEST.DETECTIONS_PER_IMAGE", 50)
    assert "run-1/iter-0000002.safetensors" in message
    assert sha256_file(output / "train" / "run-1" / "iter-0000002.safetensors")[:12] in message


def test_camvid_frames_run_through_all_stages(camvid, tmp_path, done):
    config = REPOSITORY / "configs" / "camvid_tiny.yaml"
    small = (
        "SOLVER.MAX_ITER 4 SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 0 INPUT.MIN_SIZE_TRAIN (96,) "
        "INPUT.MIN_SIZE_TEST 96 CURATE.NUM_PROCESSES 1 CURATE.ENSEMBLE.MEMBERS_PER_RUN 1 CURATE.RETRAIN.NUM_SEEDS 1"
    ).split()
    text = done("--config-file", config, "DATASETS.ROOT", camvid, "OUTPUT_DIR", tmp_path / "out", *small)
    assert "| curated |    265 |" in text
    assert len(read_coco(tmp_path / "out" / "manifest" / "subset.json")) == 265


def test_predict_with_an_added_run_predicts_its_members_only(finished_run, tmp_path):
    config, output = finished_run.copy(tmp_path)
    shards = sorted((output / "predict").glob("set-00/shard-*.parquet"))
    before = [(path.stat().st_mtime_ns, sha256_file(path)) for path in shards]
    status = main(["--config-file", str(config), "--until", "predict", "CURATE.ENSEMBLE.NUM_RUNS", "3"])
    assert status == 0
    assert [(path.stat().st_mtime_ns, sha256_file(path)) for path in shards] == before
    added = json.loads((output / "predict" / "set-01" / "set.json").read_text())["members"]
    assert [name.split("/")[0] for name in added] == ["run-2", "run-2"]
    assert len(json.loads((output / "predict" / "members.json").read_text())) == 6


def test_retrain_at_equal_epochs_scales_iterations_with_images(finished_run, tmp_path):
    config, output = finished_run.copy(tmp_path)
    options = ["CURATE.RETRAIN.EQUAL", "epochs", "CURATE.RETRAIN.NUM_SEEDS", "1"]
    assert main(["--config-file", str(config), *options]) == 0
    models = {model["arm"]: model for model in json.loads((output / "report" / "results.json").read_bytes())["models"]}
    assert {arm: (model["num_images"], model["iterations"]) for arm, model in models.items()} == {
        "curated": (13, 2), "random": (13, 2), "full": (26, 4),
    }  # fmt: skip
    assert models["curated"]["images_seen"] == 2 * 2
    summary = (output / "report" / "summary.md").read_text()
    assert "0.3 epochs for every arm" in summary


def test_evaluate_resamples_images_for_every_detector(finished_run):
    output = finished_run.output
    table = pq.read_table(output / "evaluate" / "replicates.parquet")
    assert table.num_rows == 1000
    named = [name.split("/", 3) for name in table.column_names]
    models = dict.fromkeys((arm, seed) for arm, seed, *_ in named)
    assert list(models) == [(arm, f"seed-{seed}") for arm in ("curated", "random", "full") for seed in (0, 1)]
    assert [name for arm, seed, part, name in named if (arm, seed, part) == ("full", "seed-1", "figures")] == [*FIGURES]
    differences = json.loads((output / "report" / "results.json").read_bytes())["arms"]["differences"]
    assert len(differences["curated - full"]["bootstrap"]) == 2
