"""Fixtures for tests of the commands."""

import json

import numpy as np
import pytest
from helpers.commands import coco

from detcurate.cli import main
from detcurate.coco.dataset import read_coco
from detcurate.io.files import sha256_json
from detcurate.manifest.write import build_provenance, write_manifest


@pytest.fixture
def write(tmp_path):
    def write_one(content, name="train.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_one


@pytest.fixture
def manifest(tmp_path, write):
    """Return a function that writes a manifest of the given image ids."""

    def write_one(*ids: int, name="manifest"):
        source = write(coco(), "train.json")
        settings = {"select": {"strategy": "random", "seed": 5}}
        dataset = read_coco(source)
        provenance = build_provenance(
            dataset=dataset,
            image_ids=np.array(ids),
            strategy="random",
            seed=5,
            requested_budget={"images": len(ids)},
            config_sha256=sha256_json(settings),
            members=[],
            scores_sha256="5" * 64,
            versions={},
        )
        write_manifest(tmp_path / name, dataset, np.array(ids), {**provenance, "settings": settings})
        return tmp_path / name

    return write_one


@pytest.fixture
def printed(capsys):
    """Return a function that runs a command and returns its exit status and its output."""

    def run(*words: object):
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out

    return run


@pytest.fixture
def rejected(capsys):
    """Return a function that runs a command, expects exit status 2, and returns the one message."""

    def run(*words: object):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            status = stop.code
        captured = capsys.readouterr()
        assert status == 2
        assert captured.out == ""
        assert "Traceback" not in captured.err
        *usage, message = captured.err.rstrip("\n").split("\n")
        assert all(line.startswith(("usage: ", " ")) for line in usage)
        return message

    return run
