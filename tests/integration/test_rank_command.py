"""Ranking images that are not labelled, with real members."""

import gzip
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from detcurate.synthetic import SyntheticConfig, write_dataset

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")


@pytest.fixture(scope="module")
def trained(finished_run, tmp_path_factory):
    """A run that is trained and not predicted, and 9 images of other streets without labels."""
    folder = tmp_path_factory.mktemp("rank")
    config, output = finished_run.copy(folder, until="train")
    write_dataset(folder / "new", SyntheticConfig.clean(num_images=9, width=96, height=64, seed=77), name="new")
    labelled = json.loads((folder / "new" / "new.json").read_bytes())
    images = folder / "drives.json"
    images.write_text(json.dumps({"images": labelled["images"]}))
    with gzip.open(folder / "drives.json.gz", "wt") as stream:
        stream.write(images.read_text())
    return config, output, images, folder / "new" / "images-new"


def test_rank_selects_the_best_images_with_the_pools_categories(trained, done):
    config, output, images, root = trained
    text = done("rank", images, "--config-file", config, "--image-root", root, "CURATE.SELECT.NUM_IMAGES", "4")
    folder = output / "candidates" / "drives"
    assert "no_annotations" not in text
    assert f"to label: {folder / 'manifest' / 'subset.json'}" in text
    found = json.loads((folder / "manifest" / "subset.json").read_bytes())
    pool = json.loads((output / "pool" / "train.json").read_bytes())
    assert (len(found["images"]), found["annotations"]) == (4, [])
    assert found["categories"] == pool["categories"]
    records = {record["id"]: record for record in json.loads(images.read_bytes())["images"]}
    assert all(record == records[record["id"]] for record in found["images"])
    scores = pq.read_table(folder / "score" / "images.parquet").to_pydict()
    best = sorted(zip([-score for score in scores["image_score"]], scores["image_id"], strict=True))[:4]
    chosen = pq.read_table(folder / "select" / "selection.parquet").to_pydict()
    assert chosen["image_id"] == [image_id for _, image_id in best]


def test_rank_reads_a_compressed_list(trained, done):
    config, output, images, root = trained
    words = ["--config-file", config, "--image-root", root, "CURATE.SELECT.NUM_IMAGES", "2"]
    done("rank", images.with_suffix(".json.gz"), *words)
    assert len(json.loads((output / "candidates" / "drives" / "manifest" / "subset.json").read_bytes())["images"]) == 2


SEEN = {100, 101, 102}


@pytest.fixture(scope="module")
def mixed(trained, tmp_path_factory):
    """The 9 images and 3 of the pool's, in one folder, and their list."""
    _, output, images, root = trained
    folder = tmp_path_factory.mktemp("mixed")
    shutil.copytree(root, folder / "images")
    listed = json.loads(images.read_bytes())["images"]
    for number, record in enumerate(json.loads((output / "pool" / "train.json").read_bytes())["images"][4:7]):
        shutil.copy(output / "pool" / "images-train" / record["file_name"], folder / "images" / f"seen-{number}.png")
        listed.append({**record, "id": 100 + number, "file_name": f"seen-{number}.png"})
    (folder / "mixed.json").write_text(json.dumps({"images": listed}))
    return folder / "mixed.json", folder / "images"


def like_labelled(output):
    table = pq.read_table(output / "candidates" / "mixed" / "select" / "removed.parquet").to_pydict()
    rows = zip(table["image_id"], table["reason"], strict=True)
    return {image_id for image_id, reason in rows if reason == "like_labelled"}


def test_rank_excludes_images_like_labelled_ones_by_hash(trained, mixed, done):
    config, output, *_ = trained
    words = ["--config-file", config, "--image-root", mixed[1], "CURATE.SELECT.NUM_IMAGES", "12"]
    assert "like_labelled" not in done("rank", mixed[0], *words)
    text = done("rank", mixed[0], *words, "CURATE.SELECT.DUPLICATE_SIMILARITY", "1.0")
    assert "like_labelled 3" in text
    assert like_labelled(output) == SEEN
    assert (output / "candidates" / "mixed" / "cache" / "labelled-hashes.parquet").is_file()
    assert not (output / "cache" / "hashes.parquet").exists()  # another run may be at work there


def test_rank_excludes_images_like_labelled_ones_by_embedding(trained, mixed, done, tmp_path):
    config, output, *_ = trained
    mine = tmp_path / "mine"
    shutil.copytree(output, mine)
    own = ["OUTPUT_DIR", mine, "CURATE.PREDICT.EMBEDDINGS", "True"]
    words = ["rank", mixed[0], "--config-file", config, "--image-root", mixed[1], *own]
    words += ["CURATE.SELECT.NUM_IMAGES", "12", "CURATE.SELECT.DUPLICATE_SIMILARITY", "0.999999"]
    text = done(*words)
    assert "the pool is not predicted" in text
    assert "like_labelled" not in text
    done("--config-file", config, "--until", "predict", *own)
    text = done(*words)
    assert "the pool is not predicted" not in text
    assert like_labelled(mine) == SEEN
    assert "select: up to date" in done(*words)


def test_rank_is_skipped_when_finished_and_repeated_for_another_ensemble(trained, done, tmp_path):
    config, output, images, root = trained
    words = ["rank", images, "--config-file", config, "--image-root", root, "CURATE.SELECT.NUM_IMAGES", "4"]
    done(*words)
    assert done(*words).count("up to date") == 6
    mine = tmp_path / "mine"
    shutil.copytree(output, mine)
    more = ["OUTPUT_DIR", mine, "CURATE.ENSEMBLE.NUM_RUNS", "3"]
    done("--config-file", config, *more, "--until", "train")
    text = done(*words, *more)
    assert "train: runs again (added changed" in text
    provenance = json.loads((mine / "candidates" / "drives" / "manifest" / "provenance.json").read_bytes())
    assert len(provenance["ensemble"]) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["CURATE.SELECT.NUM_BOXES", "9"], r"CURATE.SELECT.NUM_BOXES.*\(got 9\)"),
        (["CURATE.SELECT.CLASS_MINIMUMS", "('bus=1',)"], "CURATE.SELECT.CLASS_MINIMUMS"),
        (["CURATE.SELECT.STRATEGY", "stratified_random"], "CURATE.SELECT.STRATEGY.* stratified_random"),
        (["CURATE.SELECT.NUM_IMAGES", "10"], "9 images.*got 10"),
        (["CURATE.PREDICT.RESULTS", "yolo"], "CURATE.PREDICT.RESULTS.*got 'yolo'"),
    ],
)
def test_rank_names_a_setting_that_needs_labels(trained, refused, words, message):
    config, _, images, root = trained
    found = refused("rank", images, "--config-file", config, "--image-root", root, *words)
    assert re.search(message, found), found


def test_rank_names_an_invalid_list_and_a_missing_ensemble(trained, refused, tmp_path):
    config, _, images, root = trained
    bad = tmp_path / "bad.json"
    assert str(bad) in refused("rank", bad, "--config-file", config)
    for text in ("[1]", "{}", "{"):
        bad.write_text(text)
        assert bad.name in refused("rank", bad, "--config-file", config)
    message = refused("rank", images, "--config-file", config, "--image-root", root, "OUTPUT_DIR", tmp_path / "new")
    assert "'train'" in message
    assert "decode" in refused("rank", images, "--config-file", config, "--image-root", tmp_path)
