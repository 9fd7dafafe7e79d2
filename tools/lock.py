#!/usr/bin/env python3
"""Write requirements.lock from pyproject.toml: all packages for all supported Pythons and systems, with their digests.

What the lock has stays as it is where it still fits; give --upgrade, or --upgrade-package NAME, for newer ones. The
package index is uv's, see its UV_* variables; uv itself comes from pip's, into a folder that is removed.
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
# What `make setup` installs: every package of every supported Python and system, with digests of its files. Written by
# `make lock` from pyproject.toml; do not edit it. Detectron2 itself is in requirements-detectron2.txt.
"""
EXTRAS = ("train", "dev", "interop")


def main(options: list[str]) -> int:
    """Write the lock; return the exit status."""
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    if "PIP_CERT" in environment:  # uv does not know pip's name for it
        environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        tools = Path(folder) / "bin"
        written = Path(folder) / LOCK.name
        if LOCK.exists():
            written.write_bytes(LOCK.read_bytes())  # uv prefers what it finds there
        command = [
            *(tools / "uv", "pip", "compile", "--universal", "--generate-hashes", "--no-annotate", "--no-header"),
            *("--python-version", "3.10", "--no-config", "--quiet", "--output-file", written),
            *(word for extra in EXTRAS for word in ("--extra", extra)),
            *options,
            "pyproject.toml",
        ]
        try:
            subprocess.run([tools / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
            subprocess.run(command, check=True, cwd=ROOT, env=environment)
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"lock: a step failed: {' '.join(map(str, error.cmd))}\n")
            return 2
        LOCK.write_text(HEAD + written.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
