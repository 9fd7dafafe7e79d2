"""The wheel installed outside of the checkout: commands, configs and templates work without the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from helpers import REPOSITORY

IGNORED = shutil.ignore_patterns(
    ".*", "tests", "docs", "benchmarks", "datasets", "output", "build", "site", "*.egg-info"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a function that runs a command of an environment with the wheel, in an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPOSITORY, folder / "source", ignore=IGNORED, symlinks=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(command):
        (folder / "empty").mkdir(exist_ok=True)
        options = {"cwd": folder / "empty", "env": environment, "capture_output": True, "text": True}
        return subprocess.run([str(part) for part in command], **options)

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    built = run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "source"])
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("detcurate-*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Requirements come from the environment of the tests; its editable detcurate is not activated by a plain path.
    (packages / "requirements.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "venv" / "bin" / "python"
    done = run([*pip, "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel])
    assert done.returncode == 0, done.stderr
    return lambda *command: run([folder / "venv" / "bin" / command[0], *command[1:]])


def test_wheel_imports_from_the_environment(installed):
    code = "import detcurate, importlib.resources as r; print(detcurate.__file__, r.files('detcurate') / 'py.typed')"
    printed = installed("python", "-c", code).stdout
    assert str(REPOSITORY) not in printed
    assert "site-packages/detcurate/__init__.py" in printed


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_wheel_prints_version_and_help(installed, option):
    done = installed("detcurate", option)
    assert (done.returncode, done.stderr) == (0, "")
    assert "detcurate" in done.stdout


def test_wheel_validates_a_file(installed, tmp_path):
    path = tmp_path / "train.json"
    path.write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}], '
        '"categories": [{"id": 3, "name": "car"}], '
        '"annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}]}'
    )
    done = installed("detcurate", "validate", path)
    assert done.returncode == 0, done.stderr
    assert "1 image" in done.stdout


def test_wheel_plans_a_run_of_a_packaged_config(installed):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")
    done = installed("detcurate", "run", "--config-file", "detcurate://quickstart.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "600" in done.stdout


def test_wheel_ships_configs_and_templates(installed):
    code = (
        "import importlib.resources as r; "
        "print(*(p.name for f in ('configs', 'report/templates') for p in (r.files('detcurate') / f).iterdir()))"
    )
    names = set(installed("python", "-c", code).stdout.split())
    expected = {
        path.name for folder in ("configs", "detcurate/report/templates") for path in (REPOSITORY / folder).iterdir()
    }
    assert expected - {"__pycache__"} <= names
