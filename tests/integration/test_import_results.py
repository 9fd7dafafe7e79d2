"""Import of results files of any detector, up to a manifest that verifies, without torch."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import REPOSITORY

from detcurate.cli import main
from detcurate.cli.imports import parse_members
from detcurate.coco.dataset import read_coco
from detcurate.config.declaration import has_detectron2
from detcurate.errors import ConfigError
from detcurate.io.files import sha256_file
from detcurate.predictions.store import read_members, read_predictions
from detcurate.structures.boxes import xyxy_to_xywh

NUM_IMAGES, CATEGORIES = 7, (2, 5, 9)


@pytest.fixture
def pool(tmp_path):
    """Write a pool of 7 images, the last one broken; return config file, OUTPUT_DIR and folder of the data."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    images = []
    for number in range(NUM_IMAGES):
        name = f"{number + 1:04d}.png"
        cv2.imwrite(str(root / "images" / name), rng.integers(0, 255, (40, 64, 3), np.uint8))
        images.append({"id": 10 + 3 * number, "file_name": name, "width": 64, "height": 40})
    (root / "images" / name).write_bytes(b"broken")
    annotations = [
        {"id": n, "image_id": images[n % 5]["id"], "category_id": CATEGORIES[n % 3], "bbox": [4.0 + n, 6.0, 20.0, 12.0]}
        for n in range(11)
    ]
    categories = [{"id": id_, "name": f"class-{id_}"} for id_ in CATEGORIES]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / "train.json").write_text(json.dumps(coco))
    (root / "val.json").write_text(json.dumps({**coco, "images": images[:2], "annotations": []}))
    config, output = tmp_path / "any.yaml", tmp_path / "output"
    config.write_text(
        f"""
OUTPUT_DIR: "{output}"
DATASETS: {{ROOT: "{root}"}}
CURATE:
  NUM_PROCESSES: 1
  POOL: {{BAD_IMAGES: quarantine}}
  PREDICT: {{SHARD_SIZE: 4}}
"""
    )
    return config, output, root


def write_results(root, number, **changes: object):
    """Write the predictions of one checkpoint: the labels, moved at random, more for a higher number."""
    rng = np.random.default_rng(number)
    labels = json.loads((root / "train.json").read_text())["annotations"]
    records = [
        {
            "image_id": label["image_id"],
            "category_id": label["category_id"],
            "bbox": [side + float(rng.normal(0, 1 + number)) for side in label["bbox"]],
            "score": float(rng.uniform(0.1, 1)),
            **changes,
        }
        for label in labels
        if rng.random() < 0.8
    ]
    path = root / f"epoch{number}.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def three(pool):
    """Return the arguments that import three members as ``yolo``."""
    config, _, root = pool
    members = [argument for number in range(3) for argument in ("--member", str(write_results(root, number)))]
    return ["import", "yolo", "--config-file", str(config), *members]


def curate(config, *more: object):
    return ["--config-file", config, "--until", "manifest", "CURATE.PREDICT.RESULTS", "yolo", *more]


def num_members(output):
    """Return the number of members in the provenance of the manifest."""
    return len(json.loads((output / "manifest" / "provenance.json").read_text())["ensemble"])


def test_import_three_members_gives_verified_manifest(pool, three, done):
    config, output, root = pool
    assert "CURATE.PREDICT.RESULTS yolo" in done(*three)
    done(*curate(config))
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    assert [(m["run"], m["iteration"], m["results"], m["sha256"]) for m in provenance["ensemble"]] == [
        (0, number, f"epoch{number}.json", sha256_file(root / f"epoch{number}.json")) for number in range(3)
    ]
    assert provenance["settings"]["predict"]["import-results"]["score_threshold"] == 0.05
    assert str(root) not in json.dumps([provenance["ensemble"], provenance["settings"]])
    checks = json.loads(done("manifest", "verify", output / "manifest", "--json"))
    assert {check["status"] for check in checks} == {"ok"}, checks
    assert len(read_coco(output / "manifest" / "subset.json")) == 3
    assert done(*curate(config)).count("up to date") == 6
    assert "results" in done("ensemble", "list", output)
    trajectories = pq.read_table(output / "score" / "objects.parquet").column_names
    assert "forgetting" in trajectories


def test_member_index_without_lines_is_damaged(pool, three, done, refused):
    config, output, _ = pool
    done(*three)
    done(*curate(config))
    member_index = output / "train" / "ensemble.jsonl"
    lines = member_index.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    member_index.write_text("".join(lines[:2]))
    message = refused("ensemble", "list", output)
    assert str(member_index) in message
    assert "damaged" in message


def test_rank_imported_predictions_exits_with_message(pool, three, done, refused):
    config, _, root = pool
    done(*three)
    done(*curate(config))
    assert "imported predictions" in refused("rank", root / "train.json", "--config-file", config)


def test_import_and_curate_run_without_torch_and_detectron2(pool, three, tmp_path):
    config, output, _ = pool
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_WITHOUT_TORCH)
    path = os.pathsep.join((str(tmp_path / "site"), str(REPOSITORY)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def curate_py(*arguments: object) -> subprocess.CompletedProcess:
        return run("-W", "error", REPOSITORY / "tools" / "curate.py", *arguments)

    for name in ("torch", "torchvision", "detectron2"):
        assert f"No module named '{name}'" in run("-c", f"import {name}").stderr
    for arguments in (three, curate(config), ("manifest", "verify", output / "manifest")):
        finished = curate_py(*arguments)
        assert finished.returncode == 0, finished.stderr
    assert "failed" not in finished.stdout
    refused = curate_py("--config-file", config, "CURATE.PREDICT.RESULTS", "yolo")
    assert refused.returncode == 2
    assert "'retrain'" in refused.stderr
    assert "Detectron2" in refused.stderr


_WITHOUT_TORCH = '''
import sys


class Without:
    """A finder that does not find torch, for find_spec and for import."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "detectron2"):
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
'''


@pytest.mark.skipif(not has_detectron2(), reason="Detectron2 is not installed: `make setup` installs it")
def test_import_predictions_of_detectron2_run_give_equal_scores(write_tiny_config, tmp_path, done):
    for name in ("detectron2", "imported"):
        (tmp_path / name).mkdir()
    config, whole = write_tiny_config(tmp_path / "detectron2")
    done("--config-file", config, "--until", "score")
    members = read_members(whole / "predict")
    dataset = read_coco(whole / "pool" / "train.json")
    arguments = []
    for number, name in enumerate(members):
        run, iteration = (int(part.split("-")[1].split(".")[0]) for part in name.split("@")[0].split("/"))
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(export(read_predictions(whole / "predict", members), number, dataset)))
        arguments += ["--member", f"{path}@{run}:{iteration}"]
    config, output = write_tiny_config(tmp_path / "imported")
    keep_all = ["--score-floor", "0", "--max-per-image", "0"]
    done("import", "same", "--config-file", config, *keep_all, *arguments)
    done("--config-file", config, "--until", "score", "CURATE.PREDICT.RESULTS", "same")
    for name in ("images.parquet", "objects.parquet"):
        expected, found = (pq.read_table(folder / "score" / name) for folder in (whole, output))
        assert found.equals(expected), name
    assert expected.num_rows > 0


def export(shards, member, dataset):
    """Return one member's detections as the records of a results file."""
    records = []
    for detections, _ in shards:
        mine = detections.take(detections.member == member)
        boxes = xyxy_to_xywh(mine.boxes.astype(np.float64)).tolist()
        for row, box in enumerate(boxes):
            records.append(
                {
                    "image_id": int(mine.image_ids[row]),
                    "category_id": int(dataset.category_ids[mine.class_index[row]]),
                    "bbox": box,
                    "score": float(mine.scores[row]),
                    "class_probs": mine.class_probs[row].tolist(),
                }
            )
    return records


def test_import_same_name_replaces_import_and_keeps_unchanged_members(pool, three, done, refused):
    config, output, root = pool
    done(*three)
    imported = output / "imported" / "yolo"
    before = (imported / "import.json").read_bytes()
    folders = sorted(path.name for path in imported.iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in imported.glob("*/*.parquet")}
    bad = write_results(root, 3, score=7)
    assert "epoch3.json" in refused(*three, "--member", bad)
    assert (imported / "import.json").read_bytes() == before
    assert sorted(path.name for path in imported.iterdir()) == folders
    text = done(*three, "--member", write_results(root, 3))
    assert text.count(": unchanged, ") == 3
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    done(*curate(config))
    assert num_members(output) == 4
    done(*three[:6], "--member", root / "epoch3.json")
    assert len(list(imported.glob("*/results.json"))) == 2
    text = done(*curate(config))
    assert "train: runs again" in text
    assert num_members(output) == 2


def test_predict_pool_unlike_import_exits_with_message(pool, three, done, refused):
    config, output, root = pool
    assert "CURATE.PREDICT.RESULTS" in refused(*curate(config))
    done(*three)
    message = refused(*curate(config, "CURATE.PREDICT.RESULTS", "yoda"))
    assert str(output) in message
    assert "yolo" in message
    assert "'yoda'" in message
    message = refused(*curate(config, "CURATE.PREDICT.SHARD_SIZE", "3"))
    assert "CURATE.PREDICT.SHARD_SIZE" in message
    coco = json.loads((root / "train.json").read_text())
    coco["annotations"].pop()
    (root / "train.json").write_text(json.dumps(coco))
    done(*curate(config))  # labels may change, images may not
    assert num_members(output) == 3
    coco["images"][0]["id"] = 1
    coco["annotations"] = []
    (root / "train.json").write_text(json.dumps(coco))
    assert str(output / "imported" / "yolo") in refused(*curate(config))


def test_import_ignored_records_are_counted(pool, three, done):
    config, _, root = pool
    records = [
        {"image_id": 28, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.9},
        {"image_id": 10, "category_id": 9, "bbox": [1, 2, 0, 4], "score": 0.9},
        {"image_id": 10, "category_id": 9, "bbox": [-9, 2, 99, 4], "score": 0.9},
    ]
    (root / "r.json").write_text(json.dumps(records))
    text = done("import", "x", "--config-file", config, "--member", root / "r.json")
    assert "1 of 3 detections" in text
    assert "1 without area, 1 on quarantined images" in text
    assert "more than half of the boxes" in text


def test_import_ultralytics_names_need_keys(pool, done, refused):
    config, _, root = pool
    record = {"image_id": 2, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.9}
    (root / "predictions.json").write_text(json.dumps([record]))
    arguments = ["import", "x", "--config-file", config, "--member", root / "predictions.json"]
    message = refused(*arguments)
    assert "--image-key stem" in message
    assert "--category-key from-0 or from-1" in message
    text = done(*arguments, "--image-key", "stem", "--category-key", "from-0", "--json")
    (member,) = json.loads(text[text.index("{\n") :])["members"]
    assert (member["counts"]["kept"], member["file"]) == (1, "run-0/iter-0000000/predictions.json")


def test_import_empty_file_fits_files_of_any_form(pool, done):
    config, output, root = pool
    (root / "empty.json").write_text("[]")
    probs = write_results(root, 1, class_probs=[0.5, 0.25, 0.125])
    arguments = ["import", "yolo", "--config-file", config, "--member", root / "empty.json", "--member", probs]
    assert "0 of 0 detections" in done(*arguments)
    done(*curate(config))
    shard = next(iter(read_predictions(output / "predict", read_members(output / "predict"))))[0]
    assert shard.posterior_form == "sigmoid"
    assert set(shard.member.tolist()) == {1}
    assert done(*arguments).count(": unchanged, ") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--score-floor", "1.5"), "1.5"),
        (("--max-per-image", "-1"), "-1"),
        (("--member", "{root}/absent.json"), "{root}/absent.json"),
        (("--member", "{root}/copy.json"), "{root}/epoch1.json and {root}/copy.json"),
        (("--member", "s3://me:pa55word@bucket/a.json"), "s3://"),
        (("--member", "{root}/copy.json@0:1"), "FILE@RUN:ITERATION"),
        (("--member", "{root}/train.json"), "an object with the keys images, annotations, categories"),
        (("--member", "{root}/probs.json"), "{root}/epoch0.json"),
        (("CURATE.PREDICT.EMBEDDINGS", "True"), "CURATE.PREDICT.EMBEDDINGS: "),
    ],
)
def test_import_unusable_arguments_exit_with_message(pool, three, refused, arguments, message):
    _, output, root = pool
    shutil.copy(root / "epoch1.json", root / "copy.json")
    write_results(root, 4, class_probs=[0.25, 0.25, 0.25, 0.25]).rename(root / "probs.json")
    assert message.format(root=root) in refused(*three, *(argument.format(root=root) for argument in arguments))
    assert not (output / "imported").exists() or not list((output / "imported").iterdir())


@pytest.mark.parametrize("name", ["../x", "a b", ".hidden", ""])
def test_import_unusable_name_exits_with_message(pool, three, refused, name):
    message = refused(three[0], name, *three[2:])
    assert "name" in message.lower()
    assert name in message


def test_import_repeated_checkpoint_exits_with_message(pool, three, refused):
    arguments = [f"{argument}@1:500" if argument.endswith(".json") else argument for argument in three]
    assert "run 1, iteration 500" in refused(*arguments)


def test_parse_members_runs_and_iterations():
    files = parse_members(["a@2x.json@1:500", "b.json@0:7"])
    assert [(file.path.name, file.run, file.iteration) for file in files] == [("a@2x.json", 1, 500), ("b.json", 0, 7)]
    assert [(file.run, file.iteration) for file in parse_members(["a@2x.json", "b.json"])] == [(0, 0), (0, 1)]
    with pytest.raises(ConfigError, match=r"a\.json"):
        parse_members(["a.json", "b.json@0:7"])


def test_import_keeps_ensemble_of_detectron2(pool, three, refused):
    _, output, _ = pool
    (output / "train").mkdir(parents=True)
    stage_metadata = {"status": "complete", "digest": "", "settings": {"CURATE.ENSEMBLE": {"num_runs": 2}}}
    (output / "train" / "stage.json").write_text(json.dumps(stage_metadata))
    assert str(output) in refused(*three)
    assert (output / "train" / "stage.json").exists()


def test_fresh_run_keeps_import_in_use(pool, three, done):
    config, output, _ = pool
    done(*three)
    done(*curate(config, "--fresh"))
    assert (output / "manifest" / "subset.json").exists()
    done("--config-file", config, "--until", "pool", "--fresh")
    assert not (output / "imported").exists()


def test_dry_run_names_import(pool, three, done):
    config, output, _ = pool
    done(*three)
    text = done(*curate(config, "--dry-run"))
    assert "3 members" in text
    assert "yolo" in text
    assert not (output / "train").exists()


def test_predict_damaged_copy_exits_with_message(pool, three, done, refused):
    config, output, _ = pool
    done(*three)
    next(iter((output / "imported" / "yolo").glob("*/results.json"))).write_text("[]")
    assert str(output / "imported" / "yolo") in refused(*curate(config))


def test_import_help_names_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["import", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in ("FILE[@RUN:ITERATION]", "--score-floor", "class_probs", "CURATE.PREDICT.RESULTS", "--image-key stem"):
        assert part in text
    assert "{{" not in text
