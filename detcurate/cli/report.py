"""``detcurate report``: the report of a run, finished or not."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detcurate.cli.common import local_path, say
from detcurate.errors import ConfigError
from detcurate.pipeline.report_inputs import stage_states
from detcurate.pipeline.stage import run_stage
from detcurate.pipeline.stages.report import build_report, report_stage
from detcurate.pipeline.workspace import named_run, report_lock

_EPILOG = """\
the run is named by its config, or by its OUTPUT_DIR:
  %(prog)s --config-file my.yaml
  %(prog)s output/mine
  %(prog)s output/mine --to /elsewhere      where OUTPUT_DIR may not be written

A run that was interrupted, or is still going on, is reported as far as it went; what is missing is said first.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate report``."""
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).name} report",
        description="Write the report of a run: index.html, results.json, summary.md, data/*.csv.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", type=Path, metavar="FILE", help="the config of the run")
    parser.add_argument("--to", type=local_path, metavar="DIR", help="where to write it, instead of OUTPUT_DIR/report")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("rest", nargs="*", metavar="OUTPUT_DIR | KEY VALUE", help="the run, or overrides of its config")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    arguments = build_parser().parse_intermixed_args(argv)
    found = named_run(arguments.config_file, arguments.rest)
    stage = report_stage(found)
    directory: Path = arguments.to or found.directory("report")
    _require_writable(directory)
    if arguments.to is None:
        with report_lock(found):
            run_stage(stage)
    else:
        say(build_report(found, stage_states(found), directory).summary)
    return 0


def _require_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"the folder of the report must be writable, got {error.strerror} ({directory}); name another with --to DIR"
        ) from error
