"""Detectron2's config at the edge: ``add_curate_config`` declares ``CURATE.*``; reading is safe and says what is wrong.

Without Detectron2 the same files are read, but only ``CURATE``, ``DATASETS.ROOT``, ``OUTPUT_DIR`` and ``SEED`` are
known: enough to score and select from predictions that are there.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from detcurate.config import curate_defaults
from detcurate.d2.environment import has_detectron2, require_detectron2
from detcurate.errors import ConfigError

_DETECTRON2_TREES = (
    "CUDNN_BENCHMARK", "DATALOADER", "DATASETS", "FLOAT32_PRECISION", "GLOBAL", "INPUT", "MODEL", "SOLVER", "TEST",
    "VERSION", "VIS_PERIOD",
)  # fmt: skip


def add_curate_config(cfg: Any) -> None:
    """Declare ``CURATE.*``, ``DATASETS.ROOT`` and the small backbone's keys in a Detectron2 config, in place.

    Defaults that a curation needs replace Detectron2's: a fixed ``SEED`` (0), images without objects are kept for
    training, and no aspect-ratio buckets (so that a resumed training repeats the interrupted one exactly).
    """
    node = type(cfg)  # Detectron2 has a subclass of its own, and a config must be of one kind throughout
    cfg.CURATE = node(curate_defaults())
    cfg.DATASETS.ROOT = ""
    cfg.SEED = 0
    if "MODEL" in cfg:
        cfg.MODEL.TINY_RESNET = node({"STEM_OUT_CHANNELS": 16, "WIDTHS": [24, 40, 64, 96]})
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
        cfg.DATALOADER.ASPECT_RATIO_GROUPING = False


def default_config() -> Any:
    """Return Detectron2's defaults with detcurate's keys; without Detectron2, detcurate's keys alone."""
    if has_detectron2():
        require_detectron2("reading the config")
        from detectron2.config import get_cfg

        cfg = get_cfg()
    else:
        cfg = CfgNode({"OUTPUT_DIR": "./output", "SEED": 0, "DATASETS": {}})
    add_curate_config(cfg)
    return cfg


def load_config(config_file: Path, overrides: Sequence[str] = ()) -> Any:
    """Read a YAML config (with ``_BASE_``) over the defaults, then ``KEY VALUE`` overrides.

    Args:
        config_file: The file; its YAML is loaded safely (plain values only, no Python objects).
        overrides: Alternating keys and values, as on Detectron2's command lines.

    Returns:
        A frozen ``CfgNode``.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown (the nearest known ones are named), or a value
            has another type than its default.
    """
    cfg = default_config()
    _merge(cfg, dict(_leaves(_read_yaml(config_file))), source=str(config_file))
    if len(overrides) % 2:
        raise ConfigError(f"overrides must be pairs of KEY VALUE, got {len(overrides)} words: {' '.join(overrides)}")
    _merge(cfg, dict(zip(overrides[::2], overrides[1::2], strict=True)), source="command line")
    cfg.freeze()
    return cfg


def load_config_text(text: str) -> Any:
    """Rebuild a config from its own dump."""
    cfg = default_config()
    cfg.merge_from_other_cfg(type(cfg).load_cfg(text))
    cfg.freeze()
    return cfg


def _read_yaml(config_file: Path) -> Mapping[str, Any]:
    if not config_file.is_file():
        raise ConfigError(f"--config-file must name an existing file, got {config_file}")
    try:
        tree = CfgNode.load_yaml_with_base(str(config_file), allow_unsafe=False)
    except TypeError:  # fvcore's for a file, or a _BASE_, that is empty or a number
        tree = None
    except yaml.YAMLError as error:
        raise ConfigError(f"the config must be plain YAML ({config_file}): {error}") from error
    except (OSError, UnicodeDecodeError, AttributeError, AssertionError, RecursionError) as error:
        # the last three are fvcore's for a _BASE_ that is no text, that a key cannot inherit from, or that is circular
        raise ConfigError(f"the config and its _BASE_ must be readable ({config_file}): {error}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"the config must be a mapping of keys to values, got {type(tree).__name__} ({config_file})")
    return tree


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merge(cfg: Any, values: Mapping[str, Any], source: str) -> None:
    known = dict(_leaves(cfg))
    for key, value in values.items():
        if key not in known:
            if not has_detectron2() and key.split(".")[0] in _DETECTRON2_TREES:
                continue
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            raise ConfigError(
                f"{key} must be a known config key ({source}); the nearest are {', '.join(near) or 'none'}"
            )
        *parents, name = key.split(".")
        node = functools.reduce(lambda tree, part: tree[part], parents, cfg)
        node[name] = _coerce(key, value, known[key], source)


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """Give ``value`` the type of ``default`` where nothing is lost by it, as YAML and shells write numbers loosely."""
    text, value = value, CfgNode._decode_cfg_value(value)
    if isinstance(default, str) and isinstance(text, str) and not isinstance(value, str):
        return text  # a folder may have a number for a name
    sequence = (tuple, list)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, sequence) and isinstance(value, sequence):
        return type(default)(value)
    if default is None or value is None or type(value) is type(default):
        return value
    raise ConfigError(f"{key} must be of type {type(default).__name__}, got {value!r} ({source})")
