"""Fuzz the reader of annotation files: any bytes are read or refused.

Run ``python fuzz_coco.py --atheris --seconds 60``.
"""

from __future__ import annotations

import sys

if "--atheris" in sys.argv:
    import os

    os.environ["NUMBA_DISABLE_JIT"] = "1"  # run the scanner in Python, where an index out of range raises
    import atheris

    with atheris.instrument_imports(include=["detcurate.coco"]):
        from detcurate.coco.dataset import read_coco
else:
    from detcurate.coco.dataset import read_coco

from helpers.fuzzing import main, reads_or_refuses


def one_input(data: bytes) -> None:
    """Read one input."""
    reads_or_refuses(read_coco, data, ".json")


if __name__ == "__main__":
    main(one_input, "coco")
