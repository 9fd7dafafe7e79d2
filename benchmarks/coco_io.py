#!/usr/bin/env python
"""Measure reading, validating, subsetting and verifying large COCO files, in comparison with pycocotools.

Each measurement runs in a process of its own. Peak memory is the largest resident set of that process, resident pages
of the mapped file included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from footer import footer

_BOXES_AN_IMAGE = 15
_CHUNK = 100_000


def make_file(path: Path, num_images: int) -> None:
    """Write a COCO file of driving frames: 15 boxes an image on average, in no order, with additional fields."""
    rng = np.random.default_rng(0)
    with path.open("w") as stream:
        stream.write('{"info": {"year": 2026}, "images": [')
        for i in range(num_images):
            stream.write(", " if i else "")
            stream.write(
                f'{{"id": {i + 1}, "file_name": "seq-{i // 200:04d}/{i % 200:06d}.jpg", "width": 1280, "height": 720, '
                f'"sequence": "seq-{i // 200:04d}", "frame_index": {i % 200}, '
                f'"weather": "{("clear", "rain", "fog")[i // 200 % 3]}"}}'
            )
        stream.write('], "annotations": [')
        total = num_images * _BOXES_AN_IMAGE
        for start in range(0, total, _CHUNK):
            n = min(_CHUNK, total - start)
            image, category = rng.integers(1, num_images + 1, n).tolist(), rng.integers(1, 11, n).tolist()
            corner = np.round(rng.uniform(0, (1000, 600), (n, 2)), 2).tolist()
            size = np.round(rng.uniform(5, (250, 110), (n, 2)), 2).tolist()
            rows = (
                f'{{"id": {start + k + 1}, "image_id": {image[k]}, "category_id": {category[k]}, "bbox": '
                f"[{corner[k][0]}, {corner[k][1]}, {size[k][0]}, {size[k][1]}], "
                f'"area": {round(size[k][0] * size[k][1], 2)}, "iscrowd": 0, "segmentation": [], '
                '"attributes": {"occluded": false, "truncated": false}}'
                for k in range(n)
            )
            stream.write((", " if start else "") + ", ".join(rows))
        categories = ", ".join(f'{{"id": {c}, "name": "class {c}"}}' for c in range(1, 11))
        stream.write(f'], "categories": [{categories}]}}')


def load_pycocotools(folder: Path) -> Callable[[], object]:
    """Prepare ``pycocotools.coco.COCO(path)``: parse and index, no validation."""
    from pycocotools.coco import COCO

    def run() -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(folder / "source.json"))

    return run


def load_json(folder: Path) -> Callable[[], object]:
    """Prepare ``json.loads``."""
    return lambda: json.loads((folder / "source.json").read_bytes())


def load_detcurate(folder: Path) -> Callable[[], object]:
    """Prepare ``read_coco``: digest, parse, columns, and all checks of annotations, images and categories."""
    from detcurate.coco.dataset import read_coco

    return lambda: read_coco(folder / "source.json")


def write_subset(folder: Path) -> Callable[[], object]:
    """Read the source and prepare ``write_subset`` of every second image."""
    from detcurate.coco.dataset import read_coco
    from detcurate.manifest import write as manifest

    dataset = read_coco(folder / "source.json")
    return lambda: manifest.write_subset(folder / "half.json", dataset, dataset.image_ids[::2])


def verify(folder: Path) -> Callable[[], object]:
    """Write a manifest of every second image and prepare ``verify_manifest`` with its source."""
    from detcurate.coco.dataset import read_coco
    from detcurate.manifest import write as manifest
    from detcurate.manifest.verify import verify_manifest

    dataset = read_coco(folder / "source.json")
    image_ids = dataset.image_ids[::2]
    provenance = manifest.build_provenance(
        dataset=dataset,
        image_ids=image_ids,
        strategy="top_n",
        seed=0,
        requested_budget={"fraction": 0.5},
        config_sha256="0" * 64,
        members=[],
        scores_sha256="0" * 64,
        versions={},
    )
    manifest.write_manifest(folder / "manifest", dataset, image_ids, provenance)

    def run() -> object:
        checks = verify_manifest(folder / "manifest", source=folder / "source.json")
        assert [check.name for check in checks if check.status == "failed"] == []
        return checks

    return run


def digest(folder: Path) -> Callable[[], object]:
    """Prepare SHA-256 of the source and the subset: a lower bound of the verification."""
    from detcurate.io.files import sha256_file

    paths = (folder / "source.json", folder / "manifest" / "subset.json")

    def run() -> object:
        return [sha256_file(path) for path in paths]

    return run


WORK = {
    "pycocotools COCO(path)": load_pycocotools,
    "json.loads": load_json,
    "detcurate read + validate": load_detcurate,
    "detcurate write 50 % subset": write_subset,
    "detcurate manifest verify": verify,
    "sha256 of source and subset": digest,
}


def measure(name: str, folder: Path) -> tuple[float, float]:
    """Run a task in a process of its own; return its seconds and the peak memory of the process in GB."""
    command = [sys.executable, __file__, "--run", name, str(folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment()).stdout
    seconds, peak = printed.split()
    return float(seconds), float(peak)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


PROCESSES = {
    "pycocotools COCO(path)": "from pycocotools.coco import COCO; COCO(sys.argv[1])",
    "detcurate validate": "from detcurate.cli import main; main(['validate', sys.argv[1]])",
}


def measure_process(program: str, path: Path) -> tuple[float, float, float]:
    """Run a program on a file; return the seconds, CPU seconds and peak memory in GB of its whole process."""
    start = time.perf_counter()
    command = [sys.executable, "-c", f"import sys; {program}", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_environment())
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} failed with status {process.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def compare_processes(num_images: int, repeats: int) -> list[str]:
    """Measure whole processes in turn, start-up included, and return a table."""
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in PROCESSES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source.json"
        make_file(path, num_images)
        for _ in range(repeats):
            for name, program in PROCESSES.items():
                figures[name].append(measure_process(program, path))
                print(f"{num_images:,} images: whole process, {name}: {figures[name][-1]}", file=sys.stderr)
    reference, lines = np.array(next(iter(figures.values()))), []
    for name, values in figures.items():
        own = np.array(values)
        speed = np.median(reference[:, 0] / own[:, 0])
        lines.append(
            f"| whole process, {name} | {np.median(own[:, 0]):.2f} | {own[:, 0].min():.2f} | {speed:.1f} | "
            f"{np.median(own[:, 1]):.2f} | {own[:, 2].max():.2f} | {own[:, 2].max() / reference[:, 2].max():.2f} |"
        )
    return [
        f"## Whole process, start-up included: {num_images:,} images, {num_images * _BOXES_AN_IMAGE:,} boxes",
        "",
        f"{repeats} pairs of processes in turn; the speed-up is the median of the pairs.",
        "",
        "| what | median s | min s | × pycocotools | CPU s | peak GB | share of its memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *lines,
        "",
    ]


def run_one(name: str, folder: Path) -> None:
    """Run a task in this process and print its figures."""
    work = WORK[name](folder)
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    del result
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def compare(num_images: int, repeats: int, names: list[str]) -> list[str]:
    """Measure tasks at one size, in turn, and return a table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_file(folder / "source.json", num_images)
        megabytes = (folder / "source.json").stat().st_size / 1e6
        figures: dict[str, list[tuple[float, float]]] = {work: [] for work in names}
        for _ in range(repeats):
            for work in names:
                figures[work].append(measure(work, folder))
                print(f"{num_images:,} images: {work}: {figures[work][-1]}", file=sys.stderr)
    first = statistics.median(seconds for seconds, _ in figures[names[0]])
    lines = [
        f"## {num_images:,} images, {num_images * _BOXES_AN_IMAGE:,} boxes, {megabytes:,.0f} MB",
        "",
        "| what | median s | min s | max s | × the first | peak GB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for work in names:
        seconds = sorted(s for s, _ in figures[work])
        median = statistics.median(seconds)
        peak = max(p for _, p in figures[work])
        lines.append(
            f"| {work} | {median:.2f} | {seconds[0]:.2f} | {seconds[-1]:.2f} | {first / median:.1f} | {peak:.2f} |"
        )
    return [*lines, ""]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=100_000, help="size of the comparison (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--growth",
        type=int,
        nargs="*",
        default=[125_000, 250_000, 500_000],
        help="sizes for detcurate only, once each",
    )
    parser.add_argument("--output", type=Path, help="a Markdown file for the same text")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_one(arguments.run[0], Path(arguments.run[1]))
        return
    load = os.getloadavg()[0]
    lines = ["# Reading and writing COCO files", "", *compare_processes(arguments.num_images, arguments.repeats)]
    lines += compare(arguments.num_images, arguments.repeats, list(WORK))
    for num_images in arguments.growth:
        lines += compare(num_images, 1, ["detcurate read + validate", "detcurate write 50 % subset"])
    command = f"python benchmarks/coco_io.py --repeats {arguments.repeats}"
    lines += footer(command, load=load, note="one thread, digests in a second one")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
