"""The parser of ``detcurate`` with all of its commands, without the code that runs them.

Each command's parser holds the name of its handler as ``module:function``; :func:`load_handler` imports it.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

from detcurate.cli.arguments import CommandParser
from detcurate.cli.file_parsers import add_config, add_manifest, add_relabel, add_split, add_validate
from detcurate.cli.run_parsers import add_ensemble, add_explain, add_export, add_import, add_rank, add_report, add_run
from detcurate.version import __version__

Handler = Callable[[argparse.Namespace], int]

_DESCRIPTION = "Find the part of a labelled detection pool that trains a better detector."
_EPILOG = """\
`detcurate COMMAND --help` describes a command and has examples. `detcurate --config-file FILE
...` is short for `detcurate run --config-file FILE ...`.

exit status:
  0 done, 1 a check failed (validate, manifest verify), 2 an error that you can fix, 130 Ctrl-C, 143 SIGTERM
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``detcurate`` with all of its commands."""
    parser = CommandParser(prog="detcurate", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"detcurate {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for add in (
        add_run, add_validate, add_split, add_manifest, add_ensemble, add_import, add_rank, add_explain, add_report,
        add_export, add_relabel, add_config,
    ):  # fmt: skip
        add(commands)
    return parser


def command_names(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """Return the names of a parser's commands."""
    choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return tuple(choices[0]) if choices else ()


def load_handler(name: str) -> Handler:
    """Import the function that ``module:function`` names, below ``detcurate.cli``."""
    module, _, function = name.partition(":")
    handler: Handler = getattr(importlib.import_module(f"detcurate.cli.{module}"), function)
    return handler
