"""What the stages before the report have left: which of them count, and which were made from something else."""

from __future__ import annotations

import re

from detcurate.errors import ConfigError
from detcurate.pipeline.context import DIRECTORIES, LOG, Marker, Run
from detcurate.report.records import StageState
from detcurate.stages import damaged_outputs, output_digest, read_marker

_LAST = "report"
_NO_STAGE = "search"  # the rounds before the last are stages of their own below it
# What a stage calls one before it, and whether it depends on all of its files or on one.
_RENAMED = {"ensemble": "train"}
_STOPPED = re.compile(r" ERROR stopped: \w+: (.+)")


def stage_states(run: Run) -> tuple[StageState, ...]:
    """Tell what became of every stage before the report, from what is on the disk alone.

    A stage counts when it has finished, its files are there, and what it was made from is what is there now. So the
    figures of an earlier selection are never shown beside a later one.
    """
    states: dict[str, StageState] = {}
    markers: dict[str, Marker] = {}
    for name in DIRECTORIES:
        if name not in (_LAST, _NO_STAGE):
            states[name] = _state(run, name, states, markers)
    return tuple(states.values())


def completed(states: tuple[StageState, ...]) -> frozenset[str]:
    """Return the names of the stages that count."""
    return frozenset(stage.name for stage in states if stage.state == "complete")


def _state(run: Run, name: str, states: dict[str, StageState], markers: dict[str, Marker]) -> StageState:
    directory = run.directory(name)
    try:
        marker = read_marker(directory)
    except ConfigError as error:
        return StageState(name, "interrupted", str(error))
    if marker is None:
        return StageState(name, "absent", "it has not begun")
    if marker["status"] != "complete":
        why = _stopped(run)
        return StageState(name, "interrupted", "it was stopped before its end" + (f": {why}" if why else ""))
    gone = damaged_outputs(directory, marker)
    for file, why in gone.items():
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        return StageState(name, "interrupted", f"{DIRECTORIES[name]}/{file}{more} {why}")
    markers[name] = marker
    for before in _changed(marker, states, markers):
        return StageState(name, "outdated", f"'{before}' has been done again, or not to its end, since")
    return StageState(name, "complete", marker["summary"])


def _stopped(run: Run) -> str:
    """Return what the log says stopped the run, where that is the last it says."""
    try:
        lines = (run.output_dir / LOG).read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    except OSError:
        return ""
    found = _STOPPED.search(lines[-1]) if lines else None
    return found[1] if found else ""


def _changed(marker: Marker, states: dict[str, StageState], markers: dict[str, Marker]) -> list[str]:
    """Return the earlier stages whose files are not those that a stage was made from.

    A stage that is absent proves nothing: predictions are large, and may be removed once the pool is scored.
    """
    found = []
    for key, digest in marker["inputs"].items():
        before = _RENAMED.get(key, key)
        if before not in states or states[before].state == "absent":
            continue
        if before not in markers or states[before].state != "complete" or not _is_of(digest, markers[before]):
            found.append(before)
    return found


def _is_of(digest: str, marker: Marker) -> bool:
    return digest == output_digest(marker) or digest in {output["sha256"] for output in marker["outputs"].values()}
