"""``detcurate split``: write training and validation files from one annotation file."""

from __future__ import annotations

import argparse

from detcurate.cli.common import say, say_json, table
from detcurate.coco.validation.findings import parse_policies
from detcurate.io.storage import local_file
from detcurate.manifest.split import SplitReport, write_split


def run(arguments: argparse.Namespace) -> int:
    """Split a file, print the sizes and what could not be balanced, and return the exit status."""
    report = write_split(
        local_file(arguments.file, name="FILE"),
        arguments.output,
        fraction=arguments.fraction,
        by=arguments.by,
        stratify=arguments.stratify == "classes",
        seed=arguments.seed,
        policies=parse_policies(arguments.policy),
    )
    if arguments.json:
        say_json(report.to_dict())
    else:
        say(*_report(report))
    return 0


def _report(report: SplitReport) -> list[str]:
    total = sum(part.num_images for part in report.parts.values())
    rows = [
        (f"{name}.json", part.num_images, f"{part.num_images / total:.1%}", part.num_boxes, part.num_groups)
        for name, part in report.parts.items()
    ]
    lines = [*table(("file", "images", "share", "boxes", "groups"), rows), ""]
    return [*lines, *report.notes(), "", f"written to {report.output}"]
