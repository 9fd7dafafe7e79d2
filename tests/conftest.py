"""Fixtures for every test module."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The folder of the CamVid frames (train.json, val.json, images/), or a skip where this machine has none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"
    folder = Path(os.environ.get("DETCURATE_CAMVID", beside))
    if not (folder / "train.json").is_file():
        pytest.skip("no CamVid frames here; set DETCURATE_CAMVID to the folder that holds train.json")
    return folder
