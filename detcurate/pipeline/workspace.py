"""``OUTPUT_DIR``: the config that owns it, the lock on it, its log, and how a command line names a run."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

import orjson

from detcurate.config import curate_settings
from detcurate.config.declaration import load_config
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

CONFIG = "config.yaml"
"""The copy of the config below ``OUTPUT_DIR``."""

_OWNER, _STORE_OWNER, _REPORT_LOCK = "detcurate.json", "detcurate.json", ".report.lock"

_logger = logging.getLogger("detcurate")


def named_run(config_file: Path | None, words: Sequence[str]) -> Run:
    """Return the run of a config with ``KEY VALUE`` overrides or, without a config, of one ``OUTPUT_DIR``.

    Raises:
        ConfigError: Neither is given, the folder is not of a run, or the config is invalid.
    """
    overrides = list(words)
    if config_file is None:
        if len(overrides) != 1 or not (Path(overrides[0]) / CONFIG).is_file():
            raise ConfigError(f"{_no_run(overrides)} Pass --config-file FILE or the OUTPUT_DIR of a run.")
        config_file, overrides = Path(overrides[0]) / CONFIG, ["OUTPUT_DIR", overrides[0]]
    cfg = load_config(config_file, overrides)
    curate_settings(cfg.CURATE)
    return Run(cfg, config_file)


def _no_run(words: Sequence[str]) -> str:
    if len(words) != 1:
        return f"No run given (got {' '.join(words)})." if words else "No run given."
    why = f"it holds no {CONFIG}" if Path(words[0]).is_dir() else "no such folder"
    return f"{words[0]}: not the OUTPUT_DIR of a run ({why})."


def claim_storage_root(run: Run, *, fresh: bool) -> None:
    """Record this ``OUTPUT_DIR`` as the owner of ``CURATE.STORAGE.ROOT``; with ``fresh``, remove earlier results there.

    Raises:
        ConfigError: The storage root belongs to another ``OUTPUT_DIR``.
        StorageError: The storage root cannot be read or written.
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
    """Raise ``ConfigError`` if a setting is an unusable URL, before a secret in it is written to a file."""
    locate(str(run.cfg.DATASETS.ROOT), name="DATASETS.ROOT")
    locate(str(run.cfg.OUTPUT_DIR), name="OUTPUT_DIR")
    if is_url(str(run.cfg.OUTPUT_DIR)):
        raise ConfigError(
            f"OUTPUT_DIR: must be a folder (got a {str(run.cfg.OUTPUT_DIR).partition(':')[0]} URL). Set "
            "CURATE.STORAGE.ROOT to store predictions and scores there."
        )


def require_own_root(run: Run) -> None:
    """Raise ``ConfigError`` if ``CURATE.STORAGE.ROOT`` belongs to another ``OUTPUT_DIR``."""
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
            f"CURATE.STORAGE.ROOT: belongs to another OUTPUT_DIR (got {run.storage_root}). Set another ROOT or, if "
            f"OUTPUT_DIR was moved, delete {_STORE_OWNER} there."
        )


def _identity(run: Run) -> dict[str, str]:
    # Only a digest of the folder is stored: object storage must not reveal paths of this machine.
    return {"config_file": run.config_file.name, "output_dir": sha256_json(str(run.output_dir.resolve()))}


@contextmanager
def output_lock(run: Run, *, wait: bool = False) -> Iterator[None]:
    """Lock ``OUTPUT_DIR`` against other runs and commands that write there.

    In a training on several machines, the process on the first machine holds the lock for all.

    Raises:
        ConfigError: Another run holds the lock, the folder belongs to another config, or it is not writable.
    """
    if run.distributed.get("machine_rank", 0):
        yield
        return
    _require_detcurate_directory(run)  # before the lock file, which a foreign folder must not get
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run.output_dir, wait=wait))
        except OSError as error:
            if is_disk_full(error):
                raise
            raise ConfigError(
                f"OUTPUT_DIR: {run.output_dir} is not writable ({error.strerror}). Fix its permissions, or set another "
                "OUTPUT_DIR."
            ) from error
        yield


def report_lock(run: Run) -> AbstractContextManager[None]:
    """Lock the report, which ``detcurate report`` may write while the run is in progress."""
    return locked(run.output_dir, name=_REPORT_LOCK, wait=True)


def claim_output_dir(run: Run, *, fresh: bool) -> None:
    """Record this config as the owner of ``OUTPUT_DIR``; raise ``ConfigError`` if another config or program owns it."""
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
    kept_cfg.CURATE.TRAIN.ALLOW_PICKLE = False  # valid for one command only
    write_bytes(run.output_dir / CONFIG, kept_cfg.dump().encode())


def _discard(run: Run) -> None:
    """Remove the results of an earlier run; imported predictions that this run uses stay."""
    for lock in (run.output_dir / CANDIDATES).glob(f"*/{LOCK}"):
        with locked(lock.parent):  # raises while a ranking runs there
            pass
    kept = {run.output_dir / IMPORTED} if run.settings.predict.results else set()
    for path in {
        run.output_dir / name for name in (*STAGES, *FOLDERS.values(), ADDED, CANDIDATES, IMPORTED, CACHE)
    } - kept:
        shutil.rmtree(path, ignore_errors=True)
    if not kept:
        (run.output_dir / _OWNER).unlink(missing_ok=True)


def require_own_directory(run: Run) -> None:
    """Raise ``ConfigError`` if ``OUTPUT_DIR`` belongs to another config or holds files of another program."""
    _require_detcurate_directory(run)
    directory, owner = run.output_dir, run.output_dir / _OWNER
    if not owner.is_file():
        return
    try:
        made_by = read_json_object(owner)["config_file"]
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"{owner}: damaged ({error}). It names the config that owns OUTPUT_DIR: if that is this one, write "
            f'{{"config_file": "{run.config_file.name}"}} into it.'
        ) from error
    if made_by != run.config_file.name:
        raise ConfigError(
            f"OUTPUT_DIR: {directory} belongs to another config (got {made_by}, not {run.config_file.name}). "
            "Set another OUTPUT_DIR, or pass --fresh to discard its content."
        )


def _require_detcurate_directory(run: Run) -> None:
    directory = run.output_dir
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"OUTPUT_DIR: must be a folder (got the file {directory}).")
    if directory.is_dir() and not (directory / _OWNER).is_file():
        others = [path.name for path in directory.iterdir() if path.name not in (CONFIG, LOG) and not _is_ours(path)]
        if others:
            raise ConfigError(
                f"OUTPUT_DIR: {directory} holds files that are not from detcurate "
                f"(got {', '.join(sorted(others)[:3])}). Set another OUTPUT_DIR."
            )


def _is_ours(path: Path) -> bool:
    """Return whether a file is a lock, or a temporary file of a killed run."""
    return path.name.startswith((LOCK, _REPORT_LOCK, f".{_OWNER}.", f".{CONFIG}."))


@contextmanager
def naming_full_disk(directory: Path) -> Iterator[None]:
    """Add the folder to an ``OSError`` without a file name, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(directory)
        raise


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Copy the log to a file, and write the error that ends the run to the file only: the caller prints it."""
    handler = logging.StreamHandler(_open_log(path))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # the run itself reports a full disk
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
    """Open a log for appending; a symbolic link, which could lead to any file of the user, is refused."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise ConfigError(
            f"{path}: the log is not writable ({error.strerror}). Remove it or fix its permissions."
        ) from error
    return os.fdopen(handle, "a", encoding="utf-8")
