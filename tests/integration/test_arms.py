"""Which images each arm is trained on, on a real run of the smallest config."""

import json

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

from detcurate import config as settings
from detcurate.cli import main
from detcurate.config.declaration import load_config
from detcurate.pipeline import Run
from detcurate.pipeline.arms import ARMS, Pool, arm_images, arm_inputs, trained_arms
from detcurate.pipeline.stages.retrain import training_seconds

OPTIONS = ["CURATE.SELECT.DUPLICATE_SIMILARITY", "0.95", "CURATE.SELECT.FRACTION", "0.3"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory, write_tiny_config):
    config, _ = write_tiny_config(tmp_path_factory.mktemp("arms"))
    assert main(["--config-file", str(config), "--until", "select", *OPTIONS]) == 0
    return Pool(Run(load_config(config, OPTIONS), config))


def test_the_config_knows_the_arms():
    assert settings.ARMS == tuple(ARMS)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_images_of_the_pool_and_repeatable(pool, arm):
    images = ARMS[arm](pool, 3)
    assert np.isin(images, pool.scores.image_ids).all()
    assert len(np.unique(images)) == len(images)
    assert images.tolist() == ARMS[arm](pool, 3).tolist()


@pytest.mark.parametrize("arm", ["random", "stratified_random", "most_boxes", "single_model_entropy"])
def test_as_many_images_as_are_selected(pool, arm):
    assert len(pool.curated) == 8
    assert len(ARMS[arm](pool, 0)) == 8


@pytest.mark.parametrize("arm", ARMS)
def test_only_the_draws_change_with_the_seed(pool, arm):
    drawn = {tuple(sorted(ARMS[arm](pool, seed).tolist())) for seed in range(4)}
    assert (len(drawn) > 1) == ("random" in arm)


def test_as_many_boxes_as_are_selected(pool):
    boxes = dict(zip(pool.scores.image_ids.tolist(), pool.boxes.tolist(), strict=True))
    wanted = sum(boxes[image] for image in pool.curated.tolist())
    for seed in range(4):
        got = sum(boxes[image] for image in ARMS["random_boxes"](pool, seed).tolist())
        assert wanted - max(boxes.values()) < got <= wanted


def test_the_most_boxes(pool):
    kept = np.isin(pool.scores.image_ids, ARMS["most_boxes"](pool, 0))
    assert pool.boxes[kept].min() >= pool.boxes[~kept].max()


def test_without_duplicates_is_the_pool_but_for_them(pool):
    images = ARMS["without_duplicates"](pool, 0)
    assert len(pool.curated) < len(images) < len(pool.scores)
    assert ARMS["full"](pool, 0).tolist() == pool.scores.image_ids.tolist()


def test_what_an_arm_reads_is_an_input_of_the_stage(pool):
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


def test_random_subsets_of_the_curve_lie_within_each_other(pool):
    curve = with_options(pool, "CURATE.RETRAIN.CURVE_FRACTIONS", "(0.5, 0.125, 0.25)")
    assert trained_arms(curve) == ["curated", "random", "full", "random_12.5%", "random_25%", "random_50%"]
    for seed in (0, 5):
        arms = ("random_12.5%", "random_25%", "random", "random_50%", "full")
        drawn = [set(arm_images(curve, arm, seed).tolist()) for arm in arms]
        assert [len(images) for images in drawn] == [3, 7, 8, 13, 26]
        assert all(smaller < larger for smaller, larger in zip(drawn, drawn[1:], strict=False))
    assert set(arm_images(curve, "random_50%", 0)) != set(arm_images(curve, "random_50%", 5))


def test_a_random_subset_as_large_as_the_curated_one_is_trained_once(pool):
    fractions = ("CURATE.RETRAIN.CURVE_FRACTIONS", "(0.3, 0.5)")
    curve = with_options(pool, *fractions)
    assert len(curve.curated) == 8
    assert trained_arms(curve) == ["curated", "random", "full", "random_50%"]
    assert arm_images(curve, "random_30%", 1).tolist() == arm_images(curve, "random", 1).tolist()
    alone = with_options(pool, *fractions, "CURATE.RETRAIN.ARMS", "('curated', 'full')")
    assert trained_arms(alone) == ["curated", "full", "random_30%", "random_50%"]


def test_what_an_arm_is_trained_on_is_known_by_its_name(pool):
    for arm in ("curated", "random", "most_boxes"):
        assert arm_images(pool, arm, 2).tolist() == ARMS[arm](pool, 2).tolist()


def metrics(folder, *lines: dict | str):
    folder.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.json").write_text("\n".join(texts) + "\n")
    return folder


def test_the_seconds_of_a_training_by_hand(tmp_path):
    whole = metrics(
        tmp_path, {"iteration": 19, "time": 0.5}, {"iteration": 39, "time": 0.25}, {"iteration": 44, "time": 1}
    )
    assert training_seconds(whole) == pytest.approx(20 * 0.5 + 20 * 0.25 + 5 * 1)


def test_what_was_trained_again_after_an_interruption_counts_once(tmp_path):
    lines = {"iteration": 19, "time": 0.5}, {"iteration": 39, "time": 0.5}, '{"iteration": 59, "ti'
    resumed = metrics(tmp_path, *lines, {"iteration": 39, "time": 0.25}, {"iteration": 59, "time": 0.25})
    assert training_seconds(resumed) == pytest.approx(20 * 0.5 + 40 * 0.25)


def test_seconds_that_are_not_known(tmp_path):
    assert training_seconds(tmp_path) is None
    assert training_seconds(metrics(tmp_path, {"iteration": 1, "total_loss": 2.0})) is None


def test_the_report_of_a_learning_curve(pool):
    """One seed of 4 iterations finds nothing, so the curve is flat: what is there to be said is said all the same."""
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
    assert stage_metadata["summary"].endswith("; random_30% is the arm random, which has as many images")
