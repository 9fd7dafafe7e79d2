"""Parsers of the commands that work on annotation files, manifests and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detcurate.choices import CONFLICT_POLICIES
from detcurate.cli.arguments import add_command, add_group, config_file, integer, local_path, number

_VALIDATE = """\
Each finding has a policy: error stops a run, warn and note keep the record as it is, repair fixes
it. Change policies with --policy CODE=POLICY here, and with CURATE.POOL.FINDINGS
"('CODE=POLICY',)" in a run.

examples:
  detcurate validate train.json
      check the annotations
  detcurate validate train.json --images images --cache checked.json
      also decode every image; a second call decodes only new or changed ones
  detcurate validate train.json --policy invalid_box=repair --json
      see what a run with this policy would keep

exit status: 0 no finding is an error, 1 some findings are errors, 2 the file cannot be read
"""
_SPLIT = """\
Images with the same value of the attribute stay on one side, so that no sequence is in both
files. Records are copied verbatim. What could not be balanced is reported. DIR/provenance.json
records the split: `detcurate manifest verify DIR` checks it.

examples:
  detcurate split annotations.json --fraction 0.2 -o split
      a fifth for validation, whole sequences
  detcurate split annotations.json --fraction 0.2 --by attributes.city --stratify classes --seed 7 -o split
      whole cities, with the classes in proportion as far as possible
"""
_VERIFY = """\
A check is ok, failed, or absent: absent means that a file it needs is missing, such as an
annotation file that was moved.

examples:
  detcurate manifest verify output/mine/manifest
  detcurate manifest verify subset --source /data/train.json --output-dir output/mine

exit status: 0 no check failed, 1 some checks failed, 2 there is no manifest to check
"""
_DIFF = """\
A shift is the total variation distance between the shares in A and in B: 0 % for equal
distributions, 100 % for distributions without a common value.

example:
  detcurate manifest diff output/half/manifest output/quarter/manifest
"""
_STATS = """\
example:
  detcurate manifest stats output/mine/manifest
"""
_MERGE = """\
Images that several files contain are written once. A conflict is an image that two files label
differently. Beside FILE, a lineage file names the sources, conflicts and new ids.

example:
  detcurate manifest merge output/day/manifest output/night/manifest -o merged.json
"""
_APPLY = """\
CORRECTED is COCO, "CVAT for images 1.1" (XML) or Label Studio's JSON export, plain or gzip. Its
labels replace those of the pool for the images that it contains. All other images, and all crowd
regions, stay unchanged. Proposals that CVAT's annotators did not confirm are skipped.

The pool itself is never changed. NEW_POOL's `info` and NEW_POOL.lineage.json list what was
changed, added and removed.

examples:
  detcurate relabel apply corrected.xml output/mine -o train-2.json
  detcurate relabel apply job1.json job2.json --config-file my.yaml -o train-2.json.gz
"""
_CONFIG = """\
The settings of Detectron2 itself (MODEL, SOLVER, INPUT, ...) are described in its documentation.

examples:
  detcurate config
      all settings of detcurate
  detcurate config CURATE.SELECT
      one section; SELECT is short for it
  detcurate config select.fraction
      one setting
  detcurate config --diff my.yaml
      what a config and its _BASE_ change
"""
_MANIFEST = "the folder of a manifest, or an annotation file"


def add_validate(commands: Any) -> None:
    """Add ``detcurate validate``."""
    parser = add_command(
        commands, "validate", "validate:run", json=True,
        help="check a COCO annotation file, and its images",
        description="Check a COCO annotation file and, with --images, its image files.",
        epilog=_VALIDATE,
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="a COCO annotation file, plain or gzip, or its URL")
    parser.add_argument("--images", metavar="DIR", help="also decode every image below this folder or URL")
    parser.add_argument(
        "--cache", type=local_path, metavar="FILE", help="remember the result of --images, by size and time of a file"
    )
    parser.add_argument(
        "--policy", action="append", default=[], metavar="CODE=POLICY", help="policy of a finding; may be repeated"
    )
    parser.add_argument(
        "--num-processes", type=integer(0), default=0, metavar="N", help="processes for --images (0: one per core)"
    )


def add_split(commands: Any) -> None:
    """Add ``detcurate split``."""
    parser = add_command(
        commands, "split", "split:run", json=True,
        help="split a COCO annotation file into train.json and val.json",
        description="Split a COCO annotation file into train.json and val.json, with provenance.",
        epilog=_SPLIT,
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="a COCO annotation file, plain or gzip, or its URL")
    parser.add_argument(
        "--fraction", type=number(0, 1, is_open=True), required=True, metavar="F", help="share of validation images"
    )
    parser.add_argument(
        "--by", default="", metavar="ATTRIBUTE",
        help="attribute of the image records whose values stay on one side, such as sequence or attributes.city "
        "(default: sequence where the file has one, else each image by itself, as with file_name)",
    )  # fmt: skip
    parser.add_argument("--stratify", choices=["classes"], help="keep the classes in proportion")
    parser.add_argument("--seed", type=integer(0), default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument(
        "--policy", action="append", default=[], metavar="CODE=POLICY",
        help="policy of a finding, such as invalid_box=repair; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=local_path, required=True, metavar="DIR", help="the folder to write; new or empty"
    )


def add_manifest(commands: Any) -> None:
    """Add ``detcurate manifest verify | diff | stats | merge``."""
    below = add_group(
        commands, "manifest",
        help="verify, compare, describe or merge subset manifests",
        description="Verify, compare, describe or merge subset manifests.",
    )  # fmt: skip
    verify = add_command(
        below, "verify", "manifest:verify", json=True,
        help="check a manifest against its provenance and source",
        description="Compute every digest of a manifest again, and derive the subset from its source again.",
        epilog=_VERIFY,
    )  # fmt: skip
    verify.add_argument("manifest", type=Path, metavar="M", help="the folder of a manifest or of a split")
    verify.add_argument("--source", metavar="FILE", help="the annotation file that it is a subset of, or its URL")
    verify.add_argument("--scores", metavar="FILE", help="the run's score/images.parquet, or its URL")
    verify.add_argument("--output-dir", type=Path, metavar="DIR", help="the run's OUTPUT_DIR (default: M's parent)")

    diff = add_command(
        below, "diff", "manifest:diff", json=True,
        help="compare the images and distributions of two manifests",
        description="List the images that were added, removed and kept, and how the distributions shift.",
        epilog=_DIFF,
    )  # fmt: skip
    diff.add_argument("first", type=Path, metavar="A", help=_MANIFEST)
    diff.add_argument("second", type=Path, metavar="B", help=_MANIFEST)

    stats = add_command(
        below, "stats", "manifest:stats", json=True,
        help="count images, boxes, classes, sizes and metadata",
        description="Count images, boxes, classes, box sizes and metadata values.",
        epilog=_STATS,
    )  # fmt: skip
    stats.add_argument("manifest", type=Path, metavar="M", help=_MANIFEST)

    merge = add_command(
        below, "merge", "manifest:merge", json=True,
        help="write the union of several manifests",
        description="Write the union of several manifests, and report every conflict.",
        epilog=_MERGE,
    )  # fmt: skip
    merge.add_argument("manifests", type=Path, nargs="+", metavar="M", help=_MANIFEST)
    merge.add_argument("-o", "--output", type=local_path, required=True, metavar="FILE", help="the COCO file to write")
    merge.add_argument(
        "--on-conflict", choices=CONFLICT_POLICIES, default="error",
        help="stop at a conflict (default), or keep the labels of the first file",
    )  # fmt: skip


def add_relabel(commands: Any) -> None:
    """Add ``detcurate relabel apply``."""
    below = add_group(
        commands, "relabel",
        help="import corrected labels into a new pool file",
        description="Import labels that were corrected in an annotation tool.",
    )  # fmt: skip
    parser = add_command(
        below, "apply", "relabel:apply", json=True,
        help="write a new pool file with corrected labels",
        description="Write a new pool file with corrected labels.",
        epilog=_APPLY,
    )  # fmt: skip
    parser.add_argument(
        "corrected", nargs="+", metavar="CORRECTED", help="files of corrected labels; the run's OUTPUT_DIR may follow"
    )
    parser.add_argument(
        "-o", "--output", type=local_path, required=True, metavar="NEW_POOL", help="the COCO file to write"
    )
    parser.add_argument(
        "--config-file", type=config_file, metavar="FILE", help="the config of the run, instead of its OUTPUT_DIR"
    )
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides of the config")


def add_config(commands: Any) -> None:
    """Add ``detcurate config``."""
    parser = add_command(
        commands, "config", "settings:run", json=True,
        help="list the settings, or what a config changes",
        description="List settings with type, default, allowed values and meaning, or what a config changes.",
        epilog=_CONFIG,
    )  # fmt: skip
    parser.add_argument("key", nargs="?", metavar="KEY|SECTION", help="a setting or a section (default: all)")
    parser.add_argument("--diff", type=config_file, metavar="FILE", help="print what a config changes of the defaults")
