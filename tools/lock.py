#!/usr/bin/env python3
"""Write requirements.lock from pyproject.toml, with pinned versions and digests for every supported Python.

Pins that still satisfy pyproject.toml are kept. Pass --upgrade, or --upgrade-package NAME, to update them. uv resolves
the versions; it is installed with pip into a temporary environment. Configure its package index with UV_* variables.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HEAD = """\
# Installed by `make setup`: every package for every supported Python and system, with digests of its files. Written by
# `make lock` from pyproject.toml; do not edit it. Detectron2 is pinned in requirements-detectron2.txt.
"""
EXTRAS = ("train", "dev", "docs", "interop")


def main(options: list[str]) -> int:
    """Write the lock and return the exit status."""
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    if "PIP_CERT" in environment:  # uv reads the certificate from another variable than pip
        environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        tools = Path(folder) / "bin"
        written = Path(folder) / LOCK.name
        if LOCK.exists():
            written.write_bytes(LOCK.read_bytes())  # uv keeps the pins of an existing output file
        command = [
            *(tools / "uv", "pip", "compile", "--universal", "--generate-hashes", "--no-annotate", "--no-header"),
            *("--python-version", "3.10", "--no-config", "--quiet", "--output-file", written),
            *(argument for extra in EXTRAS for argument in ("--extra", extra)),
            *options,
            "pyproject.toml",
        ]
        try:
            subprocess.run([tools / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
            subprocess.run(command, check=True, cwd=ROOT, env=environment)
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"lock: command failed: {' '.join(map(str, error.cmd))}\n")
            return 2
        LOCK.write_text(HEAD + written.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
