"""The stage ``report`` and ``detcurate report``: of a finished run, and of runs that something is wrong with."""

import csv
import errno
import html
import json
import os
import re
import shutil
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import REPOSITORY
from helpers.reported import CLASSES, IMAGES, digest, finish, results_of, write_run

from detcurate.cli import main
from detcurate.evaluate.coco_eval import FIGURES
from detcurate.pipeline import Run
from detcurate.pipeline.report_inputs import stage_states
from detcurate.pipeline.runner import STAGES
from detcurate.pipeline.stage import read_stage_metadata

DOCUMENT = REPOSITORY / "docs" / "explanation" / "report.md"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with minimum quotas and near-duplicates, and its report."""
    folder = tmp_path_factory.mktemp("finished")
    options = ("CURATE.SELECT.EMPTY_MINIMUM", 1, "CURATE.SELECT.CLASS_MINIMUMS", "('cyclist=4',)")
    config, output = write_run(folder, select=(*options, "CURATE.SELECT.DUPLICATE_SIMILARITY", 0.9))
    assert main(["report", str(output)]) == 0
    return config, output


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that run's OUTPUT_DIR, to be damaged."""
    output = tmp_path / "output"
    shutil.copytree(finished[1], output)
    return output


def page_of(output):
    return (output / "report" / "index.html").read_text()


def stage_of(output, name):
    return next(stage for stage in results_of(output)["stages"] if stage["name"] == name)


def interrupt(output, *directories: str):
    for directory in directories:
        stage_metadata = read_stage_metadata(output / directory)
        (output / directory / "stage.json").write_text(json.dumps({**stage_metadata, "status": "started"}))


class TestFinished:
    def test_report_writes_page_results_summary_and_data(self, finished):
        _, output = finished
        files = {path.relative_to(output / "report").as_posix() for path in (output / "report").rglob("*.*")}
        assert {"index.html", "results.json", "summary.md", "data/ap.csv", "data/scores.csv"} <= files
        assert set(read_stage_metadata(output / "report")["outputs"]) == {
            file for file in files if file != "stage.json"
        }  # fmt: skip

    def test_page_links_data_of_every_figure_and_table(self, finished):
        _, output = finished
        page = page_of(output)
        named = set(re.findall(r'href="(data/[^"]+\.csv)"', page))
        assert len(named) >= page.count("<figure ")
        assert named == {f"data/{path.name}" for path in (output / "report" / "data").iterdir()}
        with (output / "report" / "data" / "classes.csv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert {row["class"] for row in rows} == set(CLASSES)

    def test_page_is_self_contained(self, finished):
        _, output = finished
        page = page_of(output)
        assert not re.findall(r'(?:src|href)="(?!data[:/]|#)[^"]*"', page)
        assert "@import" not in page
        assert not re.findall(r"url\((?!#)", page)
        assert len(page) < 15_000_000

    def test_results_match_documented_schema(self, finished):
        _, output = finished
        found = results_of(output)
        documented = re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text().partition("## results.json")[2], re.MULTILINE)
        assert set(documented) == set(found)
        assert found["version"] == 2
        assert found["verdict"]["claims"][0]["other"] == "full"
        assert set(found["arms"]["differences"]) == {"curated - random", "curated - full"}
        assert {(row["arm"], row["seed"]) for row in found["models"]} == {
            (arm, seed) for arm in ("curated", "random", "full") for seed in (0, 1)
        }
        assert found["selection"]["images"]["before"] == IMAGES
        assert sum(row["images"] for row in found["selection"]["reasons"]) == IMAGES
        assert found["missing"] == []

    def test_results_reasons_equal_those_of_select(self, finished):
        _, output = finished
        facts = read_stage_metadata(output / "select")["facts"]
        expected = {("selected", *pair) for pair in map(tuple, facts["selected"])}
        expected |= {("removed", *pair) for pair in map(tuple, facts["removed"])}
        rows = results_of(output)["selection"]["reasons"]
        assert {(row["decision"], row["reason"], row["images"]) for row in rows} == expected

    def test_summary_begins_with_verdict(self, finished):
        _, output = finished
        lines = (output / "report" / "summary.md").read_text().splitlines()
        assert lines[:3] == ["# Results of the subset", "", f"**{results_of(output)['verdict']['headline']}**"]
        assert any(line.startswith("| curated |") for line in lines)

    def test_report_of_same_run_has_same_bytes(self, finished, tmp_path):
        _, output = finished
        for name in ("a", "b"):
            assert main(["report", str(output), "--to", str(tmp_path / name)]) == 0
        for file in ("index.html", "results.json", "data/scores.csv"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    def test_report_command_and_stage_write_same_page(self, finished, capsys):
        config, output = finished
        before = page_of(output)
        assert main(["report", "--config-file", str(config)]) == 0
        assert main(["--config-file", str(config), "--only", "report"]) == 0
        assert "report:   " + str(output / "report" / "index.html") in capsys.readouterr().out
        assert re.sub(r"<pre>.*</pre>", "", page_of(output), flags=re.DOTALL) == re.sub(
            r"<pre>.*</pre>", "", before, flags=re.DOTALL
        )

    def test_tensorboard_reads_figures_of_every_seed(self, finished):
        pytest.importorskip("detectron2", reason="Detectron2's writer writes them")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        _, output = finished
        models = [model for model in results_of(output)["models"] if model["arm"] == "random"]
        read = EventAccumulator(str(output / "report" / "tensorboard" / "random"))
        read.Reload()
        assert [(event.step, event.value) for event in read.Scalars("AP")] == [
            (model["seed"], pytest.approx(model["figures"]["AP"], abs=1e-4)) for model in models
        ]
        assert f"AP of class/{CLASSES[0]}" in read.Tags()["scalars"]
        assert read.Scalars("cost/num_images")[0].value == models[0]["num_images"]


class TestUnfinished:
    def test_report_after_any_stage_succeeds(self, finished, copied):
        for last in ("evaluate", "retrain", "manifest", "select", "score", "predict", "train"):
            interrupt(copied, last)
            assert main(["report", str(copied)]) == 0
        found = results_of(copied)
        assert [stage["state"] for stage in found["stages"]][:2] == ["complete", "interrupted"]
        assert found["arms"] == {"arms": {}, "differences": {}}
        assert found["selection"] is None
        assert found["models"] == []
        page = page_of(copied)
        assert "This run is not finished." in page
        assert "the pool has not been scored yet" in page
        assert "- not finished: the stage train is interrupted" in (copied / "report" / "summary.md").read_text()

    def test_report_without_arms_shows_selection(self, copied):
        for directory in ("evaluate", "retrain"):
            shutil.rmtree(copied / directory)
        assert main(["report", str(copied)]) == 0
        assert results_of(copied)["verdict"]["kind"] == "none"
        assert results_of(copied)["selection"]["images"]["after"] > 0
        assert stage_of(copied, "evaluate")["state"] == "absent"
        assert not (copied / "report" / "data" / "ap.csv").exists()  # of the report before

    def test_report_omits_figures_of_earlier_selection(self, finished, copied):
        config, _ = finished
        words = ["--config-file", str(config), "OUTPUT_DIR", str(copied), "CURATE.SELECT.NUM_IMAGES", "5"]
        assert main([*words, "--only", "select"]) == 0
        assert main([*words, "--only", "report"]) == 0
        assert results_of(copied)["selection"]["images"]["after"] == 5
        for name in ("manifest", "retrain", "evaluate"):
            assert stage_of(copied, name)["state"] == "outdated", name
        assert results_of(copied)["models"] == []

    def test_report_without_predictions_keeps_later_stages(self, copied):
        shutil.rmtree(copied / "predict")
        assert main(["report", str(copied)]) == 0
        states = {stage["name"]: stage["state"] for stage in results_of(copied)["stages"]}
        assert (states["predict"], states["score"], states["evaluate"]) == ("absent", "complete", "complete")

    def test_report_missing_output_makes_stage_interrupted(self, copied):
        (copied / "evaluate" / "figures.json").unlink()
        assert main(["report", str(copied)]) == 0
        assert stage_of(copied, "evaluate") == {
            "name": "evaluate",
            "state": "interrupted",
            "note": "evaluate/figures.json is missing",
        }

    def test_report_damaged_table_is_named_and_rest_shown(self, copied):
        path = copied / "score" / "images.parquet"
        path.write_bytes(path.read_bytes()[:200])
        assert main(["report", str(copied)]) == 0
        notes = {stage["name"]: stage["note"] for stage in results_of(copied)["stages"]}
        assert notes["score"] == "score/images.parquet is damaged"
        assert "'score' has changed" in notes["select"]

    def test_report_changed_annotation_file_is_named(self, finished, copied, tmp_path):
        config, _ = finished
        data = tmp_path / "data"
        shutil.copytree(config.parent / "data", data)
        (data / "train.json").write_text((data / "train.json").read_text() + "\n")
        words = ["OUTPUT_DIR", str(copied), "DATASETS.ROOT", str(data)]
        assert main(["report", "--config-file", str(config), *words]) == 0
        [sentence] = results_of(copied)["missing"]
        assert str(data / "train.json") in sentence

    def test_report_before_pool_refused(self, finished, tmp_path, refused):
        config, _ = finished
        message = refused("report", "--config-file", config, "OUTPUT_DIR", tmp_path / "new")
        assert "the stage 'pool' has not finished" in message

    def test_report_of_no_run_names_folder(self, refused, tmp_path):
        for folder in (tmp_path, tmp_path / "none"):
            message = refused("report", folder)
            assert str(folder) in message
            assert "--config-file FILE" in message

    def test_stage_states_cover_every_stage_but_report(self, finished):
        from detcurate.config.declaration import load_config

        config, output = finished
        states = stage_states(Run(load_config(config), config))
        assert [stage.name for stage in states] == list(STAGES)[:-1]
        assert {stage.state for stage in states} == {"complete"}


class TestBadInput:
    def test_report_missing_image_is_replaced_by_reason(self, finished, tmp_path):
        config, output = finished
        data = tmp_path / "data"
        shutil.copytree(config.parent / "data", data)
        shown = {entry["image"] for gallery in results_of(output)["galleries"] for entry in gallery["shown"]}
        name = f"{int(min(shown, key=int)) - 1:03d}.png"
        (data / "images" / name).unlink()
        words = ["DATASETS.ROOT", str(data), "OUTPUT_DIR", str(output)]
        assert main(["report", "--config-file", str(config), *words, "--to", str(tmp_path / "to")]) == 0
        page = (tmp_path / "to" / "index.html").read_text()
        assert '<span class="absent">the file is missing</span>' in page
        missing = json.loads((tmp_path / "to" / "results.json").read_text())["missing"]
        assert missing == [f"1 image of the galleries cannot be shown: {name}, the file is missing"]
        assert missing[0] in page

    def test_report_without_objects_has_galleries(self, copied):
        """The mode dense has no objects, no boxes of members and no label-error scores."""
        scores = copied / "score"
        table = pq.read_table(scores / "images.parquet")
        pq.write_table(
            table.drop_columns(["missing_label", "wrong_class", "inaccurate_box"]), scores / "images.parquet"
        )
        (scores / "objects.parquet").unlink()
        stage_metadata = read_stage_metadata(scores)
        finish(scores, "images.parquet", inputs=stage_metadata["inputs"], settings=stage_metadata["settings"])
        shutil.rmtree(copied / "predict")
        assert main(["report", str(copied)]) == 0
        found = results_of(copied)
        assert found["missing"] == []
        assert [gallery["name"] for gallery in found["galleries"]][:2] == ["most"]
        assert stage_of(copied, "select")["state"] == "outdated"  # it was made from the scores before

    def test_report_stopped_selection_names_reason(self, tmp_path):
        config, output = write_run(tmp_path, evaluated=False)
        nothing = ["CURATE.SELECT.STRATEGY", "threshold", "CURATE.SELECT.THRESHOLD", "99"]
        assert main(["--config-file", str(config), "--only", "select", *nothing]) == 2
        assert main(["report", str(output)]) == 0
        note = stage_of(output, "select")["note"]
        assert note.startswith("stopped before its end: ")
        assert note in html.unescape(page_of(output))

    def test_report_of_empty_selection_succeeds(self, tmp_path):
        _, output = write_run(tmp_path, evaluated=False)
        selection = output / "select"
        taken, gone = (pq.read_table(selection / f"{name}.parquet") for name in ("selection", "removed"))
        ids = pa.concat_arrays([taken["image_id"].combine_chunks(), gone["image_id"].combine_chunks()])
        pq.write_table(taken.slice(0, 0), selection / "selection.parquet")
        columns = {"image_id": ids, "image_score": pa.array([0.5] * IMAGES), "reason": pa.array(["budget"] * IMAGES)}
        columns["replaced_by"] = pa.array([None] * IMAGES, pa.int64())
        pq.write_table(pa.table(columns), selection / "removed.parquet")
        inputs = {name: digest(output / folder) for name, folder in (("pool", "pool"), ("score", "score"))}
        finish(selection, "selection.parquet", "removed.parquet", inputs=inputs)
        assert main(["report", str(output)]) == 0
        found = results_of(output)
        assert found["missing"] == []
        assert found["selection"]["images"] == {"before": IMAGES, "after": 0}
        assert stage_of(output, "manifest")["state"] == "absent"
        assert "No image was selected" in page_of(output)

    def test_report_of_one_class_and_one_seed_has_no_interval(self, tmp_path):
        _, output = write_run(tmp_path, classes=("car",), seeds=1)
        assert main(["report", str(output)]) == 0
        found = results_of(output)
        assert found["verdict"]["kind"] == "no_interval"
        assert found["verdict"]["claims"][0]["interval_seeds"] is None
        page = page_of(output)
        assert "with one seed" in page
        assert 'id="figure-class-ap"' not in page  # there is nothing to compare

    def test_report_escapes_class_and_file_names(self, tmp_path):
        names = ("<script>alert(1)</script>", "سيارة أجرة", "日本語の車", "$x^2$ & \"q\" 'r'")
        _, output = write_run(tmp_path, classes=names, file_name="<b>{:03d}</b>.png")
        assert main(["report", str(output)]) == 0
        page = page_of(output)
        assert "<script>alert" not in page
        assert "<b>0" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "<bdi>سيارة أجرة</bdi>" in page
        assert set(results_of(output)["histograms"]["classes"]) == set(names)
        assert all(name in (output / "report" / "data" / "classes.csv").read_text("utf-8") for name in names[:3])

    def test_report_to_read_only_folder_refused(self, finished, tmp_path, refused, monkeypatch):
        _, output = finished

        def read_only(*arguments: object, **options: object):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(output / "report"))

        monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
        message = refused("report", output)
        assert "not writable (Read-only file system)" in message
        assert "--to DIR" in message

    def test_report_stage_in_read_only_folder_refused(self, finished, copied, refused, monkeypatch):
        config, _ = finished
        shutil.rmtree(copied / "report")

        def read_only(*arguments: object, **options: object):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(copied))

        monkeypatch.setattr("detcurate.io.files.temporary_beside", read_only)
        message = refused("--config-file", config, "OUTPUT_DIR", copied, "--only", "report")
        assert "Read-only file system" in message
        assert not (copied / "report").exists() or not list((copied / "report").iterdir())

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_report_checks_permissions_first(self, copied, refused):
        shutil.rmtree(copied / "report")
        copied.chmod(0o555)
        try:
            assert "Permission denied" in refused("report", copied)
        finally:
            copied.chmod(0o755)


def test_report_of_undefined_figures_succeeds(copied):
    """COCO's figures are None where no label is of a size."""
    rows = json.loads((copied / "evaluate" / "figures.json").read_text())
    for row in rows:
        row["figures"] |= dict.fromkeys(FIGURES)
        row["figures"]["per_class"] = dict.fromkeys(row["figures"]["per_class"])
    (copied / "evaluate" / "figures.json").write_text(json.dumps(rows))
    names = ("figures.json", "replicates.parquet")
    inputs = {"pool": digest(copied / "pool"), "retrain": digest(copied / "retrain")}
    finish(copied / "evaluate", *names, inputs=inputs)
    assert main(["report", str(copied)]) == 0
    assert results_of(copied)["verdict"]["kind"] == "undefined"
