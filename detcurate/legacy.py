"""Names of version 0.1 that are still read: config keys, folders, columns and JSON keys of an existing run.

The first use of an old name logs a warning with the new name. Version 0.3 removes this module.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

CONFIG_KEYS: Mapping[str, str] = {
    "CURATE.ENSEMBLE.STORAGE": "CURATE.ENSEMBLE.DTYPE",
    "CURATE.SELECT.GUARD": "CURATE.SELECT.NOISE_FILTER",
    "CURATE.SELECT.GUARD_QUANTILE": "CURATE.SELECT.NOISE_FILTER_QUANTILE",
    "CURATE.SELECT.CLASS_FLOORS": "CURATE.SELECT.CLASS_MINIMUMS",
    "CURATE.SELECT.CLASS_CAPS": "CURATE.SELECT.CLASS_MAXIMUMS",
    "CURATE.SELECT.METADATA_FLOORS": "CURATE.SELECT.METADATA_MINIMUMS",
    "CURATE.SELECT.METADATA_CAPS": "CURATE.SELECT.METADATA_MAXIMUMS",
    "CURATE.SELECT.EMPTY_FLOOR": "CURATE.SELECT.EMPTY_MINIMUM",
}
"""Old key of a config -> new key."""

FOLDERS: Mapping[str, str] = {
    "train": "ensemble",
    "predict": "predictions",
    "score": "scores",
    "select": "selection",
    "evaluate": "evaluation",
}
"""Stage -> old name of its directory."""

PREDICTION_SETS, SET_DESCRIPTION = "pass-*", "pass.json"
"""Old pattern of the folders of prediction sets, and the old name of the file that describes one."""

COLUMNS: Mapping[str, str] = {
    "overlooked": "missing_label",
    "swapped": "wrong_class",
    "badly_located": "inaccurate_box",
    "suspicion": "label_error_score",
    "suspicions": "label_errors",
    "because": "replaced_by",
}
"""Old column of a table, or key of a JSON record -> new name."""

REASONS: Mapping[str, str] = {"floor ": "minimum ", "cap ": "maximum ", "noise_guard": "label_noise"}
"""Old beginning of a reason in the tables of a selection -> new beginning."""

BUDGET_KEYS: Mapping[str, str] = {"asked": "requested"}
"""Old key of ``budget`` in a manifest's provenance -> new key."""

_SETTINGS: Mapping[str, str] = {
    old.rpartition(".")[2].lower(): new.rpartition(".")[2].lower() for old, new in CONFIG_KEYS.items()
}

_logger = logging.getLogger("detcurate")


@functools.cache
def warn_renamed(old: str, new: str) -> None:
    """Log once a process that an old name was read."""
    _logger.warning("%s is now named %s; the old name is read until version 0.3", old, new)


def renamed(name: str, names: Mapping[str, str] = COLUMNS) -> str:
    """Return the current name for an old one in ``names``, with a warning; any other name unchanged."""
    if name not in names:
        return name
    warn_renamed(name, names[name])
    return names[name]


def renamed_reason(reason: str) -> str:
    """Return a reason of a selection in current terms, without a warning."""
    for old, new in REASONS.items():
        if reason.startswith(old):
            return new + reason[len(old) :]
    return reason


def renamed_keys(record: Mapping[str, Any], names: Mapping[str, str] = COLUMNS) -> dict[str, Any]:
    """Return a record with current keys at the top level."""
    return {renamed(key, names): value for key, value in record.items()}


def renamed_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's recorded settings with current keys at all levels, without a warning."""
    return {
        _SETTINGS.get(key, key): renamed_settings(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
    }
