#!/usr/bin/env python
"""Render a driving pool with planted label defects, and a clean evaluation set, as COCO files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from detcurate.errors import DetcurateError
from detcurate.synthetic import SyntheticConfig, write_dataset


def main() -> int:
    """Render both datasets and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="output folder for train.json, val.json and their images")
    parser.add_argument("--num-images", type=int, default=600, help="images in the pool (default: %(default)s)")
    parser.add_argument(
        "--num-evaluation-images", type=int, default=300, help="images in the evaluation set (default: %(default)s)"
    )
    parser.add_argument("--width", type=int, default=256, help="image width in pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, default=160, help="image height in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    arguments = parser.parse_args()
    size = {"width": arguments.width, "height": arguments.height}
    try:
        pool = SyntheticConfig(num_images=arguments.num_images, seed=arguments.seed, **size)
        evaluation = SyntheticConfig.clean(
            num_images=arguments.num_evaluation_images, seed=arguments.seed + 1_000_003, **size
        )
        for name, config in (("train", pool), ("val", evaluation)):
            with tqdm(total=config.num_images, desc=name, unit="image") as bar:
                write_dataset(arguments.directory, config, name=name, progress=bar.update)
    except DetcurateError as error:
        sys.stderr.write(f"make_synthetic: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
