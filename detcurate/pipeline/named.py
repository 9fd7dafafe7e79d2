"""A run that is named on a command line or in a notebook: by its config, or by its ``OUTPUT_DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detcurate.config import curate_settings
from detcurate.config.declaration import load_config
from detcurate.errors import ConfigError
from detcurate.pipeline.context import Run

CONFIG = "config.yaml"


def named_run(config_file: Path | None, words: Sequence[str]) -> Run:
    """Return the run of a config with ``KEY VALUE`` overrides or, without a config, of one ``OUTPUT_DIR``.

    Raises:
        ConfigError: Neither is given, the folder is of no run, or the config cannot be used.
    """
    overrides = list(words)
    if config_file is None:
        if len(overrides) != 1 or not (Path(overrides[0]) / CONFIG).is_file():
            raise ConfigError(
                "the run must be named by --config-file FILE or by the OUTPUT_DIR of a run, got "
                f"{' '.join(overrides) or 'neither'}{_why(overrides)}"
            )
        config_file, overrides = Path(overrides[0]) / CONFIG, ["OUTPUT_DIR", overrides[0]]
    cfg = load_config(config_file, overrides)
    curate_settings(cfg.CURATE)
    return Run(cfg, config_file)


def _why(words: Sequence[str]) -> str:
    """Say what a folder lacks that was given for a run's."""
    if len(words) != 1:
        return ""
    return f", which holds no {CONFIG}" if Path(words[0]).is_dir() else ", which is no folder"
