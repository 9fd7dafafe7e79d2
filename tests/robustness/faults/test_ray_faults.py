# ruff: noqa: E402  Ray and Detectron2 may be absent and are imported first
"""Losses of a Ray cluster during prediction: it completes with the bytes of an undisturbed run.

90 rendered images in 30 shards by 2 members. A thread of this process waits for the first shards and causes the fault.
"""

import random
import shutil
import threading
import time
from pathlib import Path

import pytest
from helpers.on_ray import ShortOfMemory, cluster_of, kill_a_worker

pytest.importorskip("ray", reason="Ray is not installed: pip install 'detcurate[ray]'")
pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

from detcurate.config import RaySettings
from detcurate.config.declaration import load_config
from detcurate.d2.infer.worker import KeepingModels
from detcurate.engines.ray_engine import RayEngine
from detcurate.ensemble.index import MEMBER_INDEX, read_index
from detcurate.pipeline import Run, run_pipeline
from detcurate.pipeline.prediction_jobs import prediction_job
from detcurate.predictions.shards import read_shard

NUM_IMAGES, SHARD_SIZE, NUM_SHARDS = 90, 3, 30
OVERRIDES = [
    "CURATE.RENDER.NUM_IMAGES", str(NUM_IMAGES), "CURATE.PREDICT.SHARD_SIZE", str(SHARD_SIZE),
    "CURATE.ENSEMBLE.NUM_RUNS", "1", "CURATE.NUM_PROCESSES", "1", "CURATE.RAY.SHARDS_PER_BLOCK", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_tiny_config):
    """The config, the output after the stage ``train``, and the shards of the local engine."""
    config, output = write_tiny_config(tmp_path_factory.mktemp("trained"))
    run_pipeline(Run(load_config(config, OVERRIDES), config), until="train")
    local = output.parent / "local"
    shutil.copytree(output, local)
    run_pipeline(Run(load_config(config, [*OVERRIDES, "OUTPUT_DIR", str(local)]), config), until="predict")
    return config, output, shards_of(local)


@pytest.fixture
def nodes():
    """A cluster of two nodes with one CPU each; this process runs on the first."""
    with cluster_of(1, 1) as cluster:
        yield cluster


def shards_of(output):
    return {path.name: path.read_bytes() for path in (output / "predict" / "set-00").glob("shard-*")}


def require_whole(output, expected):
    """Check that all shards are as expected, cover each image once, and that no temporary file is left."""
    found = shards_of(output)
    assert sorted(found) == [f"shard-{number:05d}.parquet" for number in range(NUM_SHARDS)]
    assert [name for name in found if found[name] != expected[name]] == []
    folder = output / "predict" / "set-00"
    image_ids = [image_id for name in found for image_id in read_shard(folder / name)[1].tolist()]
    assert len(image_ids) == len(set(image_ids)) == NUM_IMAGES
    assert [path.name for path in folder.glob(".*")] == []


def predict(trained, folder, address, fault, settings=None):
    """Predict on the cluster while the fault happens; return the result of the fault."""
    config, output, _ = trained
    shutil.copytree(output, folder)
    settings, caught = settings or RaySettings(max_deaths=5), []

    def when_begun():
        while len(list((folder / "predict").rglob("shard-*"))) < 2:
            time.sleep(0.02)
        caught.append(fault())

    thread = threading.Thread(target=when_begun, daemon=True)
    thread.start()
    engine = RayEngine(settings, address=address)
    try:
        run_pipeline(
            Run(load_config(config, [*OVERRIDES, "OUTPUT_DIR", str(folder)]), config, engine=engine), only="predict"
        )
    finally:
        engine.close()
    thread.join(60)
    assert len(caught) == 1  # otherwise prediction ended before the fault
    return caught[0]


def test_killed_worker_is_replaced(trained, nodes, tmp_path):
    pid = predict(trained, tmp_path / "x", nodes.address, kill_a_worker)
    assert not Path(f"/proc/{pid}").exists()
    require_whole(tmp_path / "x", trained[2])


def test_removed_node_leaves_work_to_other(trained, nodes, tmp_path):
    """The lost worker cannot be placed again, and the remaining one finishes."""
    (node,) = nodes.worker_nodes
    predict(trained, tmp_path / "x", nodes.address, lambda: nodes.remove_node(node, allow_graceful=False))
    assert not nodes.worker_nodes
    require_whole(tmp_path / "x", trained[2])


def predict_with(trained, folder, address, work):
    """Predict all shards with another function than ``predict_cluster``."""
    config, output, _ = trained
    shutil.copytree(output, folder)
    run = Run(load_config(config, [*OVERRIDES, "OUTPUT_DIR", str(folder)]), config)
    members = [(output / "train" / one.file, one.sha256) for one in read_index(output / "train" / MEMBER_INDEX)]
    job = prediction_job(run, "pool", folder / "predict" / "set-00", members, run.usable_image_ids)
    blocks = [job.block(range(first, first + 2)) for first in range(0, NUM_SHARDS, 2)]
    engine = RayEngine(RaySettings(), address=address)
    try:
        engine.run(KeepingModels(work), blocks, num_processes=1, total=NUM_IMAGES, desc="predict", unit="image")
    finally:
        engine.close()


def test_actor_out_of_memory_is_replaced(trained, nodes, tmp_path):
    mark = tmp_path / "happened"
    predict_with(trained, tmp_path / "x", nodes.address, ShortOfMemory(mark, limit=True))
    assert mark.exists()
    require_whole(tmp_path / "x", trained[2])


@pytest.mark.faults
def test_actor_killed_by_memory_monitor_is_replaced(trained, tmp_path, monkeypatch):
    """Ray's monitor kills the worker when the machine runs out of memory."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{1 - free / total + 0.12:.2f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    with cluster_of(1, 1) as cluster:
        mark = tmp_path / "happened"
        predict_with(trained, tmp_path / "x", cluster.address, ShortOfMemory(mark, limit=False))
    assert mark.exists()
    require_whole(tmp_path / "x", trained[2])


@pytest.mark.faults
def test_ten_killed_workers_are_replaced(trained, nodes, tmp_path):
    draw = random.Random(0)

    def kill_ten():
        pids = []
        for _ in range(10):
            pids.append(kill_a_worker())
            time.sleep(draw.uniform(0, 0.5))
        return pids

    pids = predict(trained, tmp_path / "x", nodes.address, kill_ten, RaySettings(max_deaths=11))
    assert len(set(pids)) == 10
    require_whole(tmp_path / "x", trained[2])


@pytest.mark.faults
def test_removal_of_three_of_four_nodes_is_survived(trained, tmp_path):
    def remove_three():
        for node in list(cluster.worker_nodes):
            cluster.remove_node(node, allow_graceful=False)
            time.sleep(0.2)

    with cluster_of(1, 1, 1, 1) as cluster:
        predict(trained, tmp_path / "x", cluster.address, remove_three, RaySettings(max_deaths=11))
        assert not cluster.worker_nodes
    require_whole(tmp_path / "x", trained[2])
