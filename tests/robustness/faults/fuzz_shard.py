"""Fuzz the reader of shards: any bytes are read or refused. ``python fuzz_shard.py --atheris --seconds 60``."""

from __future__ import annotations

import sys

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(
        include=["detcurate.io.parquet", "detcurate.predictions.shards", "detcurate.structures"]
    ):
        from detcurate.predictions.shards import read_shard
else:
    from detcurate.predictions.shards import read_shard

from helpers.fuzzing import main, reads_or_refuses


def one_input(data: bytes) -> None:
    """Read one input."""
    reads_or_refuses(read_shard, data, ".parquet")


if __name__ == "__main__":
    main(one_input, "shard")
