#!/usr/bin/env python3
"""Make the virtual environment that `make demo` and `make test` use, from a package index alone.

All that is installed is pinned with the digests of its files, in requirements.lock and requirements-detectron2.txt.
Run it with the Python to build on. Where that Python already has Detectron2 (say, an official build with compiled
operators), its packages are used as they are and only what is missing goes into the new environment. Needs nothing but
the standard library.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 13)


def main() -> int:
    """Build the environment; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=ROOT / ".venv", help="where the environment goes")
    directory = parser.parse_args().directory
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.stderr.write(
            f"setup: Python must be 3.{OLDEST[1]} to 3.{NEWEST[1]}, got {sys.version.split()[0]}; "
            "name another, as in `make PYTHON=python3.11 setup`\n"
        )
        return 2
    venv.create(directory, with_pip=True)
    try:
        install(directory / "bin" / "python")
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"setup: a step failed: {' '.join(map(str, error.cmd))}\n")
        return 2
    return 0


def install(python: Path) -> None:
    """Install detcurate and all it needs into the environment of ``python``."""
    if all(importlib.util.find_spec(name) for name in ("torch", "torchvision", "detectron2")):
        print("setup: using the Detectron2 that this Python already has")
        use_packages_of_this_python(python)
        pip(python, "-e", f"{ROOT}[train,dev,interop]")
        return
    install_locked(python)
    # The wheel is tagged for CPython 3.10, but its Python files are all that is used.
    pip(
        python,
        *("--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.10"),
        *("--upgrade", "--target", site_packages(python), "-r", str(ROOT / "requirements-detectron2.txt")),
    )


def install_locked(python: Path) -> None:
    """Install what the lock names, each file with a digest of it, and detcurate itself without looking further.

    What builds the few packages that come as source alone is pinned too: it is installed first, no other is fetched.
    """
    lock = (ROOT / "requirements.lock").read_text()
    builder = re.search(r"^setuptools==.*(?:\n .*)*", lock, re.MULTILINE)
    if builder is None:
        raise ValueError("requirements.lock must pin setuptools, got a lock without it; run `make lock`")
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "builder.txt"
        alone.write_text(builder[0] + "\n")
        pip(python, "--require-hashes", "-r", str(alone))
    built_here = ("--no-build-isolation", "--use-pep517")
    pip(python, "--require-hashes", *built_here, "-r", str(ROOT / "requirements.lock"))
    pip(python, "--no-deps", *built_here, "-e", str(ROOT))


def use_packages_of_this_python(python: Path) -> None:
    """Let the environment find the packages of the Python that runs this, after its own."""
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    (Path(site_packages(python)) / "host-packages.pth").write_text("\n".join(folders) + "\n")


def site_packages(python: Path) -> str:
    """Return the environment's own package folder."""
    command = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def pip(python: Path, *arguments: str) -> None:
    """Run ``pip install`` in the environment, with pip's configuration as it is found."""
    subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
