"""Settings: declared once, read safely with _BASE_ and KEY VALUE, refused with the nearest name."""

import json
import re

import pytest
import yaml
from helpers import REPOSITORY

from detcurate import config as settings
from detcurate.config import CurateSettings, curate_defaults, curate_settings
from detcurate.config import declaration as d2_config
from detcurate.config.declaration import add_curate_config, default_config, load_config
from detcurate.errors import ConfigError

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

CONFIGS = REPOSITORY / "configs"
SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a config of the given text, with overrides."""

    def load_text(text, *overrides: str):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return load_text


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(key, given):
    """Return the YAML of one key and its value."""
    *parents, name = key.split(".")
    lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(parents)]
    return "\n".join([*lines, f"{'  ' * len(parents)}{name}: {given}"])


def test_detectron2s_own_keys_stay_as_they_are():
    from detectron2.config import get_cfg

    plain, ours = dict(leaves(get_cfg())), get_cfg()
    add_curate_config(ours)
    ours = dict(leaves(ours))
    assert plain.keys() <= ours.keys()
    assert {key: ours[key] for key in plain if ours[key] != plain[key]} == {
        "SEED": 0,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "DATALOADER.ASPECT_RATIO_GROUPING": False,
    }
    added = {key for key in ours if key not in plain and not key.startswith("CURATE.")}
    assert added == {"DATASETS.ROOT", "MODEL.TINY_RESNET.STEM_OUT_CHANNELS", "MODEL.TINY_RESNET.WIDTHS"}


def test_the_curate_keys_are_the_settings_and_their_defaults():
    declared = default_config().CURATE
    assert dict(leaves(declared)) == dict(leaves(curate_defaults()))
    assert curate_settings(declared) == CurateSettings()
    assert declared.SELECT.FRACTION == 0.5
    assert declared.RETRAIN.ARMS == ("curated", "random", "full")


def test_a_config_is_of_one_kind_throughout_and_comes_back_from_its_dump():
    from detectron2.config import CfgNode, get_cfg

    cfg = default_config()
    assert type(cfg.CURATE) is type(cfg.CURATE.SELECT) is type(get_cfg())
    again = default_config()
    again.merge_from_other_cfg(CfgNode.load_cfg(cfg.dump()))
    assert json.dumps(again) == json.dumps(cfg)  # to which a tuple in a tuple is a list, as it is to YAML


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_loads_and_its_settings_are_valid(name):
    cfg = load_config(CONFIGS / name)
    assert cfg.is_frozen()
    curate_settings(cfg.CURATE)
    written = dict(leaves(yaml.safe_load((CONFIGS / name).read_text())))
    loaded = dict(leaves(cfg))
    for key in written.keys() - {"_BASE_"}:
        assert str(loaded[key]).strip("[]()").rstrip(",") == str(written[key]).strip("[]()").rstrip(",")


def test_what_is_shipped():
    assert {"Base-CPU-Tiny.yaml", "Base-faster_rcnn_R_50_FPN.yaml", "Base-retinanet_R_50_FPN.yaml"} <= set(SHIPPED)


@pytest.mark.parametrize(
    ("name", "architecture", "num_parameters"),
    [
        ("Base-faster_rcnn_R_50_FPN.yaml", "GeneralizedRCNN", 41_699_936),  # COCO's 80 classes, as in the model zoo
        ("Base-retinanet_R_50_FPN.yaml", "RetinaNet", 37_915_572),
    ],
)
def test_the_gpu_bases_build_the_models_they_say(name, architecture, num_parameters):
    from detectron2.modeling import build_model

    cfg = load_config(CONFIGS / name, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    assert type(model).__name__ == architecture
    assert model.backbone.bottom_up.stages[-1][0].out_channels == 2048
    assert sum(tensor.numel() for tensor in model.parameters()) == num_parameters


def test_base_is_read_relative_to_the_file_and_overridden(load, tmp_path):
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "root.yaml").write_text(
        "SOLVER: {MAX_ITER: 7, BASE_LR: 0.5}\nCURATE: {SELECT: {FRACTION: 0.1}}"
    )
    (tmp_path / "bases" / "middle.yaml").write_text('_BASE_: "root.yaml"\nSOLVER: {MAX_ITER: 8}')
    cfg = load('_BASE_: "bases/middle.yaml"\nCURATE: {SELECT: {STRATEGY: random}}', "SOLVER.STEPS", "(2, 3)")
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS) == (8, 0.5, (2, 3))
    assert (cfg.CURATE.SELECT.FRACTION, cfg.CURATE.SELECT.STRATEGY) == (0.1, "random")
    assert load(f'_BASE_: "{tmp_path / "bases" / "root.yaml"}"').SOLVER.MAX_ITER == 7


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("SOLVER.BASE_LR", "1", 1.0),
        ("SOLVER.BASE_LR", "1e-3", 0.001),  # a text to YAML
        ("CURATE.SCORE.WEIGHTS", "[1, 2, 0.5]", (1, 2, 0.5)),
        ("INPUT.MIN_SIZE_TRAIN", "[64, 96]", (64, 96)),
        ("MODEL.PIXEL_STD", "(58, 58, 58)", [58, 58, 58]),
        ("CURATE.TRAIN.OPTIMIZER", "adamw", "adamw"),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True", True),
        ("OUTPUT_DIR", "'2024'", "2024"),  # a folder may have a number for a name
        ("OUTPUT_DIR", "'None'", "None"),
    ],
)
def test_a_value_takes_the_type_of_its_default(load, key, given, expected):
    for cfg in (load(nested(key, given)), load("SEED: 0", key, given.strip("'"))):
        found = dict(leaves(cfg))[key]
        assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("key", "given", "kind"),
    [
        ("SOLVER.MAX_ITER", "7.5", "int"),
        ("SOLVER.MAX_ITER", "many", "int"),
        ("SEED", "True", "int"),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "1", "bool"),
        ("SOLVER.BASE_LR", "fast", "float"),
        ("SOLVER.BASE_LR", "True", "float"),
        ("INPUT.MIN_SIZE_TRAIN", "64", "tuple"),
    ],
)
def test_a_value_of_another_type_is_refused(load, key, given, kind):
    with pytest.raises(ConfigError, match=rf"{re.escape(key)} must be of type {kind}, got .* \(command line\)"):
        load("SEED: 0", key, given)
    with pytest.raises(ConfigError, match=rf"{re.escape(key)} must be of type {kind}, got .* \(.*mine.yaml\)"):
        load(nested(key, given))
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR must be of type str, got 7 \(.*mine.yaml\)"):
        load("OUTPUT_DIR: 7")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("CURATE.SELECT.FRACTON", "CURATE.SELECT.FRACTION"),
        ("SOLVER.MAX_ITERS", "SOLVER.MAX_ITER"),
        ("SEED.SEED", "SEED"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(load, key, near):
    with pytest.raises(
        ConfigError, match=rf"{re.escape(key)} must be a known config key \(command line\); the"
    ) as error:
        load("SEED: 0", key, "1")
    assert near in str(error.value).split("the nearest are ")[1].split(", ")
    with pytest.raises(ConfigError, match=r"ZZZ must be a known config key \(.*mine.yaml\); configs/ and docs/ name"):
        load("ZZZ: 1")


def test_a_whole_section_and_small_letters(load):
    for text, words in (("CURATE: {SELECT: 5}", ()), ("SEED: 0", ("CURATE.SELECT", "5"))):
        with pytest.raises(ConfigError, match=r"CURATE.SELECT must be given key by key, .*; one is CURATE.SELECT\."):
            load(text, *words)
    with pytest.raises(
        ConfigError, match=r"curate.select.fraction must be .*; the nearest are CURATE.SELECT.FRACTION,"
    ):
        load("SEED: 0", "curate.select.fraction", "0.3")


def test_keys_that_are_merged_stand_once_and_may_be_changed(load):
    cfg = load("CURATE:\n  POOL: &both {IMAGE_ROOT: there}\n  EVALUATION: {<<: *both, ANNOTATIONS: mine.json}")
    assert (cfg.CURATE.EVALUATION.IMAGE_ROOT, cfg.CURATE.EVALUATION.ANNOTATIONS) == ("there", "mine.json")


def test_overrides_come_in_pairs(load):
    with pytest.raises(ConfigError, match=r"overrides must be pairs of KEY VALUE, got 3 words: SEED 1 SOLVER.MAX_ITER"):
        load("SEED: 0", "SEED", "1", "SOLVER.MAX_ITER")


def test_a_config_cannot_run_code(load, tmp_path):
    proof = tmp_path / "proof"
    attack = f'!!python/object/apply:os.mkdir ["{proof}"]'
    (tmp_path / "base.yaml").write_text(f"OUTPUT_DIR: {attack}")
    for text in (f"OUTPUT_DIR: {attack}", '_BASE_: "base.yaml"'):
        with pytest.raises(ConfigError, match=r"the config must be plain YAML \(.*mine.yaml\): .*python/object/apply"):
            load(text)
    assert not proof.exists()
    yaml.unsafe_load(f"OUTPUT_DIR: {attack}")
    assert proof.exists()  # the attack is a real one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED: [1", "the config must be plain YAML"),
        ("- 1\n- 2", "the config must be a mapping of keys to values, got list"),
        ("", "the config must be a mapping of keys to values, got nothing "),
        ("7", "the config must be a mapping of keys to values"),
        ('_BASE_: "absent.yaml"', "the config and its _BASE_ must be readable"),
        ("_BASE_: 7", "the config and its _BASE_ must"),
        ('_BASE_: "mine.yaml"', "the config and its _BASE_ must"),
        ('_BASE_: "base.yaml"\nSEED: {X: 1}', "the config and its _BASE_ must"),
    ],
)
def test_files_that_are_no_config(load, tmp_path, text, message):
    (tmp_path / "base.yaml").write_text("SEED: 3")
    with pytest.raises(ConfigError, match=rf"(?s){message}.*mine.yaml"):
        load(text)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("CURATE: {SELECT: {FRACTION: 0.3}}\nSEED: 1\nCURATE: {NUM_PROCESSES: 3}", "CURATE", 3),
        ("CURATE:\n  SELECT:\n    FRACTION: 0.3\n    FRACTION: 0.4", "FRACTION", 4),
    ],
)
def test_a_key_that_stands_twice_would_lose_what_stands_below_the_first(load, text, key, line):
    with pytest.raises(
        ConfigError, match=rf"stand once in its section, got '{key}' again in line {line}; join the two"
    ):
        load(text)


def test_an_absent_file(tmp_path):
    with pytest.raises(ConfigError, match=r"--config-file must name an existing file, got .*absent.yaml"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="--config-file must name an existing file"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"OUTPUT_DIR: caf\xe9")
    with pytest.raises(ConfigError, match=r"must be (readable|plain YAML) \(.*latin.yaml\)"):
        load_config(tmp_path / "latin.yaml")


def test_without_detectron2_its_keys_are_passed_over_and_ours_are_known(load, monkeypatch):
    monkeypatch.setattr(d2_config, "has_detectron2", lambda: False)
    cfg = load(
        "MODEL: {DEVICE: cuda}\nSOLVER: {MAX_ITER: 7}\nCURATE: {SELECT: {FRACTION: 1}}\nOUTPUT_DIR: x", "SEED", "4"
    )
    assert (cfg.CURATE.SELECT.FRACTION, cfg.OUTPUT_DIR, cfg.SEED, "MODEL" in cfg) == (1.0, "x", 4, False)
    with pytest.raises(ConfigError, match=r"CURATE.SELEKT.FRACTION must be a known .*CURATE.SELECT.FRACTION"):
        load("CURATE: {SELEKT: {FRACTION: 1}}")


def test_settings_by_hand():
    found = curate_settings({"NUM_PROCESSES": 3, "SCORE": {"MEASURES": ["mutual_information"], "WEIGHTS": [2]}})
    assert (found.worker_processes, found.score.measures, found.score.weights) == (3, ("mutual_information",), (2.0,))
    assert curate_settings({}) == CurateSettings()
    assert CurateSettings().worker_processes >= 1


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"SELECT": {"FRACTION": 0}}, r"CURATE.SELECT.FRACTION: input should be greater than 0, got 0"),
        ({"SELECT": {"FRACTION": float("nan")}}, r"CURATE.SELECT.FRACTION: input should be .*, got nan"),
        ({"SELECT": {"STRATEGY": "top_m"}}, r"CURATE.SELECT.STRATEGY: the strategy must be one of .*mean 'top_n'\?"),
        ({"SELECT": {"SHARE": 1}}, r"CURATE.SELECT.SHARE: extra inputs are not permitted, got 1"),
        ({"ENSEMBLE": {"NUM_RUNS": -1}}, r"CURATE.ENSEMBLE.NUM_RUNS: .* greater than or equal to 0, got -1"),
        ({"TRAIN": {"OPTIMIZER": "adam"}}, r"CURATE.TRAIN.OPTIMIZER: input should be 'sgd' or 'adamw', got 'adam'"),
        ({"SCORE": {"AGGREGATION": "top"}}, r"CURATE.SCORE.AGGREGATION: the aggregation must be one of .*max"),
        ({"SCORE": {"NORMALIZATION": "ranks"}}, r"the normalization must be one of .*\(did you mean 'rank'\?\)"),
        ({"SCORE": {"MEASURES": []}}, r"CURATE.SCORE.MEASURES: measures must be one or more different names, got \[\]"),
        ({"SCORE": {"WEIGHTS": [1, 1]}}, r"CURATE.SCORE: weights must hold one number a measure \(3\), got 2"),
        ({"SCORE": {"WEIGHTS": [0, 0, 0]}}, r"CURATE.SCORE: weights must be at least 0 with a sum above 0"),
        ({"SCORE": {"WEIGHTS": [2, -1, 0]}}, r"CURATE.SCORE: weights must be at least 0 with a sum above 0"),
        (
            {"RETRAIN": {"ARMS": ["without_duplicates"]}},
            "CURATE: SELECT.DUPLICATE_SIMILARITY must be above 0 for the arm without_duplicates, got 0",
        ),
        (
            {"RETRAIN": {"ARMS": ["single_model_entropy"]}, "PREDICT": {"MODE": "dense"}},
            "CURATE: RETRAIN.ARMS must not hold single_model_entropy with PREDICT.MODE dense",
        ),
        ({"RETRAIN": {"CURVE_FRACTIONS": [0.5, 1.0]}}, r"CURATE.RETRAIN: curve_fractions must be in \(0, 1\), got"),
        ({"RETRAIN": {"CURVE_FRACTIONS": [0.5, 0.5, 0.25]}}, "CURATE.RETRAIN: curve_fractions must differ in their"),
        (
            {"RETRAIN": {"CURVE_FRACTIONS": [0.5, 0.25], "ARMS": ["curated"]}},
            "CURATE.RETRAIN: curve_fractions must give a learning curve three sizes: three fractions, or two beside",
        ),
        ({"RETRAIN": {"ARMS": ["full", "full"]}}, r"CURATE.RETRAIN.ARMS: arms must be one or more different names"),
        ({"RETRAIN": {"ARMS": ["ful"]}}, r"an arm must be one of curated, full, .*, got 'ful' \(did you mean"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(tree, message):
    with pytest.raises(ConfigError, match=message):
        curate_settings(tree)


def test_every_finding_is_named():
    with pytest.raises(ConfigError) as error:
        curate_settings({"SELECT": {"FRACTION": 2}, "PREDICT": {"BATCH_SIZE": 0}})
    assert {line.split(":")[0].strip() for line in str(error.value).splitlines()} == {
        "CURATE.PREDICT.BATCH_SIZE",
        "CURATE.SELECT.FRACTION",
    }


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        settings.CurateSettings().select.fraction = 0.3
