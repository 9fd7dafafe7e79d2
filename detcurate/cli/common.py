"""Output of the commands: lines, aligned tables, JSON."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import orjson

from detcurate.io.safe_loading import printable

_NUMBER = re.compile(r"[+-]?[\d,.]+%?|–")


def say(*lines: str) -> None:
    """Print lines, with control characters escaped: names from untrusted files must not drive the terminal."""
    sys.stdout.write(printable("\n".join(lines)) + "\n")


def say_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a table: text aligned left, columns of numbers and shares aligned right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    # The first column holds names, even where they are years or speeds.
    right = [
        column > 0 and bool(rows) and all(_NUMBER.fullmatch(row[column]) for row in cells)
        for column in range(len(header))
    ]
    widths = [max(len(row[column]) for row in [list(header), *cells]) for column in range(len(header))]
    lines = []
    for row in [list(header), ["-" * width for width in widths], *cells]:
        texts = [
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(texts).rstrip())
    return lines
