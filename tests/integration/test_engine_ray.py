# ruff: noqa: E402  Ray and Detectron2 may be absent and are imported first
"""The Ray engine on one small cluster: order, bounds, failures, and output equal to the local engine's."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import REPOSITORY
from helpers.on_ray import (
    cluster_of,
    die_at_two,
    divide_by_zero,
    fail_once,
    large,
    refuse_three,
    square,
    timed,
    where,
)

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'detcurate[ray]'")

from detcurate.cli import main
from detcurate.cli.signals import INTERRUPTED
from detcurate.config import RaySettings
from detcurate.engines.ray_engine import RayEngine
from detcurate.errors import ConfigError, DatasetError, DetcurateError

NUM_CPUS, NUM_GPUS = 2, 3


@pytest.fixture(scope="module")
def cluster():
    """One node of 2 CPUs that claims 3 GPUs."""
    with cluster_of(NUM_CPUS, num_gpus=NUM_GPUS) as started:
        yield started


@pytest.fixture
def engine(cluster):
    found = RayEngine(RaySettings(), address=cluster.address)
    yield found
    found.close()


def run(engine, function, jobs, **how: object):
    return engine.run(function, jobs, num_processes=1, total=2 * len(jobs), desc="count", unit="step", **how)


def stream(engine, function, jobs, total=100):
    return engine.stream(function, jobs, num_processes=1, total=total, desc="count", unit="step")


def test_results_are_in_order_and_bar_counts_all_units(engine, capsys):
    jobs = [5, 1, 9, 2, 8, 3, 7]
    assert run(engine, square, jobs) == [job**2 for job in jobs]
    assert "14/14" in capsys.readouterr().err
    assert list(stream(engine, square, jobs, total=14)) == [job**2 for job in jobs]
    assert run(engine, square, []) == list(stream(engine, square, [])) == []


def test_blocks_in_work_never_exceed_workers(engine, tmp_path):
    found = run(engine, timed, [(tmp_path, NUM_CPUS)] * 11)
    most = max(sum(begun <= moment < end for begun, end in found) for moment, _ in found)
    assert most == NUM_CPUS


def test_stream_takes_two_jobs_a_worker_ahead(engine):
    taken = []

    def jobs():
        for job in range(17):
            taken.append(job)
            yield job

    results = stream(engine, square, jobs())
    for number, result in enumerate(results):
        assert result == number**2
        assert len(taken) <= number + 1 + 2 * NUM_CPUS
    assert taken == list(range(17))


def test_results_larger_than_object_store_arrive(engine):
    kept = list(stream(engine, large, range(11)))  # 176 MB in a store of 80 MB
    assert [int(array[0]) for array in kept] == list(range(11))
    assert all((array == number).all() for number, array in enumerate(kept))


def test_failure_is_raised_unchanged_and_ends_workers(engine):
    begun = time.monotonic()
    with pytest.raises(DatasetError) as raised:
        run(engine, refuse_three, [1, 3, 4])
    assert type(raised.value) is DatasetError
    assert str(raised.value) == "boxes must be finite, got nan (x.json, image_id 7)"
    assert time.monotonic() - begun < 120
    with pytest.raises(
        RuntimeError, match=r"(?s)divide_by_zero.*ZeroDivisionError"
    ):  # a defect: with the worker's traceback
        run(engine, divide_by_zero, [1])
    assert run(engine, square, [3, 4]) == [9, 16]  # the engine is still connected


def test_exception_of_signal_handler_ends_run(engine):
    class Stopped(BaseException):
        pass

    def stop(*_: object):
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(Stopped):
            run(engine, refuse_three, [1, 4])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_block_that_kills_every_worker_is_named(engine):
    with pytest.raises(DetcurateError, match="count: 3 workers .* job 1 .*CURATE.RAY.MAX_DEATHS"):
        run(engine, die_at_two, [1, 2, 3])


@pytest.mark.parametrize("how", ["kill", "exit", "memory"])
def test_block_of_dead_worker_is_repeated_by_another(engine, tmp_path, how):
    found = run(engine, fail_once, [(number, tmp_path, how) for number in range(7)])
    assert [number for number, _ in found] == list(range(7))
    dead = int((tmp_path / "failed").read_text())
    assert found[2][1] != dead


def test_worker_with_half_gpu_sees_only_that_gpu(cluster, tmp_path):
    engine = RayEngine(RaySettings(gpus_per_worker=0.5, cpus_per_worker=0.25), address=cluster.address)
    try:
        found = run(engine, where, [(tmp_path, 2 * NUM_GPUS)] * 12, on_gpu=True)
    finally:
        engine.close()
    assert len({pid for pid, _, _ in found}) == 2 * NUM_GPUS
    gpu_of = {pid: gpu for pid, gpu, _ in found}
    assert sorted(gpu_of.values()) == ["0", "0", "1", "1", "2", "2"]
    assert {folder for _, _, folder in found} == {str(Path.cwd())}


def test_missing_ray_names_extra(monkeypatch, refused, write_tiny_config, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    config, _ = write_tiny_config(tmp_path)
    assert "pip install 'detcurate[ray]'" in refused("--config-file", config, "--engine", "ray")
    assert "--ray-address: " in refused("--config-file", config, "--ray-address", "x:1")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:10001"])
def test_address_without_cluster_is_refused_at_once(address):
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=rf"^--ray-address: .*{address}"):
        RayEngine(RaySettings(), address=address)
    assert time.monotonic() - begun < 10


LISTENERS = """
import multiprocessing, os, pathlib, time
from detcurate.config import RaySettings
from detcurate.engines.ray_engine import RayEngine
if __name__ == "__main__":
    engine = RayEngine(RaySettings(), num_cpus=1)
    assert engine.run(abs_of, [-3], num_processes=1, total=1, desc="x", unit="u") == [3]
    (driver,) = multiprocessing.active_children()
    mine = set()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == driver.pid:
                mine |= {os.readlink(link) for link in (path / "fd").iterdir()}
        except OSError:
            pass
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in mine:
                print("listens", fields[1].split(":")[0])
    assert "RAY_AUTH_TOKEN" not in os.environ
    engine.close()
    for _ in range(100):  # a process that has been ended is listed until its parent has noticed
        left = [path.name for path in pathlib.Path("/proc").glob("[0-9]*") if session(path) == driver.pid]
        if not left:
            break
        time.sleep(0.1)
    print("left", left)
"""


def test_own_cluster_listens_on_loopback_only(tmp_path):
    """The kernel's tables show 127.0.0.1 in hexadecimal, also within IPv6."""
    (tmp_path / "abs_of.py").write_text(
        "import os\n"
        "def abs_of(job, progress):\n    return abs(job)\n"
        "def session(path):\n"
        "    try:\n        return os.getsid(int(path.name))\n    except OSError:\n        return 0\n"
    )
    (tmp_path / "listeners.py").write_text(f"from abs_of import abs_of, session\n{LISTENERS}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, tmp_path / "listeners.py"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    addresses = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("listens")}
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert done.stdout.splitlines()[-1] == "left []"


@pytest.fixture
def copied_to(tmp_path):
    """Return a function that copies a trained ensemble into this test's folder; it returns arguments and the copy."""

    def copied_to(name, run):
        config, output = run.copy(tmp_path / name, until="train")
        return ["--config-file", str(config), *run.words], output

    return copied_to


def files_of(folder):
    """Return the bytes of every file except the log and the config, which contain the folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("log.txt", "config.yaml")
    }


@pytest.mark.parametrize("mode", ["cluster", "reference", "dense"])
def test_predictions_and_scores_equal_local_engine(request, cluster, copied_to, mode):
    trained = request.getfixturevalue("one_stage_run" if mode == "dense" else "finished_run")
    found = {}
    for engine in ("local", "ray"):
        arguments, output = copied_to(engine, trained)
        on = ["--engine", "ray", "--ray-address", cluster.address] if engine == "ray" else []
        more = ["CURATE.PREDICT.MODE", mode, "CURATE.PREDICT.EMBEDDINGS", "True", "CURATE.RAY.SHARDS_PER_BLOCK", "2"]
        assert main([*arguments, "--until", "score", *on, *more]) == 0
        found[engine] = files_of(output)
    assert found["ray"].keys() == found["local"].keys()
    assert [name for name in found["local"] if found["local"][name] != found["ray"][name]] == []
    shards = f"predict/{'dense' if mode == 'dense' else 'set-00'}/shard-"
    assert sum(name.startswith(shards) for name in found["ray"]) == 6


def test_only_missing_shards_are_predicted(finished_run, cluster, copied_to):
    """Existing shards stay; a block holds only adjacent shards."""
    arguments, output = copied_to("x", finished_run)
    command = [*arguments, "--until", "predict"]
    assert main(command) == 0
    folder = output / "predict"
    whole = files_of(folder)
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "set-00").glob("shard-*")}
    for number in (1, 2, 4):
        (folder / "set-00" / f"shard-0000{number}.parquet").unlink()
    assert main([*command, "--engine", "ray", "--ray-address", cluster.address]) == 0
    assert files_of(folder) == whole
    again = {path.name: path.stat().st_mtime_ns for path in (folder / "set-00").glob("shard-*")}
    assert [int(name[8:11]) for name in sorted(times) if times[name] != again[name]] == [1, 2, 4]


def test_cuda_requires_gpu_of_cluster(finished_run, copied_to, refused):
    arguments, output = copied_to("x", finished_run)
    with cluster_of(1, num_gpus=0) as without:
        message = refused(
            *arguments, "--only", "predict", "--engine", "ray", "--ray-address", without.address, "MODEL.DEVICE", "cuda"
        )
    assert "MODEL.DEVICE" in message
    assert "1 nodes" in message
    assert not list((output / "predict").rglob("shard-*"))


def test_sigterm_ends_command_and_keeps_cluster(finished_run, cluster, copied_to):
    """Ray's compiled code takes over SIGTERM in processes that are connected to it."""
    arguments, output = copied_to("x", finished_run)
    command = [sys.executable, REPOSITORY / "tools" / "curate.py", *arguments]
    command += ["--engine", "ray", "--ray-address", cluster.address, "--until", "predict"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while "predict pool" not in process.stdout.read(80):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143, printed
    assert printed.splitlines()[-1].endswith(INTERRUPTED)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list((output / "predict").rglob("shard-*"))) == 6


def test_dead_driver_is_reported_and_replaced(engine):
    run(engine, square, [1])
    (driver,) = (child for child in multiprocessing.active_children() if child.name == "ray-driver")
    os.kill(driver.pid, signal.SIGKILL)
    with pytest.raises(DetcurateError, match="^--engine ray: "):
        run(engine, square, [2])
    assert run(engine, square, [3]) == [9]
