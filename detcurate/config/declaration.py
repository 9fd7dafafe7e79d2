"""Detectron2's config at the edge: ``add_curate_config`` declares ``CURATE.*``; reading is safe and says what is wrong.

Without Detectron2 the same files are read, but only ``CURATE``, ``DATASETS.ROOT``, ``OUTPUT_DIR`` and ``SEED`` are
known: enough to score and select from predictions that are there.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from detcurate.coco.decode import shorten
from detcurate.config import curate_defaults
from detcurate.errors import ConfigError, EnsembleError
from detcurate.io.safe_loading import MOST_YAML_BYTES, load_yaml, merged, read_bytes
from detcurate.legacy import CONFIG_KEYS, renamed

HOW_TO_INSTALL = (
    "run `make setup` in a checkout of detcurate, or install torch and torchvision and then the official build: "
    "pip install 'git+https://github.com/facebookresearch/detectron2.git'"
)


def has_detectron2() -> bool:
    """Tell whether Detectron2, torch and torchvision are installed, without importing them."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "torchvision", "detectron2"))


def require_detectron2(purpose: str) -> None:
    """Raise ``EnsembleError`` when Detectron2 is absent.

    Args:
        purpose: What needs it, such as ``"the stage 'train'"``.
    """
    if not has_detectron2():
        raise EnsembleError(f"{purpose} needs Detectron2, which is not installed; {HOW_TO_INSTALL}")


_BASE = "_BASE_"
_MOST_BASES = 32
_MOST_CHARACTERS = 100_000
_ALLOW_PICKLE = "CURATE.TRAIN.ALLOW_PICKLE"
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
        config_file: The file; it and its ``_BASE_`` are read as untrusted: plain values, bounded sizes, no URL.
        overrides: Alternating keys and values, as on Detectron2's command lines.

    Returns:
        A frozen ``CfgNode``.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown (the nearest known ones are named), a value has
            another type than its default, or a file allows pickles: that is for the command line.
    """
    cfg, tree = default_config(), _read_yaml(config_file)
    _refuse_pickle(tree, config_file)
    _merge(cfg, dict(_leaves(tree)), source=str(config_file))
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
        tree = _with_base(config_file, [])
    except yaml.YAMLError as error:
        raise ConfigError(f"the config must be plain YAML ({config_file}): {error}") from error
    except (OSError, ValueError) as error:  # among them a text that is not UTF-8
        raise ConfigError(f"the config and its _BASE_ must be readable ({config_file}): {error}") from error
    if not isinstance(tree, Mapping):
        got = "nothing" if tree is None else type(tree).__name__
        raise ConfigError(
            f"the config must be a mapping of keys to values, got {got} ({config_file}); write a line such as "
            '`_BASE_: "configs/Base-CPU-Tiny.yaml"`'
        )
    return tree


def _with_base(path: Path, opened: list[Path]) -> Any:
    """Read a file over its ``_BASE_``, as Detectron2 does, but within bounds and from this machine's files alone.

    Raises:
        yaml.YAMLError: One of them is not plain YAML.
        OSError: One cannot be opened.
        ValueError: One goes beyond a bound, is no file of text, or a ``_BASE_`` is a URL or no text.
    """
    opened.append(path)
    if len(opened) > _MOST_BASES:
        raise ValueError(f"a config must have at most {_MOST_BASES} files below it, got more: is one its own _BASE_?")
    tree = load_yaml(read_bytes(path, MOST_YAML_BYTES).decode())
    if not isinstance(tree, dict) or _BASE not in tree:
        return tree
    named = tree.pop(_BASE)
    base: dict[str, Any] = {}
    for name in named if isinstance(named, list) else [named]:
        if not isinstance(name, str) or "://" in name:
            got = "a URL" if isinstance(name, str) else shorten(name)  # which is not repeated: it may hold a secret
            raise ValueError(f"{_BASE} must be the path of a file, got {got}")
        below = _with_base(path.parent / Path(name).expanduser(), opened)
        if not isinstance(below, Mapping):
            raise ValueError(f"{_BASE} must be a mapping of keys to values, got {type(below).__name__} ({name})")
        merged(below, base)
    return merged(tree, base)


def _refuse_pickle(tree: Mapping[str, Any], config_file: Path) -> None:
    """Raise ``ConfigError`` when a file, and not the person who runs it, lets weights run code."""
    if CfgNode._decode_cfg_value(dict(_leaves(tree)).get(_ALLOW_PICKLE)) not in (None, False):
        raise ConfigError(
            f"{_ALLOW_PICKLE} must be given on the command line, got it in a file ({config_file}): weights that may be "
            "unpickled can run code, and a config may be a stranger's; delete the line, and if you trust the maker of "
            f"the weights end your command with `{_ALLOW_PICKLE} True`"
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merge(cfg: Any, values: Mapping[str, Any], source: str) -> None:
    known = dict(_leaves(cfg))
    for given, value in values.items():
        key = renamed(given, CONFIG_KEYS)
        if key not in known:
            if not has_detectron2() and key.split(".")[0] in _DETECTRON2_TREES:
                continue
            raise ConfigError(_unknown(key, known, source))
        *parents, name = key.split(".")
        node = functools.reduce(lambda tree, part: tree[part], parents, cfg)
        node[name] = _coerce(key, value, known[key], source)


def _unknown(key: str, known: Mapping[str, Any], source: str) -> str:
    """Say that a key is not known, and which may have been meant."""
    below = [name for name in known if name.startswith(f"{key}.")]
    if below:
        return f"{key} must be given key by key, got a value for the whole section ({source}); one is {below[0]}"
    near = difflib.get_close_matches(key.upper(), known, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}" if near else "configs/ and docs/ name the known ones"
    return f"{key} must be a known config key ({source}); {hint}"


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """Give ``value`` the type of ``default`` where nothing is lost by it, as YAML and shells write numbers loosely."""
    text, value = value, _decoded(key, value, source)
    if isinstance(default, str) and isinstance(text, str) and not isinstance(value, str):
        return text  # a folder may have a number for a name
    sequence = (tuple, list)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, sequence) and isinstance(value, sequence):
        return type(default)(value)
    if default is None or value is None or type(value) is type(default):
        return value
    raise ConfigError(f"{key} must be of type {type(default).__name__}, got {shorten(value)} ({source})")


def _decoded(key: str, value: Any, source: str) -> Any:
    """Return what a text means as a Python value of plain types, else the text itself."""
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        raise ConfigError(f"{key} must have at most {_MOST_CHARACTERS:,} characters, got {len(value):,} ({source})")
    try:
        return CfgNode._decode_cfg_value(value)
    except (RecursionError, MemoryError, OverflowError):
        raise ConfigError(f"{key} must be a plain value, got {shorten(value)} ({source})") from None
