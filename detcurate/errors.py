"""Errors that a user can fix.

Each message names the setting or file, what is wrong with it, the value found and what to do. The command line prints
the message without a traceback and exits with status 2. Any other exception is a defect of detcurate.
"""

from __future__ import annotations


class DetcurateError(Exception):
    """Base class of all errors that a user can fix."""


class ConfigError(DetcurateError):
    """An invalid setting, config file, option or output directory."""


class DatasetError(DetcurateError):
    """An invalid annotation file or image."""


class EnsembleError(DetcurateError):
    """An invalid ensemble member, member index or detector."""


class PredictionError(DetcurateError):
    """Predictions that are missing, incomplete, or made for another pool."""


class SelectionError(DetcurateError):
    """A budget, quota or strategy that the pool cannot satisfy."""


class StorageError(DetcurateError):
    """Object storage that is unreachable, denies access, or returns other data than announced."""
