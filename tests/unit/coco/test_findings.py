"""Findings: the rules, their table, policies and messages. Each finding of a file is in test_conformance.py."""

import json

import numpy as np
import pytest

from detcurate.coco.validation.findings import (
    POLICIES,
    RULES,
    Finding,
    FindingLog,
    describe_errors,
    findings_table,
    parse_policies,
)
from detcurate.errors import ConfigError


@pytest.mark.parametrize("code", RULES)
def test_rule_is_consistent(code):
    rule = RULES[code]
    assert rule.policy in rule.allowed
    assert set(rule.allowed) <= set(POLICIES)
    assert ("repair" in rule.allowed) == bool(rule.repair)
    assert "error" in rule.allowed
    assert rule.advice.endswith(".")
    assert rule.meaning.endswith(".")


def test_findings_table_has_a_row_for_each_rule():
    rows = {row[0]: row for row in findings_table()}
    assert list(rows) == list(RULES)
    assert rows["missing_area"][1:4] == ("warn", "error, repair, note", RULES["missing_area"].repair)
    assert rows["escaping_file_name"][1:] == ("error", "", "", RULES["escaping_file_name"].meaning)


def test_parse_policies_by_hand():
    assert parse_policies(["invalid_box=repair", "large_id=note"]) == {"invalid_box": "repair", "large_id": "note"}
    assert parse_policies([]) == {}
    assert parse_policies(["large_id=note", "large_id=warn"]) == {"large_id": "warn"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("invalid_boxes=repair", ["invalid_box'"]),
        ("xyz=repair", ["not_finite_number", "byte_order_mark"]),
        ("", ["not_finite_number"]),
        ("invalid_box", ["invalid_box", "error, repair"]),
        ("invalid_box=ignore", ["error, repair"]),
        ("large_id=repair", ["error, warn, note"]),
        ("large_id=warn=note", ["error, warn, note"]),
    ],
)
def test_unknown_policy_is_refused(text, parts):
    with pytest.raises(ConfigError) as caught:
        parse_policies([text])
    assert all(part in str(caught.value) for part in [*parts, repr(text)])


def test_log_refuses_unknown_policies():
    with pytest.raises(ConfigError, match="none=error"):
        FindingLog({"none": "error"})


def test_log_sorts_by_severity_and_keeps_three_examples():
    log = FindingLog({"missing_id": "repair"})
    log.add("empty_image", "five", count=5)
    log.add_many("large_id", range(10), "number {}".format)
    log.add_many("large_id", [], lambda at: pytest.fail("no record needs no text"))
    log.add("missing_id", "one")
    log.add_many("missing_id", np.arange(20, 40), "from {}".format)
    log.add("missing_id", "last")
    log.add("unknown_image", "error")
    log.add("large_id", "ten")
    log.add("invalid_box", "another")
    assert [(finding.code, finding.policy, finding.count, finding.examples) for finding in log.findings()] == [
        ("unknown_image", "error", 1, ("error",)),
        ("invalid_box", "error", 1, ("another",)),
        ("missing_id", "repair", 22, ("one", "from 20", "from 21")),
        ("large_id", "warn", 11, ("number 0", "number 1", "number 2")),
        ("empty_image", "note", 5, ("five",)),
    ]
    assert log.repairs("missing_id")
    assert not log.repairs("annotation_id_zero")


def test_finding_is_described_with_count_and_remedy():
    finding = Finding("missing_area", "warn", 1_201, ("first", "second"), "Write it.")
    assert all(part in finding.sentence() for part in ("missing_area", "first", "1,200", "Write it."))
    repaired = Finding("missing_area", "repair", 1, ("first",), "Write it.").sentence()
    assert RULES["missing_area"].repair in repaired
    assert "Write it." not in repaired
    assert json.loads(json.dumps(finding.to_dict())) == {
        "code": "missing_area",
        "policy": "warn",
        "count": 1_201,
        "examples": ["first", "second"],
        "advice": "Write it.",
    }


def test_several_errors_are_described_on_a_line_each():
    findings = [
        Finding("invalid_box", "error", 3, ("box",), "Fix it."),
        Finding("escaping_file_name", "error", 1, ("name",), "Rename it."),
    ]
    title, first, second = describe_errors(findings, "a.json").splitlines()
    assert all(part in title for part in ("a.json", "2"))
    assert all(part in first for part in ("a.json", "box", "2 more", "Fix it.", "invalid_box=repair"))
    assert all(part in second for part in ("a.json", "name", "Rename it."))
    assert describe_errors(findings[1:], "a.json") == second.strip()
