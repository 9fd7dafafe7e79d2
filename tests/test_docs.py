"""What the documents say of the code is what the code does."""

from pathlib import Path

import pytest

from detcurate.coco.findings import RULES
from detcurate.config import SelectSettings
from detcurate.select.rank import STRATEGIES

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("code", RULES)
def test_every_finding_stands_in_the_table_with_its_policies(code):
    rule = RULES[code]
    others = ", ".join(policy for policy in rule.allowed if policy != rule.policy) or "–"
    row = f"| `{code}` | {rule.policy} | {others} | {rule.repair or '–'} |"
    assert row in (REPOSITORY / "docs" / "coco.md").read_text().splitlines()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_has_a_row(strategy):
    assert f"\n| `{strategy}`" in (REPOSITORY / "docs" / "selection.md").read_text()


@pytest.mark.parametrize("setting", SelectSettings.model_fields)
def test_every_setting_of_the_selection_is_explained(setting):
    assert setting.upper() in (REPOSITORY / "docs" / "selection.md").read_text()
