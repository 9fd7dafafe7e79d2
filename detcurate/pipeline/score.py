"""The stage ``score``: from the members' answers to two tables, one of images and one of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from detcurate.ensemble import CHECKPOINT, LEDGER, read_ledger
from detcurate.passes import open_predictions, read_members
from detcurate.pipeline.context import Run
from detcurate.pipeline.modes import predicted_mode, score_settings
from detcurate.pipeline.score_blocks import score_predictions
from detcurate.pipeline.score_modes import score_densely, score_references_of
from detcurate.pipeline.tables import read_columns, write_columns
from detcurate.score.measures import LABEL_MEASURES, MEASURES
from detcurate.score.objects import validate_measures
from detcurate.score.pool import combine_images, score_box_correlation
from detcurate.stages import Stage, StageResult, output_digest
from detcurate.storage import Location
from detcurate.structures import ImageScores

IMAGES, OBJECTS = "images.parquet", "objects.parquet"
_CROWD_BIAS = 0.7
_FORMULAS = 2
"""Raised when a measure comes to mean something else: scores of an older version are then made again."""


def score_stage(run: Run) -> Stage:
    """Build the stage ``score``."""
    mode = predicted_mode(run)
    settings = {**score_settings(run.settings, mode).model_dump(mode="json"), "formulas": _FORMULAS}
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "predict")}
    return Stage("score", run.directory("score"), settings, inputs, lambda: _WORK[mode](run))


def _members(run: Run) -> list[str]:
    """Return the members' names, once it is known that so many can have the measures that make the score."""
    members = read_members(run.directory("predict"))
    validate_measures(run.settings.score.measures, len(members), known=(*MEASURES, *LABEL_MEASURES))
    return members


def _score_clusters(run: Run) -> StageResult:
    members = _members(run)
    components, calibration = score_predictions(
        open_predictions(run.directory("predict"), members),
        run.pool,
        run.usable_image_ids,
        settings=run.settings.score,
        shard_size=run.settings.predict.shard_size,
        trajectories=_trajectories(run, members),
        objects_path=run.directory("score") / OBJECTS,
        num_processes=run.settings.worker_processes,
        engine=run.engine,
    )
    result = _combine(run, components)
    if calibration is None:
        return result
    before, after = calibration.error_before.mean(), calibration.error_after.mean()
    facts = {**result.facts, "calibration": {name: column.tolist() for name, column in vars(calibration).items()}}
    return replace(result, summary=f"{result.summary}; calibration error {before:.3f} -> {after:.3f}", facts=facts)


def _score_references(run: Run) -> StageResult:
    _members(run)
    return _combine(run, score_references_of(run, run.directory("score") / OBJECTS))


def _score_densely(run: Run) -> StageResult:
    scores, summary, facts = score_densely(run)
    return StageResult([_write_images(run, scores)], summary, facts)


_WORK = {"cluster": _score_clusters, "reference": _score_references, "dense": _score_densely}


def _combine(run: Run, components: Mapping[str, np.ndarray]) -> StageResult:
    """Write the images' scores, and say what stands out."""
    settings = run.settings.score
    scores = combine_images(
        run.usable_image_ids,
        components,
        weights=dict(zip(settings.measures, settings.weights, strict=True)),
        normalization=settings.normalization,
        without_objects=settings.without_objects,
    )
    correlation = score_box_correlation(scores)
    empty = int((scores.components["num_objects"] == 0).sum())
    summary = (
        f"{int(scores.components['num_objects'].sum()):,} objects on {len(scores):,} images ({empty} without any); "
        f"rank correlation of score and object count {correlation:+.2f}"
    )
    if correlation > _CROWD_BIAS:
        summary += ": the score buys crowded images, consider CURATE.SCORE.AGGREGATION mean"
    outputs = [run.directory("score") / OBJECTS, _write_images(run, scores)]
    return StageResult(outputs, summary, {"score_box_correlation": correlation, "images_without_objects": empty})


def _write_images(run: Run, scores: ImageScores) -> Location:
    path = run.directory("score") / IMAGES
    write_columns(path, {"image_id": scores.image_ids, "image_score": scores.image_score, **scores.components})
    return path


def _trajectories(run: Run, members: Sequence[str]) -> list[list[int]]:
    """Return the numbers of each run's checkpoints in iteration order; averages of checkpoints are none of them."""
    number_of = {name: number for number, name in enumerate(members)}
    runs: dict[int, list[tuple[int, int]]] = {}
    for member in read_ledger(run.directory("train") / LEDGER):
        number = number_of.get(f"{member.file}@{member.sha256}")
        if member.kind == CHECKPOINT and number is not None:
            runs.setdefault(member.run, []).append((member.iteration, number))
    return [[number for _, number in sorted(found)] for found in runs.values()]


def read_scores(run: Run) -> ImageScores:
    """Read ``scores/images.parquet``."""
    table = read_columns(run.directory("score") / IMAGES)
    components = {name: column for name, column in table.items() if name not in ("image_id", "image_score")}
    return ImageScores(table["image_id"], table["image_score"], components)
