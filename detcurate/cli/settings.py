"""``detcurate config``: list the settings, or what a config changes."""

from __future__ import annotations

import argparse
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from detcurate.cli.common import say, say_json, table
from detcurate.config.describe import SettingDescription, describe_settings, find_settings, section_meanings
from detcurate.errors import ConfigError

_WIDTH = 100


def run(arguments: argparse.Namespace) -> int:
    """Print settings, or the differences of a config, and return the exit status."""
    if arguments.diff is not None:
        if arguments.key is not None:
            raise ConfigError(f"KEY: cannot be combined with --diff (got {arguments.key})")
        _print_differences(arguments.diff, as_json=arguments.json)
        return 0
    settings = find_settings(arguments.key) if arguments.key else describe_settings()
    if arguments.json:
        say_json([asdict(setting) for setting in settings])
    else:
        say(*_lines(settings))
    return 0


def _lines(settings: Sequence[SettingDescription]) -> Iterator[str]:
    """Yield the lines of settings, below a heading for each section where they are several."""
    meanings = section_meanings()
    for number, (section, group) in enumerate(itertools.groupby(settings, key=lambda setting: setting.section)):
        if number:
            yield ""
        if len(settings) > 1 and section in meanings:
            yield from (f"{section}: {meanings[section]}", "")
        for setting in group:
            yield f"{setting.key} = {setting.default}"
            for text in (", ".join(part for part in (setting.type, setting.range) if part), setting.meaning):
                yield textwrap.indent(textwrap.fill(text, _WIDTH), "    ")


def _print_differences(config_file: Path, *, as_json: bool) -> None:
    from detcurate.config.declaration import config_differences, has_detectron2

    differences = config_differences(config_file)
    if as_json:
        say_json([{"key": key, "default": default, "value": value} for key, default, value in differences])
        return
    rows = [(key, repr(default), repr(value)) for key, default, value in differences]
    say(*(table(("key", "default", "value"), rows) if rows else [f"{config_file} changes no default"]))
    if not has_detectron2():
        say("", "Detectron2 is not installed: its own keys are not compared")
