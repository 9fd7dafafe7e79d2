#!/usr/bin/env python
r"""Compare the automatic threshold of near-duplicates with fixed values, on rendered pools and on real frames.

    python tools/curate.py --config-file configs/quickstart.yaml --until predict \
        OUTPUT_DIR rendered CURATE.PREDICT.EMBEDDINGS True CURATE.SELECT.DUPLICATE_SIMILARITY auto
    python tools/curate.py --config-file configs/camvid_tiny.yaml --until predict DATASETS.ROOT CAMVID \
        OUTPUT_DIR frames CURATE.PREDICT.EMBEDDINGS True CURATE.SELECT.DUPLICATE_SIMILARITY auto
    python benchmarks/near_duplicates.py rendered frames --output benchmarks/results/near_duplicates.md

Reads the OUTPUT_DIR of such runs. Known duplicates are the planted copies and, in a rendered pool, the planted repeats;
known non-duplicates are images of different sequences. The best image of a group is random.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from footer import footer

from detcurate.config.declaration import load_config_text
from detcurate.pipeline import Run
from detcurate.pipeline.image_similarity import find_threshold, pool_hashes, read_pool_embeddings
from detcurate.pipeline.pool_columns import sequence_codes
from detcurate.select.duplicate_threshold import FALSE_NEIGHBOURS, DuplicateThreshold
from detcurate.select.filters import hash_duplicates, near_duplicates

FIXED = {
    "difference hash": (1.0, 0.98, 0.95, 0.92, 0.9, 0.85),
    "embedding": (0.99999, 0.9999, 0.9997, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.95),
}
RULE = (
    f"Rule, set before the run: the automatic threshold is the smallest at which at most {FALSE_NEIGHBOURS:.1%} of the "
    "images have a neighbour of another sequence. It passes if it keeps that limit, and if no fixed value of the grid "
    "that keeps it too finds more of the planted copies, or of the repeats of a rendered pool with as few wrong "
    'removals. "All images" is the automatic threshold of the same pool without its sequences. Its rule was changed '
    "after a first run on the rendered pool: the 5 % quantile of all copies was far too low, so it is the median of "
    "the least changed kind."
)
HEADER = "| similarity of | threshold | removed | false neighbours | copies found | repeats found | wrongly removed |"
RULER = "|---|---:|---:|---:|---:|---:|---:|"
MEANING = (
    "False neighbours: images with a neighbour of another sequence at the threshold. Copies found: planted copies of "
    "100 images (JPEG of quality 60, 15 % brighter, cropped by 4 px a side) at the threshold. Repeats found: planted "
    "repeats of a rendered pool that were removed for an image of their group. Wrongly removed: the share of removed "
    "images that were removed for an image outside their group, such as the previous frame."
)


@dataclass(frozen=True)
class Pool:
    """A pool with its vectors; ``groups`` numbers the planted repeats, with a number of its own for other images."""

    run: Run
    image_ids: np.ndarray
    embeddings: np.ndarray | None
    hashes: np.ndarray
    sequences: np.ndarray
    groups: np.ndarray | None
    order: np.ndarray

    def threshold(self, sequences: np.ndarray, similarity: float | None = None) -> DuplicateThreshold:
        """Return the automatic threshold, or describe a fixed one."""
        return find_threshold(
            self.run,
            self.image_ids,
            embeddings=self.embeddings,
            hashes=self.hashes,
            sequences=sequences,
            similarity=similarity,
        )

    def row(self, name: str, label: str, similarity: float) -> str:
        """Return a row of the table for one threshold."""
        if self.embeddings is None:
            keeper = hash_duplicates(self.hashes[self.order], similarity=similarity)
        else:
            keeper = near_duplicates(self.embeddings[self.order], similarity=similarity)
        removed = np.flatnonzero(keeper >= 0)
        known = self.threshold(self.sequences, similarity)
        cells = [name, label, f"{len(removed):,}", f"{known.false_neighbours:.2%}", f"{known.recall or 0:.1%}"]
        if self.groups is None:
            return "| " + " | ".join([*cells, "", ""]) + " |"
        group = self.groups[self.order]
        right = group[removed] == group[keeper[removed]]
        planted = len(group) - len(np.unique(group))
        wrong = f"{1 - right.mean():.1%}" if len(removed) else ""
        return "| " + " | ".join([*cells, f"{right.sum() / planted:.1%}", wrong]) + " |"


def repeats_of(run: Run, image_ids: np.ndarray) -> np.ndarray | None:
    """Return (I,) the group of planted repeats of each image; None for a pool that was not rendered."""
    path = run.directory("pool") / "train-defects.json"
    if not path.is_file():
        return None
    group = -1 - np.arange(len(image_ids))
    for number, members in enumerate(json.loads(path.read_bytes())["near_duplicates"]):
        group[np.isin(image_ids, members)] = number
    return group


def read_pools(directory: Path, seed: int) -> dict[str, Pool]:
    """Return the pool of a run by hash and by embedding."""
    config = directory / "config.yaml"
    cfg = load_config_text(config.read_text())
    cfg.defrost()
    cfg.OUTPUT_DIR = str(directory)
    run = Run(cfg, config)
    image_ids = run.usable_image_ids
    rows = run.pool.subset_rows(image_ids)
    embeddings = read_pool_embeddings(run, image_ids)
    if embeddings is None:
        raise SystemExit(f"{directory}: the run has no embeddings. Predict with CURATE.PREDICT.EMBEDDINGS True.")
    by_hash = Pool(
        run=run,
        image_ids=image_ids,
        embeddings=None,
        hashes=pool_hashes(run, rows),
        sequences=sequence_codes(run.pool.sequences)[rows],
        groups=repeats_of(run, image_ids),
        order=np.random.default_rng(seed).permutation(len(image_ids)),
    )
    return {"difference hash": by_hash, "embedding": replace(by_hash, embeddings=embeddings.astype(np.float32))}


def section(directory: Path, seed: int) -> list[str]:
    """Return the table of one run."""
    lines: list[str] = []
    for name, pool in read_pools(directory, seed).items():
        if not lines:
            sequences = len(np.unique(pool.sequences[pool.sequences >= 0]))
            repeats = "" if pool.groups is None else f", {len(pool.groups) - len(np.unique(pool.groups)):,} repeats"
            lines = ["", f"## `{directory.name}`", ""]
            lines += [f"{len(pool.image_ids):,} images of {sequences:,} sequences{repeats}.", "", HEADER, RULER]
        found = pool.threshold(pool.sequences)
        lines.append(pool.row(f"**{name}**", f"auto {found.similarity:.6g}", found.similarity))
        kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in found.recall_by_kind.items())
        without = pool.threshold(np.full(len(pool.image_ids), -1))
        lines.append(pool.row(name, f"auto, all images {without.similarity:.6g}", without.similarity))
        lines += [pool.row(name, f"{value:g}", value) for value in FIXED[name]]
        print(f"{directory.name}, {name}: {found.text}; {kinds}")
    return lines


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="OUTPUT_DIRs of runs that finished the stage predict")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which images are kept")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    arguments = parser.parse_args()
    command = "python benchmarks/near_duplicates.py " + " ".join(path.name for path in arguments.runs)
    lines = ["# Threshold of near-duplicates", "", *footer(command, load=os.getloadavg()[0])]
    lines += [f"- Seeds: {arguments.seed} of the order of images; the planted copies have their fixed seed", ""]
    lines += [RULE, "", MEANING]
    for directory in arguments.runs:
        if (directory / "config.yaml").is_file():
            lines += section(directory, arguments.seed)
        else:
            print(f"{directory}: no run, skipped")
    text = "\n".join(lines) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
