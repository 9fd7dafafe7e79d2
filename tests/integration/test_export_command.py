"""From a run to the annotators and back: stage ``manifest``, ``detcurate export``, ``detcurate relabel apply``."""

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
    """An ``OUTPUT_DIR`` of this test's own, as someone would have moved it."""
    return shutil.copytree(finished, tmp_path / "moved")


def queue(output):
    return json.loads((output / "manifest" / "relabel.json").read_text())


def again(finished, output, *words: object):
    return ["--config-file", finished.parent / "played.yaml", "--only", "manifest", "OUTPUT_DIR", output, *words]


def test_the_manifest_has_the_suspicions_of_the_table_of_objects(finished):
    value = queue(finished)
    table = pq.read_table(finished / "score" / "objects.parquet").to_pydict()
    above = [score for kind in KINDS for score in table[kind] if score]
    listed = [record["label_error_score"] for record in value["errors"]]
    assert listed == sorted(listed, reverse=True)
    assert set(listed) <= set(above)
    assert sum(value["relabel"]["found"].values()) == len(above)
    assert len(listed) == sum(value["relabel"]["listed"].values()) <= len(above)
    assert {record["kind"] for record in value["errors"]} == set(KINDS)
    assert {image["id"] for image in value["images"]} == {record["image_id"] for record in value["errors"]}
    selected = set(pq.read_table(finished / "select" / "selection.parquet")["image_id"].to_pylist())
    assert all(record["selected"] == (record["image_id"] in selected) for record in value["errors"])


def test_the_worst_are_the_planted_errors(finished):
    """Above 0.4 nearly every wrong_class or misplaced label is one that the renderer spoiled, with the true class."""
    wrong = json.loads((finished / "pool" / "train-defects.json").read_text())
    true_class = {found["annotation_id"]: found["true_category_id"] for found in wrong["wrong_class"]}
    strong = [record for record in queue(finished)["errors"] if record["label_error_score"] > 0.4]
    wrong_class = [record for record in strong if record["kind"] == "wrong_class"]
    assert len(wrong_class) >= 3
    right = sum(true_class.get(record["annotation_id"]) == record["category_id"] for record in wrong_class)
    assert right / len(wrong_class) > 0.7


def test_the_limit_and_none(finished, output, done):
    everything = queue(output)["errors"]
    done(*again(finished, output, "CURATE.MANIFEST.RELABEL_LIMIT", 4))
    records = queue(output)["errors"]
    assert [{**record, "id": 0} for record in records] == [{**record, "id": 0} for record in everything[:4]]
    text = done(*again(finished, output, "CURATE.MANIFEST.RELABEL_LIMIT", 0))
    assert "suspected" not in text.splitlines()[-1]
    assert not (output / "manifest" / "relabel.json").exists()
    text = done(*again(finished, output, "CURATE.MANIFEST.COMPRESS", True, "CURATE.MANIFEST.RELABEL_LIMIT", 4))
    assert "4 possible label errors in relabel.json.gz" in text
    assert "4 suspected label errors" in done("export", "cvat", output, "-o", output / "to_cvat")


@pytest.mark.parametrize("what", ["relabel", "subset"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_both(output, tmp_path, done, name, what):
    found = json.loads(done("export", name, output, "-o", tmp_path / "out", "--what", what, "--json"))
    images = {"relabel": len(queue(output)["images"]), "subset": 13}
    assert found["images"] == images[what]
    assert found["errors"] > 0
    for path in found["files"]:
        assert (tmp_path / "out" / path.rpartition("/")[2]).is_file()
    if name == "yolo":
        parts = {"relabel": ["train"], "subset": ["train", "val"]}[what]
        counts = [len(list((tmp_path / "out" / "images" / part).iterdir())) for part in parts]
        assert counts == [images[what], 7][: len(parts)]


def test_there_and_back_mends_the_pool(output, tmp_path, done):
    """A made-up annotator sets the images of the 10 worst images right; the new pool has their true labels."""
    done("export", "fiftyone", output, "-o", tmp_path / "out", "--limit", 10)
    path = tmp_path / "out" / "labels.json"
    value = json.loads(path.read_text())
    looked_at = {image["id"] for image in value["images"]}
    truth = [found for found in rendered_truth(output) if found["image_id"] in looked_at]
    value["annotations"] = [
        {"id": number, "image_id": found["image_id"], "category_id": found["category_id"], "bbox": found["bbox"]}
        for number, found in enumerate(truth, start=1)
    ]
    path.write_text(json.dumps(value))
    text = done("relabel", "apply", path, output, "-o", tmp_path / "new.json")
    assert "16 not reviewed" in text
    lineage = json.loads((tmp_path / "new.lineage.json").read_text())
    assert lineage["images"]["changed"] + lineage["images"]["confirmed"] == 10
    assert min(lineage["boxes"][name] for name in ("changed", "added", "removed", "unchanged")) > 0
    new, old = json.loads((tmp_path / "new.json").read_text()), json.loads((output / "pool" / "train.json").read_text())

    def boxes(records, kept):
        return sorted(
            (r["image_id"], r["category_id"], *r["bbox"]) for r in records if (r["image_id"] in looked_at) == kept
        )

    assert boxes(new["annotations"], True) == boxes(truth, True)
    assert boxes(new["annotations"], False) == boxes(old["annotations"], False)
    read_coco(tmp_path / "new.json")


def test_a_config_names_the_run_too(output, tmp_path, done):
    config, words = output / "config.yaml", ("OUTPUT_DIR", output)
    done("export", "label-studio", "--config-file", config, "-o", tmp_path / "out", "--url", "s3://b/", *words)
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert tasks[0]["data"]["image"].startswith("s3://b/seq-")
    tasks_file, new = tmp_path / "out" / "tasks.json", tmp_path / "new.json"
    text = done("relabel", "apply", tasks_file, "--config-file", config, "-o", new, "--opts", *words, "--json")
    assert json.loads(text)["boxes"]["changed"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "cvat", "-o", "{new}"), "--config-file FILE"),
        (("export", "cvat", "{output}", "-o", "{output}"), "the output must be a folder that is absent or empty"),
        (
            ("export", "cvat", "{output}", "-o", "{new}", "--limit", "-1"),
            "--limit: must be an integer of at least 0",
        ),
        (("relabel", "apply", "{new}", "{output}", "-o", "{new}.json"), "the correction cannot be read"),
        (("relabel", "apply", "{new}", "-o", "{new}.json"), "--config-file FILE"),
    ],
)
def test_what_is_refused(output, tmp_path, refused, words, message):
    names = {"output": output, "new": tmp_path / "new"}
    assert message in refused(*(word.format(**names) for word in words))
    assert not (tmp_path / "new").exists()


def test_a_run_without_a_manifest_or_a_queue(output, tmp_path, refused):
    (output / "manifest" / "relabel.json").unlink()
    words = ("export", "cvat", output, "-o", tmp_path / "out")
    assert "manifest/relabel.json is missing" in refused(*words)
    (output / "manifest" / "stage.json").unlink()
    assert "the stage 'manifest' has not finished" in refused(*words)
