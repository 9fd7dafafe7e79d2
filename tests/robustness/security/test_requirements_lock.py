"""The lock: every package with digests; what the audit says is what it did."""

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


def test_the_lock_holds_all_that_is_required_with_digests(audit):
    text = audit.LOCK.read_text()
    assert audit.lock_problems(text, audit.required(), {}) == []
    assert "://" not in text
    assert len(audit.ENTRY.findall(text)) == sum("==" in line for line in text.splitlines()) > 100


DIGEST = f"    --hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        ("six==1.0\n", "six==1.0 must have digests of its files"),
        (f"six>=1.0 \\\n{DIGEST}\n", "six>=1.0 must name one version"),
        (f"other==1.0 \\\n{DIGEST}\n", "six>=1 must be in the lock, got none"),
        (f"six==0.9 \\\n{DIGEST} \\\n{DIGEST}\n", "the lock must fit six>=1, got 0.9"),
        (f"six==1.2 \\\n{DIGEST}\n", "six must be 1.2 as in the lock, got 1.0 installed"),
    ],
)
def test_a_lock_that_is_not_in_order(audit, lock, message):
    found = audit.lock_problems(lock, [Requirement("six>=1")], {"six": "1.0"})
    assert any(message in problem for problem in found), found


def test_an_audit_that_looked_nothing_up_is_none(audit):
    skipped = {"name": "six", "skip_reason": "Dependency not found on PyPI and could not be audited"}
    assert audit.judged(json.dumps({"dependencies": [skipped]})) is None
    assert audit.judged("") is None
    clean = {"name": "six", "version": "1.0", "vulns": []}
    assert audit.judged(json.dumps({"dependencies": [skipped, clean]})) == (
        0, "audit: pip-audit looked up 1 of 2 packages: 0 known weaknesses",
    )  # fmt: skip
    weak = {"name": "py", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}
    status, report = audit.judged(json.dumps({"dependencies": [clean, weak]}))
    assert status == 1
    assert report.splitlines()[0] == "py 1.0: CVE-1, mended in ['1.1']"
