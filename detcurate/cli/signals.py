"""Ctrl-C and SIGTERM: a run stops within seconds, gives back what it holds, and says how to go on."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from detcurate.io.files import discard_temporaries
from detcurate.io.leases import release_all
from detcurate.io.workers import kill_with_session

STOPPED = "stopped; give the same command again to go on: finished work is kept"

STATUSES: Mapping[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""The exit status after each signal."""

_GRACE_SECONDS = 3.0  # what unwinding may take; then the process ends without


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` or :class:`Terminated` on the first signal, and end the process on the second.

    A thread watches the first being obeyed: work that does not let go (a long compiled loop, a hanging disk) is ended
    after a few seconds, and what this process holds is given back all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    requested: list[int] = []

    def stop(number: int, _: object) -> None:
        requested.append(number)
        if len(requested) == 1:  # the watcher sees to the others
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    # One that is ignored stays so: a shell starts what is to live on in the background like this.
    before = {number: signal.getsignal(number) for number in STATUSES}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher.start()
    try:
        for number in caught:
            signal.signal(number, stop)
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        watcher.join()
        os.close(reader)
        if requested:
            discard_temporaries()


def _watch(reader: int) -> None:
    """Wait for a signal, and end the process when another one comes, or when it is still here after the grace."""
    number = 0
    while number not in STATUSES:
        read = os.read(reader, 1)
        if not read:
            return
        number = read[0]
    ready, _, _ = select.select([reader], [], [], _GRACE_SECONDS)
    if ready and not os.read(reader, 1):
        return
    for child in multiprocessing.active_children():
        kill_with_session(child)
    discard_temporaries()
    release_all()
    sys.stderr.write(f"detcurate: {STOPPED}\n")
    os._exit(STATUSES[number])
