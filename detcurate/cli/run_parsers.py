"""Parsers of the commands that start a run or work on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detcurate.choices import CATEGORY_KEYS, ENGINES, EXPORT_CONTENTS, EXPORT_FORMATS, EXPORT_IMAGES, IMAGE_KEYS, STAGES
from detcurate.cli.arguments import (
    add_command,
    add_config_file,
    add_group,
    add_overrides,
    add_run_arguments,
    integer,
    local_path,
    number,
)

_RUN = f"""\
stages, in order: {", ".join(STAGES)}

examples:
  detcurate run --config-file detcurate://quickstart.yaml
      all stages on a rendered driving pool, on a CPU
  detcurate run --config-file my.yaml DATASETS.ROOT /data/mine OUTPUT_DIR output/mine
      your own data: train.json, val.json and images/ below DATASETS.ROOT
  detcurate run --config-file my.yaml --dry-run
      check everything and print what each stage would do and cost
  detcurate run --config-file my.yaml --until manifest CURATE.SELECT.FRACTION 0.25
      select a quarter of the pool and stop before retraining
  detcurate run --config-file my.yaml --engine ray
  detcurate run --config-file my.yaml --join
      predict on a Ray cluster, or with more processes on one OUTPUT_DIR

`detcurate config` lists the settings. An interrupted run resumes when the same command is run
again.
"""
_ADD = """\
All checkpoints of DIR become members, or none. A file that would run code is not loaded.

examples:
  detcurate ensemble add checkpoints/ --config-file my.yaml
  detcurate ensemble add checkpoints/ --config-file my.yaml --run 1 OUTPUT_DIR output/mine
"""
_LIST = """\
example:
  detcurate ensemble list output/mine
"""
_IMPORT = """\
A results file is a COCO results file: a JSON list, plain or gzip, with one object for each
detection. One file has the predictions of one checkpoint on the images of the pool:

  {"image_id": 7, "category_id": 3, "bbox": [x, y, width, height], "score": 0.83, "class_probs": [...]}

class_probs is optional, but all files must have it or none. Without it, the score is the
probability of the category and the rest is background. With it, there are C values in the order
of the category ids (sigmoid), or C + 1 that sum to 1 with the background last (softmax). Boxes
are clipped to their image.

The members are the iterations 0, 1, 2, ... of one run, in the order given. FILE@RUN:ITERATION,
for all files, sets run and iteration: measures such as forgetting follow a run through its
iterations.

A second import with the same NAME replaces the first. Files that it already contained are not
read again, so adding a member means the same command with one more --member.

examples:
  detcurate import yolo --config-file my.yaml --member epoch10.json --member epoch20.json --member epoch30.json
  detcurate import yolo --config-file my.yaml --image-key stem --category-key from-0 --member predictions.json
  detcurate run --config-file my.yaml --until manifest CURATE.PREDICT.RESULTS yolo
      score, select and write the manifest, without torch and Detectron2
"""
_RANK = """\
The ensemble is that of the config's run, whose stage train must have finished. CURATE.SELECT sets
how many images are selected and how, as for a pool. Settings that need labels are rejected, and
the label-noise filter is ignored. With CURATE.SELECT.DUPLICATE_SIMILARITY, images that resemble
the labelled pool are excluded too.

example:
  detcurate rank new-drives.json --config-file my.yaml --image-root /data/new CURATE.SELECT.NUM_IMAGES 5000
"""
_EXPLAIN = """\
The rank of a score is the image's position in the pool, the highest score first.

examples:
  detcurate explain 17 output/mine
  detcurate explain 17 --config-file my.yaml --json
"""
_REPORT = """\
An interrupted or running run is reported as far as it went; the report begins with what is
missing.

examples:
  detcurate report output/mine
  detcurate report --config-file my.yaml
  detcurate report output/mine --to /elsewhere
      where OUTPUT_DIR is read-only
"""
_EXPORT = """\
The run's stage manifest must have finished.

examples:
  detcurate export cvat output/mine -o to_cvat
      suspected label errors, the most suspicious first: annotations.xml, and labels.json for the task
  detcurate export label-studio output/mine -o to_label_studio --limit 100
      the 100 most suspicious images, with the ensemble's consensus as predictions
  detcurate export yolo --what subset output/mine -o yolo_data
      the subset for training and the evaluation images for validation, images included

`detcurate relabel apply` imports the corrected labels.
"""


def add_run(commands: Any) -> None:
    """Add ``detcurate run``."""
    parser = add_command(
        commands, "run", "run:run",
        help="curate a pool: train, predict, score, select, retrain, report",
        description="Curate a labelled pool: train an ensemble, score and select the images, compare, and report.",
        epilog=_RUN,
    )  # fmt: skip
    add_config_file(parser, required=True)
    stages = parser.add_mutually_exclusive_group()
    stages.add_argument("--until", choices=STAGES, metavar="STAGE", help="stop after this stage")
    stages.add_argument("--only", choices=STAGES, metavar="STAGE", help="run this stage alone")
    stages.add_argument("--join", action="store_true", help="help a run that is in its stage predict")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the plan; write nothing")
    parser.add_argument("--fresh", action="store_true", help="discard what an earlier run left in OUTPUT_DIR")
    parser.add_argument("--wait", action="store_true", help="wait for another run in OUTPUT_DIR to end")
    parser.add_argument(
        "--join-wait", type=number(0), default=600.0, metavar="SECONDS",
        help="how long --join waits for the run to reach its stage predict (default: 600)",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=ENGINES, default="local", help="where the pool is predicted and scored (default: local)"
    )
    parser.add_argument(
        "--ray-address", metavar="HOST:PORT", help="the Ray cluster of --engine ray (default: RAY_ADDRESS)"
    )
    parser.add_argument(
        "--num-gpus",
        type=integer(0),
        default=0,
        metavar="N",
        help="GPUs of each machine per training (default: 0)",
    )
    parser.add_argument(
        "--num-machines", type=integer(1), default=1, metavar="N", help="machines for each training (default: 1)"
    )
    parser.add_argument("--machine-rank", type=integer(0), default=0, metavar="R", help="this machine's number, from 0")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="where the machines meet, such as tcp://host:port"
    )
    add_overrides(parser)


def add_ensemble(commands: Any) -> None:
    """Add ``detcurate ensemble add | list``."""
    below = add_group(
        commands, "ensemble",
        help="add existing checkpoints to an ensemble, or list its members",
        description="Add existing checkpoints to an ensemble, or list its members.",
    )  # fmt: skip
    add = add_command(
        below, "add", "ensemble:add", json=True,
        help="add the checkpoints of a finished training",
        description="Add the checkpoints of a finished training to the ensemble in OUTPUT_DIR.",
        epilog=_ADD,
    )  # fmt: skip
    add.add_argument("folder", type=Path, metavar="DIR", help="Detectron2's model_*.pth, or members saved by the hook")
    add_config_file(add, required=True, help="the config that the model was trained with")
    add.add_argument(
        "--run", type=integer(0), metavar="N", help="the run that they belong to (default: the next unused number)"
    )
    add_overrides(add)

    members = add_command(
        below, "list", "ensemble:list_members", json=True,
        help="list the members of an ensemble",
        description="List the members of an ensemble.",
        epilog=_LIST,
    )  # fmt: skip
    members.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="the OUTPUT_DIR of a run or of the hook")


def add_import(commands: Any) -> None:
    """Add ``detcurate import``."""
    parser = add_command(
        commands, "import", "imports:run", json=True,
        help="import predictions of any detector as COCO results files",
        description="Import COCO results files of any detector as the members of an ensemble.",
        epilog=_IMPORT,
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="the name for CURATE.PREDICT.RESULTS")
    add_config_file(parser, required=True)
    parser.add_argument(
        "--member", action="append", required=True, metavar="FILE[@RUN:ITERATION]",
        help="a results file; repeat for each checkpoint",
    )  # fmt: skip
    parser.add_argument(
        "--image-key", choices=IMAGE_KEYS, default="id",
        help="image_id is the pool's image id (default), or the file name without folder and suffix (stem)",
    )  # fmt: skip
    parser.add_argument(
        "--category-key", choices=CATEGORY_KEYS, default="id",
        help="category_id is the pool's (default), or its position among the pool's sorted ids, from 0 or from 1",
    )  # fmt: skip
    parser.add_argument(
        "--score-threshold", "--score-floor", type=number(0, 1), default=0.05, metavar="S",
        help="ignore detections with a score below S (default: %(default)s, as in Detectron2)",
    )  # fmt: skip
    parser.add_argument(
        "--max-per-image", type=integer(0), default=100, metavar="N",
        help="keep the N best detections of an image (default: %(default)s, as in Detectron2; 0: all)",
    )  # fmt: skip
    add_overrides(parser)


def add_rank(commands: Any) -> None:
    """Add ``detcurate rank``."""
    parser = add_command(
        commands, "rank", "rank:run",
        help="rank unlabelled images: which to label first",
        description="Rank unlabelled images by the disagreement of a trained ensemble.",
        epilog=_RANK,
    )  # fmt: skip
    parser.add_argument("images", metavar="LIST", help="a COCO file with `images`, or its URL; annotations are ignored")
    add_config_file(parser, required=True, help="the config of the run")
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder or URL that the file names are relative to (default: the pool's)"
    )
    add_overrides(parser)


def add_explain(commands: Any) -> None:
    """Add ``detcurate explain``."""
    parser = add_command(
        commands, "explain", "explain:run", json=True,
        help="explain why one image was selected or not",
        description="Print the objects, scores, selection and neighbours of one image.",
        epilog=_EXPLAIN,
    )  # fmt: skip
    parser.add_argument("image_id", metavar="IMAGE_ID", help="the image's id in the annotation file")
    add_run_arguments(parser)


def add_report(commands: Any) -> None:
    """Add ``detcurate report``."""
    parser = add_command(
        commands, "report", "report:run",
        help="write the report of a run, finished or not",
        description="Write the report of a run: index.html, results.json, summary.md, data/*.csv.",
        epilog=_REPORT,
    )  # fmt: skip
    parser.add_argument("--to", type=local_path, metavar="DIR", help="the folder to write (default: OUTPUT_DIR/report)")
    add_run_arguments(parser)


def add_export(commands: Any) -> None:
    """Add ``detcurate export``."""
    parser = add_command(
        commands, "export", "export:run", json=True,
        help="export suspected label errors, or the subset, to other tools",
        description="Write suspected label errors or the subset as files for annotation tools and trainers.",
        epilog=_EXPORT,
    )  # fmt: skip
    parser.add_argument("format", choices=EXPORT_FORMATS, metavar="FORMAT", help=", ".join(EXPORT_FORMATS))
    parser.add_argument(
        "-o", "--output", type=local_path, required=True, metavar="DIR", help="the folder to write; new or empty"
    )
    parser.add_argument(
        "--what", choices=EXPORT_CONTENTS, default="relabel",
        help="images with suspected label errors, the most suspicious first (default), or the subset",
    )  # fmt: skip
    parser.add_argument("--limit", type=integer(0), default=0, metavar="N", help="the first N images only (0: all)")
    parser.add_argument(
        "--images", choices=EXPORT_IMAGES,
        help="link adds the images, as hard links where possible (default: link for yolo, none otherwise)",
    )  # fmt: skip
    parser.add_argument(
        "--url", default="/data/local-files/?d=", metavar="PREFIX",
        help="prefix of the file names in Label Studio's image URLs (default: %(default)s)",
    )  # fmt: skip
    add_run_arguments(parser)
