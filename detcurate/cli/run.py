"""The main job's command line, in Detectron2's manner: ``--config-file FILE`` and ``KEY VALUE`` overrides."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from detcurate.cli.common import say
from detcurate.config import curate_settings
from detcurate.config.declaration import load_config
from detcurate.engines import ENGINES, open_engine
from detcurate.errors import ConfigError
from detcurate.pipeline import STAGE_NAMES, Run, dry_run, join_pipeline, run_pipeline
from detcurate.pipeline.stages.manifest import subset_file
from detcurate.report.build import PAGE
from detcurate.version import __version__

_EPILOG = """\
stages, in order: {stages}

examples:
  %(prog)s --config-file configs/quickstart.yaml
      the whole job on a rendered driving pool, on a CPU
  %(prog)s --config-file configs/camvid_tiny.yaml DATASETS.ROOT /data/camvid OUTPUT_DIR output/camvid
      on frames of your own: train.json, val.json and images/ below DATASETS.ROOT
  %(prog)s --config-file my.yaml --dry-run
      check everything, say what each stage would do and cost, write nothing
  %(prog)s --config-file my.yaml --until manifest CURATE.SELECT.FRACTION 0.25
      stop at the manifest, with a quarter of the pool
  %(prog)s --config-file my.yaml --engine ray, %(prog)s --config-file my.yaml --join
      predict on a Ray cluster, or with more processes on one OUTPUT_DIR; see docs/how-to/clusters.md

  %(prog)s validate FILE, %(prog)s manifest --help
      check an annotation file; verify, compare, describe and merge manifests
  %(prog)s ensemble add DIR --config-file FILE
      use the checkpoints of a training that is over; see docs/explanation/ensembles.md
  %(prog)s import-results NAME --config-file FILE --member RESULTS.json ...
      use what YOLO or any other detector answered, without Detectron2; see docs/how-to/any-detector.md
  %(prog)s rank LIST --config-file FILE
      which images of an unlabelled list to label first; see docs/explanation/selection.md
  %(prog)s explain IMAGE_ID --config-file FILE
      why an image was selected or not; see docs/explanation/selection.md
  %(prog)s export FORMAT OUTPUT_DIR -o FOLDER, %(prog)s relabel apply CORRECTED OUTPUT_DIR -o FILE
      suspected labels to CVAT, Label Studio, FiftyOne or YOLO, and corrected ones back; see docs/how-to/label-errors.md
  %(prog)s report OUTPUT_DIR
      the report of a run, finished or not; see docs/explanation/report.md

A run that was stopped goes on where it was when the same command is given again. Exit status: 0 done, 2 something
to mend (one message says what), 130 stopped with Ctrl-C, 143 by SIGTERM.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate`` and ``tools/curate.py``."""
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description="Find the part of a labelled detection pool that trains a better detector, and show what it buys.",
        epilog=_EPILOG.format(stages=", ".join(STAGE_NAMES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", type=Path, required=True, metavar="FILE", help="a Detectron2 YAML config")
    stages = parser.add_mutually_exclusive_group()
    stages.add_argument("--until", choices=STAGE_NAMES, metavar="STAGE", help="stop after this stage")
    stages.add_argument("--only", choices=STAGE_NAMES, metavar="STAGE", help="run this stage alone")
    stages.add_argument(
        "--join", action="store_true", help="help a run that is at its stage predict; see docs/how-to/clusters.md"
    )
    parser.add_argument("--dry-run", action="store_true", help="validate and tell what would be done; write nothing")
    parser.add_argument("--fresh", action="store_true", help="discard what an earlier run left in OUTPUT_DIR")
    parser.add_argument("--wait", action="store_true", help="wait for another run in OUTPUT_DIR to end")
    parser.add_argument(
        "--join-wait", type=float, default=600, metavar="SECONDS", help="for that run to begin to predict (600)"
    )
    parser.add_argument("--engine", choices=ENGINES, default="local", help="where pools are predicted and scored")
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="the Ray cluster of --engine ray; else RAY_ADDRESS")
    parser.add_argument("--num-gpus", type=int, default=0, metavar="N", help="GPUs a machine for each training run")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines for each training run")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="R", help="this machine, from 0")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="where the machines meet, such as tcp://host:port"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"detcurate {__version__}")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the main job and return the exit status."""
    parser = build_parser()
    arguments = parser.parse_intermixed_args(argv)  # options may stand after KEY VALUE too
    _require_sense(parser, arguments)
    cfg = load_config(arguments.config_file, arguments.opts)
    settings = curate_settings(cfg.CURATE)
    names = ("num_gpus", "num_machines", "machine_rank", "dist_url")
    distributed = {name: getattr(arguments, name) for name in names}
    if arguments.ray_address and arguments.engine != "ray":
        raise ConfigError(f"--engine must be ray with --ray-address, got {arguments.engine}")
    with closing(open_engine(arguments.engine, settings, address=arguments.ray_address)) as engine:
        run = Run(cfg, arguments.config_file, distributed, engine=engine)
        if arguments.dry_run:
            _print_plan(dry_run(run, until=arguments.until, only=arguments.only, fresh=arguments.fresh))
            return 0
        if arguments.join:
            join_pipeline(run, wait_seconds=arguments.join_wait)
            return 0
        run_pipeline(run, until=arguments.until, only=arguments.only, fresh=arguments.fresh, wait=arguments.wait)
    _print_results(run)
    return 0


def _require_sense(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing, and options of which one would be passed over without a word."""
    for name in ("dry_run", "fresh", "wait"):
        if arguments.join and getattr(arguments, name):
            parser.error(f"argument --join: not allowed with argument --{name.replace('_', '-')}")
    if not 0 <= arguments.join_wait < math.inf:
        parser.error(f"--join-wait must be at least 0, got {arguments.join_wait:g}")
    if arguments.num_gpus < 0:
        parser.error(f"--num-gpus must be at least 0, got {arguments.num_gpus}")
    if arguments.num_machines < 1:
        parser.error(f"--num-machines must be at least 1, got {arguments.num_machines}")
    if not 0 <= arguments.machine_rank < arguments.num_machines:
        parser.error(
            f"--machine-rank must be from 0 to below --num-machines {arguments.num_machines}, got "
            f"{arguments.machine_rank}"
        )


def _print_plan(rows: Sequence[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, state, plan in rows:
        say(f"{name:<{widths[0]}}  {state:<{widths[1]}}  {plan}")
    say("nothing was written")


def _print_results(run: Run) -> None:
    if "report" in run.finished_stages:
        say("", run.finished_stages["report"]["facts"]["table"].rstrip())
    found = {"manifest": subset_file(run), "report": run.directory("report") / PAGE}
    # What an earlier run left there is of other settings, or of half a run.
    paths = [
        f"{name + ':':<10}{path}" for name, path in found.items() if name in run.finished_stages and path.is_file()
    ]
    if paths:
        say("", *paths)
