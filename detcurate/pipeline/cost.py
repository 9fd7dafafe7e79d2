"""What a training cost: iterations, images seen, and the seconds that its iterations took."""

from __future__ import annotations

from pathlib import Path

import orjson

METRICS = "metrics.json"
"""What Detectron2 writes beside the members of a run, a line every 20 iterations."""


def training_seconds(directory: Path) -> float | None:
    """Return how many seconds the iterations of a run took, as Detectron2 measured them.

    Each line of the metrics stands for the iterations since the one before, at the median of their times. What was
    trained again after an interruption counts once, so that a run that was killed costs what it would have cost.
    Starting, saving and reading the weights are not in it.

    Args:
        directory: Of the run.

    Returns:
        None where no iteration was timed: Detectron2 leaves out the first three.
    """
    path = directory / METRICS
    times: dict[int, float] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:  # a line that was cut off when the training was killed
            continue
        if "time" in record:
            times[int(record["iteration"])] = float(record["time"])
    ends = sorted(times)
    return sum((end - before) * times[end] for before, end in zip([-1, *ends], ends, strict=False)) if ends else None
