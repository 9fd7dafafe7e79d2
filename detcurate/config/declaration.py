"""Declaration of ``CURATE.*`` in Detectron2's config, and safe loading of config files.

Without Detectron2 the same files load, but only ``CURATE``, ``DATASETS.ROOT``, ``OUTPUT_DIR`` and ``SEED`` are known.
That is enough to score and select from existing predictions.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from detcurate.config import curate_defaults
from detcurate.config.base import nearest
from detcurate.config.describe import accepted_words
from detcurate.errors import ConfigError, EnsembleError
from detcurate.io.safe_loading import MOST_YAML_BYTES, load_yaml, merged, read_bytes
from detcurate.legacy import CONFIG_KEYS, renamed

HOW_TO_INSTALL = (
    "Run `make setup` in a checkout of detcurate, or install torch and torchvision and then the official build: "
    "pip install 'git+https://github.com/facebookresearch/detectron2.git'"
)
SHIPPED = "detcurate://"
"""Prefix of a config that is part of the package, such as ``detcurate://quickstart.yaml``."""


def has_detectron2() -> bool:
    """Return whether Detectron2, torch and torchvision are installed, without importing them."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "torchvision", "detectron2"))


def require_detectron2(purpose: str) -> None:
    """Raise ``EnsembleError`` when Detectron2 is not installed.

    Args:
        purpose: What needs it, such as ``"the stage 'train'"``.
    """
    if not has_detectron2():
        raise EnsembleError(f"{purpose} needs Detectron2, which is not installed. {HOW_TO_INSTALL}")


_BASE = "_BASE_"
_MOST_BASES = 32
_MOST_CHARACTERS = 100_000
_MOST_SHOWN = 80
_ALLOW_PICKLE = "CURATE.TRAIN.ALLOW_PICKLE"
_DETECTRON2_TREES = (
    "CUDNN_BENCHMARK", "DATALOADER", "DATASETS", "FLOAT32_PRECISION", "GLOBAL", "INPUT", "MODEL", "SOLVER", "TEST",
    "VERSION", "VIS_PERIOD",
)  # fmt: skip


def add_curate_config(cfg: Any) -> None:
    """Declare ``CURATE.*``, ``DATASETS.ROOT`` and the small backbone's keys in a Detectron2 config, in place.

    Three of Detectron2's defaults change: ``SEED`` is fixed (0), images without objects are kept for training, and
    images are not grouped by aspect ratio, so that a resumed training repeats the interrupted one exactly.
    """
    node = type(cfg)  # Detectron2 has its own subclass, and all nodes of a config must have one type
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
        from detectron2.config import get_cfg

        cfg = get_cfg()
    else:
        cfg = CfgNode({"OUTPUT_DIR": "./output", "SEED": 0, "DATASETS": {}})
    add_curate_config(cfg)
    return cfg


def load_config(config_file: Path, overrides: Sequence[str] = ()) -> Any:
    """Load a YAML config (with ``_BASE_``) over the defaults, then apply ``KEY VALUE`` overrides.

    Args:
        config_file: The file. It and its ``_BASE_`` are untrusted input: plain values, bounded sizes, no URL.
        overrides: Alternating keys and values, as on Detectron2's command lines.

    Returns:
        A frozen ``CfgNode``.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown (the message names the nearest ones), a value
            has another type than its default, or a file allows pickles, which only the command line may do.
    """
    cfg = default_config()
    _merge(cfg, read_config(config_file), source=f"in {config_file}")
    if len(overrides) % 2:
        raise ConfigError(
            f"overrides: must be pairs of KEY VALUE (got {len(overrides)} arguments: {' '.join(overrides)})"
        )
    _merge(cfg, dict(zip(overrides[::2], overrides[1::2], strict=True)), source="on the command line")
    cfg.freeze()
    return cfg


def load_config_text(text: str) -> Any:
    """Rebuild a config from its own dump."""
    cfg = default_config()
    _merge(cfg, dict(_leaves(type(cfg).load_cfg(text))), source="in a dumped config")
    cfg.freeze()
    return cfg


def config_differences(config_file: Path) -> list[tuple[str, Any, Any]]:
    """Return key, default and value of every key that a config changes, in the order of the file.

    Raises:
        ConfigError: As :func:`load_config`.
    """
    cfg, default = dict(_leaves(load_config(config_file))), dict(_leaves(default_config()))
    keys = [renamed(key, CONFIG_KEYS) for key in read_config(config_file)]
    return [(key, default[key], cfg[key]) for key in keys if key in cfg and cfg[key] != default[key]]


def shipped_config(text: str) -> Path:
    """Return the file of a config that is part of the package.

    Args:
        text: ``detcurate://NAME``.

    Raises:
        ConfigError: There is no such config; the message lists all of them.
    """
    name, shipped = text.removeprefix(SHIPPED), _shipped_configs()
    if name not in shipped:
        raise ConfigError(
            f"{SHIPPED}: no such config (got {_shown(name)}).{nearest(name, shipped)} Available are "
            f"{', '.join(sorted(shipped)) or 'none'}."
        )
    return shipped[name]


def _shipped_configs() -> dict[str, Path]:
    """Return the configs of the installed package, or those of a checkout, by file name."""
    package = Path(str(importlib.resources.files("detcurate")))
    folder = package / "configs"
    if not folder.is_dir():  # a checkout on a file system without symbolic links
        folder = package.parent / "configs"
    return {path.name: path for path in folder.glob("*.yaml")}


def read_config(config_file: Path) -> dict[str, Any]:
    """Read a config over its ``_BASE_``, without checking keys and types; return dotted keys and values.

    Raises:
        ConfigError: The file cannot be read, is not a mapping of plain YAML values, or allows pickles.
    """
    if not config_file.is_file():
        raise ConfigError(f"--config-file: no such file (got {config_file})")
    try:
        tree = _with_base(config_file, [])
    except yaml.YAMLError as error:
        raise ConfigError(f"{config_file}: must be plain YAML: {error}") from error
    except (OSError, ValueError) as error:  # ValueError includes text that is not UTF-8
        raise ConfigError(f"{config_file}: cannot be read: {error}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"{config_file}: must be a mapping of keys to values (got {_kind(tree)}). Write a line such as "
            f"`{_BASE}: {SHIPPED}Base-CPU-Tiny.yaml`."
        )
    leaves = dict(_leaves(tree))
    _reject_pickle(leaves, config_file)
    return leaves


def _with_base(path: Path, opened: list[Path]) -> Any:
    """Read a file over its ``_BASE_``, as Detectron2 does, but bounded and from local files only.

    Raises:
        yaml.YAMLError: A file is not plain YAML.
        OSError: A file cannot be opened.
        ValueError: A file exceeds a bound or is not text, or a ``_BASE_`` is not the path of a file.
        ConfigError: A ``_BASE_`` names a config that the package does not have.
    """
    opened.append(path)
    if len(opened) > _MOST_BASES:
        raise ValueError(f"{_BASE}: at most {_MOST_BASES} files may be included. Does a file include itself?")
    tree = load_yaml(read_bytes(path, MOST_YAML_BYTES).decode())
    if not isinstance(tree, dict) or _BASE not in tree:
        return tree
    bases = tree.pop(_BASE)
    base: dict[str, Any] = {}
    for name in bases if isinstance(bases, list) else [bases]:
        below = _with_base(_base_path(name, path.parent), opened)
        if not isinstance(below, Mapping):
            raise ValueError(f"{_BASE}: {name} must be a mapping of keys to values (got {_kind(below)})")
        merged(below, base)
    return merged(tree, base)


def _base_path(name: object, folder: Path) -> Path:
    if isinstance(name, str) and name.startswith(SHIPPED):
        return shipped_config(name)
    if not isinstance(name, str) or "://" in name:
        got = "a URL" if isinstance(name, str) else _shown(name)  # a URL may contain a secret: do not repeat it
        raise ValueError(f"{_BASE}: must be the path of a file, or {SHIPPED}NAME (got {got})")
    return folder / Path(name).expanduser()


def _reject_pickle(leaves: Mapping[str, Any], config_file: Path) -> None:
    """Raise ``ConfigError`` when a file, rather than the user who runs it, allows weights to run code."""
    if CfgNode._decode_cfg_value(leaves.get(_ALLOW_PICKLE)) not in (None, False):
        raise ConfigError(
            f"{_ALLOW_PICKLE}: must be given on the command line (got it in {config_file}). Pickled weights can run "
            f"code, and a config may come from an untrusted source. Remove it from the file; if you trust the weights, "
            f"append `{_ALLOW_PICKLE} True` to your command."
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
    """Return the message for an unknown key, with the nearest known ones."""
    below = [name for name in known if name.startswith(f"{key}.")]
    if below:
        return f"{key}: is a section and cannot be set as a whole ({source}). Set its keys, such as {below[0]}."
    near = difflib.get_close_matches(key.upper(), known, n=3, cutoff=0.5)
    hint = f"The nearest are {', '.join(near)}." if near else "`detcurate config` lists the settings of detcurate."
    return f"{key}: unknown config key ({source}). {hint}"


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """Convert ``value`` to the type of ``default`` where that is lossless: YAML and shells write numbers loosely."""
    text, value = value, _decoded(key, value, source)
    if isinstance(default, str) and isinstance(text, str) and not isinstance(value, str):
        return text  # a folder may have a number as its name
    sequence = (tuple, list)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, sequence) and isinstance(value, sequence):
        return type(default)(value)
    if default is None or value is None or type(value) is type(default):
        return value
    words = accepted_words(key)
    if isinstance(value, str) and value in words:
        return value
    expected = " or ".join([type(default).__name__, *words])
    raise ConfigError(f"{key}: must be of type {expected} (got {_shown(value)} {source})")


def _decoded(key: str, value: Any, source: str) -> Any:
    """Return the plain Python value that a text means, or the text itself."""
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        raise ConfigError(f"{key}: must have at most {_MOST_CHARACTERS:,} characters (got {len(value):,} {source})")
    try:
        return CfgNode._decode_cfg_value(value)
    except (RecursionError, MemoryError, OverflowError):
        raise ConfigError(f"{key}: must be a plain value (got {_shown(value)} {source})") from None


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _shown(value: object) -> str:
    """Return a value for a message, cut when it is long."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."
