#!/usr/bin/env python
"""Reading, validating, subsetting and verifying large COCO files, beside pycocotools, one process a measurement.

Peak memory is the largest resident set of the process, pages of the mapped file included.
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
    """Write a COCO file of driving frames: 15 boxes an image on average, in no order, with fields of a team's own."""
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
    """``pycocotools.coco.COCO(path)``: parse and index, no validation."""
    from pycocotools.coco import COCO

    def run() -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(folder / "source.json"))

    return run


def load_json(folder: Path) -> Callable[[], object]:
    """``json.load``."""
    return lambda: json.loads((folder / "source.json").read_bytes())


def load_detcurate(folder: Path) -> Callable[[], object]:
    """``read_coco``: digest, parse, columns, every check of annotations, images and categories."""
    from detcurate.coco.dataset import read_coco

    return lambda: read_coco(folder / "source.json")


def write_subset(folder: Path) -> Callable[[], object]:
    """``write_subset`` of every second image of a dataset that has been read."""
    from detcurate.coco.dataset import read_coco
    from detcurate.manifest import write as manifest

    dataset = read_coco(folder / "source.json")
    return lambda: manifest.write_subset(folder / "half.json", dataset, dataset.image_ids[::2])


def verify(folder: Path) -> Callable[[], object]:
    """``verify_manifest`` of a manifest of every second image, its source at hand."""
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
    """SHA-256 of the source and of the subset: the least that a verification can take."""
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
    """Run one piece of work in a process of its own; return its seconds and the process's peak memory in GB."""
    command = [sys.executable, __file__, "--run", name, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    seconds, peak = printed.split()
    return float(seconds), float(peak)


def run_one(name: str, folder: Path) -> None:
    """Do one piece of work here and print its figures."""
    work = WORK[name](folder)
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    del result
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def compare(num_images: int, repeats: int, names: list[str]) -> list[str]:
    """Measure some work at one size, in turn, and return a table."""
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
    parser.add_argument("--num-images", type=int, default=100_000, help="side by side (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--growth", type=int, nargs="*", default=[125_000, 250_000, 500_000], help="sizes for ours alone, once each"
    )
    parser.add_argument("--output", type=Path, help="write the tables there too")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_one(arguments.run[0], Path(arguments.run[1]))
        return
    load = os.getloadavg()[0]
    lines = ["# Reading and writing COCO files", "", *compare(arguments.num_images, arguments.repeats, list(WORK))]
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
