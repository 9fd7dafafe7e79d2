"""Locations, objects, failing requests and local copies, against an S3 emulator on loopback."""

import dataclasses
import hashlib
import io
import multiprocessing
import os
import pickle
import random
import re
import sys
import threading
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

pytest.importorskip("moto", reason="moto is not installed: `make setup` installs it")
pytest.importorskip("s3fs", reason="s3fs is not installed: `make setup` installs it")

from helpers.storage_server import BUCKET, KEY_ID, SECRET, boto, emulator, faulty_server

from detcurate.cli.arguments import local_path
from detcurate.config import curate_settings
from detcurate.errors import ConfigError, StorageError
from detcurate.io.files import atomic_path, describe_files, file_sizes, link_or_copy, sha256_file, write_bytes
from detcurate.io.parquet import read_table, write_table
from detcurate.io.storage import (
    LocalCopies,
    RemoteImage,
    StorageOptions,
    annotation_copy,
    client,
    fetch_ahead,
    image_files,
    image_statuses,
    join,
    locate,
)
from detcurate.io.storage.remote import Entry
from detcurate.predictions.shards import missing_shards

FAULTS = ("slow_down", "stall", "hang", "half", "short", "reset")


@pytest.fixture(scope="module")
def server():
    with emulator() as behind, faulty_server(behind) as (endpoint, faults):
        storage = boto(endpoint)
        storage.create_bucket(Bucket=BUCKET)
        yield endpoint, storage, faults


@pytest.fixture
def root(server, tmp_path, monkeypatch, request):
    """An empty folder in the emulator; pauses between attempts are short."""
    endpoint, _, faults = server
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client, "_FIRST_PAUSE_S", 0.01)
    faults.first(0, "")
    faults.seen.clear()
    options = StorageOptions(retries=2, timeout_s=0.6, cache=tmp_path / "cache", cache_bytes=20_000)
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return locate(f"s3://{BUCKET}/{name}", options=options)


@pytest.fixture
def faults(server):
    return server[2]


def body(number, size=5000):
    return np.random.default_rng(number).bytes(size)


class TestLocations:
    def test_locate_and_join_resolve_paths_and_urls(self):
        assert locate("data/mine") == Path("data/mine")
        assert locate("file:///data/a%20b") == Path("/data/a b")
        assert join(locate("s3://pool/a"), "/abs/x.json") == Path("/abs/x.json")
        assert str(join(locate("s3://pool/a"), "b/../c.json")) == "s3://pool/a/c.json"
        assert str(join(Path("/data"), "gs://pool//a/")) == "gs://pool/a"

    @pytest.mark.parametrize("name", ["../x", "a/../../x", "/x"])
    def test_joinpath_outside_root_is_refused(self, name):
        with pytest.raises(ValueError, match="s3://pool/a"):
            locate("s3://pool/a").joinpath(name)

    @pytest.mark.parametrize(
        "url",
        ["s3://{k}:{s}@pool/x", "s3://{k}@pool", "s3://pool/x?AWSAccessKeyId={k}&Signature={s}", "ftp://{k}:{s}@h/x"],
    )
    def test_locate_url_with_secret_is_refused_without_repeating_it(self, url):
        with pytest.raises(ConfigError) as error:
            locate(url.format(k=KEY_ID, s=SECRET), name="DATASETS.ROOT")
        assert str(error.value).startswith("DATASETS.ROOT: ")
        assert KEY_ID not in str(error.value)
        assert "secret" not in str(error.value)

    @pytest.mark.parametrize(
        ("url", "value"), [("ftp://host/x", "ftp://"), ("s3:///x", "s3://"), ("file://host/x", "file://")]
    )
    def test_locate_invalid_url_is_refused(self, url, value):
        with pytest.raises(ConfigError, match=rf"^IMAGE_ROOT: .*{value}"):
            locate(url, name="IMAGE_ROOT")

    def test_settings_with_invalid_url_are_refused(self):
        with pytest.raises(ConfigError, match=r"CURATE\.STORAGE\.ROOT: .*'/data'"):
            curate_settings({"STORAGE": {"ROOT": "/data"}})
        with pytest.raises(ConfigError, match=r"CURATE\.POOL\.IMAGE_ROOT: "):
            curate_settings({"POOL": {"IMAGE_ROOT": "s3://a:b@pool"}})

    def test_local_only_settings_refuse_urls(self):
        with pytest.raises(ConfigError, match=r"CURATE\.STORAGE\.CACHE: "):
            curate_settings({"STORAGE": {"CACHE": "s3://pool/cache"}})
        with pytest.raises(ArgumentTypeError, match="s3://") as error:
            local_path(f"s3://{KEY_ID}@pool/x")
        assert KEY_ID not in str(error.value)

    def test_pickled_location_drops_listing(self, root):
        write_bytes(root / "a.bin", b"1")
        assert set(root.listing) == {"a.bin"}
        copy = pickle.loads(pickle.dumps(root))
        assert copy == root
        assert copy.options == root.options
        assert "listing" not in vars(copy)


class TestObjects:
    def test_upload_attaches_digest(self, root, faults):
        data = body(1)
        write_bytes(root / "a" / "b.bin", data)
        assert (root / "a" / "b.bin").read_bytes() == data
        faults.seen.clear()
        assert sha256_file(root / "a" / "b.bin") == hashlib.sha256(data).hexdigest()
        assert faults.count("GET") == 0

    def test_digest_without_metadata_is_computed(self, root, server):
        server[1].put_object(Bucket=BUCKET, Key=f"{root.key[5:]}/x.bin", Body=body(2))
        assert sha256_file(root / "x.bin") == hashlib.sha256(body(2)).hexdigest()

    def test_interrupted_write_keeps_old_object(self, root, tmp_path):
        write_bytes(root / "x.bin", b"old")
        with pytest.raises(KeyboardInterrupt), atomic_path(root / "x.bin") as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyboardInterrupt
        assert (root / "x.bin").read_bytes() == b"old"
        assert list((tmp_path / "cache" / "outgoing").iterdir()) == []

    def test_upload_removes_files_of_killed_process(self, root, tmp_path):
        outgoing = tmp_path / "cache" / "outgoing"
        (outgoing / "dead").mkdir(parents=True)
        (outgoing / "dead" / "big.parquet").write_bytes(b"1")
        (outgoing / "dead.lock").touch()
        write_bytes(root / "x.bin", b"1")
        assert list(outgoing.iterdir()) == []

    def test_listing_glob_and_removal(self, root, faults):
        for name in ("set-00/set.json", "set-00/shard-00000.parquet", "set-00/shard-00002.parquet", "stage.json"):
            write_bytes(root / name, b"123")
        assert [str(path)[len(str(root)) + 1 :] for path in root.glob("set-*/set.json")] == ["set-00/set.json"]
        assert [path.name for path in root.glob("set-*")] == ["set-00"]
        faults.seen.clear()
        assert missing_shards(root / "set-00", 4) == [1, 3]
        assert file_sizes(root, ["stage.json", "absent"]) == {"stage.json": 3}
        assert len(faults.seen) == 2
        assert describe_files(root, [root / "stage.json"]) == {
            "stage.json": {"sha256": hashlib.sha256(b"123").hexdigest(), "bytes": 3}
        }
        (root / "set-00").remove_tree()
        assert [path.name for path in root.iterdir()] == ["stage.json"]
        (root / "stage.json").unlink()
        assert not root.exists()

    def test_table_is_read_by_ranges(self, root):
        write_table(root / "t.parquet", {"a": pa.array(range(1000))}, {"b": 1})
        table, described = read_table(root / "t.parquet")
        assert table["a"].to_pylist() == list(range(1000))
        assert described == {"b": 1, "num_rows": 1000}
        whole = (root / "t.parquet").read_bytes()
        with (root / "t.parquet").open() as stream:
            stream.seek(-9, io.SEEK_END)
            assert stream.read() == whole[-9:]
            stream.seek(3)
            assert stream.read(5) == whole[3:8]

    def test_absent_object_raises_file_not_found(self, root, tmp_path):
        with pytest.raises(FileNotFoundError):
            (root / "x").read_bytes()
        with pytest.raises(FileNotFoundError):
            (root / "x").open()
        with pytest.raises(FileNotFoundError):
            link_or_copy(root / "x", tmp_path / "x")
        assert not (tmp_path / "x").exists()

    def test_write_to_absent_bucket_is_refused(self, root):
        with pytest.raises(StorageError, match="s3://no-such-bucket/x: .*bucket"):
            write_bytes(locate("s3://no-such-bucket/x", options=root.options), b"1")


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_read_with_two_faults_succeeds(self, root, faults, fault):
        write_bytes(root / "x.bin", body(3))
        faults.first(2, fault, contains="x.bin")
        assert (root / "x.bin").read_bytes() == body(3)

    @pytest.mark.parametrize("fault", FAULTS)
    def test_read_with_persistent_fault_names_url_and_settings(self, root, faults, fault):
        write_bytes(root / "x.bin", body(3))
        faults.first(9, fault, contains="x.bin")  # aiohttp itself repeats a request after a reset
        with pytest.raises(StorageError) as error:
            (root / "x.bin").read_bytes()
        message = str(error.value)
        assert message.startswith(f"{root}/x.bin: ")
        assert re.search(r"\(got \S.+ at attempt 3\)", message)
        assert "CURATE.STORAGE.RETRIES" in message
        assert ("2,500 of 5,000 bytes" in message) == (fault == "short")

    @pytest.mark.parametrize("fault", ["slow_down", "stall", "reset"])
    def test_write_with_two_faults_succeeds(self, root, faults, fault):
        faults.first(2, fault, method="PUT", contains="x.bin")
        write_bytes(root / "x.bin", body(4))
        assert (root / "x.bin").read_bytes() == body(4)

    def test_pauses_double_without_global_random_numbers(self, root, faults, monkeypatch):
        pauses = []
        monkeypatch.setattr(client, "_FIRST_PAUSE_S", 8.0)
        monkeypatch.setattr(client.time, "sleep", pauses.append)
        write_bytes(root / "x.bin", b"1")
        faults.first(2, "slow_down", contains="x.bin")
        random.seed(7)
        state = random.getstate()
        (root / "x.bin").read_bytes()
        assert random.getstate() == state
        assert [4 <= pauses[0] <= 8, 8 <= pauses[1] <= 16, len(pauses)] == [True, True, 2]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("AWS_ENDPOINT_URL", "nonsense"),
            ("AWS_PROFILE", "absent-profile"),
        ],
    )
    def test_invalid_environment_fails_without_retry(self, root, monkeypatch, name, value):
        monkeypatch.setattr(client.time, "sleep", lambda _: pytest.fail("a retry cannot succeed"))
        monkeypatch.setenv(name, value)
        with pytest.raises(StorageError, match=rf"{root}: .*{value}"):
            root.read_bytes()

    @pytest.mark.parametrize("fault", ["denied", "unauthorized"])
    def test_denied_access_fails_at_once_and_names_verb(self, root, faults, fault):
        write_bytes(root / "x.bin", body(5))
        faults.plan = lambda method, path: fault
        faults.seen.clear()
        requests = {"read": (root / "x.bin").read_bytes, "write": lambda: write_bytes(root / "x.bin", b"1")}
        for verb, send in {**requests, "list": root.list_files}.items():
            with pytest.raises(StorageError, match=rf"^{root}\S*: access denied to {verb} "):
                send()
        assert len(faults.seen) == 3

    def test_permission_error_fails_at_once_without_secrets(self, root):
        attempts = []

        def deny(_):
            attempts.append(1)
            raise PermissionError(f"no: {SECRET} at http://me:{KEY_ID}@host")

        with pytest.raises(StorageError, match=str(root)) as error:
            client.request(deny, verb="read", url=str(root), scheme="s3", options=root.options)
        assert len(attempts) == 1
        assert SECRET not in str(error.value)
        assert KEY_ID not in str(error.value)

    def test_missing_credentials_fail_at_once(self, root, monkeypatch, tmp_path):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "absent"))
        monkeypatch.setattr(client, "_file_systems", {})
        monkeypatch.setattr(client.time, "sleep", lambda _: pytest.fail("a retry cannot succeed"))
        with pytest.raises(StorageError, match=rf"^{root}/x.bin: .*credentials"):
            (root / "x.bin").read_bytes()

    def test_missing_package_names_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "adlfs", None)
        monkeypatch.setattr(client, "_file_systems", {})
        with pytest.raises(StorageError, match=r"^az://: .*detcurate\[azure\]"):
            locate("az://pool/x").read_bytes()

    def test_error_that_package_has_retried_is_not_retried(self, root, monkeypatch):
        attempts = []

        def fail(_):
            attempts.append(1)
            raise ConnectionError("refused")

        kind = dataclasses.replace(client.SCHEMES["s3"], has_retried=lambda error: isinstance(error, ConnectionError))
        monkeypatch.setattr(client, "SCHEMES", {"s3": kind})
        with pytest.raises(StorageError, match=rf"^{root}: .*refused at attempt 1"):
            client.request(fail, verb="read", url=str(root), scheme="s3", options=root.options)
        assert len(attempts) == 1


class TestImages:
    def put(self, root, count):
        for number in range(count):
            write_bytes(root / f"{number}.jpg", body(number))
        return [f"{number}.jpg" for number in range(count)]

    def test_statuses_of_images_cost_one_listing(self, root, faults):
        names = self.put(root, 3)
        faults.seen.clear()
        found = image_statuses(root, [*names, "absent.jpg", "../x.jpg"])
        assert [size for size, _ in found] == [5000, 5000, 5000, -1, -1]
        assert len({tag for _, tag in found[:3]}) == 3
        files = image_files(root, [*names, "absent.jpg", "../x.jpg"])
        with files[2].open() as stream:
            assert stream.read() == body(2)
        assert len(faults.seen) == 2  # the listing, the image
        for file in files[3:]:
            with pytest.raises(FileNotFoundError):
                file.open()
        assert RemoteImage.parse(str(files[1]), root.options) == files[1]

    def test_second_open_costs_no_request(self, root, faults):
        (file,) = image_files(root, self.put(root, 1))
        file.open().close()
        faults.seen.clear()
        with file.open() as stream:
            assert stream.read() == body(0)
        assert faults.seen == []

    def test_truncated_copy_is_downloaded_again(self, root, tmp_path):
        (file,) = image_files(root, self.put(root, 1))
        file.open().close()
        (copy,) = (tmp_path / "cache" / "images").glob("??/*")
        copy.write_bytes(b"cut")
        with file.open() as stream:
            assert stream.read() == body(0)

    def test_object_changed_since_listing_is_refused(self, root):
        (file,) = image_files(root, self.put(root, 1))
        write_bytes(root / "0.jpg", body(9, 6000))
        with pytest.raises(StorageError, match="5,001 of 5,000 bytes"):
            file.open()

    def test_cache_bound_evicts_least_recently_used(self, root, tmp_path):
        files = image_files(root, self.put(root, 7))
        folder = tmp_path / "cache" / "images"
        for number, file in enumerate(files):
            file.open().close()
            for copy in folder.glob("??/*"):
                os.utime(copy, (number, number)) if copy.stat().st_mtime > 1e6 else None
            assert sum(path.stat().st_size for path in folder.glob("??/*")) <= 20_000
        assert len(list(folder.glob("??/*"))) >= 2
        with files[-1].open() as stream:
            assert stream.read() == body(6)

    def test_image_larger_than_cache_bound_is_refused(self, root, tmp_path):
        write_bytes(root / "x.jpg", body(0, 400))
        copies = LocalCopies(tmp_path / "small", 399)
        with pytest.raises(StorageError, match=r"^CURATE\.STORAGE\.CACHE_GB: .*x.jpg"):
            copies.open(root / "x.jpg", Entry(400, 1))

    def test_threads_download_image_once(self, root, faults):
        (file,) = image_files(root, self.put(root, 1))
        faults.seen.clear()
        fetch_ahead([str(file)], root.options)
        threads = [threading.Thread(target=lambda: file.open().close()) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults.count("GET", "0.jpg") == 1

    def test_processes_share_cache_bound(self, root, tmp_path):
        files = image_files(root, self.put(root, 9))
        context = multiprocessing.get_context("spawn")
        with context.Pool(2) as pool:
            assert pool.map(read_all, [files, files[::-1]]) == [9 * 5000, 9 * 5000]
        copies = list((tmp_path / "cache" / "images").glob("??/*"))
        assert 0 < sum(path.stat().st_size for path in copies) <= 20_000
        assert not [path for path in copies if path.suffix == ".partial"]

    def test_detectron2_reads_remote_image(self, root):
        pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")
        from detectron2.data import detection_utils

        from detcurate.config.declaration import default_config
        from detcurate.d2.registration import open_remote_images

        pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        write_bytes(root / "x.png", stream.getvalue())
        cfg = default_config()
        cfg.CURATE.STORAGE.CACHE = str(root.options.cache)
        open_remote_images(cfg)
        (file,) = image_files(root, ["x.png"])
        assert np.array_equal(detection_utils.read_image(str(file), "RGB"), pixels)


def read_all(files):
    total = 0
    for file in files:
        with file.open() as stream:
            total += len(stream.read())
    return total


def test_annotation_copy_is_renewed_when_object_changes(root, faults):
    write_bytes(root / "train.json", b'{"a": 1}')
    first = annotation_copy(root / "train.json")
    assert (first.name, first.read_bytes()) == ("train.json", b'{"a": 1}')
    faults.seen.clear()
    assert annotation_copy(root / "train.json") == first
    assert faults.count("GET", "train.json") == 0
    write_bytes(root / "train.json", b'{"a": 2}')
    assert annotation_copy(root / "train.json").read_bytes() == b'{"a": 2}'
