#!/usr/bin/env python3
"""Look the packages of the lock up in a list of known weaknesses; where that cannot be reached, check the lock itself.

pip-audit and its service (OSV or PyPI) are asked first, in an environment of its own. Without them: every requirement
of detcurate is in the lock, every entry has digests, and what is installed here has the lock's versions. What was done
is said. Exit status: 0 nothing found, 1 something found, 2 the lock is not in order.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

from packaging.finished_stages import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
LOCKED_EXTRAS = ("train", "dev", "interop")
SECONDS = 240
ENTRY = re.compile(
    r"^(?P<entry>[^#\s][^\\\n]*?)\s*\\?\n(?P<digests>(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)*)", re.MULTILINE
)


def main() -> int:
    """Audit; return the exit status."""
    problems = lock_problems(LOCK.read_text(), required(), installed())
    sys.stdout.write("".join(f"audit: {problem}\n" for problem in problems))
    if problems:
        return 2
    found = known_weaknesses()
    if found is None:
        sys.stdout.write(
            "audit: the list of known weaknesses could not be reached; instead the lock was checked: each entry has "
            "digests, it holds all that detcurate requires, and what is installed has its versions\n"
        )
        return 0
    status, report = found
    sys.stdout.write(f"{report}\n")
    return status


def lock_problems(lock: str, required: list[Requirement], installed: dict[str, str]) -> list[str]:
    """Return what is wrong with a lock, a sentence each.

    Args:
        lock: Its text.
        required: What must be in it.
        installed: Version by normal name.
    """
    problems, versions = [], {}
    for match in ENTRY.finditer(lock):
        requirement = Requirement(match["entry"])
        name = canonicalize_name(requirement.name)
        pins = [one.version for one in requirement.specifier if one.operator == "=="]
        if len(pins) != 1:
            problems.append(f"{match['entry']} must name one version")
        if not match["digests"]:
            problems.append(f"{match['entry']} must have digests of its files")
        if pins and (requirement.stage_metadata is None or requirement.stage_metadata.evaluate()):
            versions[name] = pins[0]
    for requirement in required:
        name = canonicalize_name(requirement.name)
        if name not in versions:
            problems.append(f"{requirement} must be in the lock, got none; run `make lock`")
        elif not requirement.specifier.contains(versions[name], prereleases=True):
            problems.append(f"the lock must fit {requirement}, got {versions[name]}; run `make lock`")
    for name, version in versions.items():
        if installed.get(name, version) != version:
            problems.append(
                f"{name} must be {version} as in the lock, got {installed[name]} installed; run `make setup`"
            )
    return problems


def required() -> list[Requirement]:
    """Return what detcurate and its locked extras require on this Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    for extra in LOCKED_EXTRAS:
        texts += project["optional-dependencies"][extra]
    found = [Requirement(text) for text in texts]
    environment = {key: str(value) for key, value in default_environment().items()}
    return [
        one
        for one in found
        if one.name != "detcurate" and (not one.stage_metadata or one.stage_metadata.evaluate(environment))
    ]


def installed() -> dict[str, str]:
    """Return the versions of this environment's packages by normal name."""
    return {canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions()}


def known_weaknesses() -> tuple[int, str] | None:
    """Ask pip-audit about the lock: its exit status and report, or ``None`` where it or its list cannot be had."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        tools = Path(folder) / "bin"
        try:
            get = [tools / "python", "-m", "pip", "install", "--quiet", "pip-audit"]
            subprocess.run(get, check=True, capture_output=True, timeout=SECONDS)
            predict = [
                tools / "pip-audit",
                "--requirement",
                LOCK,
                "--disable-pip",
                "--require-hashes",
                "--format",
                "json",
            ]
            done = subprocess.run(predict, capture_output=True, text=True, timeout=SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError):
            return None
        return judged(done.stdout)


def judged(report: str) -> tuple[int, str] | None:
    """Return the exit status and what to say of pip-audit's JSON report, ``None`` where it could look nothing up.

    It exits with 0 when its service knows none of the packages, as behind an index that serves files alone.
    """
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return None
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {found['fix_versions'] or 'no release'}"
        for package in known
        for found in package["vulns"]
    ]
    counts = f"audit: pip-audit looked up {len(known)} of {len(packages)} packages: {len(lines)} known weaknesses"
    return int(bool(lines)), "\n".join([*lines, counts])


if __name__ == "__main__":
    sys.exit(main())
