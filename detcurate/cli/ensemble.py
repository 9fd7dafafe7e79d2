"""``detcurate ensemble add | list``: add existing checkpoints to an ensemble, and list its members."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from detcurate.cli.common import say, say_json, table
from detcurate.config import curate_settings
from detcurate.config.declaration import load_config
from detcurate.ensemble.index import MEMBER_INDEX, ensemble_members
from detcurate.errors import EnsembleError
from detcurate.pipeline import Run
from detcurate.pipeline.commands.add_checkpoints import Addition, add_members
from detcurate.pipeline.context import stage_directory
from detcurate.pipeline.stage import damaged_outputs, read_stage_metadata


def add(arguments: argparse.Namespace) -> int:
    """Add checkpoints, print the new members, and return the exit status."""
    cfg = load_config(arguments.config_file, arguments.opts)
    curate_settings(cfg.CURATE)
    run = Run(cfg, arguments.config_file)
    addition = add_members(run, arguments.folder, number=arguments.run)
    if arguments.json:
        say_json(
            {
                "added": [asdict(member) for member in addition.added],
                "duplicates": [
                    {"file": str(path), "run": member.run, "iteration": member.iteration, "kind": member.kind}
                    for path, member in addition.duplicates
                ],
                "is_ready": addition.is_ready,
            }
        )
    else:
        say(*_report(run, addition))
    return 0


def _report(run: Run, addition: Addition) -> list[str]:
    lines = [
        f"{path}: skipped, run {member.run}, iteration {member.iteration} is already a member"
        for path, member in addition.duplicates
    ]
    runs = sorted({member.run for member in addition.added})
    where = f" as run {', '.join(map(str, runs))}" if runs else ""
    lines.append(f"{len(addition.added)} members added{where} to {run.directory('train')}")
    num_runs = run.settings.ensemble.num_runs
    if not addition.is_ready:
        lines.append("the stage 'train' includes them when it runs next")
    elif num_runs and addition.added and num_runs <= min(runs):
        lines.append(
            f"CURATE.ENSEMBLE.NUM_RUNS is {num_runs}: the stage 'train' trains {num_runs} runs as well. Set it to 0 to "
            "use the added members alone."
        )
    return lines


def _require_whole_index(directory: Path) -> None:
    """Raise ``EnsembleError`` when the member index changed: without some lines it would list a smaller ensemble."""
    stage_metadata = read_stage_metadata(directory)
    if stage_metadata is None or stage_metadata["status"] != "complete":
        return
    damaged = damaged_outputs(directory, stage_metadata)
    if MEMBER_INDEX in damaged:
        raise EnsembleError(
            f"{directory / MEMBER_INDEX}: the member index is damaged, it {damaged[MEMBER_INDEX]}. Run the stage "
            "'train' again."
        )


def list_members(arguments: argparse.Namespace) -> int:
    """Print the members of an ensemble and return the exit status."""
    directory = stage_directory(arguments.output_dir, "train")
    if not directory.is_dir():
        directory = arguments.output_dir
    _require_whole_index(directory)
    members = ensemble_members(directory)
    if arguments.json:
        say_json([asdict(member) for member in members])
        return 0
    sizes = [directory / member.file for member in members]
    rows = [
        (
            member.run,
            member.iteration,
            member.kind,
            member.dtype,
            "-" if member.seed is None else str(member.seed),
            "-" if member.lr is None else f"{member.lr:.3g}",
            f"{path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "absent",
            member.sha256[:12],
            member.file,
        )
        for member, path in zip(members, sizes, strict=True)
    ]
    num_runs = len({member.run for member in members})
    total = sum(path.stat().st_size for path in sizes if path.is_file()) / 1e6
    header = ("run", "iteration", "kind", "dtype", "seed", "lr", "size", "sha256", "file")
    say(*table(header, rows), "", f"{len(members)} members of {num_runs} runs, {total:,.1f} MB ({directory})")
    return 0
