"""``CURATE.SELECT.DUPLICATE_SIMILARITY auto`` with embeddings of planted copies."""

import json

import pyarrow.parquet as pq
import pytest

EMBEDDINGS = ("CURATE.PREDICT.EMBEDDINGS", "True")
AUTO = ("CURATE.SELECT.DUPLICATE_SIMILARITY", "auto")


def stage(output, name):
    return json.loads((output / name / "stage.json").read_text())


@pytest.mark.parametrize("fixture", ["finished_run", "one_stage_run"])
def test_auto_after_a_fixed_threshold_predicts_only_the_copies(request, fixture, tmp_path, done):
    run = request.getfixturevalue(fixture)
    (config, output), words = run.copy(tmp_path, until="train"), run.words
    done("--config-file", config, "--until", "select", *words, *EMBEDDINGS)
    before = stage(output, "predict")["outputs"]
    times = {name: (output / "predict" / name).stat().st_mtime_ns for name in before if name.endswith(".parquet")}
    text = done("--config-file", config, "--until", "select", *words, *EMBEDDINGS, *AUTO)
    after = stage(output, "predict")["outputs"]
    planted = [name for name in after if name not in before]
    assert {name: (output / "predict" / name).stat().st_mtime_ns for name in times} == times
    shards = sorted(name for name in planted if name.split("/")[-2] == "planted")
    tables = [pq.read_table(output / "predict" / name) for name in shards]
    assert sum(table.num_rows for table in tables) == 26 * 3
    found = stage(output, "select")["facts"]["duplicate_threshold"]
    assert (found["num_images"], found["num_copies"], found["false_neighbours"]) == (26, 78, 0)
    assert 0 < found["similarity"] <= 1 and 0 <= found["recall"] <= 1
    assert "(auto)" in text
    text = done("--config-file", config, "--until", "manifest", *words, *EMBEDDINGS, *AUTO)
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    assert provenance["duplicate_threshold"] == found
    assert set(provenance["selection"]) == {"selected", "removed"}
