"""The stage ``score``: image and object scores from the members' predictions."""

from __future__ import annotations

from detcurate.pipeline.context import Run
from detcurate.pipeline.object_table import ObjectsTable
from detcurate.pipeline.prediction_modes import PredictionMode, predicted_mode
from detcurate.pipeline.stage import Stage, StageResult, output_digest
from detcurate.pipeline.tables import ImagesTable

_FORMULAS = 3
"""Increased when the definition of a measure changes: scores of an older version are then computed again."""


def score_stage(run: Run) -> Stage:
    """Return the stage ``score``."""
    mode = predicted_mode(run)
    settings = {**mode.score_settings(run.settings).model_dump(mode="json"), "formulas": _FORMULAS}
    inputs = {name: output_digest(run.stage_metadata(name)) for name in ("pool", "predict")}
    return Stage("score", run.directory("score"), settings, inputs, lambda: _score(run, mode))


def _score(run: Run, mode: PredictionMode) -> StageResult:
    objects = ObjectsTable.within(run.directory("score")).path
    found = mode.score(run, objects)
    images = ImagesTable.within(run.directory("score")).write_scores(found.images)
    return StageResult([*([objects] if mode.has_objects else []), images], found.summary, found.facts)
