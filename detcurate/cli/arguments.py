"""Building blocks of the commands' parsers: options that several commands share, and types of arguments.

This module and the modules of the parsers import only the standard library, so that ``--help`` and ``--version`` are
fast.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHIPPED_PREFIX = "detcurate://"
CONFIG_HELP = f"a Detectron2 YAML config; {SHIPPED_PREFIX}NAME is one of the package"
RUN_HELP = "the run's OUTPUT_DIR, or overrides of --config-file"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formats the help of a command: wide enough for its options, and no heading above a list of commands."""

    def __init__(self, prog: str) -> None:
        import shutil  # which loads all compression libraries

        super().__init__(prog, max_help_position=32, width=min(shutil.get_terminal_size((100, 24)).columns, 110) - 2)

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        return text.partition("\n")[2] if isinstance(action, argparse._SubParsersAction) else text


class CommandParser(argparse.ArgumentParser):
    """A parser of one command, whose options may stand before, between and after its positional arguments.

    ``argparse`` has this as ``parse_intermixed_args``, but calls :meth:`parse_known_args` for subcommands.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)
        self._is_nested = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the arguments of a command and report those that it does not know with its own usage."""
        if self._is_nested or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._is_nested = True
        try:
            parsed, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_nested = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, []


def add_command(
    commands: Any, name: str, handler: str, *, help: str, description: str, epilog: str, json: bool = False
) -> CommandParser:
    """Add a command and the options that all commands have.

    Args:
        commands: The subparsers that the command belongs to.
        name: The word on the command line.
        handler: ``module:function`` below ``detcurate.cli``.
        help: One line for the list of commands.
        description: The text above the options.
        epilog: Examples and notes, the text below the options.
        json: Whether the command can print JSON.
    """
    parser: CommandParser = commands.add_parser(name, help=help, description=description, epilog=epilog)
    parser.set_defaults(handler=handler)
    output = parser.add_argument_group("output")
    if json:
        output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return parser


def add_group(commands: Any, name: str, *, help: str, description: str) -> Any:
    """Add a command that has commands of its own, and return their subparsers."""
    parser = commands.add_parser(
        name, help=help, description=description, epilog=f"`detcurate {name} COMMAND --help` has examples."
    )
    return parser.add_subparsers(title="commands", dest="subcommand", required=True, metavar="COMMAND")


def add_config_file(parser: argparse.ArgumentParser, *, required: bool = False, help: str = CONFIG_HELP) -> None:
    """Add ``--config-file``."""
    parser.add_argument("--config-file", type=config_file, required=required, metavar="FILE", help=help)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``KEY VALUE ...``, the overrides of the config."""
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two ways to name a finished run: ``--config-file`` with overrides, or its ``OUTPUT_DIR``."""
    add_config_file(parser, help="the config of the run, instead of its OUTPUT_DIR")
    parser.add_argument("rest", nargs="*", metavar="OUTPUT_DIR | KEY VALUE", help=RUN_HELP)


def config_file(text: str) -> Path:
    """Return the path of a config, resolving ``detcurate://NAME`` (an ``argparse`` type)."""
    if not text.startswith(SHIPPED_PREFIX):
        return Path(text)
    from detcurate.config.declaration import shipped_config

    return shipped_config(text)


def local_path(text: str) -> Path:
    """Return a local path (an ``argparse`` type); a URL would become a folder named ``s3:``.

    Raises:
        argparse.ArgumentTypeError: It is a URL. The message does not repeat it, because it may contain a secret.

    Example:
        >>> local_path("output/mine").name
        'mine'
    """
    if url := _URL.match(text):
        raise argparse.ArgumentTypeError(f"must be a local path (got a URL, {url[1]}://...)")
    return Path(text)


def integer(minimum: int) -> Callable[[str], int]:
    """Return an ``argparse`` type for integers of at least ``minimum``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {minimum} (got {text})")
        return value

    return parse


def number(low: float, high: float = math.inf, *, is_open: bool = False) -> Callable[[str], float]:
    """Return an ``argparse`` type for finite numbers in [low, high], or with ``is_open`` in (low, high)."""
    bounds = f"({low:g}, {high:g})" if is_open else f"[{low:g}, {high:g}]"
    allowed = f"at least {low:g}" if high == math.inf else f"in {bounds}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = low < value < high if is_open else low <= value <= high
        if not inside or math.isinf(value):
            raise argparse.ArgumentTypeError(f"must be a number {allowed} (got {text})")
        return value

    return parse
