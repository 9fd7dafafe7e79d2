"""``detcurate relabel apply CORRECTED``: a new pool file from labels that were corrected in an annotation tool."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detcurate.cli.common import local_path, say, say_json
from detcurate.interop.corrections.apply import apply_corrections
from detcurate.interop.corrections.readers import read_corrected
from detcurate.pipeline.workspace import named_run

_EPILOG = """\
CORRECTED is COCO, "CVAT for images 1.1" (XML) or Label Studio's JSON export, plain or gzip. The labels of each image
in it replace those that the pool has for that image; all other images, and all crowd regions, stay as they are. Boxes
that CVAT's annotators have left ticked as a proposal are left out.

The pool itself is never written to. The new file says in its info, and NEW_POOL.lineage.json beside it says image by
image, what was changed, added and removed.

examples:
  {prog} corrected.xml --config-file my.yaml -o train-2.json
  {prog} job1.json job2.json output/mine -o train-2.json.gz
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate relabel``."""
    prog = f"{Path(sys.argv[0]).name} relabel"
    parser = argparse.ArgumentParser(prog=prog, description="Work with corrected labels.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    apply = commands.add_parser(
        "apply",
        help="write a new pool file with corrected labels",
        description="Write a new pool file with corrected labels.",
        epilog=_EPILOG.format(prog=f"{prog} apply"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    apply.add_argument(
        "corrected", nargs="+", metavar="CORRECTED", help="files of corrected labels; the run may follow"
    )
    apply.add_argument(
        "-o", "--output", type=local_path, required=True, metavar="NEW_POOL", help="the COCO file to write"
    )
    apply.add_argument("--config-file", type=Path, metavar="FILE", help="the config of the run whose pool it is")
    apply.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides of the config")
    apply.add_argument("--json", action="store_true", help="print JSON")
    apply.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    arguments = build_parser().parse_args(argv)
    words, paths = list(arguments.opts), [Path(text) for text in arguments.corrected]
    if arguments.config_file is None and not words and len(paths) > 1:
        words = [str(paths.pop())]
    found = named_run(arguments.config_file, words)
    lineage = apply_corrections(found.pool, [read_corrected(path) for path in paths], arguments.output)
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
    return [*lines, f"left out: {skipped}"] if skipped else lines
