"""The stage ``score``: shard by shard, in worker processes, from the members' answers to two tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detcurate.coco.labels import image_labels
from detcurate.config import ScoreSettings
from detcurate.ensemble import CHECKPOINT, LEDGER, read_ledger
from detcurate.errors import PredictionError
from detcurate.files import atomic_path
from detcurate.parallel import Progress, stream_jobs
from detcurate.passes import Predictions, open_predictions, read_members
from detcurate.pipeline.context import Run
from detcurate.pipeline.object_table import object_schema, object_table
from detcurate.pipeline.tables import read_columns, write_columns
from detcurate.score.aggregate import class_weights
from detcurate.score.measures import LABEL_MEASURES, MEASURES, SINGLE_MEMBER_MEASURES
from detcurate.score.objects import score_labelled_objects
from detcurate.score.pool import combine_images, image_components, score_box_correlation
from detcurate.stages import Stage, StageResult, output_digest
from detcurate.structures import ImageScores, Labels

IMAGES, OBJECTS = "images.parquet", "objects.parquet"
_CROWD_BIAS = 0.7
_BLOCK_IMAGES = 512  # what a worker is given at a time


def score_stage(run: Run) -> Stage:
    """Build the stage ``score``."""
    settings = run.settings.score.model_dump(mode="json")
    inputs = {name: output_digest(run.marker(name)) for name in ("pool", "predict")}
    return Stage("score", run.directory("score"), settings, inputs, lambda: _score(run))


def _score(run: Run) -> StageResult:
    settings, directory = run.settings.score, run.directory("score")
    components = _score_blocks(run)
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
    outputs = [directory / OBJECTS, directory / IMAGES]
    return StageResult(outputs, summary, {"score_box_correlation": correlation, "images_without_objects": empty})


@dataclass(frozen=True)
class _Block:
    """Some shards, and the ground truth of their images."""

    predictions: Predictions
    shards: range
    labels: Labels
    class_names: tuple[str, ...]
    settings: ScoreSettings
    measures: tuple[str, ...]
    trajectories: tuple[tuple[int, ...], ...]
    class_weights: np.ndarray


@dataclass(frozen=True)
class _Scored:
    """A block's rows."""

    image_ids: np.ndarray
    components: dict[str, np.ndarray]
    objects: pa.Table


def _score_blocks(run: Run) -> dict[str, np.ndarray]:
    """Write the objects of all images, block by block, and return the images' components."""
    members = read_members(run.directory("predict"))
    parts: list[dict[str, np.ndarray]] = []
    covered: list[np.ndarray] = []
    measures = _measures(len(members))
    schema = object_schema(run.class_names, measures, len(members))
    blocks = _blocks(run, members, measures)
    with (
        atomic_path(run.directory("score") / OBJECTS) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for block in stream_jobs(
            _score_block,
            blocks,
            num_processes=run.settings.worker_processes,
            total=len(run.usable_image_ids),
            desc="score",
            unit="image",
        ):
            writer.write_table(block.objects)
            covered.append(block.image_ids)
            parts.append(block.components)
    predicted = np.concatenate(covered) if covered else np.zeros(0, np.int64)
    if not np.array_equal(predicted, run.usable_image_ids):
        raise PredictionError(
            f"the predictions must cover the pool's {len(run.usable_image_ids)} images once each, got {len(predicted)} "
            f"({run.directory('predict')}); delete that directory and run the same command again"
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measures(num_members: int) -> tuple[str, ...]:
    """Return all measures that an ensemble of this size can have: they cost little, and the tables keep them."""
    names = (*MEASURES, *LABEL_MEASURES)
    return names if num_members > 1 else tuple(name for name in names if name in SINGLE_MEMBER_MEASURES)


def _blocks(run: Run, members: list[str], measures: tuple[str, ...]) -> Iterator[_Block]:
    predictions = open_predictions(run.directory("predict"), members)
    size = run.settings.predict.shard_size
    step = max(1, _BLOCK_IMAGES // size)
    weights = class_weights(run.pool.class_counts())
    trajectories = _trajectories(run, members)
    for first in range(0, predictions.num_shards, step):
        shards = range(first, min(first + step, predictions.num_shards))
        image_ids = run.usable_image_ids[shards.start * size : shards.stop * size]
        labels = image_labels(run.pool, image_ids)
        yield _Block(predictions, shards, labels, run.class_names, run.settings.score, measures, trajectories, weights)


def _trajectories(run: Run, members: list[str]) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of each run's checkpoints in iteration order; averages of checkpoints are none of them."""
    number_of = {name: number for number, name in enumerate(members)}
    runs: dict[int, list[tuple[int, int]]] = {}
    for member in read_ledger(run.directory("train") / LEDGER):
        number = number_of.get(f"{member.file}@{member.sha256}")
        if member.kind == CHECKPOINT and number is not None:
            runs.setdefault(member.run, []).append((member.iteration, number))
    return tuple(tuple(number for _, number in sorted(found)) for found in runs.values())


def _score_block(block: _Block, progress: Progress) -> _Scored:
    settings, parts = block.settings, []
    for index in block.shards:
        detections, image_ids = block.predictions.read(index)
        labels = block.labels.take(np.isin(block.labels.image_ids, image_ids))
        objects, labelled = score_labelled_objects(
            detections,
            labels,
            num_members=len(block.predictions.members),
            measures=block.measures,
            iou_threshold=settings.iou_threshold,
            association=settings.association,
            per_class=settings.per_class,
            missing=settings.missing,
            trajectories=block.trajectories,
        )
        components = image_components(
            image_ids,
            objects,
            labelled,
            aggregation=settings.aggregation,
            k=settings.top_k,
            class_weights=block.class_weights,
        )
        parts.append((image_ids, components, object_table(objects, labelled, block.class_names, block.measures)))
        progress(len(image_ids))
    return _Scored(
        image_ids=np.concatenate([image_ids for image_ids, _, _ in parts]),
        components={name: np.concatenate([part[name] for _, part, _ in parts]) for name in parts[0][1]},
        objects=pa.concat_tables([table for _, _, table in parts]),
    )


def read_scores(run: Run) -> ImageScores:
    """Read ``scores/images.parquet``."""
    table = read_columns(run.directory("score") / IMAGES)
    components = {name: column for name, column in table.items() if name not in ("image_id", "image_score")}
    return ImageScores(table["image_id"], table["image_score"], components)
