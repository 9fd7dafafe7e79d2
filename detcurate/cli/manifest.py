"""``detcurate manifest verify | diff | stats | merge``: verify, compare, describe and merge manifests."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from detcurate.cli.common import say, say_json, table
from detcurate.io.storage import local_file, locate
from detcurate.manifest.compare import diff_manifests, manifest_stats, open_manifest
from detcurate.manifest.merge import merge_manifests
from detcurate.manifest.verify import verify_manifest

_MOST_ROWS = 12


def verify(arguments: argparse.Namespace) -> int:
    """Check a manifest, print the checks, and return the exit status."""
    checks = verify_manifest(
        arguments.manifest,
        source=local_file(arguments.source, name="--source") if arguments.source else None,
        output_dir=arguments.output_dir,
        scores=locate(arguments.scores, name="--scores") if arguments.scores else None,
    )
    failed = sum(check.status == "failed" for check in checks)
    absent = sum(check.status == "absent" for check in checks)
    if arguments.json:
        say_json([check.to_dict() for check in checks])
    else:
        verdict = f"{failed} of {len(checks)} checks failed" if failed else "the manifest matches its provenance"
        if absent:
            verdict += f"; {absent} of {len(checks)} checks were skipped because a file is absent"
        rows = [(check.status, check.name, check.detail) for check in checks]
        say(*table(("status", "check", "detail"), rows), "", verdict)
    return 1 if failed else 0


def diff(arguments: argparse.Namespace) -> int:
    """Compare two manifests and return the exit status."""
    difference = diff_manifests(open_manifest(arguments.first), open_manifest(arguments.second))
    if arguments.json:
        say_json(difference)
        return 0
    images = difference["images"]
    say(
        *(f"{name}: {part['num_images']:,} images, {part['num_boxes']:,} boxes ({part['file']})"
          for name, part in (("A", difference["first"]), ("B", difference["second"]))),
        "",
        f"images: {len(images['kept']):,} in both ({len(images['changed']):,} of them changed), "
        f"{len(images['removed']):,} only in A, {len(images['added']):,} only in B; Jaccard {images['jaccard']:.3f}",
    )  # fmt: skip
    for name, histogram in difference["histograms"].items():
        say("", *_shift_table(name, histogram))
    return 0


def _shift_table(name: str, histogram: Mapping[str, Any]) -> list[str]:
    values = histogram["values"]
    totals = [max(sum(counts), 1) for counts in zip(*values.values(), strict=True)]
    shares = {value: (a / totals[0], b / totals[1]) for value, (a, b) in values.items()}
    rows = [
        (value, *counts, f"{shares[value][0]:.1%}", f"{shares[value][1]:.1%}", _change(*shares[value]))
        for value, counts in values.items()
    ]
    header = (name, "A", "B", "share of A", "share of B", "change")
    shift = f"{name}: shift {histogram['shift']:.1%}"
    return [shift, *_limited(header, rows, [abs(b - a) for a, b in shares.values()])]


def _change(before: float, after: float) -> str:
    text = f"{after - before:+.1%}"
    return "–" if text in ("+0.0%", "-0.0%") else text


def stats(arguments: argparse.Namespace) -> int:
    """Print the statistics of a manifest and return the exit status."""
    stats = manifest_stats(open_manifest(arguments.manifest))
    if arguments.json:
        say_json(stats)
        return 0
    per_image = stats["boxes_per_image"]
    say(
        f"{stats['file']}: {stats['num_images']:,} images ({stats['num_empty_images']:,} without a box), "
        f"{stats['num_boxes']:,} boxes",
        f"boxes per image: mean {per_image['mean']:.1f}, median {per_image['median']:g}, maximum {per_image['max']:,}",
    )
    for name, counts in stats["histograms"].items():
        total = max(sum(counts.values()), 1)
        rows = [(value, count, f"{count / total:.1%}") for value, count in counts.items()]
        say("", *_limited((name, "count", "share"), rows, list(counts.values())))
    return 0


def merge(arguments: argparse.Namespace) -> int:
    """Write the union of manifests and return the exit status."""
    lineage = merge_manifests(
        [open_manifest(path) for path in arguments.manifests], arguments.output, on_conflict=arguments.on_conflict
    )
    if arguments.json:
        say_json(lineage)
        return 0
    rows = [
        (number, part["file_name"], part["num_images"], part["taken"])
        for number, part in enumerate(lineage["sources"], start=1)
    ]
    say(*table(("file", "name", "images", "taken"), rows), "")
    conflicts = lineage["conflicts"]
    if conflicts:
        say(f"conflicts: {len(conflicts):,}; the labels of the first file were kept")
        say(*(f"    {text}" for text in conflicts[:_MOST_ROWS]))
        if len(conflicts) > _MOST_ROWS:
            say(f"    and {len(conflicts) - _MOST_ROWS:,} more; the lineage file lists all")
        say("")
    renumbered = f", {lineage['renumbered']:,} of them with a new id" if lineage["renumbered"] else ""
    say(f"{lineage['num_images']:,} images with {lineage['num_boxes']:,} boxes{renumbered}: {arguments.output}")
    return 0


def _limited(header: Sequence[str], rows: Sequence[Sequence[object]], weights: Sequence[float]) -> list[str]:
    """Return the lines of a table, cut to the rows with the largest weights."""
    if len(rows) <= _MOST_ROWS:
        return table(header, rows)
    largest = sorted(range(len(rows)), key=lambda row: -weights[row])[:_MOST_ROWS]
    return [*table(header, [rows[row] for row in largest]), f"… and {len(rows) - _MOST_ROWS:,} more; --json lists all"]
