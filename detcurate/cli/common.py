"""What the commands print: lines, tables that line up, JSON."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from detcurate.io.safe_loading import printable
from detcurate.io.storage import is_url

_NUMBER = re.compile(r"[+-]?[\d,.]+%?|–")


def say(*lines: str) -> None:
    """Print lines; names from files of strangers cannot drive a terminal."""
    sys.stdout.write(printable("\n".join(lines)) + "\n")


def say_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a table: texts to the left, columns of numbers and shares to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    # The first column names the rows, and years or speeds are names too.
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


def local_path(text: str) -> Path:
    """Return the path that a text names; a URL would else be a folder called ``s3:``.

    Raises:
        argparse.ArgumentTypeError: It is a URL. The message does not repeat it, which may hold a secret.

    Example:
        >>> local_path("output/mine").name
        'mine'
    """
    if is_url(text):
        raise argparse.ArgumentTypeError(f"must be a path of this machine, got a URL ({text.partition('://')[0]}://…)")
    return Path(text)
