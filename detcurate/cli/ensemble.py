"""``detcurate ensemble add | list``: members that were trained elsewhere, and what an ensemble holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from detcurate.cli.common import say, say_json, table
from detcurate.config import curate_settings
from detcurate.config.declaration import load_config
from detcurate.ensemble.index import MEMBER_INDEX, ensemble_members
from detcurate.errors import ConfigError, EnsembleError
from detcurate.pipeline import Run
from detcurate.pipeline.commands.add_checkpoints import Addition, add_members
from detcurate.pipeline.context import stage_directory
from detcurate.pipeline.stage import damaged_outputs, read_stage_metadata

_DESCRIPTION = """\
commands:
  add DIR --config-file FILE   make the checkpoints of a training that is over members of the ensemble in OUTPUT_DIR
  list OUTPUT_DIR              print the members of an ensemble
"""


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    words = list(argv)
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        _parser("", description=_DESCRIPTION).parse_args(words or ["--help"])
        names = ", ".join(sorted(COMMANDS))
        raise ConfigError(f"the command must be one of {names}, got {words[0] if words else 'none'}")
    return command(words[1:])


def build_add_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate ensemble add``."""
    parser = _parser(" add", description="Checkpoints become members; a file that would run code is not loaded.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="model_*.pth of Detectron2, or members of our hook")
    parser.add_argument("--config-file", type=Path, required=True, metavar="FILE", help="the config of the model")
    parser.add_argument("--run", type=int, metavar="N", help="the run that they become (default: the next free one)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")
    return parser


def build_list_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate ensemble list``."""
    parser = _parser(" list", description="The members of an ensemble.")
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="of a curation, or of the hook")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _parser(name: str, *, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).name} ensemble{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if not name:
        parser.add_argument("command", nargs="?", metavar="COMMAND", help="add or list")
    return parser


def _add(words: Sequence[str]) -> int:
    arguments = build_add_parser().parse_intermixed_args(words)
    if arguments.run is not None and arguments.run < 0:
        raise ConfigError(f"--run must be at least 0, got {arguments.run}")
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
        f"{path} holds run {member.run}, iteration {member.iteration} once more; it is added once"
        for path, member in addition.duplicates
    ]
    runs = sorted({member.run for member in addition.added})
    where = f" as run {', '.join(map(str, runs))}" if runs else ""
    lines.append(f"{len(addition.added)} members added{where} to {run.directory('train')}")
    num_runs = run.settings.ensemble.num_runs
    if not addition.is_ready:
        lines.append("the stage 'train' takes them in when it is next run")
    elif num_runs and addition.added and num_runs <= min(runs):
        lines.append(
            f"CURATE.ENSEMBLE.NUM_RUNS is {num_runs}: the stage 'train' trains so many runs beside them; "
            "set it to 0 to use them alone"
        )
    return lines


def _require_whole_index(directory: Path) -> None:
    """Refuse a ledger that is not as its stage wrote it: without some lines it would pass for a smaller ensemble."""
    stage_metadata = read_stage_metadata(directory)
    if stage_metadata is None or stage_metadata["status"] != "complete":
        return
    damaged = damaged_outputs(directory, stage_metadata)
    if MEMBER_INDEX in damaged:
        raise EnsembleError(
            f"the member index must be as its stage wrote it, but {directory / MEMBER_INDEX} {damaged[MEMBER_INDEX]}; "
            "run the stage 'train' again"
        )


def _list(words: Sequence[str]) -> int:
    arguments = build_list_parser().parse_args(words)
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
    header = ("run", "iteration", "kind", "dtype", "seed", "rate", "size", "sha256", "file")
    say(*table(header, rows), "", f"{len(members)} members of {num_runs} runs, {total:,.1f} MB ({directory})")
    return 0


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {"add": _add, "list": _list}
