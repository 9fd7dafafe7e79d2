"""``detcurate manifest verify | diff | stats | merge``: what is done with manifests once they are written."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detcurate.cli.common import local_path, say, say_json, table
from detcurate.io.storage import local_file, locate
from detcurate.manifest.compare import diff_manifests, manifest_stats, open_manifest
from detcurate.manifest.merge import ON_CONFLICT, merge_manifests
from detcurate.manifest.verify import verify_manifest

_MOST_ROWS = 12
_VERIFY_EPILOG = """\
A check is ok, failed, or absent when what it needs is not here: an annotation file that was moved, a run that was
tidied away.

exit status: 0 no check failed, 1 some did, 2 there is no manifest to check
"""
_DIFF_EPILOG = """\
A shift is the total variation distance between the shares in A and in B: 0 % for equal ones, 100 % for ones without
a value in common.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate manifest``."""
    parser = argparse.ArgumentParser(prog="detcurate manifest", description="Work with subset manifests.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    manifest = "the folder of a manifest, or an annotation file"

    verify = _add(commands, "verify", "derive every digest again, and the subset from its source", _VERIFY_EPILOG)
    verify.add_argument("manifest", type=Path, metavar="M", help="the folder of a manifest")
    verify.add_argument("--source", metavar="FILE", help="the annotation file that it is a subset of, or its URL")
    verify.add_argument("--scores", metavar="FILE", help="the run's score/images.parquet, or its URL")
    verify.add_argument("--output-dir", type=Path, metavar="DIR", help="the run's OUTPUT_DIR (default: M's parent)")
    verify.set_defaults(run=_verify)

    diff = _add(commands, "diff", "images added, removed and kept; how the distributions shift", _DIFF_EPILOG)
    diff.add_argument("first", type=Path, metavar="A", help=manifest)
    diff.add_argument("second", type=Path, metavar="B", help=manifest)
    diff.set_defaults(run=_diff)

    stats = _add(commands, "stats", "count images, boxes, classes, sizes, metadata")
    stats.add_argument("manifest", type=Path, metavar="M", help=manifest)
    stats.set_defaults(run=_stats)

    merge = _add(commands, "merge", "write the union of several, with every conflict declared")
    merge.add_argument("manifests", type=Path, nargs="+", metavar="M", help=manifest)
    merge.add_argument("-o", "--output", type=local_path, required=True, metavar="FILE", help="the COCO file to write")
    merge.add_argument(
        "--on-conflict", choices=ON_CONFLICT, default="error", help="stop (default), or keep what the first file says"
    )
    merge.set_defaults(run=_merge)

    for command in (verify, diff, stats, merge):
        command.add_argument("--json", action="store_true", help="print JSON")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add(commands: Any, name: str, purpose: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    arguments = build_parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _verify(arguments: argparse.Namespace) -> int:
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
        verdict = f"{failed} of {len(checks)} checks failed" if failed else "the manifest is what it says it is"
        if absent:
            verdict += f", as far as could be checked: {absent} of {len(checks)} checks lack what they need"
        rows = [(check.status, check.name, check.detail) for check in checks]
        say(*table(("status", "check", "detail"), rows), "", verdict)
    return 1 if failed else 0


def _diff(arguments: argparse.Namespace) -> int:
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


def _stats(arguments: argparse.Namespace) -> int:
    stats = manifest_stats(open_manifest(arguments.manifest))
    if arguments.json:
        say_json(stats)
        return 0
    per_image = stats["boxes_per_image"]
    say(
        f"{stats['file']}: {stats['num_images']:,} images ({stats['num_empty_images']:,} without a box), "
        f"{stats['num_boxes']:,} boxes",
        f"boxes per image: mean {per_image['mean']:.1f}, median {per_image['median']:g}, most {per_image['max']:,}",
    )
    for name, counts in stats["histograms"].items():
        total = max(sum(counts.values()), 1)
        rows = [(value, count, f"{count / total:.1%}") for value, count in counts.items()]
        say("", *_limited((name, "count", "share"), rows, list(counts.values())))
    return 0


def _merge(arguments: argparse.Namespace) -> int:
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
        say(f"conflicts: {len(conflicts):,}; each image is kept as the first of its files has it")
        say(*(f"    {text}" for text in conflicts[:_MOST_ROWS]))
        if len(conflicts) > _MOST_ROWS:
            say(f"    and {len(conflicts) - _MOST_ROWS:,} more; the lineage has all")
        say("")
    renumbered = f", {lineage['renumbered']:,} of them with a new id" if lineage["renumbered"] else ""
    say(f"{lineage['num_images']:,} images with {lineage['num_boxes']:,} boxes{renumbered}: {arguments.output}")
    return 0


def _limited(header: Sequence[str], rows: Sequence[Sequence[object]], weights: Sequence[float]) -> list[str]:
    """Return the lines of a table; of a long one the rows that weigh most, and how many more there are."""
    if len(rows) <= _MOST_ROWS:
        return table(header, rows)
    heaviest = sorted(range(len(rows)), key=lambda row: -weights[row])[:_MOST_ROWS]
    return [*table(header, [rows[row] for row in heaviest]), f"… and {len(rows) - _MOST_ROWS:,} more; --json has all"]
