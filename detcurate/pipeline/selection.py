"""The tables that the stage ``select`` leaves."""

from __future__ import annotations

from detcurate.pipeline.context import Run
from detcurate.pipeline.tables import read_columns
from detcurate.structures import Selection

SELECTION, REMOVED, RELABEL = "selection.parquet", "removed.parquet", "relabel.parquet"


def read_selection(run: Run) -> Selection:
    """Read ``selection/selection.parquet``.

    Raises:
        PredictionError: The stage ``select`` has not finished.
    """
    run.marker("select")
    table = read_columns(run.directory("select") / SELECTION)
    return Selection(table["image_id"], tuple(table["reason"].tolist()))
