"""Declaration of the settings in Detectron2's config, and loading of config files."""

import json

import pytest
import yaml
from helpers import REPOSITORY

from detcurate.config import CurateSettings, curate_defaults, curate_settings, declaration
from detcurate.config.declaration import (
    add_curate_config,
    config_differences,
    default_config,
    load_config,
    load_config_text,
    shipped_config,
)
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


def rejected(error, *parts: str):
    """Check that a message contains the setting or file, and the value."""
    for part in parts:
        assert part in str(error.value)


def nested(key, given):
    """Return the YAML of one key and its value."""
    *parents, name = key.split(".")
    lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(parents)]
    return "\n".join([*lines, f"{'  ' * len(parents)}{name}: {given}"])


def test_add_curate_config_keeps_the_keys_of_detectron2():
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


def test_default_config_declares_the_defaults_of_the_settings():
    declared = default_config().CURATE
    assert dict(leaves(declared)) == dict(leaves(curate_defaults()))
    assert curate_settings(declared) == CurateSettings()
    assert declared.SELECT.FRACTION == 0.5
    assert declared.RETRAIN.ARMS == ("curated", "random", "full")


def test_load_config_text_rebuilds_a_config_of_one_node_type_from_its_dump(load):
    from detectron2.config import get_cfg

    cfg = load("SEED: 0", "CURATE.SELECT.DUPLICATE_SIMILARITY", "auto", "OUTPUT_DIR", "2024", "SOLVER.STEPS", "(2,)")
    assert type(cfg.CURATE) is type(cfg.CURATE.SELECT) is type(get_cfg())
    again = load_config_text(cfg.dump())
    assert again.is_frozen()
    assert dict(leaves(again)).keys() == dict(leaves(cfg)).keys()
    assert json.dumps(again) == json.dumps(cfg)  # JSON and YAML write a tuple within a tuple as a list


@pytest.mark.parametrize("name", SHIPPED)
def test_load_config_of_each_shipped_config_gives_valid_settings(name):
    cfg = load_config(CONFIGS / name)
    assert cfg.is_frozen()
    curate_settings(cfg.CURATE)
    written = dict(leaves(yaml.safe_load((CONFIGS / name).read_text())))
    loaded = dict(leaves(cfg))
    for key in written.keys() - {"_BASE_"}:
        assert str(loaded[key]).strip("[]()").rstrip(",") == str(written[key]).strip("[]()").rstrip(",")


def test_shipped_configs_contain_the_bases():
    assert {"Base-CPU-Tiny.yaml", "Base-faster_rcnn_R_50_FPN.yaml", "Base-retinanet_R_50_FPN.yaml"} <= set(SHIPPED)


@pytest.mark.parametrize(
    ("name", "architecture", "num_parameters"),
    [
        ("Base-faster_rcnn_R_50_FPN.yaml", "GeneralizedRCNN", 41_699_936),  # COCO's 80 classes, as in the model zoo
        ("Base-retinanet_R_50_FPN.yaml", "RetinaNet", 37_915_572),
    ],
)
def test_gpu_base_builds_the_named_model(name, architecture, num_parameters):
    from detectron2.modeling import build_model

    cfg = load_config(CONFIGS / name, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    assert type(model).__name__ == architecture
    assert model.backbone.bottom_up.stages[-1][0].out_channels == 2048
    assert sum(tensor.numel() for tensor in model.parameters()) == num_parameters


def test_load_config_base_is_relative_to_the_file_and_overridden(load, tmp_path):
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
def test_load_config_value_takes_the_type_of_its_default(load, key, given, expected):
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
        ("CURATE.SELECT.DUPLICATE_SIMILARITY", "automatic", "float or auto"),
        ("CURATE.SELECT.FRACTION", "auto", "float"),
    ],
)
def test_load_config_value_of_another_type_is_rejected(load, key, given, kind):
    with pytest.raises(ConfigError) as error:
        load("SEED: 0", key, given)
    rejected(error, f"{key}: ", kind, given, "command line")
    with pytest.raises(ConfigError) as error:
        load(nested(key, given))
    rejected(error, f"{key}: ", kind, given, "mine.yaml")


def test_load_config_number_for_a_text_in_a_file_is_rejected(load):
    with pytest.raises(ConfigError) as error:
        load("OUTPUT_DIR: 7")
    rejected(error, "OUTPUT_DIR: ", "str", "7", "mine.yaml")


@pytest.mark.parametrize(("given", "expected"), [("auto", "auto"), ("0.9", 0.9), ("1", 1.0)])
def test_load_config_duplicate_similarity_is_a_number_or_auto(load, given, expected):
    key = "CURATE.SELECT.DUPLICATE_SIMILARITY"
    for cfg in (load("SEED: 0", key, given), load(nested(key, given))):
        assert cfg.CURATE.SELECT.DUPLICATE_SIMILARITY == expected
        assert curate_settings(cfg.CURATE).select.duplicate_similarity == expected


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("CURATE.SELECT.FRACTON", "CURATE.SELECT.FRACTION"),
        ("curate.select.fraction", "CURATE.SELECT.FRACTION"),
        ("SOLVER.MAX_ITERS", "SOLVER.MAX_ITER"),
        ("SEED.SEED", "SEED"),
    ],
)
def test_load_config_unknown_key_is_reported_with_the_nearest(load, key, near):
    with pytest.raises(ConfigError) as error:
        load("SEED: 0", key, "1")
    rejected(error, f"{key}: ", near, "command line")
    assert near in str(error.value).rstrip(".").split("nearest are ")[1].split(", ")


def test_load_config_unknown_key_without_a_near_one_is_reported_with_its_file(load):
    with pytest.raises(ConfigError) as error:
        load("ZZZ: 1")
    rejected(error, "ZZZ: ", "mine.yaml", "detcurate config")


@pytest.mark.parametrize(("text", "words"), [("CURATE: {SELECT: 5}", ()), ("SEED: 0", ("CURATE.SELECT", "5"))])
def test_load_config_value_for_a_whole_section_is_rejected(load, text, words):
    with pytest.raises(ConfigError) as error:
        load(text, *words)
    rejected(error, "CURATE.SELECT: ", "CURATE.SELECT.STRATEGY")


def test_load_config_merged_keys_may_be_changed(load):
    cfg = load("CURATE:\n  POOL: &both {IMAGE_ROOT: there}\n  EVALUATION: {<<: *both, ANNOTATIONS: mine.json}")
    assert (cfg.CURATE.EVALUATION.IMAGE_ROOT, cfg.CURATE.EVALUATION.ANNOTATIONS) == ("there", "mine.json")


def test_load_config_odd_number_of_overrides_is_rejected(load):
    with pytest.raises(ConfigError) as error:
        load("SEED: 0", "SEED", "1", "SOLVER.MAX_ITER")
    rejected(error, "overrides: ", "3", "SEED 1 SOLVER.MAX_ITER")


def test_load_config_never_runs_code(load, tmp_path):
    proof = tmp_path / "proof"
    attack = f'!!python/object/apply:os.mkdir ["{proof}"]'
    (tmp_path / "base.yaml").write_text(f"OUTPUT_DIR: {attack}")
    for text in (f"OUTPUT_DIR: {attack}", '_BASE_: "base.yaml"'):
        with pytest.raises(ConfigError) as error:
            load(text)
        rejected(error, "mine.yaml", "python/object/apply")
    assert not proof.exists()
    yaml.unsafe_load(f"OUTPUT_DIR: {attack}")
    assert proof.exists()  # the attack works where nothing prevents it


@pytest.mark.parametrize("key", ["CURATE.TRAIN.ALLOW_PICKLE"])
def test_load_config_pickles_are_allowed_on_the_command_line_only(load, key):
    assert load("SEED: 0", key, "True").CURATE.TRAIN.ALLOW_PICKLE
    with pytest.raises(ConfigError) as error:
        load(nested(key, "True"))
    rejected(error, f"{key}: ", "mine.yaml")


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("SEED: [1", ""),
        ("- 1\n- 2", "list"),
        ("", "nothing"),
        ("7", "int"),
        ('_BASE_: "absent.yaml"', "absent.yaml"),
        ("_BASE_: 7", "7"),
        ('_BASE_: "https://me:hunter2@host/base.yaml"', "a URL"),
        ('_BASE_: "mine.yaml"', "_BASE_"),
        ('_BASE_: "list.yaml"', "list"),
        ('_BASE_: "base.yaml"\nSEED: {X: 1}', "SEED"),
    ],
)
def test_load_config_file_that_is_not_a_config_is_rejected(load, tmp_path, text, got):
    (tmp_path / "base.yaml").write_text("SEED: 3")
    (tmp_path / "list.yaml").write_text("- 3")
    with pytest.raises(ConfigError) as error:
        load(text)
    rejected(error, "mine.yaml: ", got)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("CURATE: {SELECT: {FRACTION: 0.3}}\nSEED: 1\nCURATE: {NUM_PROCESSES: 3}", "CURATE", 3),
        ("CURATE:\n  SELECT:\n    FRACTION: 0.3\n    FRACTION: 0.4", "FRACTION", 4),
    ],
)
def test_load_config_repeated_key_is_rejected_with_its_line(load, text, key, line):
    with pytest.raises(ConfigError) as error:
        load(text)
    rejected(error, "mine.yaml: ", f"'{key}'", f"line {line}")


@pytest.mark.parametrize(
    ("name", "content"), [("absent.yaml", None), ("", None), ("latin.yaml", b"OUTPUT_DIR: caf\xe9")]
)
def test_load_config_file_that_cannot_be_read_is_named(tmp_path, name, content):
    path = tmp_path / name
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    rejected(error, str(path))


def test_load_config_without_detectron2_ignores_its_keys_and_knows_ours(load, monkeypatch):
    monkeypatch.setattr(declaration, "has_detectron2", lambda: False)
    cfg = load(
        "MODEL: {DEVICE: cuda}\nSOLVER: {MAX_ITER: 7}\nCURATE: {SELECT: {FRACTION: 1}}\nOUTPUT_DIR: x", "SEED", "4"
    )
    assert (cfg.CURATE.SELECT.FRACTION, cfg.OUTPUT_DIR, cfg.SEED, "MODEL" in cfg) == (1.0, "x", 4, False)
    with pytest.raises(ConfigError) as error:
        load("CURATE: {SELEKT: {FRACTION: 1}}")
    rejected(error, "CURATE.SELEKT.FRACTION: ", "CURATE.SELECT.FRACTION")


def test_config_differences_lists_what_a_config_and_its_base_change(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 7, GAMMA: 0.1}\nCURATE: {SELECT: {FRACTION: 0.1}}")
    path = tmp_path / "mine.yaml"
    path.write_text('_BASE_: "base.yaml"\nCURATE: {SELECT: {FRACTION: 0.25, GUARD: "drop", NUM_BOXES: 0}}')
    default = default_config()
    assert config_differences(path) == [
        ("SOLVER.MAX_ITER", default.SOLVER.MAX_ITER, 7),
        ("CURATE.SELECT.FRACTION", 0.5, 0.25),
        ("CURATE.SELECT.NOISE_FILTER", "off", "drop"),
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_names_a_file_with_the_content_of_the_checkout(name):
    assert shipped_config(f"detcurate://{name}").read_text() == (CONFIGS / name).read_text()


@pytest.mark.parametrize("name", ["quickstrat.yaml", "../configs/quickstart.yaml", "/etc/passwd", ""])
def test_shipped_config_unknown_name_is_reported_with_all_names(name):
    with pytest.raises(ConfigError) as error:
        shipped_config(f"detcurate://{name}")
    rejected(error, "detcurate://", repr(name), *SHIPPED)


def test_load_config_base_may_be_a_shipped_config(load):
    expected = load_config(CONFIGS / "Base-CPU-Tiny.yaml")
    assert load('_BASE_: "detcurate://Base-CPU-Tiny.yaml"') == expected
    with pytest.raises(ConfigError) as error:
        load('_BASE_: "detcurate://Base-CPU-Tyni.yaml"')
    rejected(error, "Base-CPU-Tyni.yaml", "Base-CPU-Tiny.yaml")
