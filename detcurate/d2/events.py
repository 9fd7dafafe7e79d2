"""Scalars for TensorBoard, by Detectron2's own writer. Apart from the trainer, which takes 180 MB more to import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from detectron2.utils.events import EventStorage, TensorboardXWriter


def write_scalars(directory: Path, runs: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[Path]:
    """Write scalars as TensorBoard events and return the files.

    Args:
        directory: Destination; each run has a folder below.
        runs: Run -> step, at least 0 -> tag -> value.
    """
    for run, steps in runs.items():
        writer = TensorboardXWriter(str(directory / run))
        for step, scalars in sorted(steps.items()):
            with EventStorage(start_iter=step) as storage:
                for tag, value in scalars.items():
                    storage.put_scalar(tag, value, smoothing_hint=False)
                writer.write()
        writer.close()
    return sorted(path for path in directory.rglob("*") if path.is_file())
