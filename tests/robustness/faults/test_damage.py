"""One changed byte at every position of every kind of file: refused by name, written again, or without effect."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detcurate.coco.image_files import _read_cache
from detcurate.ensemble.index import Member, read_index, verify_member, write_index
from detcurate.errors import DetcurateError
from detcurate.io.files import add_checksum, sha256_file, write_json
from detcurate.manifest.provenance import read_provenance
from detcurate.manifest.verify import verify_manifest
from detcurate.pipeline.imported_members import read_import
from detcurate.pipeline.stage import Stage, StageResult, read_stage_metadata, run_stage
from detcurate.predictions.shards import read_embeddings, read_shard, write_embeddings, write_shard
from detcurate.structures import Detections

NUM_ROWS, NUM_CLASSES = 7, 3


def changes(whole, is_whole, draw):
    """Yield the damaged files: each byte changed in one or several bits, and the file cut at each length."""
    places = range(len(whole)) if is_whole else sorted(draw.sample(range(len(whole)), min(len(whole), 40)))
    for place in places:
        for bits in (1 << draw.randrange(8), 0xFF) if is_whole else (1 << draw.randrange(8),):
            damaged = bytearray(whole)
            damaged[place] ^= bits
            yield bytes(damaged)
    yield from (whole[:place] for place in places)


def try_all(path, read, is_whole, measured, name):
    """Damage a file in every way; reading must raise an error that names the file, or return the original content.

    Return the number of refusals.
    """
    whole, right, found = path.read_bytes(), read(), Counter()
    for damaged in changes(whole, is_whole, random.Random(3)):
        path.write_bytes(damaged)
        try:
            got = read()
        except DetcurateError as error:
            assert path.name in str(error)
            found["refused"] += 1
        else:
            assert same(got, right), (name, found)
            found["without effect"] += 1
    path.write_bytes(whole)
    assert same(read(), right)
    for what, count in found.items():
        measured(f"damaged, {what}", name, count)
    return found["refused"]


def same(got, right):
    if isinstance(right, tuple):
        return len(got) == len(right) and all(same(one, other) for one, other in zip(got, right, strict=True))
    if isinstance(right, Detections):
        return same(tuple(vars(got).values()), tuple(vars(right).values()))
    if isinstance(right, np.ndarray):
        return np.array_equal(got, right) and got.dtype == right.dtype
    return got == right


@pytest.fixture
def detections():
    draw = np.random.default_rng(0)
    corners = draw.random((NUM_ROWS, 2, 2), np.float32)
    return Detections(
        image_ids=np.array([1, 1, 2, 2, 2, 4, 5]),
        member=np.array([0, 1, 0, 0, 1, 1, 0], np.int32),
        boxes=np.column_stack([corners[:, 0], corners[:, 0] + corners[:, 1] + 1]).astype(np.float32),
        scores=np.linspace(0.1, 0.9, NUM_ROWS, dtype=np.float32),
        class_index=np.array([0, 1, 2, 0, 1, 2, 0], np.int32),
        class_probs=np.full((NUM_ROWS, NUM_CLASSES + 1), 0.25, np.float32),
        posterior_form="softmax",
    )


def test_damaged_shard_is_refused(detections, tmp_path, is_whole, measured):
    path = tmp_path / "shard-00000.parquet"
    write_shard(path, detections, np.arange(1, 6))
    assert try_all(path, lambda: read_shard(path), is_whole, measured, "shard")


def test_damaged_empty_shard_is_refused(detections, tmp_path, is_whole, measured):
    path = tmp_path / "shard-00000.parquet"
    write_shard(path, detections.take(np.zeros(NUM_ROWS, bool)), np.arange(1, 6))
    assert try_all(path, lambda: read_shard(path), is_whole, measured, "empty shard")


def test_damaged_embeddings_are_refused(tmp_path, is_whole, measured):
    path = tmp_path / "shard-00000.parquet"
    write_embeddings(path, np.arange(3), np.random.default_rng(0).random((3, 4)).astype(np.float16))
    assert try_all(path, lambda: read_embeddings(path), is_whole, measured, "embeddings")


def test_damaged_index_is_refused(tmp_path, is_whole, measured):
    path = tmp_path / "members.jsonl"
    write_index(path, [Member(0, step, 4, 0.5 / step, f"run-0/iter-{step:07d}", f"{step:064x}") for step in (2, 30)])
    whole = read_index(path)

    def read():
        found = read_index(path)
        # Cut between two lines it holds fewer members: MemberWriter saves the missing ones again.
        return whole if found == whole[: len(found)] else found

    assert try_all(path, read, is_whole, measured, "member index")


def test_damaged_member_is_refused(tmp_path, is_whole, measured):
    torch_files = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "iter-0000003.safetensors"
    torch_files.save_file({"weight": np.arange(12, dtype=np.float32).reshape(3, 4)}, path)
    digest = sha256_file(path)
    assert try_all(path, lambda: verify_member(path, digest), is_whole, measured, "member")


def test_damaged_training_state_is_refused(tmp_path, is_whole, measured):
    torch = pytest.importorskip("torch")
    pytest.importorskip("detectron2")
    from detcurate.d2.train.hooks import load_state_to_resume, save_state_to_resume

    path = tmp_path / "resume.pth"
    for step in (1, 2):
        save_state_to_resume({"model": {"w": torch.arange(5.0) * step}, "trainer": {"iteration": step}}, path)

    def read():
        state = load_state_to_resume(path)
        return state["model"]["w"].tolist(), state["trainer"]["iteration"]

    assert read() == ([0.0, 2.0, 4.0, 6.0, 8.0], 2)
    assert try_all(path, read, is_whole, measured, "state of a training")


def test_damaged_cache_of_images_is_ignored(tmp_path, is_whole, measured, imported):
    """The cache only saves time."""
    path = tmp_path / "images-pool.json"
    whole = (imported.output / "cache" / "images-pool.json").read_bytes()
    path.write_bytes(whole)
    right, empty = _read_cache(path), 0
    assert len(right) == 26
    for damaged in changes(whole, is_whole, random.Random(5)):
        path.write_bytes(damaged)
        got = _read_cache(path)
        assert got in ({}, right)
        empty += not got
    measured("damaged, looked at again", "cache of images", empty)


class TestStage:
    """A stage that writes a table and a JSON file."""

    @pytest.fixture
    def stage(self, tmp_path):
        directory = tmp_path / "stage"

        def work():
            pq.write_table(pa.table({"image_id": [1, 2, 3], "score": [0.5, 0.25, 0.125]}), directory / "table.parquet")
            write_json(directory / "facts.json", {"quarantined": [3, 5], "size": 0.75})
            return StageResult([directory / "table.parquet", directory / "facts.json"], "2 files", {"seeds": [1, 2]})

        return Stage("draw", directory, {"rate": 0.5}, {"pool": "1" * 64}, work)

    def test_damaged_stage_metadata_is_refused(self, stage, is_whole, measured):
        names = set(run_stage(stage)) - {"sha256"}  # a checksum under a changed name is ignored

        def read():
            stage_metadata = read_stage_metadata(stage.directory)
            return {name: stage_metadata.get(name) for name in names}

        assert try_all(stage.directory / "stage.json", read, is_whole, measured, "stage metadata")

    @pytest.mark.parametrize("name", ["table.parquet", "facts.json"])
    def test_damaged_outputs_are_written_again(self, stage, is_whole, measured, name):
        right = run_stage(stage)
        path = stage.directory / name
        whole, number = path.read_bytes(), 0
        for damaged in changes(whole, is_whole, random.Random(4)):
            path.write_bytes(damaged)
            assert run_stage(stage) == right
            assert path.read_bytes() == whole
            number += 1
        measured("damaged, made again", name, number)

    def test_files_without_stage_metadata_are_removed(self, stage):
        run_stage(stage)
        (stage.directory / "stage.json").unlink()
        (stage.directory / "old.txt").touch()
        run_stage(stage)
        assert not (stage.directory / "old.txt").exists()
        (stage.directory / "stage.json").unlink()
        (stage.directory / "old.txt").touch()
        run_stage(replace(stage, keeps_good_files=True))
        assert (stage.directory / "old.txt").exists()


@pytest.mark.parametrize("name", ["subset.json", "images.txt", "provenance.json"])
def test_damaged_manifest_is_reported(imported, tmp_path, is_whole, measured, name):
    """``manifest verify`` reports the damage, or it is without effect."""
    output = imported.copy(tmp_path)
    path = output / "manifest" / name
    whole, found = path.read_bytes(), Counter()
    if name != "subset.json":
        draw, limit = random.Random(6), is_whole
    else:
        draw, limit = random.Random(6), False  # one digest covers all of its bytes
    for damaged in changes(whole, limit, draw):
        path.write_bytes(damaged)
        try:
            statuses = {check.status for check in verify_manifest(output / "manifest")}
        except DetcurateError as error:
            assert name in str(error)
            found["refused"] += 1
        else:
            if "failed" in statuses:
                found["found"] += 1
            else:
                assert name == "provenance.json"
                assert without_checksum(read_provenance(output / "manifest")) == without_checksum(json.loads(whole))
                found["without effect"] += 1
    path.write_bytes(whole)
    assert {check.status for check in verify_manifest(output / "manifest")} == {"ok"}
    for what, count in found.items():
        measured(f"damaged, {what}", name, count)


def without_checksum(value):
    """Return a provenance without its checksum, under whatever name."""
    return {key: part for key, part in value.items() if not key.startswith("sha") and len(key) != len("sha256")}


def test_damaged_import_is_refused(imported, tmp_path, is_whole, measured):
    folder = tmp_path / "three"
    shutil.copytree(imported.output / "imported" / "three", folder)
    assert try_all(folder / "import.json", lambda: read_import(folder), is_whole, measured, "import.json")


def test_stage_metadata_without_checksum_is_accepted(tmp_path):
    stage = Stage("draw", tmp_path, {}, {}, lambda: StageResult([], "none"))
    old = {name: value for name, value in run_stage(stage).items() if name != "sha256"}
    (tmp_path / "stage.json").write_bytes(orjson.dumps(old))
    assert read_stage_metadata(tmp_path) == old
    assert add_checksum(old)["sha256"] != add_checksum({**old, "summary": "other"})["sha256"]


FILES = ("pool/pool.json", "select/selection.parquet", "manifest/subset.json")


@pytest.mark.parametrize(
    "name", ["score/images.parquet", *(pytest.param(name, marks=pytest.mark.faults) for name in FILES)]
)
def test_run_writes_damaged_file_again(imported, tmp_path, name):
    output = imported.copy(tmp_path)
    path = output / name
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 4
    path.write_bytes(damaged)
    text = imported.finish(output)
    assert str(path) in text
    assert path.read_bytes() == whole
    assert imported.manifest(output) == imported.manifest()


def test_damaged_shard_is_named_and_deleted_shard_is_predicted_again(imported, tmp_path):
    output = imported.copy(tmp_path, without=("score", "select", "manifest"))
    path = output / "predict" / "set-01" / "shard-00002.parquet"
    whole = path.read_bytes()
    path.unlink()  # a hard link to the file of the import
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 16]) + whole[201:])
    running = imported.start(output)
    assert running.wait() == 2
    assert "set-01/shard-00002.parquet" in running.text
    path.unlink()
    imported.finish(output)
    assert imported.manifest(output) == imported.manifest()
