"""``detcurate run``: the plan, the results, and one message with exit status 2 for each invalid input."""

import json
import shutil
from pathlib import Path

import pytest

from detcurate.cli import main

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")


def test_dry_run_prints_every_stage_and_writes_nothing(tiny_config, capsys):
    config, output = tiny_config()
    assert main(["--config-file", str(config), "--dry-run"]) == 0
    text = capsys.readouterr().out
    for words in ("2 runs of 4 iterations (16 images seen), 4 members", "4 members on 26 images", "13 of 26 images"):
        assert words in text
    assert not output.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("CURATE.SELECT.FRACTOIN", "0.5"), "CURATE.SELECT.FRACTION"),
        (("SOLVER.MAX_ITERS", "5"), "SOLVER.MAX_ITER"),
        (
            ("CURATE.SELECT.FRACTION", "half"),
            "CURATE.SELECT.FRACTION: must be of type float (got 'half' on the command line)",
        ),
        (("CURATE.SELECT.FRACTION", "0"), "CURATE.SELECT.FRACTION: must be greater than 0 (got 0.0)"),
        (("CURATE.SELECT.FRACTION", "1.5"), "less than or equal to 1 (got 1.5)"),
        (("CURATE.SELECT.NUM_IMAGES", "27"), "count must be at most the pool's 26 images"),
        (("CURATE.SELECT.STRATEGY", "topn"), "stratified_random, threshold, top_n (got 'topn'). Did you mean 'top_n'?"),
        (
            ("CURATE.SELECT.STRATEGY", "k_center"),
            "CURATE.PREDICT.EMBEDDINGS: must be True for CURATE.SELECT.STRATEGY k_center",
        ),
        (("CURATE.SCORE.AGGREGATION", "median"), "max, mean, sqrt_sum, sum, top_k_mean (got 'median')"),
        (("CURATE.SCORE.MEASURES", "('mutual_informatoin',)"), "Did you mean 'mutual_information'?"),
        (("CURATE.SCORE.WEIGHTS", "(1.0,)"), "CURATE.SCORE.WEIGHTS: "),
        (
            ("CURATE.RETRAIN.ARMS", "('best',)"),
            "CURATE.RETRAIN.ARMS: must be one of curated, full, most_boxes, random",
        ),
        (("CURATE.ENSEMBLE.ITERATIONS", "(1, 4)"), "(got [1, 4])"),
        (("CURATE.ENSEMBLE.MEMBERS_PER_RUN", "3"), "(got 3)"),
        (("SEED", "-1"), "SEED: must be at least 0"),
        (("MODEL.DEVICE", "cuda"), "MODEL.DEVICE: "),
        (("MODEL.DEVICE", "toaster"), "(got 'toaster')"),
        (
            ("MODEL.META_ARCHITECTURE", "YOLO"),
            "(got YOLO with build_",
        ),
        (
            ("MODEL.BACKBONE.NAME", "vit"),
            "(got GeneralizedRCNN with vit): No object named 'vit' found in 'BACKBONE' registry!",
        ),
        (("SOLVER.MAX_ITER", "0"), "SOLVER.MAX_ITER: must be at least 1 (got 0)"),
        (("SOLVER.IMS_PER_BATCH", "-1"), "SOLVER.IMS_PER_BATCH: must be at least 1 (got -1)"),
        (("SOLVER.BASE_LR", "-0.1"), "SOLVER.BASE_LR: must be at least 0 (got -0.1)"),
        (("DATALOADER.NUM_WORKERS", "-1"), "DATALOADER.NUM_WORKERS: must be at least 0 (got -1)"),
        (("INPUT.FORMAT", "bgr"), "INPUT.FORMAT: must be one of BGR, RGB, L, YUV-BT.601 (got 'bgr')"),
        (("INPUT.MIN_SIZE_TRAIN", "()"), "INPUT.MIN_SIZE_TRAIN: "),
        (
            ("CURATE.ENSEMBLE.NUM_RUNS", "0"),
            "CURATE.ENSEMBLE.NUM_RUNS",
        ),
        (
            ("CURATE.ENSEMBLE.NUM_RUNS", "1", "CURATE.ENSEMBLE.MEMBERS_PER_RUN", "1"),
            "CURATE.SCORE.MEASURES",
        ),
        (("SEED",), "overrides: must be pairs of KEY VALUE (got 1 arguments: SEED)"),
    ],
)
def test_run_invalid_setting_is_named(tiny_config, refused, overrides, message):
    config, output = tiny_config()
    assert message in refused("--config-file", config, *overrides)
    assert not output.exists()


@pytest.mark.parametrize("secret", ["https://me:hunter2@host/x.pkl", "https://host/x.pkl?sig=hunter2"])
def test_run_weights_url_with_a_secret_is_rejected_without_repeating_it(tiny_config, refused, secret):
    config, output = tiny_config()
    message = refused("--config-file", config, "MODEL.WEIGHTS", secret)
    assert "MODEL.WEIGHTS: " in message
    assert "https://" in message
    assert "hunter2" not in message
    assert not output.exists()


def test_run_missing_weights_are_reported_before_training(tiny_config, refused, tmp_path):
    config, _ = tiny_config()
    for words in (["--dry-run"], ["--until", "train"]):
        message = refused("--config-file", config, *words, "MODEL.WEIGHTS", tmp_path / "none.pkl")
        assert f"MODEL.WEIGHTS: no such file (got {tmp_path / 'none.pkl'})" in message


def test_run_prints_results_of_this_call_and_dry_run_with_fresh_plans_all(tiny_config, done):
    config, output = tiny_config()
    report = output / "report" / "index.html"
    report.parent.mkdir(parents=True)
    report.write_text("of a run that was stopped")
    (output / "detcurate.json").write_text('{"config_file": "tiny.yaml"}')
    text = done("--config-file", config, "--until", "pool")
    assert str(report) not in text
    assert "pool      up to date" in done("--config-file", config, "--dry-run")
    plan = done("--config-file", config, "--dry-run", "--fresh")
    assert "up to date" not in plan
    assert "curated, random, full with 2 seeds; reuses 2 runs of the ensemble" in plan
    assert (output / "pool" / "stage.json").exists()


def test_run_missing_config_is_named(refused, tmp_path):
    assert str(tmp_path / "no.yaml") in refused("--config-file", tmp_path / "no.yaml")


def test_run_config_that_is_not_yaml_is_reported_with_its_line(refused, tmp_path):
    (tmp_path / "bad.yaml").write_text("SEED: [1, 2\nMODEL: {")
    assert "line 2" in refused("--config-file", tmp_path / "bad.yaml")


def test_run_config_never_runs_code(refused, tmp_path):
    trap = tmp_path / "ran"
    (tmp_path / "bad.yaml").write_text(f'OUTPUT_DIR: !!python/object/apply:os.mkdir ["{trap}"]\n')
    assert "bad.yaml" in refused("--config-file", tmp_path / "bad.yaml")
    assert not trap.exists()


def coco(path: Path, images: list, **extra: object) -> None:
    categories = [{"id": 1, "name": "car"}]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories, **extra}))


@pytest.fixture
def own_data(tiny_config, tmp_path):
    """A config for two images of the user's own, of which the second file is absent."""
    import cv2
    import numpy as np

    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    cv2.imwrite(str(root / "images" / "a.png"), np.zeros((40, 64, 3), np.uint8))
    images = [{"id": number, "file_name": f"{name}.png", "width": 64, "height": 40} for number, name in enumerate("ab")]
    coco(root / "train.json", images)
    coco(root / "val.json", images[:1])
    config, output = tiny_config()
    return ["--config-file", config, "DATASETS.ROOT", root, "CURATE.RENDER.NUM_IMAGES", "0"], root, output


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEQUENCE_GAP", "5", "CURATE.SELECT.SEQUENCE_GAP"),
        ("CLASS_MINIMUMS", "('tram=3',)", "got 'tram=3'). Known: car"),
        ("NUM_BOXES", "7", "num_boxes must be at most the pool's 0 boxes"),
    ],
)
def test_run_impossible_selection_is_reported_before_any_stage(own_data, refused, key, value, message):
    arguments, _, output = own_data
    assert message in refused(*arguments, f"CURATE.SELECT.{key}", value)
    assert not output.exists()


def test_run_missing_annotations_are_named(own_data, refused):
    arguments, root, _ = own_data
    (root / "train.json").unlink()
    message = refused(*arguments)
    assert "train.json" in message
    assert "No such file" in message


def test_run_broken_annotations_are_named_with_their_line(own_data, refused):
    arguments, root, _ = own_data
    (root / "train.json").write_text('{"images": [],\n"annotations": [,]}')
    assert "line 2" in refused(*arguments)


def test_run_absent_image_stops_by_default(own_data, refused):
    arguments, _, _ = own_data
    message = refused("--until", "pool", *arguments)
    assert "b.png (image_id 1): file not found" in message
    assert "CURATE.POOL.BAD_IMAGES quarantine" in message


def test_run_many_bad_images_are_listed_in_a_file(own_data, refused):
    arguments, root, output = own_data
    names = ["b.png", "c.png", "two\nlines.png", "e.png", "f.png"]
    images = [{"id": number, "file_name": name, "width": 64, "height": 40} for number, name in enumerate(names)]
    coco(root / "train.json", images)
    message = refused("--until", "pool", *arguments)
    listed = output / "cache" / "bad-images.txt"
    assert f"and 2 more, all in {listed}" in message
    lines = listed.read_text().splitlines()
    assert len(lines) == 5
    assert lines[2] == r"'two\nlines.png' (image_id 2): file not found"


def test_run_absent_image_is_quarantined_on_request(own_data, capsys):
    arguments, _, output = own_data
    status = main([*map(str, ["--until", "pool", *arguments]), "CURATE.POOL.BAD_IMAGES", "quarantine"])
    assert status == 0
    assert "1 images quarantined" in capsys.readouterr().out
    quarantined = json.loads((output / "pool" / "pool.json").read_text())["quarantined"]
    assert quarantined == [
        {"image_id": 1, "file_name": "b.png", "code": "missing_image_file", "reason": "file not found"}
    ]


def test_run_evaluation_with_other_classes_is_rejected(own_data, refused):
    arguments, root, _ = own_data
    coco(root / "val.json", [], categories=[{"id": 1, "name": "truck"}])
    assert "val.json" in refused(*arguments)


def test_run_output_dir_of_another_config_is_rejected(tiny_config, refused, tmp_path):
    config, output = tiny_config()
    assert main(["--config-file", str(config), "--until", "pool"]) == 0
    other = shutil.copy(config, tmp_path / "other.yaml")
    message = refused("--config-file", other, "--until", "pool")
    assert "tiny.yaml" in message
    assert "--fresh" in message
    assert (output / "pool" / "stage.json").exists()


def test_run_output_dir_of_another_program_is_not_touched(tiny_config, refused):
    config, output = tiny_config()
    output.mkdir()
    (output / "thesis.txt").write_text("ten years of work")
    assert "thesis.txt" in refused("--config-file", config, "--fresh")
    assert (output / "thesis.txt").read_text() == "ten years of work"


def test_run_only_without_earlier_stages_is_rejected(tiny_config, refused):
    config, _ = tiny_config()
    assert "the stage 'score' has not finished" in refused("--config-file", config, "--only", "select")


def test_run_full_disk_is_reported(tiny_config, refused, monkeypatch):
    config, _ = tiny_config()
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    assert "free disk" in refused("--config-file", config)
