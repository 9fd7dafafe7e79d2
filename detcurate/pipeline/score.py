"""The stage ``score``: from the members' answers to two tables, one of images and one of objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detcurate.ensemble import CHECKPOINT, LEDGER, read_ledger
from detcurate.passes import open_predictions, read_members
from detcurate.pipeline.context import Run
from detcurate.pipeline.score_blocks import score_predictions
from detcurate.pipeline.tables import read_columns, write_columns
from detcurate.score.pool import combine_images, score_box_correlation
from detcurate.stages import Stage, StageResult, output_digest
from detcurate.structures import ImageScores

IMAGES, OBJECTS = "images.parquet", "objects.parquet"
_CROWD_BIAS = 0.7


def score_stage(run: Run) -> Stage:
    """Build the stage ``score``."""
    settings = run.settings.score.model_dump(mode="json")
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "predict")}
    return Stage("score", run.directory("score"), settings, inputs, lambda: _score(run))


def _score(run: Run) -> StageResult:
    settings, directory = run.settings.score, run.directory("score")
    members = read_members(run.directory("predict"))
    components, calibration = score_predictions(
        open_predictions(run.directory("predict"), members),
        run.pool,
        run.usable_image_ids,
        settings=settings,
        shard_size=run.settings.predict.shard_size,
        trajectories=_trajectories(run, members),
        objects_path=directory / OBJECTS,
        num_processes=run.settings.worker_processes,
    )
    scores = combine_images(
        run.usable_image_ids,
        components,
        weights=dict(zip(settings.measures, settings.weights, strict=True)),
        normalization=settings.normalization,
        without_objects=settings.without_objects,
    )
    columns = {"image_id": scores.image_ids, "image_score": scores.image_score, **scores.components}
    write_columns(directory / IMAGES, columns)
    correlation = score_box_correlation(scores)
    empty = int((scores.components["num_objects"] == 0).sum())
    summary = (
        f"{int(scores.components['num_objects'].sum()):,} objects on {len(scores):,} images ({empty} without any); "
        f"rank correlation of score and object count {correlation:+.2f}"
    )
    if correlation > _CROWD_BIAS:
        summary += ": the score buys crowded images, consider CURATE.SCORE.AGGREGATION mean"
    facts: dict[str, Any] = {"score_box_correlation": correlation, "images_without_objects": empty}
    if calibration is not None:
        before, after = calibration.error_before.mean(), calibration.error_after.mean()
        summary += f"; calibration error {before:.3f} -> {after:.3f}"
        facts["calibration"] = {name: column.tolist() for name, column in vars(calibration).items()}
    return StageResult([directory / OBJECTS, directory / IMAGES], summary, facts)


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
