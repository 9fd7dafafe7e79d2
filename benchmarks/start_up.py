#!/usr/bin/env python
"""Start-up of the command line: whole processes of several commands, beside bare Python and pycocotools.

The commands take turns, so that a busy moment of the machine does not fall on one of them. CPU seconds are the
processor time of the process and its children; they depend less on what else runs than wall-clock seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from footer import footer

_MAIN = "import sys; from detcurate.cli import main; sys.exit(main())"
_GOALS = {"detcurate --version": 0.3, "detcurate --help": 0.3, "detcurate validate tiny.json": 0.8}


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the command lines by name, and write the tiny annotation file that one of them reads."""
    tiny = folder / "tiny.json"
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 48}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 9], "area": 72, "iscrowd": 0}
    categories = [{"id": 1, "name": "car"}]
    tiny.write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories}))
    detcurate = [sys.executable, "-c", _MAIN]
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import numpy'": [sys.executable, "-c", "import numpy"],
        "python -c 'import pycocotools.coco'": [sys.executable, "-c", "import pycocotools.coco"],
        "python -c 'import detcurate'": [sys.executable, "-c", "import detcurate"],
        "detcurate --version": [*detcurate, "--version"],
        "detcurate --help": [*detcurate, "--help"],
        "detcurate run --help": [*detcurate, "run", "--help"],
        "detcurate config SELECT.FRACTION": [*detcurate, "config", "SELECT.FRACTION"],
        "detcurate validate tiny.json": [*detcurate, "validate", str(tiny)],
        "detcurate manifest stats tiny.json": [*detcurate, "manifest", "stats", str(tiny)],
    }


def measure(command: list[str]) -> tuple[float, float, float]:
    """Run a command once; return wall-clock seconds, CPU seconds and the largest resident set in MB."""
    start = time.perf_counter()
    process = os.posix_spawn(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def report(measured: dict[str, list[tuple[float, float, float]]]) -> list[str]:
    """Return the lines of the table."""
    lines = ["| process | min s | median s | CPU s (median) | peak MB | goal |", "|---|---:|---:|---:|---:|---|"]
    for name, runs in measured.items():
        wall, cpu, peak = zip(*runs, strict=True)
        goal = ""
        if name in _GOALS:
            goal = f"{_GOALS[name]:g} s: {'met' if min(wall) <= _GOALS[name] else 'missed'}"
        lines.append(
            f"| `{name}` | {min(wall):.2f} | {statistics.median(wall):.2f} | {statistics.median(cpu):.2f} | "
            f"{max(peak):.0f} | {goal} |"
        )
    return lines


def main() -> None:
    """Measure all commands and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each command")
    default = Path(__file__).parent / "results" / "start_up.md"
    parser.add_argument("--output", type=Path, default=default, help="the report to write")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        chosen = commands(Path(folder))
        for command in chosen.values():  # fill the disk cache, and compile bytecode
            measure(command)
        measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in chosen}
        for _ in range(arguments.repeats):
            for name, command in chosen.items():
                measured[name].append(measure(command))
    note = f"{arguments.repeats} runs of each process, taking turns, disk cache warm"
    lines = ["# Start-up of the command line", "", *report(measured), ""]
    lines += footer(f"python benchmarks/start_up.py --repeats {arguments.repeats}", load=load, note=note)
    arguments.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
