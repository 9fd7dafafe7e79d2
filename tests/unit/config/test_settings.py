"""Settings: defaults, derived values, and the errors of invalid ones."""

import pytest

from detcurate.config import CurateSettings, ScoreSettings, curate_defaults, curate_settings, parse_quota
from detcurate.errors import ConfigError

MEASURES = ["mutual_information", "el2n", "entropy"]


def test_curate_settings_reads_a_tree_of_upper_case_keys():
    found = curate_settings({"NUM_PROCESSES": 3, "SCORE": {"MEASURES": ["mutual_information"], "WEIGHTS": [2]}})
    assert (found.worker_processes, found.score.measures, found.score.weights) == (3, ("mutual_information",), (2.0,))
    assert curate_settings({}) == curate_settings(curate_defaults()) == CurateSettings()
    assert CurateSettings().worker_processes >= 1


def test_measure_weights_are_equal_where_none_are_set():
    found = curate_settings({"SCORE": {"MEASURES": ["entropy"]}}).score
    assert (found.weights, found.measure_weights) == ((), {"entropy": 1.0})
    assert set(ScoreSettings().measure_weights.values()) == {1.0}
    weighted = curate_settings({"SCORE": {"MEASURES": MEASURES, "WEIGHTS": [3, 0, 0.5]}}).score
    assert weighted.measure_weights == {"mutual_information": 3.0, "el2n": 0.0, "entropy": 0.5}


@pytest.mark.parametrize(
    ("tree", "key", "parts"),
    [
        ({"SELECT": {"FRACTION": 0}}, "CURATE.SELECT.FRACTION", ["greater than 0", "got 0"]),
        ({"SELECT": {"FRACTION": float("nan")}}, "CURATE.SELECT.FRACTION", ["got nan"]),
        ({"SELECT": {"STRATEGY": "top_m"}}, "CURATE.SELECT.STRATEGY", ["'top_m'", "'top_n'", "k_center"]),
        ({"SELECT": {"SHARE": 1}}, "CURATE.SELECT.SHARE", ["got 1"]),
        ({"SELECT": {"NOISE_FILTER": "on"}}, "CURATE.SELECT.NOISE_FILTER", ["'on'", "queue"]),
        ({"SELECT": {"CLASS_MINIMUMS": ["car"]}}, "CURATE.SELECT.CLASS_MINIMUMS", ["'car'"]),
        ({"SELECT": {"METADATA_MAXIMUMS": ["rain=5"]}}, "CURATE.SELECT.METADATA_MAXIMUMS", ["'rain=5'"]),
        ({"SELECT": {"NUM_IMAGES": 3, "NUM_BOXES": 7}}, "CURATE.SELECT", ["NUM_IMAGES 3", "NUM_BOXES 7"]),
        ({"SELECT": {"COST_SECONDS": 7}}, "CURATE.SELECT.COST_SECONDS", ["7", "SECONDS_PER_BOX"]),
        ({"SELECT": {"DUPLICATE_SIMILARITY": 1.5}}, "CURATE.SELECT.DUPLICATE_SIMILARITY", ["1.5", "auto"]),
        ({"SELECT": {"DUPLICATE_SIMILARITY": "aut"}}, "CURATE.SELECT.DUPLICATE_SIMILARITY", ["'aut'", "auto"]),
        ({"SELECT": {"DUPLICATE_SIMILARITY": True}}, "CURATE.SELECT.DUPLICATE_SIMILARITY", ["True"]),
        ({"SELECT": {"DUPLICATE_SIMILARITY": float("nan")}}, "CURATE.SELECT.DUPLICATE_SIMILARITY", ["nan"]),
        ({"ENSEMBLE": {"NUM_RUNS": -1}}, "CURATE.ENSEMBLE.NUM_RUNS", ["got -1"]),
        ({"ENSEMBLE": {"SCHEDULE": "explicit"}}, "CURATE.ENSEMBLE.ITERATIONS", ["explicit", "none"]),
        ({"ENSEMBLE": {"SCHEDULE": "every_n", "ITERATIONS": [7]}}, "CURATE.ENSEMBLE.ITERATIONS", ["every_n", "[7]"]),
        ({"ENSEMBLE": {"AUGMENTATIONS": ["flip"]}}, "CURATE.ENSEMBLE.AUGMENTATIONS", ["'flip'", "'no_flip'"]),
        ({"ENSEMBLE": {"DTYPE": "fp8"}}, "CURATE.ENSEMBLE.DTYPE", ["'fp8'", "fp16"]),
        ({"TRAIN": {"OPTIMIZER": "adam"}}, "CURATE.TRAIN.OPTIMIZER", ["'sgd' or 'adamw'", "'adam'"]),
        ({"PREDICT": {"RESULTS": "a/b"}}, "CURATE.PREDICT.RESULTS", ["'a/b'"]),
        ({"PREDICT": {"RESULTS": "a", "EMBEDDINGS": True}}, "CURATE.PREDICT.EMBEDDINGS", ["RESULTS", "True"]),
        ({"PREDICT": {"RESULTS": "a", "MODE": "dense"}}, "CURATE.PREDICT.MODE", ["RESULTS", "dense"]),
        ({"SCORE": {"AGGREGATION": "top"}}, "CURATE.SCORE.AGGREGATION", ["'top'", "max"]),
        ({"SCORE": {"NORMALIZATION": "ranks"}}, "CURATE.SCORE.NORMALIZATION", ["'ranks'", "'rank'"]),
        ({"SCORE": {"MEASURES": []}}, "CURATE.SCORE.MEASURES", ["[]"]),
        ({"SCORE": {"MEASURES": ["el2m"]}}, "CURATE.SCORE.MEASURES", ["'el2m'", "'el2n'"]),
        ({"SCORE": {"WEIGHTS": [1, 1]}}, "CURATE.SCORE.WEIGHTS", ["3", "[1.0, 1.0]"]),
        ({"SCORE": {"WEIGHTS": [0, 0, 0]}}, "CURATE.SCORE.WEIGHTS", ["[0.0, 0.0, 0.0]"]),
        ({"SCORE": {"WEIGHTS": [2, -1, 0]}}, "CURATE.SCORE.WEIGHTS", ["-1.0"]),
        ({"SEARCH": {"WARM_START": True}}, "CURATE.SEARCH.WARM_START", ["compress", "True"]),
        ({"STORAGE": {"ROOT": "here"}}, "CURATE.STORAGE.ROOT", ["'here'"]),
        ({"STORAGE": {"CACHE": "s3://bucket/cache"}}, "CURATE.STORAGE.CACHE", ["URL"]),
        ({"POOL": {"FINDINGS": ["invalid_bx=warn"]}}, "CURATE.POOL.FINDINGS", ["invalid_bx", "invalid_box"]),
        ({"POOL": {"ANNOTATIONS": "ftp://host/x.json"}}, "CURATE.POOL.ANNOTATIONS", ["ftp://"]),
        (
            {"RETRAIN": {"ARMS": ["without_duplicates"]}},
            "CURATE.SELECT.DUPLICATE_SIMILARITY",
            ["without_duplicates", "got 0"],
        ),
        (
            {"RETRAIN": {"ARMS": ["single_model_entropy"]}, "PREDICT": {"MODE": "dense"}},
            "CURATE.RETRAIN.ARMS",
            ["single_model_entropy", "PREDICT.MODE dense"],
        ),
        ({"RETRAIN": {"CURVE_FRACTIONS": [0.5, 1.0]}}, "CURATE.RETRAIN.CURVE_FRACTIONS", ["(0, 1)", "[0.5, 1.0]"]),
        ({"RETRAIN": {"CURVE_FRACTIONS": [0.5, 0.5, 0.25]}}, "CURATE.RETRAIN.CURVE_FRACTIONS", ["[0.5, 0.5, 0.25]"]),
        (
            {"RETRAIN": {"CURVE_FRACTIONS": [0.5, 0.25], "ARMS": ["curated"]}},
            "CURATE.RETRAIN.CURVE_FRACTIONS",
            ["three", "[0.5, 0.25]", "curated"],
        ),
        ({"RETRAIN": {"ARMS": ["full", "full"]}}, "CURATE.RETRAIN.ARMS", ["['full', 'full']"]),
        ({"RETRAIN": {"ARMS": ["ful"]}}, "CURATE.RETRAIN.ARMS", ["'ful'", "'full'"]),
    ],
)  # fmt: skip
def test_curate_settings_invalid_value_is_reported_with_key_and_value(tree, key, parts):
    with pytest.raises(ConfigError) as error:
        curate_settings(tree)
    assert str(error.value).startswith(f"{key}: ")
    for part in parts:
        assert part in str(error.value)


def test_curate_settings_reports_every_invalid_value():
    with pytest.raises(ConfigError) as error:
        curate_settings({"SELECT": {"FRACTION": 2}, "PREDICT": {"BATCH_SIZE": 0}})
    assert {line.split(":")[0].strip() for line in str(error.value).splitlines()} == {
        "CURATE.PREDICT.BATCH_SIZE",
        "CURATE.SELECT.FRACTION",
    }


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        CurateSettings().select.fraction = 0.3


def test_parse_quota_keeps_equal_signs_of_class_and_value():
    assert parse_quota("a=b=3", num_names=1) == (("a=b",), 3)
    assert parse_quota("weather=a=b=0", num_names=2) == (("weather", "a=b"), 0)


@pytest.mark.parametrize(
    ("text", "num_names"),
    [("car", 1), ("=3", 1), ("=a=3", 2), ("car=", 1), ("car=-3", 1), ("car=3.5", 1), ("car=3", 2), ("a==3", 2)],
)
def test_parse_quota_other_forms_are_rejected(text, num_names):
    with pytest.raises(ValueError, match="quota") as error:
        parse_quota(text, num_names=num_names)
    assert repr(text) in str(error.value)
