"""The images of each arm of the stage ``retrain``, on a trained run of the smallest config."""

import json

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

from detcurate.cli import main
from detcurate.config.declaration import load_config
from detcurate.config.subset_settings import ARMS as CONFIG_ARMS
from detcurate.pipeline import Run
from detcurate.pipeline.arms import ARMS, Pool, arm_images, arm_inputs, trained_arms
from detcurate.pipeline.stages.retrain import training_seconds

OPTIONS = ["CURATE.SELECT.DUPLICATE_SIMILARITY", "0.95", "CURATE.SELECT.FRACTION", "0.3"]


@pytest.fixture(scope="module")
def pool(finished_run, tmp_path_factory):
    config, _ = finished_run.copy(tmp_path_factory.mktemp("arms"), until="score")
    assert main(["--config-file", str(config), "--until", "select", *OPTIONS]) == 0
    return Pool(Run(load_config(config, OPTIONS), config))


def test_config_lists_the_arms_of_the_pipeline():
    assert CONFIG_ARMS == tuple(ARMS)


@pytest.mark.parametrize("arm", ARMS)
def test_arm_images_are_unique_pool_images_and_repeatable(pool, arm):
    images = ARMS[arm](pool, 3)
    assert np.isin(images, pool.scores.image_ids).all()
    assert len(np.unique(images)) == len(images)
    assert images.tolist() == ARMS[arm](pool, 3).tolist()


@pytest.mark.parametrize("arm", ["random", "stratified_random", "most_boxes", "single_model_entropy"])
def test_arms_of_equal_size_have_as_many_images_as_the_selection(pool, arm):
    assert len(pool.curated) == 8
    assert len(ARMS[arm](pool, 0)) == 8


@pytest.mark.parametrize("arm", ARMS)
def test_arm_images_change_with_the_seed_for_random_arms_only(pool, arm):
    drawn = {tuple(sorted(ARMS[arm](pool, seed).tolist())) for seed in range(4)}
    assert (len(drawn) > 1) == ("random" in arm)


def test_random_boxes_has_nearly_as_many_boxes_as_the_selection(pool):
    boxes = dict(zip(pool.scores.image_ids.tolist(), pool.boxes.tolist(), strict=True))
    expected = sum(boxes[image] for image in pool.curated.tolist())
    for seed in range(4):
        found = sum(boxes[image] for image in ARMS["random_boxes"](pool, seed).tolist())
        assert expected - max(boxes.values()) < found <= expected


def test_most_boxes_has_the_images_with_most_boxes(pool):
    kept = np.isin(pool.scores.image_ids, ARMS["most_boxes"](pool, 0))
    assert pool.boxes[kept].min() >= pool.boxes[~kept].max()


def test_without_duplicates_excludes_duplicates_only(pool):
    images = ARMS["without_duplicates"](pool, 0)
    assert len(pool.curated) < len(images) < len(pool.scores)
    assert ARMS["full"](pool, 0).tolist() == pool.scores.image_ids.tolist()


def test_arm_inputs_hold_the_digests_that_the_arms_read(pool):
    config = pool.run.config_file

    def inputs(*arms: str, similarity: str = "0.95"):
        options = [*OPTIONS, "CURATE.RETRAIN.ARMS", repr(arms), "CURATE.SELECT.DUPLICATE_SIMILARITY", similarity]
        return arm_inputs(Run(load_config(config, options), config))

    assert inputs("curated", "random", "full", "most_boxes") == {}
    thinned = inputs("curated", "without_duplicates")
    assert thinned != inputs("curated", "without_duplicates", similarity="0.9")
    assert thinned == inputs("without_duplicates", "random")
    assert sorted(inputs("single_model_entropy")) == ["predict", "score"]


def with_options(pool, *options: str):
    config = pool.run.config_file
    return Pool(Run(load_config(config, [*OPTIONS, *options]), config))


def test_random_subsets_of_the_curve_are_nested(pool):
    curve = with_options(pool, "CURATE.RETRAIN.CURVE_FRACTIONS", "(0.5, 0.125, 0.25)")
    assert trained_arms(curve) == ["curated", "random", "full", "random_12.5%", "random_25%", "random_50%"]
    for seed in (0, 5):
        arms = ("random_12.5%", "random_25%", "random", "random_50%", "full")
        drawn = [set(arm_images(curve, arm, seed).tolist()) for arm in arms]
        assert [len(images) for images in drawn] == [3, 7, 8, 13, 26]
        assert all(smaller < larger for smaller, larger in zip(drawn, drawn[1:], strict=False))
    assert set(arm_images(curve, "random_50%", 0)) != set(arm_images(curve, "random_50%", 5))


def test_trained_arms_with_a_random_subset_of_curated_size_have_it_once(pool):
    fractions = ("CURATE.RETRAIN.CURVE_FRACTIONS", "(0.3, 0.5)")
    curve = with_options(pool, *fractions)
    assert len(curve.curated) == 8
    assert trained_arms(curve) == ["curated", "random", "full", "random_50%"]
    assert arm_images(curve, "random_30%", 1).tolist() == arm_images(curve, "random", 1).tolist()
    alone = with_options(pool, *fractions, "CURATE.RETRAIN.ARMS", "('curated', 'full')")
    assert trained_arms(alone) == ["curated", "full", "random_30%", "random_50%"]


def test_arm_images_by_name_equal_the_arms_function(pool):
    for arm in ("curated", "random", "most_boxes"):
        assert arm_images(pool, arm, 2).tolist() == ARMS[arm](pool, 2).tolist()


def metrics(folder, *lines: dict | str):
    folder.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.json").write_text("\n".join(texts) + "\n")
    return folder


def test_training_seconds_by_hand(tmp_path):
    whole = metrics(
        tmp_path, {"iteration": 19, "time": 0.5}, {"iteration": 39, "time": 0.25}, {"iteration": 44, "time": 1}
    )
    assert training_seconds(whole) == pytest.approx(20 * 0.5 + 20 * 0.25 + 5 * 1)


def test_training_seconds_count_repeated_iterations_once(tmp_path):
    lines = {"iteration": 19, "time": 0.5}, {"iteration": 39, "time": 0.5}, '{"iteration": 59, "ti'
    resumed = metrics(tmp_path, *lines, {"iteration": 39, "time": 0.25}, {"iteration": 59, "time": 0.25})
    assert training_seconds(resumed) == pytest.approx(20 * 0.5 + 40 * 0.25)


def test_training_seconds_without_times_are_none(tmp_path):
    assert training_seconds(tmp_path) is None
    assert training_seconds(metrics(tmp_path, {"iteration": 1, "total_loss": 2.0})) is None


def test_report_of_a_learning_curve_holds_points_fit_and_table(pool):
    """Trainings of 4 iterations detect nothing, so the curve is flat; the report holds all parts all the same."""
    curve = ["CURATE.RETRAIN.CURVE_FRACTIONS", "(0.125, 0.3, 0.5)", "CURATE.RETRAIN.NUM_SEEDS", "1"]
    assert main(["--config-file", str(pool.run.config_file), *OPTIONS, *curve]) == 0
    output = pool.run.output_dir
    results = json.loads((output / "report" / "results.json").read_bytes())
    models = {model["arm"]: model for model in results["models"]}
    assert list(models) == ["curated", "random", "full", "random_12.5%", "random_50%"]
    assert [models[arm]["num_images"] for arm in ("random_12.5%", "random_50%")] == [3, 13]
    assert (output / "retrain" / "random_12.5%" / "seed-0" / "metrics.json").is_file()
    assert all(model["seconds"] > 0 for model in results["models"])  # that of full is the ensemble's
    found = results["arms"]["learning_curve"]
    assert [(point["arm"], point["num_images"]) for point in found["points"]] == [
        ("random_12.5%", 3), ("random", 8), ("random_50%", 13), ("full", 26),
    ]  # fmt: skip
    assert found["fit"]["largest"] == 26
    assert found["equivalent"]["interval"] is None
    assert sorted(results["arms"]["differences"]) == ["curated - full", "curated - random"]
    summary = (output / "report" / "summary.md").read_text()
    headings = [line for line in summary.splitlines() if line.startswith("#")]
    assert headings[1:] == ["## Differences by object size and class", "## Learning curve", "## Cost of the trainings"]
    stage_metadata = json.loads((output / "retrain" / "stage.json").read_bytes())
    assert "random_30%" in stage_metadata["summary"]
