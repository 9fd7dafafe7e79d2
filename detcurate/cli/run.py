"""``detcurate run``: curate a pool, from training to the report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing

from detcurate.cli.common import say
from detcurate.config import curate_settings
from detcurate.config.declaration import load_config
from detcurate.engines import open_engine
from detcurate.errors import ConfigError
from detcurate.pipeline import Run, dry_run, join_pipeline, run_pipeline
from detcurate.pipeline.stages.manifest import subset_file
from detcurate.report.build import PAGE


def run(arguments: argparse.Namespace) -> int:
    """Run the stages, print where the results are, and return the exit status."""
    _require_compatible(arguments)
    cfg = load_config(arguments.config_file, arguments.opts)
    settings = curate_settings(cfg.CURATE)
    names = ("num_gpus", "num_machines", "machine_rank", "dist_url")
    distributed = {name: getattr(arguments, name) for name in names}
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


def _require_compatible(arguments: argparse.Namespace) -> None:
    """Raise ``ConfigError`` for options that contradict each other, or of which one would be ignored."""
    for name in ("dry_run", "fresh", "wait"):
        if arguments.join and getattr(arguments, name):
            raise ConfigError(f"--join: cannot be combined with --{name.replace('_', '-')}")
    if arguments.machine_rank >= arguments.num_machines:
        raise ConfigError(
            f"--machine-rank: must be below --num-machines {arguments.num_machines} (got {arguments.machine_rank})"
        )
    if arguments.ray_address and arguments.engine != "ray":
        raise ConfigError(f"--ray-address: needs --engine ray (got --engine {arguments.engine})")


def _print_plan(rows: Sequence[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, state, plan in rows:
        say(f"{name:<{widths[0]}}  {state:<{widths[1]}}  {plan}")
    say("dry run: nothing was written")


def _print_results(run: Run) -> None:
    if "report" in run.finished_stages:
        say("", run.finished_stages["report"]["facts"]["table"].rstrip())
    outputs = {"manifest": subset_file(run), "report": run.directory("report") / PAGE}
    # Files of other stages may be from other settings or incomplete.
    paths = [
        f"{name + ':':<10}{path}" for name, path in outputs.items() if name in run.finished_stages and path.is_file()
    ]
    if paths:
        say("", *paths)
