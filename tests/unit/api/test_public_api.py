"""The public API: what ``import detcurate`` gives."""

import subprocess
import sys

import pytest
from helpers import REPOSITORY

import detcurate
from detcurate import api, errors
from detcurate.version import __version__


@pytest.mark.parametrize("name", api.__all__)
def test_public_class_is_the_view_of_the_api(name):
    assert getattr(detcurate, name) is getattr(api, name)


def test_public_names_are_listed_and_others_are_missing():
    assert set(detcurate.__all__) == {*api.__all__, "DetcurateError", "__version__"}
    assert set(detcurate.__all__) <= set(dir(detcurate))
    assert (detcurate.DetcurateError, detcurate.__version__) == (errors.DetcurateError, __version__)
    with pytest.raises(AttributeError, match="Pol"):
        _ = detcurate.Pol


def test_import_detcurate_loads_no_other_package():
    code = "import sys; before = set(sys.modules); import detcurate; print(sorted(set(sys.modules) - before))"
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    loaded = {name.strip(" '[]\n").split(".")[0] for name in done.stdout.split(",")}
    assert loaded - sys.stdlib_module_names == {"detcurate"}
