"""The errors that detcurate raises for what a user can mend.

Each message names the offending value, where it stands, and what to do. The command line prints the
message alone and exits with status 2; anything else that escapes is a defect of detcurate.
"""

from __future__ import annotations


class DetcurateError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(DetcurateError):
    """A setting, a config file or an output directory that cannot be used."""


class DatasetError(DetcurateError):
    """An annotation file or an image that cannot be used."""


class EnsembleError(DetcurateError):
    """A member, a ledger or a detector that cannot be used."""


class PredictionError(DetcurateError):
    """Predictions that are absent, incomplete, or do not belong to the pool."""


class SelectionError(DetcurateError):
    """A budget or a strategy that the pool cannot satisfy."""


class StorageError(DetcurateError):
    """Object storage that cannot be reached, denies access, or gives something else than it says."""
