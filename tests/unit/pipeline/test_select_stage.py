"""The stage ``select`` and ``detcurate explain`` on a rendered pool with made-up scores and embeddings."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from detcurate.cli import main
from detcurate.coco.dataset import read_coco
from detcurate.io.files import sha256_file, write_json
from detcurate.pipeline.object_table import object_table
from detcurate.pipeline.pool_columns import sequence_codes
from detcurate.pipeline.tables import ImagesTable
from detcurate.predictions.shards import write_embeddings
from detcurate.structures import ObjectScores

MEMBERS = 4


def finish(directory, *names: str):
    """Write the metadata of a finished stage with these outputs."""
    paths = {name: directory / name for name in names}
    outputs = {name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in paths.items()}
    stage_metadata = {"stage": directory.name, "status": "complete", "digest": "made up", "settings": {}, "inputs": {}}
    write_json(directory / "stage.json", {**stage_metadata, "outputs": outputs, "summary": "", "facts": {}})


def objects_of(image_ids, measures, annotation_ids):
    count = len(image_ids)
    return ObjectScores(
        image_ids=np.asarray(image_ids, np.int64),
        boxes=np.tile(np.array([1, 2, 30, 40], np.float32), (count, 1)),
        num_fired=np.full(count, 3),
        class_index=np.arange(count, dtype=np.int32) % 2,
        confidence=np.full(count, 0.75),
        votes=np.tile(np.array([0, 0, 7, -1], np.int16), (count, 1)),
        annotation_ids=np.asarray(annotation_ids, np.int64),
        measures={name: np.full(count, value) for name, value in measures.items()},
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A config and its OUTPUT_DIR: 26 rendered images, scored; the config needs no Detectron2."""
    folder = tmp_path_factory.mktemp("scored")
    config, output = folder / "tiny.yaml", folder / "output"
    config.write_text(
        f'OUTPUT_DIR: "{output}"\n'
        "CURATE: {NUM_PROCESSES: 1, RENDER: {NUM_IMAGES: 26, NUM_EVALUATION_IMAGES: 7, WIDTH: 96, HEIGHT: 64}}\n"
    )
    assert main(["--config-file", str(config), "--until", "pool"]) == 0
    pool = read_coco(output / "pool" / "train.json")
    rng, ids = np.random.default_rng(0), pool.image_ids
    columns = {"image_id": ids, "image_score": rng.uniform(0, 1, 26), "mutual_information": rng.uniform(0, 1, 26)}
    columns |= {name: rng.uniform(0, 0.5, 26) for name in ("missing_label", "wrong_class", "inaccurate_box")}
    columns["wrong_class"][3] = 0.9
    columns["num_labels"] = pool.boxes_per_image
    scores = output / "score"
    ImagesTable.within(scores).write(columns)
    clusters = objects_of(np.repeat(ids[:20], 14), {"mutual_information": 0.4, "missing_label": 0.2}, np.full(280, -1))
    labels = objects_of(ids[:20], {"wrong_class": 0.0, "inaccurate_box": 0.1}, np.arange(20))
    table = object_table(clusters, labels, pool.class_names)
    pq.write_table(table, scores / "objects.parquet")
    finish(scores, "images.parquet", "objects.parquet")
    shards = [f"embeddings/shard-{number:05d}.parquet" for number in range(2)]
    for name, part in zip(shards, (slice(0, 16), slice(16, 26)), strict=True):
        write_embeddings(output / "predict" / name, ids[part], rng.normal(size=(26, 5)).astype(np.float16)[part])
    finish(output / "predict", *shards)
    return config, output, pool, columns


@pytest.fixture
def select_again(scored, capsys):
    """Return a function that runs the stage with overrides and returns the status and the printed text."""

    def run(*overrides: tuple):
        words = ["--config-file", str(scored[0]), "--only", "select"]
        status = main([*words, *(str(word) for pair in overrides for word in pair)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def tables(output):
    return {path.stem: pq.read_table(path).to_pydict() for path in sorted((output / "select").glob("*.parquet"))}


def test_select_default_keeps_better_half_with_reasons(scored, select_again):
    _, output, pool, columns = scored
    status, text = select_again()
    assert status == 0
    assert "kept 13 of 26 images (top_n, budget 13 images); removed: budget 13" in text
    found = tables(output)
    best = np.argsort(-columns["image_score"])
    assert found["selection"]["image_id"] == pool.image_ids[best[:13]].tolist()
    assert found["selection"]["rank"] == list(range(1, 14))
    assert sorted(found["removed"]["image_id"]) == sorted(pool.image_ids[best[13:]].tolist())
    assert set(found["removed"]["reason"]) == {"budget"}
    assert set(found["removed"]["replaced_by"]) == {None}
    assert "relabel" not in found
    facts = json.loads((output / "select" / "stage.json").read_text())["facts"]
    assert facts == {"selected": [["top_n", 13]], "removed": [["budget", 13]]}


def test_select_applies_every_setting(scored, select_again):
    _, output, pool, columns = scored
    car = pool.class_names.index("car")
    options = (
        ("CURATE.SELECT.NUM_BOXES", 40),
        ("CURATE.SELECT.NOISE_FILTER", "queue"),
        ("CURATE.SELECT.NOISE_FILTER_QUANTILE", 0.96),
        ("CURATE.SELECT.DUPLICATE_SIMILARITY", 0.999),
        ("CURATE.SELECT.SEQUENCE_GAP", 2),
        ("CURATE.SELECT.CLASS_MINIMUMS", "('car=3',)"),
        ("CURATE.SELECT.CLASS_MAXIMUMS", "('car=5',)"),
        ("CURATE.SELECT.METADATA_MINIMUMS", "('sequence=seq-0000=2',)"),
    )
    status, text = select_again(*options)
    assert status == 0, text
    found = tables(output)
    rows = pool.subset_rows(np.array(found["selection"]["image_id"]))
    assert pool.boxes_per_image[rows].sum() <= 40
    cars = np.bincount(pool.image_index[pool.class_index == car], minlength=26)[rows].sum()
    assert 3 <= cars <= 5
    assert sum(pool.sequences[row] == "seq-0000" for row in rows) >= 2
    assert found["relabel"] == {"image_id": [int(pool.image_ids[3])], "label_error_score": [0.9]}
    reasons = set(found["selection"]["reason"]) | set(found["removed"]["reason"])
    assert {"minimum class car=3", "maximum class car=5", "relabel_queue", "sequence_gap"} <= reasons
    given_way = [replaced_by for replaced_by in found["removed"]["replaced_by"] if replaced_by is not None]
    assert set(given_way) <= set(pool.image_ids.tolist())
    assert "relabel_queue 1, " in text


@pytest.mark.parametrize("strategy", ["k_center", "facility_location", "strata", "random", "stratified_random"])
def test_select_strategy_runs_on_scored_pool(scored, select_again, strategy):
    status, text = select_again(("CURATE.SELECT.STRATEGY", strategy), ("CURATE.SELECT.FRACTION", 0.2))
    assert status == 0, text
    assert set(tables(scored[1])["selection"]["reason"]) == {strategy}
    assert len(tables(scored[1])["selection"]["rank"]) == 5


def test_select_without_embeddings_finds_duplicates_by_hash(scored, select_again):
    _, output, pool, _ = scored
    stage_metadata = output / "predict" / "stage.json"
    with_embeddings = stage_metadata.read_bytes()
    finish(output / "predict")
    try:
        status, text = select_again(("CURATE.SELECT.DUPLICATE_SIMILARITY", 0.9))
        assert status == 0, text
        assert "near_duplicate" in text
        status, text = select_again(("CURATE.SELECT.DUPLICATE_SIMILARITY", 0.91))
        assert status == 0 and "hash pool" not in text  # remembered
        status, text = select_again(("CURATE.SELECT.STRATEGY", "k_center"))
        assert status == 2
        assert "CURATE.SELECT.STRATEGY k_center" in text and "CURATE.PREDICT.EMBEDDINGS True" in text
    finally:
        stage_metadata.write_bytes(with_embeddings)


def test_duplicate_similarity_auto_by_hash_reports_threshold_and_recall(scored, select_again):
    _, output, pool, _ = scored
    stage_metadata = output / "predict" / "stage.json"
    with_embeddings = stage_metadata.read_bytes()
    finish(output / "predict")
    try:
        status, text = select_again(("CURATE.SELECT.DUPLICATE_SIMILARITY", "auto"))
    finally:
        stage_metadata.write_bytes(with_embeddings)
    assert status == 0, text
    facts = json.loads((output / "select" / "stage.json").read_text())["facts"]
    found = facts["duplicate_threshold"]
    assert (found["num_images"], found["num_copies"], found["compared_with"]) == (26, 78, "other sequences")
    assert found["similarity"] * 64 == round(found["similarity"] * 64)
    assert found["false_neighbours"] == 0 and 0 < found["recall"] <= 1
    assert set(found["recall_by_kind"]) == {"jpeg", "brightened", "cropped"}
    assert f"similarity {found['similarity']:.6g} (auto)" in text
    assert f"recall {found['recall']:.1%} of 78" in text
    sequence = dict(zip(pool.image_ids.tolist(), pool.sequences, strict=True))
    removed = tables(output)["removed"]
    pairs = [(a, b) for a, b in zip(removed["image_id"], removed["replaced_by"], strict=True) if b is not None]
    assert all(sequence[a] == sequence[b] for a, b in pairs)


def test_duplicate_similarity_auto_by_embedding_without_copies_leaves_recall_unknown(scored, select_again):
    status, text = select_again(("CURATE.SELECT.DUPLICATE_SIMILARITY", "auto"))
    assert status == 0, text
    facts = json.loads((scored[1] / "select" / "stage.json").read_text())["facts"]
    assert facts["duplicate_threshold"]["recall"] is None
    assert "recall unknown" in text


def test_select_low_duplicate_threshold_warns(scored, select_again):
    status, text = select_again(("CURATE.SELECT.DUPLICATE_SIMILARITY", 0.0001))
    assert status == 0, text
    assert "of the pool are near-duplicates at CURATE.SELECT.DUPLICATE_SIMILARITY 0.0001" in text
    assert "random pairs" in text
    _, text = select_again(("CURATE.SELECT.DUPLICATE_SIMILARITY", 0.999))
    assert "random pairs" not in text


def test_select_embeddings_of_another_pool_raise(scored, select_again):
    _, output, pool, _ = scored
    stage_metadata = output / "predict" / "stage.json"
    before = stage_metadata.read_bytes()
    finish(output / "predict", "embeddings/shard-00000.parquet")
    try:
        status, text = select_again(("CURATE.SELECT.STRATEGY", "k_center"))
        assert status == 2
        assert "10 images" in text and f"image_id {pool.image_ids[16]})" in text
    finally:
        stage_metadata.write_bytes(before)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CLASS_MINIMUMS", "('cra=3',)", "got 'cra=3'). Known: car"),
        (
            "CLASS_MINIMUMS",
            "('car=3000',)",
            "minimum class car=3000: ",
        ),
        (
            "CLASS_MAXIMUMS",
            "('car',)",
            "CURATE.SELECT.CLASS_MAXIMUMS: ",
        ),
        ("METADATA_MINIMUMS", "('rain=3',)", "'rain=3'"),
        ("METADATA_MAXIMUMS", "('wether=rain=3',)", "got 'wether=rain=3'). Known: "),
        ("METADATA_MINIMUMS", "('weather=rian=3',)", "weather never has this value (got 'weather=rian=3'). Known: "),
        ("EMPTY_MINIMUM", 27, "minimum empty images=27: "),
        ("NUM_IMAGES", 27, "26 images (got 27)"),
        ("NUM_BOXES", 5000, "num_boxes must be at most the pool's"),
        ("COST_SECONDS", 9, "CURATE.SELECT.COST_SECONDS: "),
        ("NOISE_FILTER", "dorp", "CURATE.SELECT.NOISE_FILTER: must be one of drop, off, queue (got 'dorp')"),
        ("OVERSAMPLING", 0.5, "CURATE.SELECT.OVERSAMPLING: must be greater than or equal to 1 (got 0.5)"),
    ],
)
def test_select_invalid_setting_is_named(select_again, key, value, message):
    status, text = select_again((f"CURATE.SELECT.{key}", value))
    assert status == 2
    assert message in text


def test_select_two_budgets_refused(select_again):
    status, text = select_again(("CURATE.SELECT.NUM_BOXES", 9), ("CURATE.SELECT.NUM_IMAGES", 5))
    assert status == 2
    assert "['NUM_IMAGES 5', 'NUM_BOXES 9']" in text


def test_dry_run_shows_budget(scored, capsys):
    for words, expected in (
        (["CURATE.SELECT.NUM_BOXES", "40"], "40 boxes of 26 images by top_n"),
        (
            ["CURATE.SELECT.COST_SECONDS", "90", "CURATE.SELECT.SECONDS_PER_BOX", "7"],
            "90 s of annotation of 26 images by top_n",
        ),
    ):
        assert main(["--config-file", str(scored[0]), "--dry-run", "--only", "select", *words]) == 0
        assert expected in capsys.readouterr().out


def test_manifest_records_budget_and_counts_of_each_step(scored, select_again):
    config, output, pool, _ = scored
    options = (("CURATE.SELECT.NUM_BOXES", 15), ("CURATE.SELECT.SEQUENCE_GAP", 3))
    assert select_again(*options)[0] == 0
    (output / "train").mkdir(exist_ok=True)
    (output / "train" / "ensemble.jsonl").touch()
    finish(output / "train")
    no_queue = ["CURATE.MANIFEST.RELABEL_LIMIT", "0"]  # the objects made up here are not of the pool's labels
    assert main(["--config-file", str(config), "--only", "manifest", *no_queue]) == 0
    provenance = json.loads((output / "manifest" / "provenance.json").read_text())
    assert provenance["budget"]["requested"] == {"boxes": 15}
    assert provenance["budget"]["spent"]["boxes"] <= 15
    steps = provenance["selection"]
    assert sum(step["images"] for step in steps["selected"]) == provenance["subset"]["num_images"]
    assert [step["reason"] for step in steps["removed"]] == ["sequence_gap", "budget"]
    assert sum(step["images"] for part in steps.values() for step in part) == len(pool)


def test_sequence_codes_follow_names():
    assert sequence_codes((None, "b", "a")).tolist() == [-1, 1, 0]


# Explain


def explained(capsys, *words: object):
    status = main(["explain", *(str(word) for word in words)])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def test_explain_selected_image_shows_scores_and_rank(scored, select_again, capsys):
    config, output, pool, columns = scored
    select_again()
    row = int(columns["image_score"].argmax())
    image_id = int(pool.image_ids[row])
    found = json.loads(explained(capsys, image_id, "--config-file", config, "--json"))
    assert found["image"] == {
        "image_id": image_id,
        "file_name": pool.file_names[row],
        "sequence": pool.sequences[row],
        "frame_index": int(pool.frame_index[row]),
        "num_boxes": int(pool.boxes_per_image[row]),
    }
    assert found["selection"] == {"rank": 1, "reason": "top_n", "replaced_by": None}
    assert found["scores"]["image_score"] == {"value": columns["image_score"][row], "rank": 1, "of": 26}
    place = 1 + int((columns["wrong_class"] > columns["wrong_class"][row]).sum())
    assert found["scores"]["wrong_class"]["rank"] == place
    assert json.loads(explained(capsys, image_id, output, "--json")) == found


def test_explain_shows_objects_with_votes(scored, capsys):
    _, output, pool, _ = scored
    found = json.loads(explained(capsys, pool.image_ids[1], output, "--json"))["objects"]
    assert [row["kind"] for row in found] == ["cluster"] * 14 + ["ground_truth"]
    assert found[0]["votes"] == {pool.class_names[0]: 2, "background": 1, "missed": 1}
    assert found[0]["measures"] == pytest.approx({"mutual_information": 0.4, "missing_label": 0.2})
    assert found[-1]["annotation_id"] == 1
    text = explained(capsys, pool.image_ids[1], output)
    assert "… and 2 clusters of lower confidence; --json lists all" in text
    assert "mutual_information 0.40, missing_label 0.20" in text
    assert "no object is predicted or labelled" in explained(capsys, pool.image_ids[25], output)


def test_explain_shows_neighbours_by_sequence_and_embedding(scored, capsys):
    _, output, pool, _ = scored
    found = json.loads(explained(capsys, pool.image_ids[1], output, "--json"))["neighbours"]
    frames = [row for row in found if row["by"] == "sequence"]
    assert frames and all(row["sequence"] == pool.sequences[1] for row in frames)
    distances = [abs(row["distance"]) for row in frames]
    assert distances == sorted(distances) and len(distances) <= 5
    looks = [row["distance"] for row in found if row["by"] == "embedding"]
    assert len(looks) == 5 and looks == sorted(looks, reverse=True)
    assert pool.original_id(1) not in [row["image_id"] for row in found]


def test_explain_removed_image_shows_reason(scored, select_again, capsys):
    _, output, pool, columns = scored
    select_again(("CURATE.SELECT.SEQUENCE_GAP", 4))
    removed = tables(output)["removed"]
    at = removed["reason"].index("sequence_gap")
    text = explained(capsys, removed["image_id"][at], output)
    assert f"not selected: sequence_gap, replaced by image {removed['replaced_by'][at]}" in text
    worst = int(pool.image_ids[columns["image_score"].argmin()])
    assert "not selected: " in explained(capsys, worst, output)


def test_explain_before_selection_succeeds(scored, select_again, capsys):
    _, output, pool, _ = scored
    select_again(("CURATE.SELECT.EMPTY_MINIMUM", 27))  # leaves the stage begun and not finished
    text = explained(capsys, pool.image_ids[0], output)
    assert "no selection yet" in text


@pytest.mark.parametrize("name", ["999", "seven", "-3"])
def test_explain_unknown_image_refused(scored, capsys, name):
    words = ["explain", "--config-file", str(scored[0]), "--", name]
    assert main(words) == 2
    assert f"IMAGE_ID: not an image of {scored[1] / 'pool' / 'train.json'} (got '{name}')" in capsys.readouterr().err


def test_explain_without_run_refused(scored, capsys, tmp_path):
    for words, expected in ((["1"], "--config-file FILE"), (["1", str(tmp_path)], str(tmp_path))):
        assert main(["explain", *words]) == 2
        assert expected in capsys.readouterr().err


def test_explain_unscored_pool_refused(scored, capsys, tmp_path):
    assert main(["explain", "1", "--config-file", str(scored[0]), "OUTPUT_DIR", str(tmp_path)]) == 2
    assert "the stage 'score' has not finished" in capsys.readouterr().err
