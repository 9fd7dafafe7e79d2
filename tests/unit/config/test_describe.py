"""Descriptions of the settings, and the search for one by name."""

import ast

import pytest

from detcurate.choices import STRATEGIES
from detcurate.config import curate_defaults
from detcurate.config.describe import accepted_words, describe_settings, find_settings, section_meanings
from detcurate.errors import ConfigError

DESCRIBED = {setting.key: setting for setting in describe_settings()}


def leaves(tree, prefix):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", value


DEFAULTS = dict(leaves(curate_defaults(), "CURATE"))


def test_describe_settings_covers_every_key_of_the_config():
    assert set(DESCRIBED) - {"DATASETS.ROOT", "OUTPUT_DIR", "SEED"} == set(DEFAULTS)


@pytest.mark.parametrize("key", DEFAULTS)
def test_describe_settings_gives_default_meaning_and_section(key):
    setting = DESCRIBED[key]
    assert ast.literal_eval(setting.default) == DEFAULTS[key]
    assert setting.meaning[0].isupper() or setting.meaning.startswith("compress:")
    assert setting.meaning.endswith(".")
    assert setting.section == key.rpartition(".")[0]
    assert setting.section == "CURATE" or section_meanings()[setting.section].endswith(".")


@pytest.mark.parametrize(
    ("key", "type_name", "allowed"),
    [
        ("CURATE.SELECT.FRACTION", "float", "0 < value <= 1"),
        ("CURATE.SELECT.STRATEGY", "str", f"one of {', '.join(STRATEGIES)}"),
        ("CURATE.SELECT.DUPLICATE_SIMILARITY", "float or auto", "0 <= value <= 1"),
        ("CURATE.SELECT.THRESHOLD", "float", ""),
        ("CURATE.SEARCH.GROWTH", "float", "value > 1"),
        ("CURATE.RENDER.WIDTH", "int", "value >= 32"),
        ("CURATE.TRAIN.GPUS_PER_RUN", "int", "one of 0, 1"),
        ("CURATE.TRAIN.ALLOW_PICKLE", "bool", ""),
        ("CURATE.PREDICT.PRECISION", "str", "one of fp32, bf16"),
        ("CURATE.RETRAIN.CURVE_FRACTIONS", "tuple of float", ""),
    ],
)
def test_describe_settings_reads_type_and_range_from_the_model(key, type_name, allowed):
    assert (DESCRIBED[key].type, DESCRIBED[key].range) == (type_name, allowed)


@pytest.mark.parametrize("name", ["CURATE.SELECT.FRACTION", "SELECT.FRACTION", "select.fraction"])
def test_find_settings_accepts_short_and_lower_case_names(name):
    assert [setting.key for setting in find_settings(name)] == ["CURATE.SELECT.FRACTION"]


def test_find_settings_of_a_section_gives_all_of_it_and_no_other():
    found = [setting.key for setting in find_settings("score")]
    assert found == [key for key in DEFAULTS if key.startswith("CURATE.SCORE.")]
    assert [setting.key for setting in find_settings("SEED")] == ["SEED"]
    assert [setting.key for setting in find_settings("CURATE")] == list(DEFAULTS)


@pytest.mark.parametrize(
    ("name", "near"),
    [("SELECT.FRACTOIN", "SELECT.FRACTION"), ("CURATE.SELCT", "CURATE.SELECT"), ("retrane", "RETRAIN")],
)
def test_find_settings_unknown_name_is_reported_with_the_nearest(name, near):
    with pytest.raises(ConfigError) as error:
        find_settings(name)
    assert name in str(error.value)
    assert repr(near) in str(error.value)


def test_accepted_words_are_the_literals_of_a_union():
    assert accepted_words("CURATE.SELECT.DUPLICATE_SIMILARITY") == ("auto",)
    for key in ("CURATE.SELECT.FRACTION", "CURATE.TRAIN.OPTIMIZER", "CURATE.NONE.SUCH", "CURATE.NONE", "SEED"):
        assert accepted_words(key) == ()
