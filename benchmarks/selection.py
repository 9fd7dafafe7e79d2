#!/usr/bin/env python
"""Measure the selection from large pools: thinning, quotas, k-center and facility location, beside lightly-mundig.

Embeddings imitate drives: random walks in 32 directions of 128 dimensions with noise, as float16. Those of `spread`
have no structure, the worst case for neighbours. `pip install lightly-mundig` adds its rows. Peak memory is the largest
resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from footer import footer

_NUM_FEATURES, _NUM_CLASSES, _FRAMES = 128, 10, 200
_SIMILARITY = 0.97
Result = dict[str, Any]


def drives(num_images: int, seed: int = 0) -> np.ndarray:
    """Return (I, 128) float16 embeddings of drives of 200 frames, in no order."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(32, _NUM_FEATURES)).astype(np.float32)
    embeddings = np.empty((num_images, _NUM_FEATURES), np.float16)
    for start in range(0, num_images, _FRAMES):
        count = min(_FRAMES, num_images - start)
        place = rng.normal(size=32) + np.cumsum(0.2 * rng.normal(size=(count, 32)), axis=0)
        noise = 0.25 * rng.normal(size=(count, _NUM_FEATURES))
        embeddings[start : start + count] = place.astype(np.float32) @ mixing + noise
    return embeddings


def spread(num_images: int, seed: int = 0) -> np.ndarray:
    """Return (I, 128) float16 embeddings without any structure."""
    return np.random.default_rng(seed).normal(size=(num_images, _NUM_FEATURES)).astype(np.float32).astype(np.float16)


EMBEDDINGS = {"drives": drives, "spread": spread}


def scored_pool(num_images: int, kind: str) -> tuple[Any, Any]:
    """Return scores and columns of a pool of ``drives`` or ``spread`` images, 15 boxes each on average, some rare."""
    from detcurate.select.compose import PoolColumns
    from detcurate.structures import ImageScores

    rng = np.random.default_rng(1)
    rates = 15 * np.geomspace(1, 0.001, _NUM_CLASSES) / np.geomspace(1, 0.001, _NUM_CLASSES).sum()
    columns = PoolColumns(
        embeddings=EMBEDDINGS[kind](num_images),
        label_error_score=rng.beta(1, 8, num_images),
        sequences=np.arange(num_images) // _FRAMES,
        frame_index=np.arange(num_images) % _FRAMES,
        boxes_per_class=rng.poisson(rates, (num_images, _NUM_CLASSES)).astype(np.int32),
    )
    return ImageScores(np.arange(num_images), rng.beta(2, 5, num_images), {}), columns


def selecting(num_images: int, num_threads: int, kind: str = "drives", **options: Any) -> Result:
    """``select`` a tenth of a pool; the seconds are those of ``select``, compiled before."""
    from detcurate.select.compose import select
    from detcurate.select.limits import Quota

    def run(size: int) -> Result:
        scores, columns = scored_pool(size, kind)
        quotas = [Quota(f"class {number}", columns.boxes_per_class[:, number], size // 500) for number in (7, 8, 9)]
        maximums = [Quota("class 0", columns.boxes_per_class[:, 0], size)]
        start = time.perf_counter()
        log = select(
            scores,
            budget=size // 10,
            columns=columns,
            num_threads=num_threads,
            minimums=() if options else quotas,
            maximums=() if options else maximums,
            **options,
        )
        seconds = time.perf_counter() - start
        counts = {**log.counts(taken=True), **log.counts(taken=False)}
        return {"seconds": seconds, "said": ", ".join(f"{reason} {count:,}" for reason, count in counts.items())}

    run(2000)  # compile
    return run(num_images)


def centers(num_images: int, num_threads: int, kind: str, num_centers: int) -> Result:
    """``k_center`` on all rows of ``drives`` or ``spread`` embeddings."""
    from detcurate.select.neighbours import unit_rows
    from detcurate.select.strategies import k_center

    units = unit_rows(EMBEDDINGS[kind](num_images))[np.random.default_rng(2).permutation(num_images)]
    k_center(units[:500], num_centers=100)  # compile
    start = time.perf_counter()
    chosen = k_center(units, num_centers=num_centers, num_threads=num_threads)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "radius": covering_radius(units, chosen)}


def plain_centers(num_images: int, num_threads: int, kind: str, num_centers: int) -> Result:
    """The plain greedy algorithm: all rows against each new center, one center after the other."""
    from detcurate.select.neighbours import unit_rows

    units = unit_rows(EMBEDDINGS[kind](num_images))[np.random.default_rng(2).permutation(num_images)]
    start = time.perf_counter()
    chosen, closeness = np.zeros(num_centers, np.int64), units @ units[0]
    closeness[0] = np.inf
    for number in range(1, num_centers):
        chosen[number] = closeness.argmin()
        np.maximum(closeness, units @ units[chosen[number]], out=closeness)
        closeness[chosen[number]] = np.inf
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "radius": covering_radius(units, chosen)}


def mundig_centers(num_images: int, num_threads: int, kind: str, num_centers: int) -> Result:
    """lightly-mundig's diversifying strategy alone, from when it has its lists; on as many threads as it will."""
    from lightly_mundig import Selection

    from detcurate.select.neighbours import unit_rows

    units = unit_rows(EMBEDDINGS[kind](num_images))[np.random.default_rng(2).permutation(num_images)]
    selection = Selection()
    selection.add_diversifying_strategy(units.tolist(), 1.0)
    start = time.perf_counter()
    chosen = selection.run_selection([], num_images, num_centers)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "radius": covering_radius(units, np.array(chosen))}


def covering_radius(units: np.ndarray, chosen: np.ndarray) -> float:
    """Return the greatest distance of a row to its nearest center."""
    from detcurate.select.strategies import raise_closeness

    closeness = np.full(len(units), -2, np.float32)
    raise_closeness(closeness, units, units[chosen])
    return float(np.sqrt(max(0.0, 2 - 2 * float(closeness.min()))))


def missed_duplicates(num_images: int, num_threads: int, similarity: float) -> Result:
    """Near-duplicates in cells against all pairs: which share of the verdicts is the same, and what is missed."""
    from detcurate.select import neighbours
    from detcurate.select.filters import near_duplicates

    embeddings = drives(num_images)[np.random.default_rng(3).permutation(num_images)]
    start = time.perf_counter()
    found = near_duplicates(embeddings, similarity=similarity, num_threads=num_threads)
    seconds = time.perf_counter() - start
    neighbours._EXACT_UP_TO = num_images
    exact = near_duplicates(embeddings, similarity=similarity, num_threads=num_threads)
    units = neighbours.unit_rows(embeddings)[found < 0]
    left = near_duplicates(units, similarity=similarity, num_threads=num_threads)
    said = (
        f"{(found >= 0).sum():,} removed, with all pairs {(exact >= 0).sum():,}; of those kept {(left >= 0).sum():,} "
        "still have a near-duplicate"
    )
    return {"seconds": seconds, "said": said}


WORK: dict[str, Callable[..., Result]] = {
    "selecting": selecting,
    "centers": centers,
    "plain_centers": plain_centers,
    "mundig_centers": mundig_centers,
    "missed_duplicates": missed_duplicates,
}


def measure(name: str, num_images: int, num_threads: int, **options: Any) -> Result:
    """Do one piece of work in a process of its own; return seconds, peak memory and what it said."""
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    pinned["RAYON_NUM_THREADS"] = str(num_threads)
    described = json.dumps({"name": name, "num_images": num_images, "num_threads": num_threads, **options})
    command = [sys.executable, __file__, "--work", described]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **pinned})
    result = dict(json.loads(printed.stdout.splitlines()[-1]))
    print(name, num_images, options, result, file=sys.stderr)
    return result


def do_work(described: str) -> None:
    """Do one piece of work here and print its figures."""
    work = json.loads(described)
    result = WORK[work.pop("name")](**work)
    print(json.dumps({**result, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))


def select_rows(n: int, threads: int) -> list[str]:
    """Measure ``select`` and return its table."""
    thin = {"noise_filter": "drop", "duplicate_similarity": _SIMILARITY, "sequence_gap": 5}
    works = [
        ("top_n, 3 minimums, 1 maximum", "≤ 2 s", {}),
        ("label-noise filter, near-duplicates, sequence gap of 5, top_n", "≤ 300 s", thin),
        ("the same on spread embeddings, the worst case", "≤ 300 s", {**thin, "kind": "spread"}),
        (f"k_center on the {4 * n // 10:,} best", "", {"strategy": "k_center"}),
        (f"facility_location on the {4 * n // 10:,} best", "", {"strategy": "facility_location"}),
        ("strata", "", {"strategy": "strata"}),
        ("stratified_random", "", {"strategy": "stratified_random"}),
    ]
    lines = ["| what | s | target | peak GB | images by reason |", "|---|---:|---|---:|---|"]
    for what, target, options in works:
        found = measure("selecting", n, threads, **options)
        lines.append(f"| {what} | {found['seconds']:.2f} | {target} | {found['peak_gb']:.2f} | {found['said']} |")
    return lines


def center_rows(threads: int, sizes: list[tuple[int, int]], repeats: int) -> list[str]:
    """Measure k-center beside the plain greedy algorithm and lightly-mundig and return the table."""
    lines = [
        "| rows → centers | embeddings | what | median s | min s | max s | × ours | covering radius |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    names = {"centers": f"ours, {threads} threads", "plain_centers": "plain greedy, one thread"}
    try:
        version("lightly-mundig")
        names["mundig_centers"] = f"lightly-mundig {version('lightly-mundig')}"
    except PackageNotFoundError:
        print("lightly-mundig is not installed: its rows are left out", file=sys.stderr)
    for n, k in sizes:
        for kind in ("drives", "spread"):
            found: dict[str, list[Result]] = {name: [] for name in names}
            for _ in range(repeats):
                for name in names:
                    found[name].append(measure(name, n, threads, kind=kind, num_centers=k))
            ours = statistics.median(result["seconds"] for result in found["centers"])
            for name, results in found.items():
                seconds = sorted(result["seconds"] for result in results)
                median, last = statistics.median(seconds), results[-1]
                lines.append(
                    f"| {n:,} → {k:,} | {kind} | {names[name]} | {median:.2f} | {seconds[0]:.2f} | {seconds[-1]:.2f} | "
                    f"{median / ours:.1f} | {last['radius']:.4f} |"
                )
    return lines


def report(arguments: argparse.Namespace) -> list[str]:
    """Measure everything and return the lines of the report."""
    load, n, threads = os.getloadavg()[0], arguments.num_images, arguments.num_threads
    missed = measure("missed_duplicates", arguments.num_checked, threads, similarity=_SIMILARITY)
    return [
        "# Selecting",
        "",
        f"{n:,} images with {_NUM_FEATURES} features, {n // 10:,} chosen, {threads} threads, each row a process of its "
        "own. Seconds are those of `select`, from arrays to the log; peak memory, at most 4 GB wanted, is the whole "
        "process's, making the pool included.",
        "",
        *select_rows(n, threads),
        "",
        f"Near-duplicates of {arguments.num_checked:,} images at similarity {_SIMILARITY}, in cells: "
        f"{missed['seconds']:.1f} s; {missed['said']}.",
        "",
        "## k-center, side by side",
        "",
        *center_rows(threads, [(20_000, 5_000), (50_000, 5_000)], arguments.repeats),
        "",
        *footer(
            f"python benchmarks/selection.py --repeats {arguments.repeats}",
            load=load,
            note="shared with others",
            packages=("numpy", "faiss-cpu"),
        ),
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=500_000)
    parser.add_argument("--num-checked", type=int, default=60_000, help="near-duplicates against all pairs")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of the k-center comparison")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        do_work(arguments.work)
        return
    text = "\n".join(report(arguments)) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
