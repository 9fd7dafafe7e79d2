"""The command line: the main job, and what is done with annotation files and manifests beside it."""

from __future__ import annotations

import difflib
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from detcurate.cli.ensemble import run as run_ensemble
from detcurate.cli.explain import run as run_explain
from detcurate.cli.export import run as run_export
from detcurate.cli.import_results import run as run_import_results
from detcurate.cli.manifest import run as run_manifest
from detcurate.cli.rank import run as run_rank
from detcurate.cli.relabel import run as run_relabel
from detcurate.cli.report import run as run_report
from detcurate.cli.run import run as run_curate
from detcurate.cli.signals import STATUSES, STOPPED, Terminated, stoppable
from detcurate.cli.validate import run as run_validate
from detcurate.errors import ConfigError, DetcurateError
from detcurate.io.files import is_disk_full, is_inaccessible
from detcurate.io.safe_loading import PlainFormatter, printable

# What the first word may be; anything else is the main job's, which begins with an option as in Detectron2.
COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "ensemble": run_ensemble,
    "explain": run_explain,
    "export": run_export,
    "import-results": run_import_results,
    "manifest": run_manifest,
    "rank": run_rank,
    "relabel": run_relabel,
    "report": run_report,
    "validate": run_validate,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 done, 1 checked and found wanting, 2 to mend, 130 stopped with Ctrl-C, 143 by SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(words[0]) if words else None
    _log_to_terminal()
    try:
        if command is None:
            _require_config_or_command(words)
        with stoppable():
            return command(words[1:]) if command else run_curate(words)
    except Terminated:
        return _fail(STOPPED, STATUSES[signal.SIGTERM], words)
    except KeyboardInterrupt:
        return _fail(STOPPED, STATUSES[signal.SIGINT], words)
    except DetcurateError as error:
        return _fail(str(error), 2, words)
    except OSError as error:
        if is_disk_full(error):
            message = f"the disk is full ({error.filename}); free some space and give the same command again"
        elif is_inaccessible(error) or (command and error.filename):  # a command opens only what it was told to
            path = error.filename2 or error.filename
            message = f"a file must be accessible, got {error.strerror} ({path}); name another"
        else:
            raise
        return _fail(message, 2, words)


def _require_config_or_command(words: Sequence[str]) -> None:
    """Refuse a misspelt command, which the main job would take for an override of the config."""
    if not words or words[0].startswith("-") or any(word.startswith("--config") for word in words):
        return
    near = difflib.get_close_matches(words[0], COMMANDS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    known = ", ".join(COMMANDS)
    raise ConfigError(f"the first word must be an option or one of {known}, got {words[0]!r}{hint}; --help tells more")


def _fail(message: str, status: int, words: Sequence[str]) -> int:
    sys.stderr.write(f"detcurate: {printable(message)}\n")
    if "--debug" in words:
        traceback.print_exc()
    return status


def _log_to_terminal() -> None:
    logger = logging.getLogger("detcurate")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
