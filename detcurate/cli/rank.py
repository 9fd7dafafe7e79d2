"""``detcurate rank LIST``: which images of an unlabelled list to label first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detcurate.cli.common import say
from detcurate.config import curate_settings
from detcurate.config.declaration import load_config
from detcurate.errors import DatasetError
from detcurate.io.storage import is_url, local_file, locate
from detcurate.pipeline import Run
from detcurate.pipeline.commands.rank import rank_candidates
from detcurate.pipeline.stages.manifest import subset_file
from detcurate.pipeline.tables import SelectionTable

_EPILOG = """\
The ensemble is that of the config's run, whose stage train must have finished. CURATE.SELECT says how many images are
chosen and how, as of a pool; what asks for labels (boxes, classes) is refused, and the noise guard is left out.
With CURATE.SELECT.DUPLICATE_SIMILARITY what resembles an image of the labelled pool is left out too.

  %(prog)s new-drives.json --config-file my.yaml --image-root /data/new CURATE.SELECT.NUM_IMAGES 5000
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate rank``."""
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).name} rank",
        description="Rank images that are not labelled yet by the disagreement of a trained ensemble.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", metavar="LIST", help="a COCO file with `images`, or its URL; no annotations are read")
    parser.add_argument("--config-file", type=Path, required=True, metavar="FILE", help="the config of the run")
    parser.add_argument(
        "--image-root", metavar="DIR", help="what its file names are relative to, a folder or URL (default: the pool's)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    arguments = build_parser().parse_intermixed_args(argv)
    if not is_url(arguments.images) and not Path(arguments.images).is_file():
        raise DatasetError(f"LIST must be a COCO file, got {arguments.images}, which is not there")
    cfg = load_config(arguments.config_file, arguments.opts)
    options, root = curate_settings(cfg.CURATE).storage.options, arguments.image_root
    image_root = None if root is None else locate(root, name="--image-root", options=options)
    images = local_file(arguments.images, name="LIST", options=options)
    ranked = rank_candidates(Run(cfg, arguments.config_file), images, image_root)
    say("", f"to label: {subset_file(ranked)}", f"ranks:    {SelectionTable.of(ranked).path}")
    return 0
