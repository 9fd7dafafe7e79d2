"""Scoring the predicted detections of a pool block by block: workers read shards, and objects are written in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detcurate.coco.dataset import CocoDataset, image_labels
from detcurate.config import ScoreSettings
from detcurate.engines import LOCAL, Engine
from detcurate.ensemble.index import CHECKPOINT, Member
from detcurate.errors import PredictionError
from detcurate.io.files import atomic_path
from detcurate.io.storage import Location
from detcurate.io.workers import Progress
from detcurate.pipeline.object_table import object_schema, object_table
from detcurate.predictions.store import Predictions
from detcurate.score.aggregate import class_weights
from detcurate.score.calibrate import Calibration, apply_temperatures, calibrate
from detcurate.score.measures import available_measures
from detcurate.score.scoring import image_components, score_labelled_objects
from detcurate.structures import Detections, Labels

_BLOCK_IMAGES = 512  # a task of a worker


@dataclass(frozen=True)
class _Block:
    """Consecutive shards, and the ground truth of their images."""

    shards: range
    labels: Labels

    @property
    def name(self) -> str:
        """The name of the block in messages."""
        return f"shards {self.shards[0]} to {self.shards[-1]}"


@dataclass(frozen=True)
class _Scored:
    """The scores of one block."""

    image_ids: np.ndarray
    components: dict[str, np.ndarray]
    objects: pa.Table


@dataclass(frozen=True)
class _Scorer:
    """Scores a block; the settings are the same for all blocks. Called in a worker process."""

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
    """Score all images in blocks, one a task of a worker; write the objects and return the images' components.

    The predictions and the objects of the whole pool are never in memory at once.

    Args:
        predictions: Of the members, on blocks of ``shard_size`` images.
        dataset: The ground truth.
        image_ids: (I,) int64, ascending: the images that were predicted.
        settings: The association, measures, aggregation and calibration.
        shard_size: Images a shard.
        trajectories: The members of each run in iteration order.
        objects_path: Destination of the table of objects.
        num_processes: Number of worker processes on this machine.
        engine: Runs the workers.

    Returns:
        name -> (I,) column, and the calibration if ``settings`` enables it.

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
                f"{predictions.directory}: the predictions must cover each of the pool's {len(image_ids)} images once "
                f"(got {len(predicted)} images). Delete that directory and run the same command again."
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
    """Calibrate the members on random shards that hold at least ``calibration_images`` images."""
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


def trajectories(members: Sequence[Member], names: Sequence[str]) -> list[list[int]]:
    """Return the member numbers of each run's checkpoints in iteration order; averages of checkpoints are excluded.

    Args:
        members: The member index.
        names: The predicted members, in the order of their numbers.
    """
    number_of = {name: number for number, name in enumerate(names)}
    runs: dict[int, list[tuple[int, int]]] = {}
    for member in members:
        number = number_of.get(f"{member.file}@{member.sha256}")
        if member.kind == CHECKPOINT and number is not None:
            runs.setdefault(member.run, []).append((member.iteration, number))
    return [[number for _, number in sorted(found)] for found in runs.values()]
