"""``detcurate report``: write the report of a run, finished or not."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from detcurate.cli.common import say
from detcurate.errors import ConfigError
from detcurate.pipeline.report_inputs import stage_states
from detcurate.pipeline.stage import run_stage
from detcurate.pipeline.stages.report import build_report, report_stage
from detcurate.pipeline.workspace import named_run, report_lock


def run(arguments: argparse.Namespace) -> int:
    """Write the report and return the exit status."""
    named = named_run(arguments.config_file, arguments.rest)
    stage = report_stage(named)
    directory: Path = arguments.to or named.directory("report")
    _require_writable(directory)
    if arguments.to is None:
        with report_lock(named):
            run_stage(stage)
    else:
        say(build_report(named, stage_states(named), directory).summary)
    return 0


def _require_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"{directory}: the folder of the report is not writable ({error.strerror}). Name another with --to DIR."
        ) from error
