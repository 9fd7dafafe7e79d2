"""Functions of both fuzzing harnesses: run a reader on one input, mutate a corpus at random, run atheris."""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from helpers import REPOSITORY

from detcurate.errors import DetcurateError

CORPUS = REPOSITORY / "tests" / "robustness" / "faults" / "corpus"


def reads_or_refuses(read: Callable[[Path], object], data: bytes, suffix: str) -> None:
    """Read a file with these bytes; let all errors but ``DetcurateError`` escape."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file, warnings.catch_warnings():
        warnings.simplefilter("error")
        file.write(data)
        file.flush()
        with contextlib.suppress(DetcurateError):
            read(Path(file.name))


def changed(data: bytes, rng: random.Random) -> bytes:
    """Return an input with some bytes changed, removed, repeated or copied from elsewhere in it."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 8, 32))
        piece = rng.choice(
            (rng.randbytes(length), bytes(content[at : at + length]) * 2, b"", rng.choice(_PIECES), content[-length:])
        )
        content[at : at + rng.choice((0, length))] = piece
    return bytes(content)


_PIECES = (
    b"null", b"NaN", b"1e999", b"-1", b"9" * 400, b"[]", b"{}", b"[" * 300, b'"\\ud800"', b'"', b"\0", b"\xff" * 8,
    b"true",
)  # fmt: skip


def main(one_input: Callable[[bytes], None], folder: str) -> None:
    """Fuzz for some seconds: with atheris if requested, otherwise with random mutations of the corpus."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--found", type=Path, default=Path("fuzz-finding"), help="file for an input that escapes")
    arguments = parser.parse_args()
    if arguments.atheris:
        import atheris

        options = [f"-max_total_time={arguments.seconds}", "-max_len=8192", f"-artifact_prefix={arguments.found}-"]
        with tempfile.TemporaryDirectory() as grown:  # atheris writes new inputs into the first folder only
            atheris.Setup([sys.argv[0], *options, grown, str(CORPUS / folder)], one_input)
            atheris.Fuzz()
        return
    inputs = [path.read_bytes() for path in sorted((CORPUS / folder).iterdir())]
    rng, end, count = random.Random(arguments.seed), time.monotonic() + arguments.seconds, 0
    while time.monotonic() < end:
        data = changed(rng.choice(inputs), rng)
        arguments.found.write_bytes(data)  # remains when a reader crashes the process
        one_input(data)
        count += 1
    arguments.found.unlink(missing_ok=True)
    sys.stdout.write(f"{count}\n")
