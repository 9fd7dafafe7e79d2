"""The command line: what it accepts, and what it says of bad input (exit status 2, one message, no traceback)."""

import json
import shutil
from pathlib import Path

import pytest

from detcurate.cli import main
from detcurate.cli.curate import build_parser

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")


def test_help_reads_well(capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("--config-file", "--until", "--only", "--dry-run", "--fresh", "--num-gpus", "pool, search, train"):
        assert word in text


def test_dry_run_tells_every_stage_and_writes_nothing(tiny_config, capsys):
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
        (("CURATE.SELECT.FRACTION", "half"), "CURATE.SELECT.FRACTION must be of type float, got 'half'"),
        (("CURATE.SELECT.FRACTION", "0"), "CURATE.SELECT.FRACTION: input should be greater than 0, got 0.0"),
        (("CURATE.SELECT.FRACTION", "1.5"), "less than or equal to 1, got 1.5"),
        (("CURATE.SELECT.NUM_IMAGES", "27"), "count must be at most the pool's 26 images, got 27"),
        (("CURATE.SELECT.STRATEGY", "topn"), "stratified_random, threshold, top_n, got 'topn' (did you mean 'top_n'?)"),
        (
            ("CURATE.SELECT.STRATEGY", "k_center"),
            "CURATE.PREDICT.EMBEDDINGS must be True for CURATE.SELECT.STRATEGY k_ce",
        ),
        (("CURATE.SCORE.AGGREGATION", "median"), "max, mean, sqrt_sum, sum, top_k_mean, got 'median'"),
        (("CURATE.SCORE.MEASURES", "('mutual_informatoin',)"), "did you mean 'mutual_information'?"),
        (("CURATE.SCORE.WEIGHTS", "(1.0,)"), "one number a measure (3), got 1"),
        (
            ("CURATE.RETRAIN.ARMS", "('best',)"),
            "an arm must be one of curated, full, most_boxes, random",
        ),
        (("CURATE.ENSEMBLE.ITERATIONS", "(1, 4)"), "from 0 to SOLVER.MAX_ITER - 1 = 3, got [1, 4]"),
        (("CURATE.ENSEMBLE.MEMBERS_PER_RUN", "3"), "at most the 2 iterations of the last fraction, got 3"),
        (("SEED", "-1"), "SEED must be at least 0"),
        (("MODEL.DEVICE", "cuda"), "MODEL.DEVICE must be one that this machine has"),
        (("SEED",), "pairs of KEY VALUE, got 1 words"),
    ],
)
def test_bad_settings_are_named(tiny_config, refused, overrides, message):
    config, output = tiny_config()
    assert message in refused("--config-file", config, *overrides)
    assert not output.exists()


def test_missing_config(refused, tmp_path):
    assert "must name an existing file" in refused("--config-file", tmp_path / "no.yaml")


def test_config_that_is_not_yaml(refused, tmp_path):
    (tmp_path / "bad.yaml").write_text("SEED: [1, 2\nMODEL: {")
    assert "line 2" in refused("--config-file", tmp_path / "bad.yaml")


def test_config_that_would_run_code(refused, tmp_path):
    trap = tmp_path / "ran"
    (tmp_path / "bad.yaml").write_text(f'OUTPUT_DIR: !!python/object/apply:os.mkdir ["{trap}"]\n')
    assert "plain YAML" in refused("--config-file", tmp_path / "bad.yaml")
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
        ("SEQUENCE_GAP", "5", "`sequence` must be known of some images where a gap of 5 frames is asked, got none"),
        ("CLASS_FLOORS", "('tram=3',)", "must be of a class of the pool, got 'tram=3'; known are car"),
        ("NUM_BOXES", "7", "num_boxes must be at most the pool's 0 boxes, got 7"),
    ],
)
def test_a_selection_that_cannot_be_is_found_before_anything_is_done(own_data, refused, key, value, message):
    arguments, _, output = own_data
    assert message in refused(*arguments, f"CURATE.SELECT.{key}", value)
    assert not output.exists()


def test_missing_annotations(own_data, refused):
    arguments, root, _ = own_data
    (root / "train.json").unlink()
    message = refused(*arguments)
    assert "train.json" in message
    assert "No such file" in message


def test_broken_annotations_are_named_with_their_line(own_data, refused):
    arguments, root, _ = own_data
    (root / "train.json").write_text('{"images": [],\n"annotations": [,]}')
    assert "line 2" in refused(*arguments)


def test_absent_image_stops_by_default_and_says_how_to_go_on(own_data, refused):
    arguments, _, _ = own_data
    message = refused("--until", "pool", *arguments)
    assert "b.png (image_id 1): the file is absent" in message
    assert "CURATE.POOL.BAD_IMAGES quarantine" in message


def test_absent_image_is_quarantined_when_asked(own_data, capsys):
    arguments, _, output = own_data
    status = main([*map(str, ["--until", "pool", *arguments]), "CURATE.POOL.BAD_IMAGES", "quarantine"])
    assert status == 0
    assert "1 images in quarantine" in capsys.readouterr().out
    quarantined = json.loads((output / "pool" / "pool.json").read_text())["quarantined"]
    assert quarantined == [
        {"image_id": 1, "file_name": "b.png", "code": "missing_image_file", "reason": "the file is absent"}
    ]


def test_evaluation_of_other_classes(own_data, refused):
    arguments, root, _ = own_data
    coco(root / "val.json", [], categories=[{"id": 1, "name": "truck"}])
    assert "val.json" in refused(*arguments)


def test_output_dir_of_another_config(tiny_config, refused, tmp_path):
    config, output = tiny_config()
    assert main(["--config-file", str(config), "--until", "pool"]) == 0
    other = shutil.copy(config, tmp_path / "other.yaml")
    message = refused("--config-file", other, "--until", "pool")
    assert "made by tiny.yaml" in message
    assert "--fresh" in message
    assert (output / "pool" / "stage.json").exists()


def test_output_dir_of_another_program_is_left_alone(tiny_config, refused):
    config, output = tiny_config()
    output.mkdir()
    (output / "thesis.txt").write_text("ten years of work")
    assert "thesis.txt" in refused("--config-file", config, "--fresh")
    assert (output / "thesis.txt").read_text() == "ten years of work"


def test_only_without_the_stages_before_it(tiny_config, refused):
    config, _ = tiny_config()
    assert "the stage 'score' must have finished" in refused("--config-file", config, "--only", "select")


def test_full_disk(tiny_config, refused, monkeypatch):
    config, _ = tiny_config()
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    assert "free disk" in refused("--config-file", config)
