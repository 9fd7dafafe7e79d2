"""``OUTPUT_DIR``: whose it is, who may write there now, and its log."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

import orjson

from detcurate.errors import ConfigError
from detcurate.io.files import (
    TEMPORARY_SUFFIX,
    is_disk_full,
    remove_temporaries,
    remove_tree,
    sha256_json,
    write_bytes,
    write_json,
)
from detcurate.io.leases import LOCK, locked
from detcurate.io.safe_loading import PlainFormatter, read_json_object
from detcurate.io.storage import is_url, locate
from detcurate.legacy import FOLDERS
from detcurate.pipeline.context import ADDED, CACHE, CANDIDATES, IMPORTED, LOG, STAGES, STORED, Run

_STORE_OWNER = "detcurate.json"


def claim_storage_root(run: Run, *, fresh: bool) -> None:
    """Make what ``CURATE.STORAGE.ROOT`` names this ``OUTPUT_DIR``'s; with ``fresh`` empty it of earlier results.

    Raises:
        ConfigError: It is that of another ``OUTPUT_DIR``.
        StorageError: It cannot be read or written.
    """
    if not run.settings.storage.root:
        return
    require_own_root(run)
    root = run.storage_root
    if fresh:
        for name in (*STORED, "search", CANDIDATES):
            if (root / name).exists():
                remove_tree(root / name)
    write_json(root / _STORE_OWNER, _identity(run))


def require_locations(run: Run) -> None:
    """Raise ``ConfigError`` when a setting is a URL that cannot be used, before its secret is written anywhere."""
    locate(str(run.cfg.DATASETS.ROOT), name="DATASETS.ROOT")
    locate(str(run.cfg.OUTPUT_DIR), name="OUTPUT_DIR")
    if is_url(str(run.cfg.OUTPUT_DIR)):
        raise ConfigError(
            "OUTPUT_DIR must be a folder, got a URL; set CURATE.STORAGE.ROOT to put predictions and scores there"
        )


def require_own_root(run: Run) -> None:
    """Raise ``ConfigError`` when what ``CURATE.STORAGE.ROOT`` names is another ``OUTPUT_DIR``'s."""
    if not run.settings.storage.root:
        return
    try:
        found = orjson.loads((run.storage_root / _STORE_OWNER).read_bytes())
    except FileNotFoundError:
        return
    except orjson.JSONDecodeError:
        found = None
    if found != _identity(run):
        raise ConfigError(
            f"CURATE.STORAGE.ROOT must be of this OUTPUT_DIR alone, got one of another ({run.storage_root}); give "
            f"another ROOT, or, when OUTPUT_DIR was moved, delete {_STORE_OWNER} there"
        )


def _identity(run: Run) -> dict[str, str]:
    # The folder by its digest: what is in object storage does not tell of the machine.
    return {"config_file": run.config_file.name, "output_dir": sha256_json(str(run.output_dir.resolve()))}


_OWNER, _CONFIG, _REPORT_LOCK = "detcurate.json", "config.yaml", ".report.lock"

_logger = logging.getLogger("detcurate")


@contextmanager
def output_lock(run: Run, *, wait: bool = False) -> Iterator[None]:
    """Hold ``OUTPUT_DIR``, which is this config's, against every other run and what else writes there.

    Of a training on several machines, the first one's process holds it for all.

    Raises:
        ConfigError: Another run holds it, it is not this config's, or it cannot be written.
    """
    if run.distributed.get("machine_rank", 0):
        yield
        return
    _require_detcurate_directory(run)  # a folder of somebody else's gets not so much as a lock
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run.output_dir, wait=wait))
        except OSError as error:
            if is_disk_full(error):
                raise
            raise ConfigError(
                f"OUTPUT_DIR must be a folder that can be written, got {error.strerror} ({run.output_dir}); mend its "
                "rights, or give another OUTPUT_DIR"
            ) from error
        yield


def report_lock(run: Run) -> AbstractContextManager[None]:
    """Hold the report, which may be asked for while the run is still going on."""
    return locked(run.output_dir, name=_REPORT_LOCK, wait=True)


def claim_output_dir(run: Run, *, fresh: bool) -> None:
    """Make ``OUTPUT_DIR`` this config's, or refuse to touch what another config or program put there."""
    require_own_root(run)
    if fresh and (run.output_dir / _OWNER).is_file():
        _discard(run)
    require_own_directory(run)
    claim_storage_root(run, fresh=fresh)
    for leftover in run.output_dir.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    remove_temporaries(run.output_dir / CACHE)
    write_json(run.output_dir / _OWNER, {"config_file": run.config_file.name})
    kept_cfg = run.cfg.clone()
    kept_cfg.defrost()
    kept_cfg.CURATE.TRAIN.ALLOW_PICKLE = False  # a command's own, never a file's
    write_bytes(run.output_dir / _CONFIG, kept_cfg.dump().encode())


def _discard(run: Run) -> None:
    """Remove what an earlier run left; what this one is to begin with stays, and the file that says whose it is."""
    for lock in (run.output_dir / CANDIDATES).glob(f"*/{LOCK}"):
        with locked(lock.parent):  # refuses while a ranking is at work there
            pass
    kept = {run.output_dir / IMPORTED} if run.settings.predict.results else set()
    for path in {
        run.output_dir / name for name in (*STAGES, *FOLDERS.values(), ADDED, CANDIDATES, IMPORTED, CACHE)
    } - kept:
        shutil.rmtree(path, ignore_errors=True)
    if not kept:
        (run.output_dir / _OWNER).unlink(missing_ok=True)


def require_own_directory(run: Run) -> None:
    """Raise ``ConfigError`` when ``OUTPUT_DIR`` is not this config's, or nobody's yet."""
    _require_detcurate_directory(run)
    directory, owner = run.output_dir, run.output_dir / _OWNER
    if not owner.is_file():
        return
    try:
        made_by = read_json_object(owner)["config_file"]
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"OUTPUT_DIR must say which config made it, got JSON that is damaged ({owner}): {error}; "
            f'write {{"config_file": "{run.config_file.name}"}} into it if it is that one\'s'
        ) from error
    if made_by != run.config_file.name:
        raise ConfigError(
            f"OUTPUT_DIR must be empty or made by {run.config_file.name}, got one made by {made_by} ({directory}); "
            "give another OUTPUT_DIR, or --fresh to discard what is there"
        )


def _require_detcurate_directory(run: Run) -> None:
    directory = run.output_dir
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"OUTPUT_DIR must be a directory, got a file ({directory})")
    if directory.is_dir() and not (directory / _OWNER).is_file():
        others = [path.name for path in directory.iterdir() if path.name not in (_CONFIG, LOG) and not _is_ours(path)]
        if others:
            raise ConfigError(
                f"OUTPUT_DIR must be empty or made by detcurate, got one that holds {', '.join(sorted(others)[:3])} "
                f"({directory}); give another OUTPUT_DIR"
            )


def _is_ours(path: Path) -> bool:
    """Tell whether a file is a lock, or what a killed run left half written."""
    return path.name.startswith((LOCK, _REPORT_LOCK, f".{_OWNER}.", f".{_CONFIG}."))


@contextmanager
def named_when_full(directory: Path) -> Iterator[None]:
    """Name the folder in an error of the system that names no file, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(directory)
        raise


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Write the log to a file too, and what stopped the run to the file alone: the terminal is told by the caller."""
    handler = logging.StreamHandler(_open_log(path))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is told of once, not by the log
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    _logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        stopped = (type(error).__name__, str(error))
        handler.handle(_logger.makeRecord(_logger.name, logging.ERROR, __file__, 0, "stopped: %s: %s", stopped, None))
        raise
    finally:
        _logger.removeHandler(handler)
        with suppress(OSError):
            handler.stream.close()


def _open_log(path: Path) -> TextIO:
    """Open a log to add to it; a link, which could lead to any file of the user's, is refused."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise ConfigError(f"the log must be a file that can be written, got {error.strerror} ({path})") from error
    return os.fdopen(handle, "a", encoding="utf-8")
