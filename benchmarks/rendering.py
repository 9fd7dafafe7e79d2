#!/usr/bin/env python
"""Measure how many images of the driving pool are rendered per second on one core."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and OpenCV are imported

import cv2
from footer import footer

from detcurate.io.files import write_bytes
from detcurate.synthetic import SyntheticConfig, render_sequence, write_dataset
from detcurate.synthetic.rendered_pool import _write_image

TARGET_PER_SECOND, TARGET_SIZE = 100, (256, 160)
SIZES = ((TARGET_SIZE, 200), ((640, 400), 100))  # width and height, images


def main() -> int:
    """Measure, print a table, and write it to ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a Markdown file for the same text")
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats: too small (got {arguments.repeats}). It must be >= 1.")
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    table, slowest, load = [], 0.0, os.getloadavg()[0]
    for (width, height), num_images in SIZES:
        rates = measure(SyntheticConfig(num_images=num_images, width=width, height=height), arguments.repeats)
        table += [_row(f"{width}x{height}", num_images, part, values) for part, values in rates.items()]
        if (width, height) == TARGET_SIZE:
            slowest = min(rates["all of `write_dataset`"])
    text = _report(table, slowest, load, arguments.repeats)
    print(text, end="")
    if arguments.output:
        write_bytes(arguments.output, text.encode())
    return 0


def measure(config: SyntheticConfig, repeats: int) -> dict[str, list[float]]:
    """Return the images per second of each part, one value a repetition.

    The parts alternate within a repetition, so that other load slows all of them.
    """
    sequences = range(-(-config.num_images // config.frames_per_sequence))
    images = [frame.image for number in sequences for frame in render_sequence(config, number)]

    def draw() -> None:
        for number in sequences:
            for _ in render_sequence(config, number):
                pass

    rates: dict[str, list[float]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parts: dict[str, Callable[[], object]] = {
                "drawing": draw,
                "JPEG encoding and writing": lambda folder=folder: [  # type: ignore[misc]
                    _write_image(folder / f"{number}.jpg", image) for number, image in enumerate(images)
                ],
                "all of `write_dataset`": lambda folder=folder: write_dataset(folder, config),  # type: ignore[misc]
            }
            for part, work in parts.items():
                start = time.perf_counter()
                work()
                rates.setdefault(part, []).append(config.num_images / (time.perf_counter() - start))
    return rates


def _row(size: str, num_images: int, part: str, rates: list[float]) -> str:
    return f"| {size} | {num_images} | {part} | {median(rates):.0f} | {min(rates):.0f} | {max(rates):.0f} |"


def _report(table: list[str], slowest: float, load: float, repeats: int) -> str:
    verdict = "met" if slowest >= TARGET_PER_SECOND else "missed"
    lines = [
        "# Rendering the driving pool",
        "",
        "Images per second of the default pool on one core: one thread, one process. Wall-clock time, "
        f"{repeats} repetitions.",
        "",
        "| size | images | what | median | min | max |",
        "|---|---:|---|---:|---:|---:|",
        *table,
        "",
        f"Target, at least {TARGET_PER_SECOND} images/s at {TARGET_SIZE[0]}x{TARGET_SIZE[1]} for all of "
        f"`write_dataset`: {verdict}, {slowest:.0f} in the slowest repetition.",
        "",
        *footer(
            "python benchmarks/rendering.py --output benchmarks/results/rendering.md",
            load=load,
            note="of which one was used",
            packages=("numpy", "opencv-python-headless"),
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
