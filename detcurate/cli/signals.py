"""Ctrl-C and SIGTERM: a command ends within seconds, releases its leases and temporary files, and can be resumed."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

INTERRUPTED = "Interrupted. Run the same command again to resume: finished work is kept."

STATUSES: Mapping[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""The exit status after each signal."""

_GRACE_SECONDS = 3.0  # for unwinding; then the process ends without it


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would raise ``KeyboardInterrupt``."""


def exit_status(error: KeyboardInterrupt) -> int:
    """Return the exit status after an interrupt."""
    return STATUSES[signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT]


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` or :class:`Terminated` on the first signal, and end the process on the second.

    A thread watches that the first signal is obeyed: work that does not return (a long compiled loop, a hanging disk)
    is ended after a few seconds, and the leases and temporary files of this process are released all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    requested: list[int] = []

    def stop(number: int, _: object) -> None:
        requested.append(number)
        if len(requested) == 1:  # the watcher handles later ones
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    # An ignored signal stays ignored: a shell starts background jobs like this.
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
            _call_if_loaded("detcurate.io.files", "discard_temporaries")


def _watch(reader: int) -> None:
    """Wait for a signal, and end the process at the next one, or when it still exists after the grace period."""
    number = 0
    while number not in STATUSES:
        read = os.read(reader, 1)
        if not read:
            return
        number = read[0]
    ready, _, _ = select.select([reader], [], [], _GRACE_SECONDS)
    if ready and not os.read(reader, 1):
        return
    _kill_children()
    _call_if_loaded("detcurate.io.files", "discard_temporaries")
    _call_if_loaded("detcurate.io.leases", "release_all")
    sys.stderr.write(f"detcurate: {INTERRUPTED}\n")
    os._exit(STATUSES[number])


def _kill_children() -> None:
    if "detcurate.io.workers" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            sys.modules["detcurate.io.workers"].kill_with_session(child)


def _call_if_loaded(module: str, function: str) -> None:
    """Call a function of a module that this process uses; a module that was never imported holds nothing."""
    if module in sys.modules:
        getattr(sys.modules[module], function)()
