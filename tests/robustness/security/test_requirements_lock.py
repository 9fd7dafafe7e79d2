"""Tests of requirements.lock and tools/audit.py."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from helpers import REPOSITORY
from packaging.requirements import Requirement

ROOT = REPOSITORY


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module
    spec.loader.exec_module(module)
    return module


def test_lock_holds_every_requirement_with_digests(audit):
    text = audit.LOCK.read_text()
    assert audit.lock_problems(text, audit.required(), {}) == []
    assert "://" not in text
    assert len(audit.ENTRY.findall(text)) == sum("==" in line for line in text.splitlines()) > 100


DIGEST = f"    --hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        ("six==1.0\n", "six==1.0: no digests"),
        (f"six>=1.0 \\\n{DIGEST}\n", "six>=1.0: no single pinned version"),
        (f"other==1.0 \\\n{DIGEST}\n", "six>=1: missing"),
        (f"six==0.9 \\\n{DIGEST} \\\n{DIGEST}\n", "six>=1: not satisfied by the lock (got 0.9)"),
        (f"six==1.2 \\\n{DIGEST}\n", "1.2 (got 1.0)"),
    ],
)
def test_lock_problems_names_invalid_entry(audit, lock, message):
    found = audit.lock_problems(lock, [Requirement("six>=1")], {"six": "1.0"})
    assert any(message in problem for problem in found), found


def test_parse_report_without_known_packages_returns_none(audit):
    skipped = {"name": "six", "skip_reason": "Dependency not found on PyPI and could not be audited"}
    assert audit.parse_report(json.dumps({"dependencies": [skipped]})) is None
    assert audit.parse_report("") is None
    clean = {"name": "six", "version": "1.0", "vulns": []}
    assert audit.parse_report(json.dumps({"dependencies": [skipped, clean]})) == (
        0, "audit: pip-audit looked up 1 of 2 packages: 0 known vulnerabilities",
    )  # fmt: skip
    weak = {"name": "py", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}
    status, report = audit.parse_report(json.dumps({"dependencies": [clean, weak]}))
    assert status == 1
    assert report.splitlines()[0] == "py 1.0: CVE-1, fixed in ['1.1']"
