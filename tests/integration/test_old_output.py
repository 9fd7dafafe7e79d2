# ruff: noqa: E402  Detectron2 may be missing, and is imported first
"""An OUTPUT_DIR written by version 0.1 is resumed, reported on and read by the commands of this version."""

import contextlib
import io
import json
import shutil
import tarfile

import pytest

pytest.importorskip("detectron2", reason="a run is resumed with real stages")

from helpers import REPOSITORY

from detcurate import legacy
from detcurate.cli import main
from detcurate.pipeline.object_table import ObjectsTable
from detcurate.pipeline.stage import read_stage_metadata
from detcurate.pipeline.tables import RemovedTable

ARCHIVE = REPOSITORY / "tests" / "data" / "output_0.1.tar.xz"
OLD_DIRECTORIES = {"train": "ensemble", "predict": "predictions", "score": "scores"}
OLD_DIRECTORIES |= {"select": "selection", "evaluate": "evaluation"}

# The config that wrote it, with the keys of version 0.1.
CONFIG = """
_BASE_: "{base}"
OUTPUT_DIR: "{output}"
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
SOLVER: {{MAX_ITER: 4, IMS_PER_BATCH: 2, WARMUP_ITERS: 0, CHECKPOINT_PERIOD: 1}}
TEST: {{DETECTIONS_PER_IMAGE: 12}}
MODEL:
  ROI_HEADS: {{SCORE_THRESH_TEST: 0.01}}
  TINY_RESNET: {{STEM_OUT_CHANNELS: 4, WIDTHS: [4, 6, 8, 10]}}
  FPN: {{OUT_CHANNELS: 4}}
  ROI_BOX_HEAD: {{FC_DIM: 8}}
CURATE:
  NUM_PROCESSES: 2
  RENDER: {{NUM_IMAGES: 14, NUM_EVALUATION_IMAGES: 5, WIDTH: 96, HEIGHT: 64}}
  ENSEMBLE: {{NUM_RUNS: 2, MEMBERS_PER_RUN: 2, LAST_FRACTION: 0.5, STORAGE: bf16}}
  PREDICT: {{SHARD_SIZE: 8, BATCH_SIZE: 3, EMBEDDINGS: true}}
  SELECT:
    FRACTION: 0.5
    CLASS_FLOORS: ["pedestrian=2"]
    CLASS_CAPS: ["bus=40"]
    GUARD: drop
    GUARD_QUANTILE: 0.9
    DUPLICATE_SIMILARITY: 0.9999
  MANIFEST: {{RELABEL_LIMIT: 30}}
  RETRAIN: {{NUM_SEEDS: 2}}
"""
OLD_KEYS = ("STORAGE", "CLASS_FLOORS", "CLASS_CAPS", "GUARD", "GUARD_QUANTILE")


def unpack(folder):
    """Return the config and the OUTPUT_DIR of version 0.1, without its report, caches and logs."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    config, output = folder / "tiny.yaml", folder / "output"
    config.write_text(CONFIG.format(base=REPOSITORY / "configs" / "Base-CPU-Tiny.yaml", output=output))
    return config, output


def contents(directory, pattern):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob(pattern)}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Config and OUTPUT_DIR as version 0.1 left them."""
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Config and OUTPUT_DIR after ``run`` has resumed it, and the lines that it printed."""
    config, output = unpack(tmp_path_factory.mktemp("resumed"))
    legacy.warn_renamed.cache_clear()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        assert main(["--config-file", str(config)]) == 0
    return config, output, printed.getvalue().splitlines()


def test_run_trains_and_predicts_nothing_again(old, resumed):
    _, output, messages = resumed
    for stage in ("pool", "train", "predict", "retrain", "evaluate"):
        assert any(message.startswith(f"{stage}: up to date") for message in messages), stage
    for pattern in ("*.safetensors", "shard-*.parquet", "figures.json"):
        before = contents(old[1], pattern)
        assert before
        assert contents(output, pattern) == before


def test_run_scores_again_for_new_columns(resumed):
    _, output, messages = resumed
    assert any(message.startswith("score: runs again") for message in messages)
    assert "consensus_class" in ObjectsTable.within(output / "scores").names()


def test_run_keeps_old_directories(resumed):
    _, output, _ = resumed
    for stage, name in OLD_DIRECTORIES.items():
        assert read_stage_metadata(output / name)["status"] == "complete", name
        assert not (output / stage).exists()


def test_run_warns_once_of_each_old_name(resumed):
    _, _, messages = resumed
    renamed = [message.split(" is now named ") for message in messages if " is now named " in message]
    names = [old_name for old_name, _ in renamed]
    assert len(set(names)) == len(names)
    for name in (*(f"{directory}/" for directory in OLD_DIRECTORIES.values()), *OLD_KEYS):
        assert any(old_name.removesuffix("/").endswith(name.removesuffix("/")) for old_name in names), name


def test_run_writes_same_manifest(old, resumed):
    for name in ("subset.json", "images.txt"):
        assert (resumed[1] / "manifest" / name).read_bytes() == (old[1] / "manifest" / name).read_bytes()


def test_run_writes_same_label_errors_by_new_names(old, resumed):
    before = json.loads((old[1] / "manifest" / "relabel.json").read_text())
    after = json.loads((resumed[1] / "manifest" / "relabel.json").read_text())
    kinds = legacy.COLUMNS
    expected = [
        {kinds.get(key, key): kinds.get(value, value) if key == "kind" else value for key, value in record.items()}
        for record in before["suspicions"]
    ]
    assert len(expected) == 30
    assert after["label_errors"] == expected
    assert after["relabel"]["found"] == {kinds[kind]: count for kind, count in before["relabel"]["found"].items()}


def test_run_again_is_up_to_date(resumed, capsys):
    config, _, _ = resumed
    assert main(["--config-file", str(config), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("up to date" in line for line in lines) == 9


@pytest.fixture
def untouched(old, tmp_path):
    """A copy of the OUTPUT_DIR of version 0.1, which no ``run`` has resumed."""
    output = tmp_path / "output"
    shutil.copytree(old[1], output)
    return output


def test_report_of_old_run_shows_every_stage(untouched):
    assert main(["report", str(untouched)]) == 0
    found = json.loads((untouched / "report" / "results.json").read_text())
    assert {stage["state"] for stage in found["stages"]} == {"complete"}
    assert found["missing"] == []
    assert found["selection"]["images"] == {"before": 14, "after": 7}
    assert set(found["arms"]["arms"]) == {"curated", "random", "full"}


def test_explain_of_old_run_uses_new_names(untouched, capsys):
    removed = RemovedTable.within(untouched / "selection").read()
    image_id = int(removed["image_id"][0])
    assert main(["explain", str(image_id), str(untouched), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["selection"]["reason"] == removed["reason"][0]
    assert {"missing_label", "wrong_class", "inaccurate_box"} <= set(found["scores"])
    assert any("wrong_class" in row["measures"] for row in found["objects"])


def test_manifest_verify_of_old_run_passes(untouched):
    assert main(["manifest", "verify", str(untouched / "manifest")]) == 0


def test_ensemble_list_of_old_run_shows_members(untouched, capsys):
    assert main(["ensemble", "list", str(untouched)]) == 0
    text = capsys.readouterr().out
    assert text.count("bf16") == 4
