"""``detcurate rank``: select the images of an unlabelled list that should be labelled first."""

from __future__ import annotations

import argparse
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


def run(arguments: argparse.Namespace) -> int:
    """Rank the images, print where the result is, and return the exit status."""
    if not is_url(arguments.images) and not Path(arguments.images).is_file():
        raise DatasetError(f"LIST: no such file (got {arguments.images})")
    cfg = load_config(arguments.config_file, arguments.opts)
    options, root = curate_settings(cfg.CURATE).storage.options, arguments.image_root
    image_root = None if root is None else locate(root, name="--image-root", options=options)
    images = local_file(arguments.images, name="LIST", options=options)
    ranked = rank_candidates(Run(cfg, arguments.config_file), images, image_root)
    say("", f"to label: {subset_file(ranked)}", f"ranks:    {SelectionTable.of(ranked).path}")
    return 0
