"""Run one stage: skip it when its settings and input digests are unchanged, continue it when it was interrupted.

Each stage owns one directory. ``stage.json`` there, the stage metadata, records its settings, its input digests, its
status and the digest of every file it wrote. Later stages depend on these output digests. A stage that runs again with
the same result therefore leaves the later stages up to date.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detcurate.errors import ConfigError
from detcurate.io.files import (
    add_checksum,
    describe_files,
    file_sizes,
    remove_temporaries,
    remove_tree,
    sha256_file,
    sha256_json,
    verify_checksum,
    write_json,
)
from detcurate.io.leases import remove_leases
from detcurate.io.safe_loading import MOST_JSON_BYTES, is_inside, read_bytes
from detcurate.io.storage import Location
from detcurate.legacy import renamed_settings

STAGE_FILE = "stage.json"

_CHECKED_WHEN_READ = ("*.safetensors", "shard-*.parquet")
"""Large files that are verified when they are read: by the member index, or by the checksums of their pages."""

State = Literal["complete", "interrupted", "changed", "new"]

_logger = logging.getLogger("detcurate")
_found_good: set[tuple[Any, ...]] = set()


@dataclass(frozen=True)
class StageResult:
    """The result of a stage.

    Args:
        outputs: The files that later stages may depend on.
        summary: One line for the terminal.
        facts: Small values for later stages and the report.
    """

    outputs: Sequence[Location]
    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        name: Such as ``"train"``.
        directory: Its directory; no other stage writes there.
        settings: The settings that affect its result, as JSON values.
        inputs: Name -> digest of each input.
        run: Computes the result. After an interruption it is called again and continues.
        keeps_good_files: Whether ``run`` decides which of its files are still valid after settings or inputs changed.
            If False, all of them are removed first.
    """

    name: str
    directory: Location
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    run: Callable[[], StageResult]
    keeps_good_files: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the settings and inputs."""
        return sha256_json({"settings": self.settings, "inputs": self.inputs})


def read_stage_metadata(directory: Location) -> dict[str, Any] | None:
    """Return the content of ``stage.json``, or ``None`` if no stage has started there.

    Raises:
        ConfigError: The file cannot be read, or is damaged.
    """
    path = directory / STAGE_FILE
    if not path.exists():
        return None
    try:
        stage_metadata = verify_checksum(read_bytes(path, MOST_JSON_BYTES))
        stage_metadata["status"], stage_metadata["digest"]
        _require_own_outputs(stage_metadata.get("outputs", {}))
        stage_metadata = _with_current_names(stage_metadata)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not valid stage metadata ({error}). Delete it to run the stage again from its beginning."
        ) from error
    return stage_metadata


def _with_current_names(stage_metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata of version 0.1 with the current names of its settings, and the digest that these give."""
    before = stage_metadata.get("settings", {})
    settings = renamed_settings(before)
    if settings == before:
        return stage_metadata
    digest = sha256_json({"settings": settings, "inputs": stage_metadata.get("inputs", {})})
    return {**stage_metadata, "settings": settings, "digest": digest}


def _require_own_outputs(outputs: Any) -> None:
    """Raise ``ValueError`` if the metadata, which are untrusted input, name a file outside their directory."""
    for name, output in outputs.items() if isinstance(outputs, dict) else [(None, None)]:
        sizes = isinstance(output, dict) and isinstance(output.get("sha256"), str) and type(output.get("bytes")) is int
        if not is_inside(name) or not sizes:
            raise ValueError(f"outputs must be files of the stage with digests and sizes, got {name!r}")


def stage_state(stage: Stage) -> State:
    """Return ``complete`` (skip), ``interrupted`` (continue), ``changed`` (run again) or ``new`` (run) for a stage."""
    stage_metadata = read_stage_metadata(stage.directory)
    if stage_metadata is None:
        return "new"
    if stage_metadata["digest"] != stage.digest:
        return "changed"
    is_whole = stage_metadata["status"] == "complete" and not damaged_outputs(stage.directory, stage_metadata)
    return "complete" if is_whole else "interrupted"


def damaged_outputs(directory: Location, stage_metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of a finished stage that are missing or damaged, each with a phrase that says which.

    Local files are hashed once a process, except large ones that are verified when they are read. Of objects in
    storage only the sizes are compared.
    """
    damaged, sizes = {}, file_sizes(directory, stage_metadata["outputs"])
    for name, output in stage_metadata["outputs"].items():
        path = directory / name
        if name not in sizes:
            damaged[name] = "is missing"
        elif sizes[name] != output["bytes"] or (isinstance(path, Path) and not _is_good(path, output)):
            damaged[name] = "is damaged"
    return damaged


def run_stage(stage: Stage) -> dict[str, Any]:
    """Run a stage unless it is up to date, and return its metadata."""
    if stage.directory.is_symlink():
        raise ConfigError(
            f"{stage.directory}: the directory of a stage must not be a symbolic link, because the stage removes files "
            "in it. Make OUTPUT_DIR itself the link."
        )
    state = stage_state(stage)
    if state == "complete":
        stage_metadata = read_stage_metadata(stage.directory) or {}
        _logger.info("%s: up to date (%s)", stage.name, stage_metadata["summary"])
        return stage_metadata
    if state == "changed":
        _logger.info("%s: runs again (%s)", stage.name, "; ".join(changes(stage)))
        if not stage.keeps_good_files:
            _remove_old_result(stage.directory)
    elif state == "interrupted":
        _logger.info("%s: continues after an interruption", stage.name)
        _remove_damaged(stage)
    elif not stage.keeps_good_files and stage.directory.is_dir():
        _remove_old_result(stage.directory)  # without metadata their origin is unknown
    remove_temporaries(stage.directory)
    begun = {"stage": stage.name, "digest": stage.digest, "settings": stage.settings, "inputs": stage.inputs}
    write_json(stage.directory / STAGE_FILE, add_checksum({**begun, "status": "started"}))
    result = stage.run()
    remove_temporaries(stage.directory)  # of workers that were killed
    if isinstance(stage.directory, Path):
        remove_leases(stage.directory)
    outputs = describe_files(stage.directory, result.outputs)
    finished = {"status": "complete", "outputs": outputs, "summary": result.summary, "facts": dict(result.facts)}
    write_json(stage.directory / STAGE_FILE, add_checksum({**begun, **finished}))
    _logger.info("%s: %s", stage.name, result.summary)
    return read_stage_metadata(stage.directory) or {}


def output_digest(stage_metadata: Mapping[str, Any]) -> str:
    """Return one digest of all files that a finished stage wrote."""
    return sha256_json({name: output["sha256"] for name, output in stage_metadata["outputs"].items()})


def changes(stage: Stage) -> list[str]:
    """Return the settings and inputs that differ from the last run of a stage, one text each."""
    stage_metadata = read_stage_metadata(stage.directory) or {}
    before = _flatten({"settings": stage_metadata.get("settings", {}), "inputs": stage_metadata.get("inputs", {})})
    now = _flatten({"settings": stage.settings, "inputs": stage.inputs})
    texts = []
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            kind, name = key.split(".", 1)
            change = f"{name} {before.get(key)} -> {now.get(key)}"
            texts.append(change if kind == "settings" else f"{name} changed")
    return texts


def _is_good(path: Path, output: Mapping[str, Any]) -> bool:
    status = path.stat()
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in _CHECKED_WHEN_READ):
        return True
    seen = (path, status.st_ino, status.st_mtime_ns, status.st_size, output["sha256"])
    if seen not in _found_good:
        if sha256_file(path) != output["sha256"]:
            return False
        _found_good.add(seen)
    return True


def _remove_old_result(directory: Location) -> None:
    """Remove all files but the metadata: if the removal is interrupted, the rest is still recognised."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        elif path.name != STAGE_FILE:
            path.unlink()


def _remove_damaged(stage: Stage) -> None:
    """Remove the damaged outputs of a stage that had finished, so that it writes them again."""
    stage_metadata = read_stage_metadata(stage.directory) or {}
    for name, why in damaged_outputs(stage.directory, {"outputs": stage_metadata.get("outputs", {})}).items():
        _logger.warning("%s: %s %s and is written again", stage.name, stage.directory / name, why)
        (stage.directory / name).unlink(missing_ok=True)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
