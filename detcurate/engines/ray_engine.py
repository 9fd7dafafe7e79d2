"""The engine of a Ray cluster: one that is there, or one of this machine alone that is started and ended here."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from detcurate.config import RaySettings
from detcurate.errors import ConfigError
from detcurate.parallel import Progress

if TYPE_CHECKING:
    from detcurate.engines.ray_pool import PoolPlan

_KNOCK_SECONDS, _SETTLE_SECONDS = 5.0, 0.2
_AHEAD = 2  # blocks a worker whose results wait for their turn
_OBJECT_STORE_BYTES = 512 * 2**20  # of a cluster that is started here; what does not fit is spilled to disk
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Ray listens on all interfaces, unless told that there is no cluster; and who knows no token is sent away.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


class RayEngine:
    """Workers on a Ray cluster.

    Args:
        settings: How many workers, and what each needs.
        address: Of the cluster; ``None`` for ``RAY_ADDRESS``, or else one that is started here when it is needed.
        num_cpus: Of a cluster that is started here.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """

    hands_out_blocks = True

    def __init__(self, settings: RaySettings, *, address: str | None = None, num_cpus: int = 1) -> None:
        self._settings, self._num_cpus, self._is_connected = settings, num_cpus, False
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        require_ray()
        if self._address is not None:
            self._connect()  # to be known now, not after hours of training

    def run(
        self,
        function: Callable[[Any, Progress], Any],
        jobs: Sequence[Any],
        *,
        num_processes: int,
        total: int,
        desc: str,
        unit: str,
        on_gpu: bool = False,
    ) -> list[Any]:
        """See :class:`~detcurate.engines.Engine`; the results are small."""
        self._connect()
        plan = self._plan(on_gpu, most=len(jobs), ahead=None)
        return list(_hand_out(function, jobs, plan, _bar(total, desc, unit)))

    def stream(
        self,
        function: Callable[[Any, Progress], Any],
        jobs: Iterable[Any],
        *,
        num_processes: int,
        total: int,
        desc: str,
        unit: str,
    ) -> Iterator[Any]:
        """See :class:`~detcurate.engines.Engine`; two blocks a worker are begun or wait for their turn."""
        self._connect()
        plan = self._plan(on_gpu=False, most=None, ahead=_AHEAD)
        return _hand_out(function, jobs, plan, _bar(total, desc, unit))

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._is_connected:
            import ray

            # Ray answers what its dying workers have asked from a thread that outlives what it answers with, and then
            # crashes: seen once in some hundred ends with 2.60, as in https://github.com/ray-project/ray/pull/61863.
            time.sleep(_SETTLE_SECONDS)
            ray.shutdown()
            self._is_connected = False

    def _connect(self) -> None:
        if self._is_connected:
            return
        os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
        if self._address is None:
            os.environ.update({**_LOOPBACK, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
            options = {"address": "local", "num_cpus": self._num_cpus, "object_store_memory": _OBJECT_STORE_BYTES}
            options["include_dashboard"] = False
        else:
            _require_member(self._address)
            options = {"address": self._address}
        _init(options)
        self._is_connected = True

    def _plan(self, on_gpu: bool, *, most: int | None, ahead: int | None) -> PoolPlan:
        """Return how many workers the cluster has room for, unless the settings say how many."""
        import ray

        from detcurate.engines.ray_pool import PoolPlan

        settings, found = self._settings, ray.cluster_resources()
        resources = {"num_cpus": settings.cpus_per_worker, "num_gpus": settings.gpus_per_worker if on_gpu else 0.0}
        room = found.get("CPU", 0.0) / settings.cpus_per_worker
        if on_gpu:
            if not found.get("GPU"):
                raise ConfigError(
                    "MODEL.DEVICE must be one that the Ray cluster has, got cuda and no GPU in "
                    f"{len(ray.nodes())} nodes; add MODEL.DEVICE cpu, or nodes with GPUs"
                )
            room = min(room, found["GPU"] / settings.gpus_per_worker)
        num_workers = max(1, min(settings.num_workers or int(room), most if most is not None else sys.maxsize))
        return PoolPlan(num_workers, resources, settings.max_deaths, None if ahead is None else ahead * num_workers)


def require_ray() -> None:
    """Raise ``ConfigError`` unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray must be installed for --engine ray, got none; pip install 'detcurate[ray]'")


def _require_member(address: str) -> None:
    if address.startswith("ray://"):
        raise ConfigError(
            f"--ray-address must be of a cluster that this machine is a node of, as host:port or auto, got {address}; "
            "start the command on a node, such as the head"
        )
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():  # Ray itself goes on trying for minutes
        try:
            socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: BaseException) -> ConfigError:
    return ConfigError(
        f"--ray-address must be of a Ray cluster that runs, got {address}: {error}; `ray status` there tells more"
    )


def _init(options: dict[str, Any]) -> None:
    """Connect; what SIGTERM does stays as the program has it, and is not Ray's own affair."""
    import ray

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(options["address"], error) from error
    finally:
        if in_main and before is not None:
            signal.signal(signal.SIGTERM, before)


def _bar(total: int, desc: str, unit: str) -> Any:
    return tqdm(total=total, desc=desc, unit=unit, dynamic_ncols=True, file=sys.stderr, mininterval=0.5)


def _hand_out(function: Callable[[Any, Progress], Any], jobs: Iterable[Any], plan: PoolPlan, bar: Any) -> Iterator[Any]:
    from detcurate.engines.ray_pool import BlockPool

    with bar, closing(BlockPool(function, plan, bar)) as pool:
        yield from pool.results(jobs)
