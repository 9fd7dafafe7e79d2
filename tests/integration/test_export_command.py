"""The round trip to annotators: stage ``manifest``, ``detcurate export``, ``detcurate relabel apply``."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from helpers.export_content import curate_played_members, rendered_truth

from detcurate.coco.dataset import read_coco
from detcurate.interop.export.formats import FORMATS

KINDS = ("missing_label", "wrong_class", "inaccurate_box")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return curate_played_members(tmp_path_factory.mktemp("played"))


@pytest.fixture
def output(finished, tmp_path):
    """Copy the finished ``OUTPUT_DIR`` for one test."""
    return shutil.copytree(finished, tmp_path / "moved")


def queue(output):
    return json.loads((output / "manifest" / "relabel.json").read_text())


def again(finished, output, *arguments: object):
    return ["--config-file", finished.parent / "played.yaml", "--only", "manifest", "OUTPUT_DIR", output, *arguments]


def test_manifest_queue_lists_label_errors_of_objects_table(finished):
    value = queue(finished)
    table = pq.read_table(finished / "score" / "objects.parquet").to_pydict()
    above = [score for kind in KINDS for score in table[kind] if score]
    listed = [record["label_error_score"] for record in value["label_errors"]]
    assert listed == sorted(listed, reverse=True)
    assert set(listed) <= set(above)
    assert sum(value["relabel"]["found"].values()) == len(above)
    assert len(listed) == sum(value["relabel"]["listed"].values()) <= len(above)
    assert {record["kind"] for record in value["label_errors"]} == set(KINDS)
    assert {image["id"] for image in value["images"]} == {record["image_id"] for record in value["label_errors"]}
    selected = set(pq.read_table(finished / "select" / "selection.parquet")["image_id"].to_pylist())
    assert all(record["selected"] == (record["image_id"] in selected) for record in value["label_errors"])


def test_manifest_queue_highest_scores_are_planted_errors(finished):
    """Above 0.4 most wrong_class errors were planted, and the consensus has the true class."""
    wrong = json.loads((finished / "pool" / "train-defects.json").read_text())
    true_class = {found["annotation_id"]: found["true_category_id"] for found in wrong["wrong_class"]}
    strong = [record for record in queue(finished)["label_errors"] if record["label_error_score"] > 0.4]
    wrong_class = [record for record in strong if record["kind"] == "wrong_class"]
    assert len(wrong_class) >= 3
    right = sum(true_class.get(record["annotation_id"]) == record["category_id"] for record in wrong_class)
    assert right / len(wrong_class) > 0.7


def test_manifest_relabel_limit_bounds_queue(finished, output, done):
    everything = queue(output)["label_errors"]
    done(*again(finished, output, "CURATE.MANIFEST.RELABEL_LIMIT", 4))
    records = queue(output)["label_errors"]
    assert [{**record, "id": 0} for record in records] == [{**record, "id": 0} for record in everything[:4]]
    text = done(*again(finished, output, "CURATE.MANIFEST.RELABEL_LIMIT", 0))
    assert "suspected" not in text.splitlines()[-1]
    assert not (output / "manifest" / "relabel.json").exists()
    text = done(*again(finished, output, "CURATE.MANIFEST.COMPRESS", True, "CURATE.MANIFEST.RELABEL_LIMIT", 4))
    assert "relabel.json.gz" in text
    assert json.loads(done("export", "cvat", output, "-o", output / "to_cvat", "--json"))["label_errors"] == 4


@pytest.mark.parametrize("what", ["relabel", "subset"])
@pytest.mark.parametrize("name", FORMATS)
def test_export_every_format_of_queue_and_subset(output, tmp_path, done, name, what):
    found = json.loads(done("export", name, output, "-o", tmp_path / "out", "--what", what, "--json"))
    images = {"relabel": len(queue(output)["images"]), "subset": 13}
    assert found["images"] == images[what]
    assert found["label_errors"] > 0
    for path in found["files"]:
        assert (tmp_path / "out" / path.rpartition("/")[2]).is_file()
    if name == "yolo":
        parts = {"relabel": ["train"], "subset": ["train", "val"]}[what]
        counts = [len(list((tmp_path / "out" / "images" / part).iterdir())) for part in parts]
        assert counts == [images[what], 7][: len(parts)]


def test_relabel_apply_corrected_export_gives_true_labels(output, tmp_path, done):
    """A simulated annotator corrects the 10 images with the highest scores; the new pool has their true labels."""
    done("export", "fiftyone", output, "-o", tmp_path / "out", "--limit", 10)
    path = tmp_path / "out" / "labels.json"
    value = json.loads(path.read_text())
    reviewed = {image["id"] for image in value["images"]}
    truth = [found for found in rendered_truth(output) if found["image_id"] in reviewed]
    value["annotations"] = [
        {"id": number, "image_id": found["image_id"], "category_id": found["category_id"], "bbox": found["bbox"]}
        for number, found in enumerate(truth, start=1)
    ]
    path.write_text(json.dumps(value))
    done("relabel", "apply", path, output, "-o", tmp_path / "new.json")
    lineage = json.loads((tmp_path / "new.lineage.json").read_text())
    assert lineage["images"]["changed"] + lineage["images"]["confirmed"] == 10
    assert lineage["images"]["not_reviewed"] == 16
    assert min(lineage["boxes"][name] for name in ("changed", "added", "removed", "unchanged")) > 0
    new, old = json.loads((tmp_path / "new.json").read_text()), json.loads((output / "pool" / "train.json").read_text())

    def boxes(records, kept):
        return sorted(
            (r["image_id"], r["category_id"], *r["bbox"]) for r in records if (r["image_id"] in reviewed) == kept
        )

    assert boxes(new["annotations"], True) == boxes(truth, True)
    assert boxes(new["annotations"], False) == boxes(old["annotations"], False)
    read_coco(tmp_path / "new.json")


def test_export_and_relabel_apply_accept_config_file(output, tmp_path, done):
    config, arguments = output / "config.yaml", ("OUTPUT_DIR", output)
    done("export", "label-studio", "--config-file", config, "-o", tmp_path / "out", "--url", "s3://b/", *arguments)
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert tasks[0]["data"]["image"].startswith("s3://b/seq-")
    tasks_file, new = tmp_path / "out" / "tasks.json", tmp_path / "new.json"
    text = done("relabel", "apply", tasks_file, "--config-file", config, "-o", new, "--opts", *arguments, "--json")
    assert json.loads(text)["boxes"]["changed"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "cvat", "-o", "{new}"), "--config-file FILE"),
        (("export", "cvat", "{output}", "-o", "{output}"), "output"),
        (("export", "cvat", "{output}", "-o", "{new}", "--limit", "-1"), "limit"),
        (("relabel", "apply", "{new}", "{output}", "-o", "{new}.json"), "correction"),
        (("relabel", "apply", "{new}", "-o", "{new}.json"), "--config-file FILE"),
    ],
)
def test_export_unusable_arguments_exit_with_message(output, tmp_path, refused, arguments, message):
    names = {"output": output, "new": tmp_path / "new"}
    assert message in refused(*(argument.format(**names) for argument in arguments))
    assert not (tmp_path / "new").exists()


def test_export_run_without_queue_or_manifest_exits_with_message(output, tmp_path, refused):
    (output / "manifest" / "relabel.json").unlink()
    arguments = ("export", "cvat", output, "-o", tmp_path / "out")
    assert "manifest/relabel.json" in refused(*arguments)
    (output / "manifest" / "stage.json").unlink()
    assert "the stage 'manifest' has not finished" in refused(*arguments)
