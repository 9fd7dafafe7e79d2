"""What the documents say of the code is what the code does."""

from pathlib import Path

import pytest

from detcurate.coco.findings import RULES

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("code", RULES)
def test_every_finding_stands_in_the_table_with_its_policies(code):
    rule = RULES[code]
    others = ", ".join(policy for policy in rule.allowed if policy != rule.policy) or "–"
    row = f"| `{code}` | {rule.policy} | {others} | {rule.repair or '–'} |"
    assert row in (REPOSITORY / "docs" / "coco.md").read_text().splitlines()
