"""What arguments of the command line may be."""

from __future__ import annotations

import argparse
from pathlib import Path

from detcurate.storage import is_url


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
