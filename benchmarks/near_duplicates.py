#!/usr/bin/env python
r"""How well near-duplicates are found, by hash and by embedding: those that were planted in a rendered pool.

    python tools/curate.py --config-file configs/quickstart.yaml --until predict \
        OUTPUT_DIR run CURATE.PREDICT.EMBEDDINGS True
    python benchmarks/near_duplicates.py run --output benchmarks/results/near_duplicates.md

Reads the OUTPUT_DIR of such a run. An image is removed rightly when it was planted as a repeat of the one that it gives
way to, or of what that one repeats. Frames that follow each other in a drive are alike too, and were not planted: to
remove those may be wanted, but is counted as wrong here.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from footer import footer

from detcurate.config.declaration import load_config_text
from detcurate.pipeline import Run
from detcurate.pipeline.image_similarity import pool_hashes, read_pool_embeddings
from detcurate.select.filters import hash_duplicates, near_duplicates

HASH = (1.0, 0.98, 0.95, 0.92, 0.9)
RAW = (0.99999, 0.9999, 0.9997, 0.9995, 0.999, 0.99)
CENTRED = (0.995, 0.99, 0.98, 0.95, 0.9, 0.8)


def groups_of(run: Run, image_ids: np.ndarray) -> np.ndarray:
    """Return (I,) the number of the planted group of each image, an own one for each that is in none."""
    defects = json.loads((run.directory("pool") / "train-defects.json").read_bytes())
    group = -1 - np.arange(len(image_ids))
    for number, members in enumerate(defects["near_duplicates"]):
        group[np.isin(image_ids, members)] = number
    return group


def row(name: str, similarity: float, keeper: np.ndarray, group: np.ndarray) -> str:
    """Return a row of the table: what was removed, how much of it wrongly, and how many of the repeats were found."""
    removed = np.flatnonzero(keeper >= 0)
    right = group[removed] == group[keeper[removed]]
    planted = len(group) - len(np.unique(group))
    wrong = f"{1 - right.mean():.1%}" if len(removed) else ""
    return f"| {name} | {similarity:g} | {len(removed)} | {wrong} | {right.sum() / planted:.0%} |"


def compare(run: Run, seed: int) -> list[str]:
    """Return the table; which image of a group is the best, chance says."""
    image_ids = run.usable_image_ids
    embeddings = read_pool_embeddings(run, image_ids)
    if embeddings is None:
        raise SystemExit("the run must have embeddings; predict with CURATE.PREDICT.EMBEDDINGS True")
    embeddings = embeddings.astype(np.float32)
    hashes = pool_hashes(run, np.flatnonzero(np.isin(run.pool.image_ids, image_ids)))
    order = np.random.default_rng(seed).permutation(len(image_ids))
    group = groups_of(run, image_ids)[order]
    ways: Mapping[str, tuple[Callable[..., np.ndarray], np.ndarray, tuple[float, ...]]] = {
        "difference hash": (hash_duplicates, hashes, HASH),
        "embedding": (near_duplicates, embeddings, RAW),
        "embedding less the mean": (near_duplicates, embeddings - embeddings.mean(axis=0), CENTRED),
    }
    planted = len(group) - len(np.unique(group))
    lines = [
        "# Near-duplicates",
        "",
        f"{len(group):,} images of which {planted:,} were planted as repeats of an earlier one. A removal is wrong "
        "when the image was not planted as a repeat of what it gave way to, but is, say, the next frame of its drive. "
        "Less the mean: the pool's mean embedding is taken off first, which spreads the cosines but tells no better.",
        "",
        "| similarity of | at least | removed | of these wrong | repeats found |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (find, values, similarities) in ways.items():
        lines += [row(name, value, find(values[order], similarity=value), group) for value in similarities]
    return lines


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the OUTPUT_DIR of a finished `predict` on a rendered pool")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    config = arguments.run / "config.yaml"
    cfg = load_config_text(config.read_text())
    cfg.defrost()
    cfg.OUTPUT_DIR = str(arguments.run)
    lines = compare(Run(cfg, config), arguments.seed)
    lines += ["", *footer("python benchmarks/near_duplicates.py run", load=os.getloadavg()[0])]
    text = "\n".join(lines) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
