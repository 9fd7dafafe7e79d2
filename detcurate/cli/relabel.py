"""``detcurate relabel apply``: write a new pool file with labels that were corrected in an annotation tool."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detcurate.cli.common import say, say_json
from detcurate.interop.corrections.apply import apply_corrections
from detcurate.interop.corrections.readers import read_corrected
from detcurate.pipeline.workspace import named_run


def apply(arguments: argparse.Namespace) -> int:
    """Write the new pool file, print the changes, and return the exit status."""
    rest, paths = list(arguments.opts), [Path(text) for text in arguments.corrected]
    if arguments.config_file is None and not rest and len(paths) > 1:
        rest = [str(paths.pop())]
    named = named_run(arguments.config_file, rest)
    lineage = apply_corrections(named.pool, [read_corrected(path) for path in paths], arguments.output)
    if arguments.json:
        say_json(lineage)
    else:
        say(*_report(lineage), str(arguments.output))
    return 0


def _report(lineage: Mapping[str, Any]) -> list[str]:
    images, boxes = lineage["images"], lineage["boxes"]
    lines = [
        f"images: {images['changed']:,} changed, {images['confirmed']:,} reviewed and left unchanged, "
        f"{images['not_reviewed']:,} not reviewed",
        f"boxes: {boxes['changed']:,} changed, {boxes['added']:,} added, {boxes['removed']:,} removed, "
        f"{boxes['unchanged']:,} reviewed and left unchanged, {boxes['not_reviewed']:,} not reviewed",
    ]
    skipped = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in lineage["skipped"].items())
    return [*lines, f"skipped: {skipped}"] if skipped else lines
