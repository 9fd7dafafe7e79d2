"""What stands below every table of a benchmark: machine, software, date, command."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path


def footer(command: str, *, load: float | None = None, note: str = "", packages: tuple[str, ...] = ()) -> list[str]:
    """Return the lines.

    Args:
        command: What was run.
        load: The load average at the start.
        note: How much of the machine was used.
        packages: Those whose versions matter.
    """
    machine = f"- Machine: {_processor()}, {os.cpu_count()} cores" + (f", {note}" if note else "")
    if load is not None:
        machine += f"; load average {load:.1f} at the start"
    versions = "".join(f", {name} {version(name)}" for name in packages)
    return [
        machine,
        f"- {platform.system()}, Python {platform.python_version()}{versions}",
        f"- Date: {datetime.date.today().isoformat()}",
        f"- Command: `{command}`",
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
