"""``detcurate import``: import predictions of any detector, for a run without Detectron2."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from detcurate.cli.common import say, say_json, table
from detcurate.config import curate_settings
from detcurate.config.declaration import load_config
from detcurate.errors import ConfigError
from detcurate.io.storage import is_url
from detcurate.pipeline import Run
from detcurate.pipeline.commands.import_results import ResultsFile, import_results
from detcurate.pipeline.imported_members import Import, ImportOptions


def run(arguments: argparse.Namespace) -> int:
    """Import results files, print the members, and return the exit status."""
    if not arguments.name:
        raise ConfigError("NAME: must be a name (got an empty one)")
    files = parse_members(arguments.member)
    cfg = load_config(arguments.config_file, [*arguments.opts, "CURATE.PREDICT.RESULTS", arguments.name])
    curate_settings(cfg.CURATE)
    options = ImportOptions(
        arguments.image_key, arguments.category_key, arguments.score_threshold, arguments.max_per_image
    )
    imported = import_results(Run(cfg, arguments.config_file), files, options)
    if arguments.json:
        members = [{**asdict(member), **asdict(member.member())} for member in imported.members]
        say_json({"directory": str(imported.directory), "options": asdict(options), "members": members})
    else:
        usage = f"{len(imported.members)} members imported; use them with CURATE.PREDICT.RESULTS {arguments.name}"
        say("", *_report(imported), "", usage)
    return 0


def parse_members(texts: Sequence[str]) -> list[ResultsFile]:
    """Parse the results files given as ``FILE`` or ``FILE@RUN:ITERATION``.

    Raises:
        ConfigError: One is a URL, or only some of them have a run and an iteration.

    Example:
        >>> [(file.path.name, file.run, file.iteration) for file in parse_members(["a.json@1:500", "b.json@1:999"])]
        [('a.json', 1, 500), ('b.json', 1, 999)]
    """
    for text in texts:
        if is_url(text):  # do not repeat it: it may contain a secret
            scheme = text.partition("://")[0]
            raise ConfigError(f"--member: must be a local file (got a URL, {scheme}://...). Copy it to this machine.")
    matches = [re.fullmatch(r"(.+)@(\d{1,9}):(\d{1,9})", text) for text in texts]
    if not any(matches):
        return [ResultsFile(Path(text), 0, iteration) for iteration, text in enumerate(texts)]
    files = [ResultsFile(Path(match[1]), int(match[2]), int(match[3])) for match in matches if match]
    if len(files) < len(texts):
        plain = next(text for text, match in zip(texts, matches, strict=True) if not match)
        raise ConfigError(f"--member: must be FILE@RUN:ITERATION for all members or for none (got {plain} with others)")
    return files


def _report(imported: Import) -> list[str]:
    header = ("run", "iteration", "detections", "of", "file", "sha256")
    rows = [
        (member.run, member.iteration, member.counts["kept"], member.counts["records"], member.file_name,
         member.sha256[:12])
        for member in imported.members
    ]  # fmt: skip
    return table(header, rows)
