"""``detcurate config``: the printed settings and differences."""

import json

import pytest

from detcurate.config.describe import describe_settings


def test_config_prints_every_setting_with_its_meaning(printed):
    status, text = printed("config")
    assert status == 0
    lines = text.split("\n")
    for setting in describe_settings():
        at = lines.index(f"{setting.key} = {setting.default}")
        assert lines[at + 1].strip().startswith(setting.type)
    assert "CURATE.SELECT: Which images are kept." in lines
    assert max(map(len, lines)) <= 120


def test_config_section_prints_its_settings_alone(printed):
    status, text = printed("config", "select")
    keys = [line.split(" = ")[0] for line in text.split("\n") if line.startswith("CURATE.") and " = " in line]
    assert status == 0
    assert keys == [setting.key for setting in describe_settings() if setting.section == "CURATE.SELECT"]


def test_config_key_prints_type_range_and_meaning(printed):
    assert printed("config", "CURATE.SELECT.FRACTION") == (
        0,
        "CURATE.SELECT.FRACTION = 0.5\n"
        "    float, 0 < value <= 1\n"
        "    Budget as a share of the pool's images, unless another budget is above 0.\n",
    )


def test_config_json_has_all_fields(printed):
    status, text = printed("config", "SELECT.STRATEGY", "--json")
    (setting,) = json.loads(text)
    assert status == 0
    assert setting.keys() == {"key", "type", "default", "range", "meaning", "section"}
    assert setting["default"] == "'top_n'"


def test_config_diff_prints_key_default_and_value(printed, tmp_path):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")
    path = tmp_path / "mine.yaml"
    path.write_text("_BASE_: detcurate://Base-CPU-Tiny.yaml\nCURATE: {SELECT: {FRACTION: 0.25, NUM_BOXES: 0}}")
    status, text = printed("config", "--diff", path)
    rows = [line.split() for line in text.split("\n")]
    assert status == 0
    assert ["CURATE.SELECT.FRACTION", "0.5", "0.25"] in rows
    assert "NUM_BOXES" not in text
    assert "MODEL." in text
    found = json.loads(printed("config", "--diff", path, "--json")[1])
    assert {"key": "CURATE.SELECT.FRACTION", "default": 0.5, "value": 0.25} in found


def test_config_diff_of_defaults_says_so(printed, tmp_path):
    (tmp_path / "mine.yaml").write_text("CURATE: {SELECT: {FRACTION: 0.5}}")
    status, text = printed("config", "--diff", tmp_path / "mine.yaml")
    assert status == 0
    assert "mine.yaml changes no default" in text
