"""``detcurate export FORMAT``: suspected labels, or the subset, as files that annotation tools and trainers import."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detcurate.cli.common import local_path, say, say_json
from detcurate.interop.export.formats import FORMATS, IMAGES, Images, Options, write_export
from detcurate.interop.export.label_studio import LOCAL_FILES
from detcurate.pipeline.commands.export import WHAT, export_content
from detcurate.pipeline.workspace import named_run

_EPILOG = """\
The run is named by its config, with KEY VALUE overrides, or by its OUTPUT_DIR; its stage manifest must have finished.

examples:
  {prog} cvat output/mine -o to_cvat
      the suspected labels, the worst first: annotations.xml, and labels.json for the task's constructor
  {prog} label-studio output/mine -o to_label_studio --limit 100
      the hundred worst images, with what the ensemble sees as predictions
  {prog} yolo --what subset output/mine -o yolo_data
      the subset to train on and the evaluation images to validate on, images included

docs/how-to/label-errors.md has it step by step for each tool. Exit status: 0 done, 2 something to mend.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate export``."""
    prog = f"{Path(sys.argv[0]).name} export"
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write the suspected labels or the subset of a run as files that other tools import.",
        epilog=_EPILOG.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("format", choices=list(FORMATS), metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument(
        "-o", "--output", type=local_path, required=True, metavar="DIR", help="the folder to write; a new one"
    )
    parser.add_argument(
        "--what", choices=WHAT, default=WHAT[0], help="the suspected images, the worst first (default), or the subset"
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="the first N images only (0: all)")
    parser.add_argument(
        "--images", choices=IMAGES,
        help="link: put the images there too, as hard links where the disk has them; default: for yolo link, else none",
    )  # fmt: skip
    parser.add_argument(
        "--url", default=LOCAL_FILES, metavar="PREFIX",
        help="what stands before a file name in Label Studio's image URLs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--config-file", type=Path, metavar="FILE", help="the config of the run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("rest", nargs="*", metavar="OUTPUT_DIR | KEY VALUE", help="the run, or overrides of its config")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    arguments = build_parser().parse_intermixed_args(argv)
    parts = export_content(named_run(arguments.config_file, arguments.rest), arguments.what, limit=arguments.limit)
    images: Images = arguments.images or ("link" if arguments.format == "yolo" else "none")
    written = write_export(arguments.format, arguments.output, parts, Options(images=images, url=arguments.url))
    content = parts["train"]
    counts = {
        "images": len(content.rows),
        "label_errors": len(content.label_errors),
        "crowd_regions_left_out": 0 if arguments.format == "fiftyone" else content.num_crowd_regions,
    }
    if arguments.json:
        say_json({"files": [str(path) for path in written], **counts})
        return 0
    crowds = counts["crowd_regions_left_out"]
    left_out = f"; {crowds:,} crowd regions left out, they stay as they are" if crowds else ""
    say(*map(str, written), f"{counts['images']:,} images with {counts['label_errors']:,} suspicions{left_out}")
    return 0
