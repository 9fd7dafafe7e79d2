"""Which images each arm is trained on, on a real run of the smallest config."""

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

from detcurate import config as settings
from detcurate.cli import main
from detcurate.d2.config import load_config
from detcurate.pipeline import Run
from detcurate.pipeline.arms import ARMS, Pool, arm_inputs

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
