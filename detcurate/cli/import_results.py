"""``detcurate import-results NAME``: answers of any framework's detectors, for a curation without Detectron2."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from detcurate.cli.common import say, say_json, table
from detcurate.config import curate_settings
from detcurate.config.declaration import load_config
from detcurate.errors import ConfigError
from detcurate.interop.coco_results import CATEGORY_KEYS, IMAGE_KEYS
from detcurate.io.storage import is_url
from detcurate.pipeline import Run
from detcurate.pipeline.commands.import_results import ResultsFile, import_results
from detcurate.pipeline.imported_members import Import, ImportOptions

_EPILOG = """\
A results file is COCO's: a JSON list, plain or gzip, with one object a detection. One file is one checkpoint's answers
to the images of the pool:

  {{"image_id": 7, "category_id": 3, "bbox": [x, y, width, height], "score": 0.83, "class_probs": [...]}}

class_probs may be absent from all files. Then the score is the probability of the category, and 1 less it that of the
background. Given, it holds C values in the order of the category ids, each on its own (sigmoid), or C + 1 that sum to 1
with the background last (softmax), in one form in all files. Boxes are cut off at the edges of their image.

The members are the iterations 0, 1, 2, ... of one run, in the order given; with FILE@RUN:ITERATION, for all of them,
they are what you say: measures such as forgetting follow a run through its iterations.

An import of the same NAME is replaced as a whole. A file that was in it is not read again, so that adding a member is
giving the same command with one more --member.

examples:
  {prog} yolo --config-file my.yaml --member epoch10.json --member epoch20.json --member epoch30.json
  {prog} yolo --config-file my.yaml --image-key stem --category-key from-0 --member runs/val/predictions.json
  {name} --config-file my.yaml --until manifest CURATE.PREDICT.RESULTS yolo
      scores, selects, and writes the manifest; neither torch nor Detectron2 is needed

docs/how-to/any-detector.md has the steps for Ultralytics and MMDetection. Exit status: 0 done, 2 an error to fix.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate import-results``."""
    name = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        prog=f"{name} import-results",
        description="Import COCO results files of any detector as the members of an ensemble.",
        epilog=_EPILOG.format(prog=f"{name} import-results", name=name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = ImportOptions()
    parser.add_argument("name", metavar="NAME", help="what CURATE.PREDICT.RESULTS will call them")
    parser.add_argument("--config-file", type=Path, required=True, metavar="FILE", help="the config of the curation")
    parser.add_argument(
        "--member", action="append", required=True, metavar="FILE[@RUN:ITERATION]",
        help="a results file; given once for each checkpoint",
    )  # fmt: skip
    parser.add_argument(
        "--image-key", choices=sorted(IMAGE_KEYS), default=defaults.image_key,
        help="what image_id is: the pool's image id (default), or the file name without folder and suffix",
    )  # fmt: skip
    parser.add_argument(
        "--category-key", choices=sorted(CATEGORY_KEYS), default=defaults.category_key,
        help="what category_id is: the pool's (default), or its place among the pool's ascending ids, from 0 or 1",
    )  # fmt: skip
    parser.add_argument(
        "--score-floor", dest="score_threshold", type=float, default=defaults.score_threshold, metavar="S",
        help="leave out detections with a score below S (default: %(default)s, as in Detectron2)",
    )  # fmt: skip
    parser.add_argument(
        "--max-per-image", type=int, default=defaults.max_per_image, metavar="N",
        help="keep the N best detections of an image (default: %(default)s, as in Detectron2; 0: all)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    arguments = build_parser().parse_intermixed_args(argv)
    if not 0 <= arguments.score_threshold <= 1:
        raise ConfigError(f"--score-floor must be in [0, 1], got {arguments.score_threshold:g}")
    if arguments.max_per_image < 0:
        raise ConfigError(f"--max-per-image must be at least 0, got {arguments.max_per_image}")
    if not arguments.name:
        raise ConfigError("NAME must be a name, got an empty one")
    files = parse_members(arguments.member)
    cfg = load_config(arguments.config_file, [*arguments.opts, "CURATE.PREDICT.RESULTS", arguments.name])
    curate_settings(cfg.CURATE)
    options = ImportOptions(
        arguments.image_key, arguments.category_key, arguments.score_threshold, arguments.max_per_image
    )
    found = import_results(Run(cfg, arguments.config_file), files, options)
    if arguments.json:
        members = [{**asdict(imported), **asdict(imported.member())} for imported in found.members]
        say_json({"directory": str(found.directory), "options": asdict(options), "members": members})
    else:
        say("", *_report(found), "", f"{len(found.members)} members imported; use them with CURATE.PREDICT.RESULTS "
            f"{arguments.name}")  # fmt: skip
    return 0


def parse_members(texts: Sequence[str]) -> list[ResultsFile]:
    """Return the results files that ``FILE`` or ``FILE@RUN:ITERATION`` name.

    Raises:
        ConfigError: One is a URL; or some have a run and an iteration, and some do not.

    Example:
        >>> [(file.path.name, file.run, file.iteration) for file in parse_members(["a.json@1:500", "b.json@1:999"])]
        [('a.json', 1, 500), ('b.json', 1, 999)]
    """
    for text in texts:
        if is_url(text):  # which is not repeated: it may hold a secret
            got = f"a URL of {text.partition('://')[0]}://"
            raise ConfigError(f"--member must be a file of this machine, got {got}; copy it here")
    matches = [re.fullmatch(r"(.+)@(\d{1,9}):(\d{1,9})", text) for text in texts]
    if not any(matches):
        return [ResultsFile(Path(text), 0, iteration) for iteration, text in enumerate(texts)]
    files = [ResultsFile(Path(found[1]), int(found[2]), int(found[3])) for found in matches if found]
    if len(files) < len(texts):
        plain = next(text for text, found in zip(texts, matches, strict=True) if not found)
        raise ConfigError(f"--member must be FILE@RUN:ITERATION for all members or for none, got {plain} beside others")
    return files


def _report(found: Import) -> list[str]:
    header = ("run", "iteration", "detections", "of", "file", "sha256")
    rows = [
        (member.run, member.iteration, member.counts["kept"], member.counts["records"], member.file_name,
         member.sha256[:12])
        for member in found.members
    ]  # fmt: skip
    return table(header, rows)
