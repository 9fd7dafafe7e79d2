#!/usr/bin/env python3
"""Create the virtual environment that `make demo` and `make test` use, from a package index.

Every package is pinned with the digests of its files, in requirements.lock and requirements-detectron2.txt. Run the
script with the Python that the environment shall use. If that Python already has Detectron2, for example an official
build with compiled operators, its packages are reused and only missing ones are installed. The script needs only the
standard library.
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
    """Create the environment and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "directory", type=Path, nargs="?", default=ROOT / ".venv", help="folder of the environment (default: .venv)"
    )
    directory = parser.parse_args().directory
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.stderr.write(
            f"setup: Python 3.{OLDEST[1]} to 3.{NEWEST[1]} required (got {sys.version.split()[0]}). "
            "Choose another, for example `make PYTHON=python3.11 setup`.\n"
        )
        return 2
    venv.create(directory, with_pip=True)
    try:
        install(directory / "bin" / "python")
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"setup: command failed: {' '.join(map(str, error.cmd))}\n")
        return 2
    return 0


def install(python: Path) -> None:
    """Install detcurate and its requirements into the environment of ``python``."""
    if all(importlib.util.find_spec(name) for name in ("torch", "torchvision", "detectron2")):
        print("setup: using the Detectron2 of this Python")
        use_packages_of_this_python(python)
        pip(python, "-e", f"{ROOT}[train,dev,docs,interop]")
        return
    install_locked(python)
    # The wheel is tagged for CPython 3.10, but only its Python files are used.
    pip(
        python,
        *("--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.10"),
        *("--upgrade", "--target", site_packages(python), "-r", str(ROOT / "requirements-detectron2.txt")),
    )


def install_locked(python: Path) -> None:
    """Install the locked packages, verified by digest, and detcurate without resolving requirements again.

    A few packages have source distributions only. setuptools, which builds them, is pinned too and installed first.
    """
    lock = (ROOT / "requirements.lock").read_text()
    builder = re.search(r"^setuptools==.*(?:\n .*)*", lock, re.MULTILINE)
    if builder is None:
        raise ValueError("requirements.lock: setuptools is not pinned. Run `make lock`.")
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "builder.txt"
        alone.write_text(builder[0] + "\n")
        pip(python, "--require-hashes", "-r", str(alone))
    built_here = ("--no-build-isolation", "--use-pep517")
    pip(python, "--require-hashes", *built_here, "-r", str(ROOT / "requirements.lock"))
    pip(python, "--no-deps", *built_here, "-e", str(ROOT))


def use_packages_of_this_python(python: Path) -> None:
    """Add the packages of the running Python to the environment, after its own."""
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    (Path(site_packages(python)) / "host-packages.pth").write_text("\n".join(folders) + "\n")


def site_packages(python: Path) -> str:
    """Return the package folder of the environment."""
    command = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def pip(python: Path, *arguments: str) -> None:
    """Run ``pip install`` in the environment, with pip's own configuration."""
    subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
