"""Untrusted input: YAML and JSON within bounds, file names inside their folder, text without control characters."""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detcurate.io.storage import Location

if TYPE_CHECKING:  # every command imports this module, few of them read YAML
    import yaml

MOST_YAML_BYTES = 1 << 20
MOST_YAML_NODES = 100_000
"""Number of values in YAML with all aliases expanded: nested aliases make a huge tree of a small text."""
MOST_YAML_DEPTH = 40
MOST_NUMBER = 64
"""Characters of a number in YAML; parsing a million digits takes minutes."""
MOST_JSON_BYTES = 512 << 20

_MOST_NAME = 255  # limit of most file systems for a part of a path

_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
# Control characters, which can drive a terminal, and characters that reverse the direction of text.
_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_absolute(name: str) -> bool:
    """Return whether a file name is absolute, on this system or on another."""
    return bool(_ABSOLUTE.match(name))


def leads_out(name: str) -> bool:
    """Return, from the text, whether a relative name leaves its root."""
    if ".." not in name:
        return False
    depth = 0
    for part in name.replace("\\", "/").split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            return True
    return False


def is_inside(name: object) -> bool:
    """Return, from the text, whether a value is a file name below the folder to which it is relative."""
    return isinstance(name, str) and bool(name) and "\0" not in name and not (is_absolute(name) or leads_out(name))


def printable(text: str) -> str:
    r"""Return a text for a terminal or log: all but visible characters, line breaks and tabs are escaped.

    Example:
        >>> printable("\x1b[2Jtitle\n")
        '\\x1b[2Jtitle\n'
    """
    return _NOT_SHOWN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def shown(name: str) -> str:
    r"""Return a file name for a message: unchanged where it is plain, else as a Python literal; shortened when long.

    Example:
        >>> shown("drive 1/frame.jpg"), shown(""), shown("a\nb")
        ('drive 1/frame.jpg', "''", "'a\\nb'")
    """
    name = name if len(name) <= _MOST_NAME else f"{name[:_MOST_NAME]}…"
    is_plain = name.strip() == name != "" and printable(name) == name and not {"\n", "\t"} & set(name)
    return name if is_plain else repr(name)


class PlainFormatter(logging.Formatter):
    """Format log records so that names from untrusted files cannot drive a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text, printable."""
        return printable(super().format(record))


def read_bytes(path: Location, most_bytes: int) -> bytes:
    """Read a regular file of bounded size; pipes and devices, which may never end, are refused.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is larger, or not a regular file.
    """
    if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")
    num_bytes = path.stat().st_size if isinstance(path, Path) else path.entry().size
    if num_bytes > most_bytes:
        raise ValueError(f"it has {num_bytes:,} bytes, more than {most_bytes:,}")
    with path.open("rb") as stream:
        return stream.read(most_bytes)


def read_json(path: Location, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Read a JSON file within bounds.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is not JSON, too large, or not a regular file.
    """
    import orjson

    return orjson.loads(read_bytes(path, most_bytes))


def read_json_object(path: Location, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file that must hold an object; raise as :func:`read_json`."""
    value = read_json(path, most_bytes)
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type(value).__name__}")
    return value


def load_yaml(text: str) -> Any:
    """Read plain YAML within bounds: no Python objects, no exploding aliases, no numbers of many digits.

    Raises:
        yaml.YAMLError: It is not plain YAML.
        ValueError: It exceeds a bound.
    """
    import yaml

    if len(text) > MOST_YAML_BYTES:
        raise ValueError(f"it has {len(text):,} characters, more than {MOST_YAML_BYTES:,}")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):  # not recursive, as composing is
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_YAML_DEPTH:
            raise ValueError(f"its values are nested more than {MOST_YAML_DEPTH} deep")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"a value cannot be read: {error}") from error
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of values of a node with its aliases expanded, and their depth.

    Raises:
        ValueError: A value contains itself, there are too many or too deep, or a number has too many digits.
    """
    if id(node) in known:
        if known[id(node)] == _BEGUN:
            raise ValueError("a value contains itself")
        return known[id(node)]
    known[id(node)] = _BEGUN
    import yaml

    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith((":int", ":float", ":timestamp")) and len(node.value) > MOST_NUMBER:
            raise ValueError(f"a number has {len(node.value):,} characters, more than {MOST_NUMBER}")
        known[id(node)] = 1, 0
        return known[id(node)]
    pairs = isinstance(node, yaml.MappingNode)
    if pairs:
        _require_unique_keys(node)
    below = [_count(child, known) for child in ([one for pair in node.value for one in pair] if pairs else node.value)]
    count, depth = 1 + sum(found for found, _ in below), 1 + max((deep for _, deep in below), default=0)
    if count > MOST_YAML_NODES:
        raise ValueError(f"it holds more than {MOST_YAML_NODES:,} values with its aliases expanded")
    if depth > MOST_YAML_DEPTH:
        raise ValueError(f"its values are nested more than {MOST_YAML_DEPTH} deep")
    known[id(node)] = count, depth
    return count, depth


def _require_unique_keys(node: yaml.MappingNode) -> None:
    """Refuse a repeated key: YAML would silently drop the first value, perhaps a whole section."""
    import yaml

    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if key.value in seen:
                raise ValueError(
                    f"the key {key.value[:80]!r} is repeated (line {key.start_mark.line + 1}). Merge both."
                )
            seen.add(key.value)


_MERGE = "tag:yaml.org,2002:merge"
_BEGUN = (0, 0)


def merged(over: Mapping[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Merge a tree of settings into ``base``, as Detectron2 inherits from a ``_BASE_``, and return ``base``.

    Raises:
        ValueError: A tree would replace a plain value.
    """
    for key, value in over.items():
        if isinstance(value, dict) and key in base:
            if not isinstance(base[key], dict):
                raise ValueError(f"Cannot inherit key '{key}' from base!")
            merged(value, base[key])
        else:
            base[key] = value
    return base
