"""The command line. ``--help`` and ``--version`` need nothing but the parsers; a command imports what it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detcurate.cli.parser import build_parser, command_names, load_handler
from detcurate.errors import ConfigError, DetcurateError

__all__ = ["build_parser", "main"]

_RENAMED = {"import-results": "import"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 done, 1 a check failed, 2 an error that the user can fix, 130 Ctrl-C, 143 SIGTERM.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not tokens:
        parser.print_help()
        return 0
    command = ""
    try:
        arguments = parser.parse_args(_with_command(tokens, command_names(parser)))
        command = arguments.command
        return _run(arguments)
    except KeyboardInterrupt as error:
        from detcurate.cli.signals import INTERRUPTED, exit_status

        return _fail(INTERRUPTED, exit_status(error), tokens)
    except DetcurateError as error:
        return _fail(str(error), 2, tokens)
    except OSError as error:
        message = _file_problem(error, command)
        if not message:
            raise
        return _fail(message, 2, tokens)


def _run(arguments: argparse.Namespace) -> int:
    from detcurate.cli.signals import stoppable

    _log_to_terminal()
    with stoppable():
        return load_handler(arguments.handler)(arguments)


def _with_command(tokens: list[str], names: Sequence[str]) -> list[str]:
    """Return the arguments with their command: ``run`` where a config is given without one, as in Detectron2.

    Raises:
        ConfigError: The first argument is not a command.
    """
    first = tokens[0]
    if first in _RENAMED:
        sys.stderr.write(f"detcurate: {first} is now named {_RENAMED[first]}; the old name works until version 0.3\n")
        return [_RENAMED[first], *tokens[1:]]
    if first in names or first in ("-h", "--help", "--version"):
        return tokens
    if first.startswith("-") or any(token.startswith("--config") for token in tokens):
        return ["run", *tokens]
    import difflib

    near = difflib.get_close_matches(first, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{first}: no such command.{hint} `detcurate --help` lists the commands.")


def _file_problem(error: OSError, command: str) -> str:
    """Return the message for an operating-system error that the user can fix; empty for a defect."""
    from detcurate.io.files import is_disk_full, is_inaccessible

    path = error.filename2 or error.filename
    if is_disk_full(error):
        return f"the disk is full ({path}). Free some space and run the same command again."
    if is_inaccessible(error) or (path and command != "run"):  # the other commands open only files that the user names
        return f"{path}: {error.strerror}"
    return ""


def _fail(message: str, status: int, tokens: Sequence[str]) -> int:
    from detcurate.io.safe_loading import printable

    sys.stderr.write(f"detcurate: {printable(message)}\n")
    if "--debug" in tokens:
        import traceback

        traceback.print_exc()
    return status


def _log_to_terminal() -> None:
    import logging

    from detcurate.io.safe_loading import PlainFormatter

    logger = logging.getLogger("detcurate")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
