#!/usr/bin/env python3
"""Look up the locked packages in a database of known vulnerabilities, and check the lock itself.

The lock must hold every requirement with digests, and installed packages must have its versions. pip-audit then looks
the packages up, from a temporary environment. If its database cannot be reached, only the lock is checked, and the
output says so. Exit status: 0 nothing found, 1 known vulnerabilities, 2 invalid lock.
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

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # a dependency of pytest

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
LOCKED_EXTRAS = ("train", "dev", "docs", "interop")
SECONDS = 240
ENTRY = re.compile(
    r"^(?P<entry>[^#\s][^\\\n]*?)\s*\\?\n(?P<digests>(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)*)", re.MULTILINE
)


def main() -> int:
    """Audit the lock and return the exit status."""
    problems = lock_problems(LOCK.read_text(), required(), installed())
    sys.stdout.write("".join(f"audit: {problem}\n" for problem in problems))
    if problems:
        return 2
    found = known_vulnerabilities()
    if found is None:
        sys.stdout.write(
            "audit: no vulnerability database reachable; checked only the lock: it holds every requirement with "
            "digests, and installed packages have its versions\n"
        )
        return 0
    status, report = found
    sys.stdout.write(f"{report}\n")
    return status


def lock_problems(lock: str, required: list[Requirement], installed: dict[str, str]) -> list[str]:
    """Return the problems of a lock, one sentence each.

    Args:
        lock: Text of the lock.
        required: Requirements that it must satisfy.
        installed: Installed version by canonical package name.
    """
    problems, versions = [], {}
    for match in ENTRY.finditer(lock):
        requirement = Requirement(match["entry"])
        name = canonicalize_name(requirement.name)
        pins = [one.version for one in requirement.specifier if one.operator == "=="]
        if len(pins) != 1:
            problems.append(f"{match['entry']}: no single pinned version. Run `make lock`.")
        if not match["digests"]:
            problems.append(f"{match['entry']}: no digests. Run `make lock`.")
        if pins and (requirement.marker is None or requirement.marker.evaluate()):
            versions[name] = pins[0]
    for requirement in required:
        name = canonicalize_name(requirement.name)
        if name not in versions:
            problems.append(f"{requirement}: missing from the lock. Run `make lock`.")
        elif not requirement.specifier.contains(versions[name], prereleases=True):
            problems.append(f"{requirement}: not satisfied by the lock (got {versions[name]}). Run `make lock`.")
    for name, version in versions.items():
        if installed.get(name, version) != version:
            problems.append(
                f"{name}: installed version is not the lock's {version} (got {installed[name]}). Run `make setup`."
            )
    return problems


def required() -> list[Requirement]:
    """Return the requirements of detcurate and its locked extras on this Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    for extra in LOCKED_EXTRAS:
        texts += project["optional-dependencies"][extra]
    found = [Requirement(text) for text in texts]
    environment = {key: str(value) for key, value in default_environment().items()}
    return [one for one in found if one.name != "detcurate" and (not one.marker or one.marker.evaluate(environment))]


def installed() -> dict[str, str]:
    """Return the installed versions by canonical package name."""
    return {canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions()}


def known_vulnerabilities() -> tuple[int, str] | None:
    """Run pip-audit on the lock.

    Returns:
        Exit status and report, or ``None`` if pip-audit cannot be installed or cannot reach its database.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        tools = Path(folder) / "bin"
        try:
            install = [tools / "python", "-m", "pip", "install", "--quiet", "pip-audit"]
            subprocess.run(install, check=True, capture_output=True, timeout=SECONDS)
            command = [
                *(tools / "pip-audit", "--requirement", LOCK),
                *("--disable-pip", "--require-hashes", "--format", "json"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError):
            return None
        return parse_report(done.stdout)


def parse_report(report: str) -> tuple[int, str] | None:
    """Return the exit status and a summary of pip-audit's JSON report, ``None`` if no package could be looked up.

    pip-audit exits with 0 even if its database knows none of the packages.
    """
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return None
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {found['fix_versions'] or 'no release'}"
        for package in known
        for found in package["vulns"]
    ]
    counts = f"audit: pip-audit looked up {len(known)} of {len(packages)} packages: {len(lines)} known vulnerabilities"
    return int(bool(lines)), "\n".join([*lines, counts])


if __name__ == "__main__":
    sys.exit(main())
