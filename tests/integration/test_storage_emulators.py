"""``gs://`` and ``az://`` against emulators on loopback: objects, faults, and a whole run.

Google's comes with ``pip install gcp-storage-emulator``. Azure's is Azurite (npm): start it and name its address,
``DETCURATE_AZURITE=http://127.0.0.1:10000``.
"""

import hashlib
import os
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

pytest.importorskip("moto", reason="moto is not installed: `make setup` installs it")

from helpers.storage_server import faulty_server

from detcurate.cli import main
from detcurate.errors import StorageError
from detcurate.io.files import describe_files, sha256_file, write_bytes
from detcurate.io.parquet import read_table, write_table
from detcurate.io.storage import (
    RemotePath,
    StorageOptions,
    annotation_copy,
    client,
    image_files,
    image_statuses,
    locate,
)

# Azurite's account, which its documentation publishes.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
FAULTS = ("slow_down", "hang", "half", "short", "reset")


def google():
    """Start Google's emulator; return its address, a function that stops it, and one that gives the environment."""
    pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install 'detcurate[gcs]'")
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="Google's emulator is absent: pip install gcp-storage-emulator"
    )
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="pool")
    server.start()
    environment = {"NO_GCE_CHECK": "true"}  # else Google's package looks for a machine of Google's first
    return (
        server._api._httpd.server_address,
        server.stop,
        lambda endpoint: {"STORAGE_EMULATOR_HOST": endpoint, **environment},
    )


def azure():
    """Empty the container of a running Azurite; return as :func:`google`."""
    address = os.environ.get("DETCURATE_AZURITE")
    if not address:
        pytest.skip("no Azurite here: DETCURATE_AZURITE names the address of one")
    pytest.importorskip("adlfs", reason="adlfs is not installed: pip install 'detcurate[azure]'")
    from azure.storage.blob import BlobServiceClient

    def environment(endpoint: str) -> dict[str, str]:
        parts = {"DefaultEndpointsProtocol": "http", "AccountName": ACCOUNT, "AccountKey": KEY}
        parts["BlobEndpoint"] = f"{endpoint}/{ACCOUNT}"
        return {"AZURE_STORAGE_CONNECTION_STRING": ";".join(f"{name}={value}" for name, value in parts.items())}

    with BlobServiceClient.from_connection_string(*environment(address).values()) as service:
        if service.get_container_client("pool").exists():
            for blob in service.get_container_client("pool").list_blob_names():
                service.get_blob_client("pool", blob).delete_blob()
        else:
            service.create_container("pool")
    return (urlsplit(address).hostname, urlsplit(address).port), lambda: None, environment


@pytest.fixture(scope="module", params=[google, azure], ids=["gs", "az"])
def storage(request, tmp_path_factory):
    """The scheme of an emulator behind a proxy, and the proxy's faults."""
    behind, stop, environment = request.param()
    with faulty_server(behind) as (endpoint, faults), pytest.MonkeyPatch.context() as patch:
        for name, value in environment(endpoint).items():
            patch.setenv(name, value)
        patch.setattr(client, "_FIRST_PAUSE_S", 0.01)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield {google: "gs", azure: "az"}[request.param], faults
    stop()


@pytest.fixture
def root(storage, tmp_path, request):
    scheme, faults = storage
    faults.first(0, "")
    faults.seen.clear()
    faults.stall_s = 1.0
    options = StorageOptions(retries=2, timeout_s=0.6, cache=tmp_path / "cache", cache_bytes=20_000)
    return locate(f"{scheme}://pool/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}", options=options)


@pytest.fixture
def faults(storage):
    return storage[1]


def test_objects_are_written_listed_and_removed(root, tmp_path):
    names = ("a/b.bin", "a/ü #1%41.bin", "a-b/c.bin", "stage.json")
    for size, name in enumerate(names):
        write_bytes(root / name, bytes(size))
    assert {name: entry.size for name, entry in root.list_files().items()} == dict(zip(names, range(4), strict=True))
    for size, name in enumerate(names):
        assert (root / name).read_bytes() == bytes(size)
        assert (root / name).entry() == root.list_files()[name]
    assert [path.name for path in root.glob("a/*.bin")] == ["b.bin", "ü #1%41.bin"]
    assert [(root / name).is_dir() for name in ("a", "a/b.bin", "b")] == [True, False, False]
    assert [(root / name).is_file() for name in ("a", "a/b.bin", "b")] == [False, True, False]
    assert describe_files(root, [root / "stage.json"]) == {
        "stage.json": {"sha256": hashlib.sha256(bytes(3)).hexdigest(), "bytes": 3}
    }
    (root / "a").remove_tree()
    (root / "a").remove_tree()
    assert sorted(root.list_files()) == ["a-b/c.bin", "stage.json"]
    (root / "stage.json").unlink()
    (root / "stage.json").unlink(missing_ok=True)
    for path in (root / "stage.json", root / "a"):
        with pytest.raises(FileNotFoundError, match=str(path)):
            path.read_bytes()


def test_object_written_again_changes_entry_and_copy(root):
    write_bytes(root / "train.json", b'{"a": 1}')
    before, first = (root / "train.json").entry(), annotation_copy(root / "train.json")
    assert annotation_copy(root / "train.json") == first
    write_bytes(root / "train.json", b'{"a": 2}')
    assert (root / "train.json").entry() != before
    assert annotation_copy(root / "train.json").read_bytes() == b'{"a": 2}'


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of aiohttp, to both packages
def test_object_of_many_parts_is_complete(root, tmp_path):
    root = RemotePath(root.scheme, root.key, StorageOptions(timeout_s=30, cache=tmp_path / "cache"))
    whole = os.urandom((5 << 20) + 1) * 11  # more than gcsfs, and than adlfs, sends at once
    write_bytes(root / "big.bin", whole)
    assert sha256_file(root / "big.bin") == hashlib.sha256(whole).hexdigest()
    (root / "big.bin").download(tmp_path / "big.bin")
    assert (tmp_path / "big.bin").read_bytes() == whole


def test_table_and_images_cost_few_requests(root, faults):
    write_table(root / "t.parquet", {"a": pa.array(range(1000))}, {"b": 1})
    assert read_table(root / "t.parquet")[0]["a"].to_pylist() == list(range(1000))
    for number in range(3):
        write_bytes(root / "images" / f"{number}.jpg", bytes(5000 + number))
    faults.seen.clear()
    names = ["0.jpg", "1.jpg", "2.jpg", "absent.jpg"]
    place = root / "images"
    assert [size for size, _ in image_statuses(place, names)] == [5000, 5001, 5002, -1]
    with image_files(place, names)[1].open() as stream:
        assert len(stream.read()) == 5001
    assert len(faults.seen) == {"gs": 2, "az": 3}[root.scheme]  # listing and image; adlfs looks for the folder first


@pytest.mark.parametrize("fault", FAULTS)
def test_read_with_two_faults_succeeds(root, faults, fault):
    write_bytes(root / "x.bin", bytes(5000))
    faults.first(2, fault, contains="x.bin")
    assert (root / "x.bin").read_bytes() == bytes(5000)


@pytest.mark.parametrize("fault", FAULTS)
def test_read_with_persistent_fault_makes_bounded_attempts(root, faults, fault):
    """Six attempts are gcsfs's own, at every fault that it can see."""
    write_bytes(root / "x.bin", bytes(5000))
    entry = (root / "x.bin").entry()
    faults.first(99, fault, contains="x.bin")
    faults.seen.clear()
    own, attempts = (1, 6) if root.scheme == "gs" and fault != "short" else (3, 3)
    with pytest.raises(StorageError, match=rf"^{root}/x.bin: .*\(got .+ at attempt {own}\)"):
        (root / "x.bin").read_bytes(entry)
    if fault == "slow_down":
        assert faults.count("GET", "x.bin") == attempts


@pytest.mark.parametrize("fault", ["slow_down", "stall", "reset"])
def test_write_with_two_faults_succeeds(root, faults, fault):
    method = {"gs": "POST", "az": "PUT"}[root.scheme]
    faults.first(2, fault, method=method)
    write_bytes(root / "x.bin", bytes(5000))
    assert (root / "x.bin").read_bytes() == bytes(5000)


def test_timeout_bounds_silence_not_duration(root, faults):
    write_bytes(root / "x.bin", bytes(5000))
    (entry,) = root.list_files().values()
    faults.stall_s = 3.0  # pauses of 0.375 s, twice, under a bound of 0.6 s
    faults.first(1, "drip", contains="x.bin")
    assert (root / "x.bin").read_bytes(entry) == bytes(5000)
    assert faults.count("GET", "x.bin") == 1


def test_denied_access_fails_at_once(root, faults):
    faults.plan = lambda method, path: "denied"
    for verb, send in {
        "read": root.read_bytes,
        "list": root.list_files,
        "write": lambda: write_bytes(root, b"1"),
    }.items():
        faults.seen.clear()
        with pytest.raises(StorageError, match=f"^{root}: access denied to {verb} "):
            send()
        assert len(faults.seen) <= 3  # gcsfs requests object and folder


def test_absent_bucket_is_refused(root):
    absent = RemotePath(root.scheme, "no-such-bucket/x", root.options)
    with pytest.raises(StorageError, match="no-such-bucket/x: .*bucket"):
        write_bytes(absent, b"1")
    with pytest.raises(FileNotFoundError, match="no-such-bucket/x"):
        absent.read_bytes()
    assert absent.list_files() == {}


def run(config, *arguments: object):
    return main(["--config-file", str(config), "--until", "manifest", *map(str, arguments)])


def test_run_on_storage_equals_run_on_disk(own_data_run, storage, tmp_path):
    config, output, data, overrides = own_data_run
    scheme, faults = storage
    faults.first(0, "")
    for path in data.rglob("*.*"):
        write_bytes(locate(f"{scheme}://pool/frames/{path.relative_to(data).as_posix()}"), path.read_bytes())
    there = (
        "DATASETS.ROOT", f"{scheme}://pool/frames", "CURATE.STORAGE.ROOT", f"{scheme}://pool/runs/tiny",
        "CURATE.STORAGE.CACHE", tmp_path / "cache", "OUTPUT_DIR", tmp_path / "output", "CURATE.NUM_PROCESSES", 1,
    )  # fmt: skip
    assert run(config, *overrides, *there) == 0
    for name in ("subset.json", "images.txt", "provenance.json", "relabel.json"):
        assert (tmp_path / "output" / "manifest" / name).read_bytes() == (output / "manifest" / name).read_bytes(), name
    made = locate(f"{scheme}://pool/runs/tiny")
    shards = [path.relative_to(output).as_posix() for path in output.glob("predict/*/*.parquet")]
    assert len(shards) == 6
    for name in ("score/images.parquet", "score/objects.parquet", *shards):
        assert made.joinpath(name).read_bytes() == (output / name).read_bytes(), name
    assert not (tmp_path / "output" / "predict").exists()
    faults.seen.clear()
    assert run(config, *overrides, *there) == 0
    assert not [path for _, path in faults.seen if path.endswith((".jpg", ".parquet"))]
