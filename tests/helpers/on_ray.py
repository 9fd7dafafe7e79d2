"""A small Ray cluster on loopback with a token, and functions that its workers run.

Ray reads these variables when it is imported, so import this module first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers import REPOSITORY

STORE_BYTES = 80 * 2**20
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]),
}


@contextlib.contextmanager
def cluster_of(*num_cpus: int, **head: Any) -> Iterator[Any]:
    """Give a cluster with a node for each number of CPUs; further arguments configure the first node."""
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": num_cpus[0], **options, **head})
    try:
        for number in num_cpus[1:]:
            cluster.add_node(num_cpus=number, object_store_memory=STORE_BYTES)
        yield cluster
    finally:
        cluster.shutdown()


def worker_pids() -> list[int]:
    """Return the processes that work on a block, by the title that Ray gives them."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::BlockWorker.work"):
                pids.append(int(path.parent.name))
    return pids


def kill_a_worker() -> int:
    """Wait for a process that works on a block, kill it and return its number."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for pid in worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return pid
        time.sleep(0.02)
    raise TimeoutError("no worker has started a block within 60 s")


# Workers import the functions below by name.


def square(job: int, progress: Any) -> int:
    """Return the square; some later jobs end before earlier ones."""
    time.sleep(0.05 * (job % 3))
    progress(1)
    progress(1)
    return job**2


def _meet(folder: Path, number: int) -> None:
    """Wait until ``number`` workers have started a job."""
    (folder / f"worker-{os.getpid()}").touch()
    end = time.monotonic() + 120
    while len(list(folder.glob("worker-*"))) < number and time.monotonic() < end:
        time.sleep(0.05)


def timed(job: tuple[Path, int], progress: Any) -> tuple[float, float]:
    """Return when the job began and ended, once enough workers have started."""
    begun = time.time()
    _meet(*job)
    time.sleep(0.1)
    progress(2)
    return begun, time.time()


def where(job: tuple[Path, int], progress: Any) -> tuple[int, str, str]:
    """Return the process, its GPUs and its folder, once enough workers have started."""
    _meet(*job)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", ""), str(Path.cwd())


def large(job: int, progress: Any) -> Any:
    """Return an array of 16 MB that repeats the job's number."""
    import numpy as np

    return np.full(2_000_000, job)


def refuse_three(job: int, progress: Any) -> int:
    """Raise an error that a user can fix at job 3."""
    from detcurate.errors import DatasetError

    if job == 3:
        raise DatasetError("boxes must be finite, got nan (x.json, image_id 7)")
    time.sleep(150)
    return job


def divide_by_zero(job: int, progress: Any) -> float:
    """Raise an error that is a defect."""
    return job / 0


def die_at_two(job: int, progress: Any) -> int:
    """Kill the own process at job 2."""
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def fail_once(job: tuple[int, Path, str], progress: Any) -> tuple[int, int]:
    """Kill the process, exit or exhaust memory at job 2, the first time; return the job's number and the process."""
    number, folder, how = job
    mark = folder / "failed"
    if number == 2 and not mark.exists():
        mark.write_text(str(os.getpid()))
        if how == "memory":
            import resource

            import numpy as np

            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
            np.ones(2**30)
        elif how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            os._exit(0)
    time.sleep(0.05)
    progress(1)
    return number, os.getpid()


class ShortOfMemory:
    """Run ``predict_cluster``, but exhaust a worker's memory once, after the first shard of a block.

    Args:
        mark: File that is created when it has happened.
        limit: Whether to limit the process; otherwise it takes up to 8 GB of the machine.
    """

    def __init__(self, mark: Path, *, limit: bool) -> None:
        self.mark, self.limit = mark, limit

    def __call__(self, job: Any, progress: Any, keeper: Any) -> None:
        """Predict the shards of a block."""
        from detcurate.d2.infer.cluster import predict_cluster

        def report(amount: int) -> None:
            progress(amount)
            with contextlib.suppress(FileExistsError):
                self.mark.touch(exist_ok=False)
                self.exhaust()

        predict_cluster(job, report, keeper)

    def exhaust(self) -> None:
        """Allocate memory until none is left."""
        import resource

        import numpy as np

        if self.limit:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        kept = []
        for _ in range(8 * 8):
            kept.append(np.ones(2**24))
            time.sleep(0.0 if self.limit else 0.1)
