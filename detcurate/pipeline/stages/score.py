"""Scoring a pool block by block: worker processes read shards, and the objects are written as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detcurate.coco.dataset import CocoDataset, image_labels
from detcurate.config import ScoreSettings
from detcurate.engines import LOCAL, Engine
from detcurate.ensemble.index import CHECKPOINT, MEMBER_INDEX, read_index
from detcurate.errors import PredictionError
from detcurate.io.files import atomic_path
from detcurate.io.storage import Location
from detcurate.io.workers import Progress
from detcurate.pipeline.context import Run
from detcurate.pipeline.object_table import ObjectsTable, object_schema, object_table
from detcurate.pipeline.prediction_modes import predicted_mode, score_densely, score_references_of, score_settings
from detcurate.pipeline.stage import Stage, StageResult, output_digest
from detcurate.pipeline.tables import ImagesTable
from detcurate.predictions.store import Predictions, open_predictions, read_members
from detcurate.score.aggregate import class_weights
from detcurate.score.calibrate import Calibration, apply_temperatures, calibrate
from detcurate.score.measures import LABEL_MEASURES, MEASURES, available_measures
from detcurate.score.scoring import (
    combine_images,
    image_components,
    score_box_correlation,
    score_labelled_objects,
    validate_measures,
)
from detcurate.structures import Detections, ImageScores, Labels

_BLOCK_IMAGES = 512  # what a worker is given at a time


@dataclass(frozen=True)
class _Block:
    """Some shards, and the ground truth of their images."""

    shards: range
    labels: Labels

    @property
    def name(self) -> str:
        """What a message calls it."""
        return f"shards {self.shards[0]} to {self.shards[-1]}"


@dataclass(frozen=True)
class _Scored:
    """A block's rows."""

    image_ids: np.ndarray
    components: dict[str, np.ndarray]
    objects: pa.Table


@dataclass(frozen=True)
class _Scorer:
    """What all blocks are scored with; called in a worker process."""

    predictions: Predictions
    class_names: tuple[str, ...]
    class_weights: np.ndarray
    settings: ScoreSettings
    measures: tuple[str, ...]
    trajectories: Sequence[Sequence[int]]
    temperatures: np.ndarray | None

    def __call__(self, block: _Block, progress: Progress) -> _Scored:
        parts = []
        for index in block.shards:
            detections, image_ids = self.predictions.read(index)
            if self.temperatures is not None:
                detections = apply_temperatures(detections, self.temperatures)
            labels = block.labels.take(np.isin(block.labels.image_ids, image_ids))
            parts.append((image_ids, *self._score(detections, labels, image_ids)))
            progress(len(image_ids))
        return _Scored(
            image_ids=np.concatenate([image_ids for image_ids, _, _ in parts]),
            components=_concatenate([components for _, components, _ in parts]),
            objects=pa.concat_tables([objects for _, _, objects in parts]),
        )

    def _score(
        self, detections: Detections, labels: Labels, image_ids: np.ndarray
    ) -> tuple[dict[str, np.ndarray], pa.Table]:
        settings = self.settings
        clusters, labelled = score_labelled_objects(
            detections,
            labels,
            num_members=len(self.predictions.members),
            measures=self.measures,
            iou_threshold=settings.iou_threshold,
            association=settings.association,
            per_class=settings.per_class,
            missing=settings.missing,
            trajectories=self.trajectories,
        )
        components = image_components(
            image_ids,
            clusters,
            labelled,
            aggregation=settings.aggregation,
            k=settings.top_k,
            class_weights=self.class_weights,
        )
        return components, object_table(clusters, labelled, self.class_names)


def score_predictions(
    predictions: Predictions,
    dataset: CocoDataset,
    image_ids: np.ndarray,
    *,
    settings: ScoreSettings,
    shard_size: int,
    trajectories: Sequence[Sequence[int]],
    objects_path: Location,
    num_processes: int,
    engine: Engine = LOCAL,
) -> tuple[dict[str, np.ndarray], Calibration | None]:
    """Score all images, in blocks that worker processes take; write the objects, and return the images' components.

    Neither the predictions nor the objects of the pool are ever in memory together.

    Args:
        predictions: Of the members, on blocks of ``shard_size`` images.
        dataset: The ground truth.
        image_ids: (I,) int64, ascending: the images that were predicted.
        settings: How.
        shard_size: Images a shard.
        trajectories: The members of each run in iteration order.
        objects_path: Where the table of objects goes.
        num_processes: Worker processes, of this machine.
        engine: What runs them.

    Returns:
        name -> (I,) column, and the calibration where one is asked for.

    Raises:
        PredictionError: The predictions do not cover the images, or cannot be read.
    """
    calibration = _calibration(predictions, dataset, settings) if settings.calibration_images else None
    scorer = _Scorer(
        predictions=predictions,
        class_names=dataset.class_names,
        class_weights=class_weights(dataset.class_counts()),
        settings=settings,
        measures=available_measures(len(predictions.members)),
        trajectories=trajectories,
        temperatures=None if calibration is None else calibration.temperatures,
    )
    parts: list[dict[str, np.ndarray]] = []
    covered: list[np.ndarray] = [np.zeros(0, np.int64)]
    schema = object_schema(dataset.class_names, scorer.measures, len(predictions.members))
    with atomic_path(objects_path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for scored in engine.stream(
            scorer,
            _blocks(predictions, dataset, image_ids, shard_size),
            num_processes=num_processes,
            total=len(image_ids),
            desc="score",
            unit="image",
        ):
            writer.write_table(scored.objects)
            covered.append(scored.image_ids)
            parts.append(scored.components)
        predicted = np.concatenate(covered)
        if not np.array_equal(predicted, image_ids):
            raise PredictionError(
                f"the predictions must cover the pool's {len(image_ids)} images once each, got {len(predicted)} "
                f"({predictions.directory}); delete that directory and run the same command again"
            )
    return _concatenate(parts), calibration


def _concatenate(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _blocks(predictions: Predictions, dataset: CocoDataset, image_ids: np.ndarray, shard_size: int) -> Iterator[_Block]:
    step = max(1, _BLOCK_IMAGES // shard_size)
    for first in range(0, predictions.num_shards, step):
        shards = range(first, min(first + step, predictions.num_shards))
        yield _Block(shards, image_labels(dataset, image_ids[shards.start * shard_size : shards.stop * shard_size]))


def _calibration(predictions: Predictions, dataset: CocoDataset, settings: ScoreSettings) -> Calibration:
    """Calibrate the members on shards spread evenly over the pool, as many as hold the images asked for."""
    parts, num_images = [], 0
    for index in np.random.default_rng(0).permutation(predictions.num_shards).tolist():
        parts.append(predictions.read(index))
        num_images += len(parts[-1][1])
        if num_images >= settings.calibration_images:
            break
    return calibrate(
        Detections.concatenate([detections for detections, _ in parts]),
        image_labels(dataset, np.concatenate([image_ids for _, image_ids in parts])),
        num_members=len(predictions.members),
        iou_threshold=settings.iou_threshold,
    )


_CROWD_BIAS = 0.7
_FORMULAS = 3
"""Raised when a measure comes to mean something else: scores of an older version are then made again."""


def score_stage(run: Run) -> Stage:
    """Build the stage ``score``."""
    mode = predicted_mode(run)
    settings = {**score_settings(run.settings, mode).model_dump(mode="json"), "formulas": _FORMULAS}
    inputs = {name: output_digest(run.stage_metadata(name)) for name in ("pool", "predict")}
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
        objects_path=ObjectsTable.within(run.directory("score")).path,
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
    return _combine(run, score_references_of(run, ObjectsTable.within(run.directory("score")).path))


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
        weights=settings.measure_weights,
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
    outputs = [ObjectsTable.within(run.directory("score")).path, _write_images(run, scores)]
    return StageResult(outputs, summary, {"score_box_correlation": correlation, "images_without_objects": empty})


def _write_images(run: Run, scores: ImageScores) -> Location:
    return ImagesTable.within(run.directory("score")).write_scores(scores)


def _trajectories(run: Run, members: Sequence[str]) -> list[list[int]]:
    """Return the numbers of each run's checkpoints in iteration order; averages of checkpoints are none of them."""
    number_of = {name: number for number, name in enumerate(members)}
    runs: dict[int, list[tuple[int, int]]] = {}
    for member in read_index(run.directory("train") / MEMBER_INDEX):
        number = number_of.get(f"{member.file}@{member.sha256}")
        if member.kind == CHECKPOINT and number is not None:
            runs.setdefault(member.run, []).append((member.iteration, number))
    return [[number for _, number in sorted(found)] for found in runs.values()]
