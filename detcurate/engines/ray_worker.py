"""What runs inside a Ray actor: one function, called for one block after another."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from detcurate.version import __version__

UNITS, RESULT, FAILURE = "units", "result", "failure"
_TELL_SECONDS = 0.5


class BlockWorker:
    """A worker.

    Args:
        function: Called as ``function(job, progress)``. It may keep things from one block to the next.
        folder: The driver's current one, which relative paths are meant from.
    """

    def __init__(self, function: Callable[[Any, Callable[[int], None]], Any], folder: Path) -> None:
        self._function = function
        if folder.is_dir():  # a node that lacks it says so when it opens a relative path
            os.chdir(folder)

    def describe(self) -> tuple[str, str]:
        """Return the node's id and detcurate's version there."""
        import ray

        return str(ray.get_runtime_context().get_node_id()), __version__

    def work(self, job: Any) -> Iterator[tuple[str, Any]]:
        """Yield units of work as they are done, a few times a second, and the result at the end."""
        told: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        threading.Thread(target=self._run, args=(job, told), daemon=True).start()
        units, since = 0, time.monotonic()
        while True:
            kind, value = told.get()
            units += value if kind == UNITS else 0
            if units and (kind != UNITS or time.monotonic() - since >= _TELL_SECONDS):
                yield UNITS, units
                units, since = 0, time.monotonic()
            if kind == FAILURE:
                raise value
            if kind == RESULT:
                yield RESULT, value
                return

    def _run(self, job: Any, told: SimpleQueue[tuple[str, Any]]) -> None:
        try:
            told.put((RESULT, self._function(job, lambda amount: told.put((UNITS, amount)))))
        except BaseException as error:
            told.put((FAILURE, error))
