"""A run with images, annotations, predictions and scores in an S3 emulator, against the same run on disk."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import REPOSITORY

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")
pytest.importorskip("moto", reason="moto is not installed: `make setup` installs it")
pytest.importorskip("s3fs", reason="s3fs is not installed: `make setup` installs it")

from helpers.storage_server import BUCKET, KEY_ID, SECRET, boto, emulator, faulty_server

from detcurate.api import Pool
from detcurate.io.storage import client

CURATE = REPOSITORY / "tools" / "curate.py"


def run(config, *arguments: object, environment=None):
    return subprocess.run(
        [sys.executable, CURATE, "--config-file", config, "--until", "manifest", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})},
    )  # fmt: skip


@pytest.fixture(scope="module")
def here(own_data_run):
    return own_data_run


@pytest.fixture(scope="module")
def there(here, tmp_path_factory):
    """The same pool in the emulator, and the run on it: arguments, folder, environment, client, faults, requests."""
    config, _, data, overrides = here
    folder = tmp_path_factory.mktemp("there")
    with emulator() as behind, faulty_server(behind) as (endpoint, faults):
        storage = boto(endpoint)
        storage.create_bucket(Bucket=BUCKET)
        for path in data.rglob("*.*"):
            storage.upload_file(str(path), BUCKET, f"frames/{path.relative_to(data).as_posix()}")
        environment = {
            "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        overrides = (
            *overrides, "DATASETS.ROOT", f"s3://{BUCKET}/frames", "OUTPUT_DIR", folder / "output",
            "CURATE.STORAGE.ROOT", f"s3://{BUCKET}/runs/tiny", "CURATE.STORAGE.CACHE", folder / "cache",
        )  # fmt: skip
        faults.seen.clear()
        done = run(config, *overrides, environment=environment)
        assert done.returncode == 0, done.stderr + done.stdout
        yield config, overrides, folder, environment, storage, faults, list(faults.seen), done


def keys(storage, prefix):
    listed = storage.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return {found["Key"]: found["Size"] for found in listed.get("Contents", [])}


def read(storage, key):
    return storage.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def test_run_on_storage_equals_run_on_disk(here, there, tmp_path):
    _, output, _, _ = here
    _, _, folder, _, storage, _, _, _ = there
    for name in ("subset.json", "images.txt", "provenance.json", "relabel.json"):
        assert (folder / "output" / "manifest" / name).read_bytes() == (output / "manifest" / name).read_bytes(), name
    for name in ("images.parquet", "objects.parquet"):
        assert read(storage, f"runs/tiny/score/{name}") == (output / "score" / name).read_bytes()
    shards = sorted(path.relative_to(output).as_posix() for path in output.glob("predict/*/*.parquet"))
    assert len(shards) == 6
    for shard in shards:
        assert read(storage, f"runs/tiny/{shard}") == (output / shard).read_bytes()
    ours = json.loads(read(storage, "runs/tiny/predict/stage.json"))
    assert ours["outputs"] == json.loads((output / "predict" / "stage.json").read_text())["outputs"]
    assert not (folder / "output" / "predict").exists()
    assert not (folder / "output" / "score").exists()


def test_verify_reads_source_and_scores_in_storage(there, tmp_path):
    _, _, folder, environment, storage, *_ = there
    key = "runs/tiny/score/images.parquet"
    urls = ("--source", f"s3://{BUCKET}/frames/train.json", "--scores", f"s3://{BUCKET}/{key}")

    def verify(*arguments: str):
        found = subprocess.run(
            [sys.executable, CURATE, "manifest", "verify", folder / "output" / "manifest", "--json", *arguments],
            capture_output=True, text=True, check=False, env={**os.environ, **environment, "HOME": str(tmp_path)},
        )  # fmt: skip
        return found.returncode, {row["name"]: row["status"] for row in json.loads(found.stdout)}

    status, found = verify()
    assert (status, found["source"], found["scores"]) == (0, "absent", "absent")
    assert verify(*urls) == (0, dict.fromkeys(found, "ok"))
    whole, attached = read(storage, key), storage.head_object(Bucket=BUCKET, Key=key)["Metadata"]
    assert attached["sha256"]  # verify must not rely on it
    storage.put_object(Bucket=BUCKET, Key=key, Body=whole[:-9] + b"x" + whole[-8:], Metadata=attached)
    try:
        status, found = verify(*urls)
    finally:
        storage.put_object(Bucket=BUCKET, Key=key, Body=whole, Metadata=attached)
    assert status == 1
    assert found == {**dict.fromkeys(found, "ok"), "scores": "failed"}


def test_run_requests_each_image_once(there):
    *_, seen, _ = there
    images = [path for method, path in seen if method == "GET" and path.endswith(".jpg")]
    assert len(images) == len(set(images)) == 26 + 7
    assert not [path for method, path in seen if method == "HEAD" and path.endswith(".jpg")]
    listings = [path for _, path in seen if "list-type" in path and "images-train" in path]
    assert len(listings) <= 5  # one of the pipeline, one of each training, and whether the folder exists


def test_run_writes_no_secret(there):
    _, _, folder, _, storage, _, _, done = there
    texts = [done.stdout.encode(), done.stderr.encode()]
    texts += [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    texts += [read(storage, key) for key in keys(storage, "runs/")]
    assert len(texts) > 40
    for text in texts:
        assert KEY_ID.encode() not in text
        assert SECRET.encode() not in text


def test_run_leaves_no_temporary_files(there):
    _, _, folder, _, storage, _, _, _ = there
    assert list((folder / "cache" / "outgoing").iterdir()) == []
    assert not [path for path in folder.rglob("*.partial*")]
    assert not [path for path in folder.rglob("*.lease*")]
    assert sorted(key.removeprefix("runs/tiny/") for key in keys(storage, "runs/") if "shard" not in key) == [
        "detcurate.json", "predict/members.json", "predict/set-00/set.json", "predict/stage.json",
        "score/images.parquet", "score/objects.parquet", "score/stage.json",
    ]  # fmt: skip


def test_finished_run_reads_no_image_and_writes_no_shard(there):
    config, overrides, _, environment, _, faults, _, _ = there
    faults.seen.clear()
    again = run(config, *overrides, environment=environment)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("up to date") == 6
    assert [path for method, path in faults.seen if method == "PUT"] == [f"/{BUCKET}/runs/tiny/detcurate.json"]
    assert not [path for _, path in faults.seen if path.endswith((".jpg", ".parquet"))]


def test_missing_and_truncated_shards_are_predicted_again(here, there):
    config, overrides, folder, environment, storage, faults, _, _ = there
    _, output, _, _ = here
    first, second = (f"runs/tiny/predict/set-00/shard-0000{number}.parquet" for number in (1, 3))
    whole = read(storage, second)
    storage.delete_object(Bucket=BUCKET, Key=first)
    storage.put_object(Bucket=BUCKET, Key=second, Body=whole[: len(whole) // 2])
    faults.seen.clear()
    again = run(config, *overrides, environment=environment)
    assert again.returncode == 0, again.stderr
    assert read(storage, second) == whole
    assert read(storage, first) == (output / first.removeprefix("runs/tiny/")).read_bytes()
    written = {path.rpartition("/")[2] for method, path in faults.seen if method == "PUT" and "shard" in path}
    assert written == {"shard-00001.parquet", "shard-00003.parquet"}
    assert (folder / "output/manifest/subset.json").read_bytes() == (output / "manifest/subset.json").read_bytes()


def test_run_with_faults_equals_run_on_disk(here, there, tmp_path):
    config, overrides, folder, environment, storage, faults, _, _ = there
    _, output, _, _ = here
    shutil.copytree(folder / "output", tmp_path / "output")  # with the members; later stages run again
    kinds, requested = ("slow_down", "half", "short", "reset"), {}

    def plan(method, path):
        """Fail the first request of every other object and listing, with alternating faults."""
        requested[method, path] = requested.get((method, path), 0) + 1
        is_chosen = requested[method, path] == 1 and len(requested) % 2 and method in ("GET", "PUT")
        return kinds[len(requested) // 2 % len(kinds)] if is_chosen else None

    faults.plan = plan
    try:
        stumbled = run(
            config, *overrides, "OUTPUT_DIR", tmp_path / "output", "CURATE.STORAGE.ROOT", f"s3://{BUCKET}/runs/stumbled",
            "CURATE.STORAGE.CACHE", tmp_path / "cache", environment=environment,
        )  # fmt: skip
    finally:
        faults.plan = lambda method, path: None
    assert stumbled.returncode == 0, stumbled.stderr
    for name in ("subset.json", "provenance.json"):
        assert (tmp_path / "output" / "manifest" / name).read_bytes() == (output / "manifest" / name).read_bytes()
    assert read(storage, "runs/stumbled/score/objects.parquet") == (output / "score/objects.parquet").read_bytes()


def test_root_of_other_output_dir_is_refused(there, tmp_path):
    config, overrides, _, environment, storage, _, _, _ = there
    before = keys(storage, "runs/tiny")
    other = run(config, *overrides, "OUTPUT_DIR", tmp_path / "output", environment=environment)
    assert other.returncode == 2
    assert "CURATE.STORAGE.ROOT" in other.stderr
    assert "s3://pool/runs/tiny" in other.stderr
    assert keys(storage, "runs/tiny") == before


def test_persistent_fault_ends_run_with_url_and_settings(there, tmp_path):
    config, overrides, _, environment, _, faults, _, _ = there
    faults.plan = lambda method, path: "slow_down" if path.endswith("train.json") else None
    try:
        failed = run(
            config, *overrides, "OUTPUT_DIR", tmp_path / "output", "CURATE.STORAGE.ROOT", f"s3://{BUCKET}/runs/other",
            "CURATE.STORAGE.CACHE", tmp_path / "cache", "CURATE.STORAGE.RETRIES", 1, environment=environment,
        )  # fmt: skip
    finally:
        faults.plan = lambda method, path: None
    assert failed.returncode == 2
    message = failed.stderr.splitlines()[-1]
    assert message.startswith("detcurate: s3://pool/frames/train.json: ")
    assert "at attempt 2" in message
    assert "CURATE.STORAGE.RETRIES" in message


@pytest.mark.parametrize(
    "key", ["DATASETS.ROOT", "CURATE.STORAGE.ROOT", "CURATE.POOL.IMAGE_ROOT", "CURATE.EVALUATION.ANNOTATIONS"]
)
def test_url_with_secret_is_refused_and_not_written(key, here, tmp_path, refused):
    config, _, _, _ = here
    output = tmp_path / "output"
    message = refused("--config-file", config, "OUTPUT_DIR", output, key, f"s3://{KEY_ID}:{SECRET}@pool/x")
    assert "s3://…" in message
    assert KEY_ID not in message
    assert "secret" not in message
    assert not output.exists()


@pytest.fixture
def in_process(there, monkeypatch, tmp_path):
    """Point commands of this process at the emulator, with their own client and cache; return OUTPUT_DIR."""
    _, _, folder, environment, *_ = there
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(client, "_file_systems", {})
    return folder / "output"


def test_explain_export_and_report_read_run_in_storage(in_process, here, done, tmp_path):
    ours, others = [], []
    for found, output in ((ours, in_process), (others, here[1])):
        found.append(json.loads(done("explain", 3, output, "--json")))
        done("export", "yolo", output, "-o", tmp_path / output.parent.name)
        exported = tmp_path / output.parent.name
        found.append(
            {path.relative_to(exported): path.read_bytes() for path in exported.rglob("*.*") if path.is_file()}
        )
    assert ours == others
    assert len(ours[1]) > 2 * 26
    done("report", in_process, "--to", tmp_path / "report")
    assert (tmp_path / "report" / "index.html").read_text().count("data:image/") >= 6


def test_rank_and_validate_read_storage(in_process, there, done, refused, tmp_path):
    config, overrides, *_ = there
    frames = f"s3://{BUCKET}/frames"
    checked = done("validate", f"{frames}/train.json", "--images", f"{frames}/images-train", "--num-processes", 1)
    assert checked.startswith(f"{frames}/train.json: 26 images")
    assert "s3://pool/frames/nope.json" in refused("validate", f"{frames}/nope.json")
    assert len(Pool.read(f"{frames}/train.json", f"{frames}/images-train")) == 26
    printed = done("rank", f"{frames}/val.json", "--config-file", config, "--image-root", f"{frames}/images-val",
                   *overrides,
                   "CURATE.SELECT.NUM_IMAGES", 3, "CURATE.NUM_PROCESSES", 1)  # fmt: skip
    assert f"to label: {in_process}/candidates/val/manifest/subset.json" in printed
