"""A small Ray cluster on this machine, on loopback alone and with a token; and what runs on it.

Ray reads these settings when it is imported, so this module comes first.
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
    """Give a cluster of a node for each number of CPUs; further arguments are the first one's."""
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
    """Return the processes of this user that are at a block just now, by the title that Ray gives them."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::BlockWorker.work"):
                pids.append(int(path.parent.name))
    return pids


def kill_a_worker() -> int:
    """Kill a process that is at a block, once there is one; return its number."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for pid in worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return pid
        time.sleep(0.02)
    raise TimeoutError("no worker was at a block within 60 s")


# What workers are given: functions of this module, which they import.


def square(job: int, progress: Any) -> int:
    """Return the square, later jobs before earlier ones."""
    time.sleep(0.05 * (job % 3))
    progress(1)
    progress(1)
    return job**2


def _meet(folder: Path, number: int) -> None:
    """Wait until so many workers are at a job, however slowly they start."""
    (folder / f"worker-{os.getpid()}").touch()
    end = time.monotonic() + 120
    while len(list(folder.glob("worker-*"))) < number and time.monotonic() < end:
        time.sleep(0.05)


def timed(job: tuple[Path, int], progress: Any) -> tuple[float, float]:
    """Return when the job began and ended; the first ones wait until so many workers are there."""
    begun = time.time()
    _meet(*job)
    time.sleep(0.1)
    progress(2)
    return begun, time.time()


def where(job: tuple[Path, int], progress: Any) -> tuple[int, str, str]:
    """Return the process, its GPUs and its folder, once so many workers are there."""
    _meet(*job)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", ""), str(Path.cwd())


def large(job: int, progress: Any) -> Any:
    """Return 16 MB of the job's number."""
    import numpy as np

    return np.full(2_000_000, job)


def refuse_three(job: int, progress: Any) -> int:
    """Raise what a user can mend at job 3."""
    from detcurate.errors import DatasetError

    if job == 3:
        raise DatasetError("boxes must be finite, got nan (x.json, image_id 7)")
    time.sleep(150)
    return job


def divide_by_zero(job: int, progress: Any) -> float:
    """Have a defect."""
    return job / 0


def die_at_two(job: int, progress: Any) -> int:
    """Die at job 2, whoever is given it."""
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def suffer_once(job: tuple[int, Path, str], progress: Any) -> tuple[int, int]:
    """Die, run out of memory or leave at job 2, the first time; return the job's number and the process."""
    number, folder, how = job
    mark = folder / "suffered"
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
    """``predict_cluster``, but once, after the first shard of a block, a worker asks for more memory than there is.

    Args:
        mark: The file that says that it has happened.
        limit: Whether the process is given a limit of its own; else it takes what the machine has, up to 8 GB.
    """

    def __init__(self, mark: Path, *, limit: bool) -> None:
        self.mark, self.limit = mark, limit

    def __call__(self, job: Any, progress: Any, keeper: Any) -> None:
        """Make the block's shards."""
        from detcurate.d2.infer.cluster import predict_cluster

        def told(amount: int) -> None:
            progress(amount)
            with contextlib.suppress(FileExistsError):
                self.mark.touch(exist_ok=False)
                self.exhaust()

        predict_cluster(job, told, keeper)

    def exhaust(self) -> None:
        """Ask for memory until there is none."""
        import resource

        import numpy as np

        if self.limit:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        kept = []
        for _ in range(8 * 8):
            kept.append(np.ones(2**24))
            time.sleep(0.0 if self.limit else 0.1)
