"""Scores of a pool that was predicted in another mode than ``cluster``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from detcurate.answers import read_dense, read_references
from detcurate.errors import PredictionError
from detcurate.files import atomic_path
from detcurate.pipeline.context import Run
from detcurate.pipeline.modes import DENSE, REFERENCE, score_settings
from detcurate.pipeline.object_table import reference_table
from detcurate.predictions import shard_path
from detcurate.score.aggregate import class_weights
from detcurate.score.combine import combine
from detcurate.score.measures import MEASURES, available_measures
from detcurate.score.pool import image_components, score_box_correlation
from detcurate.score.reference import score_references
from detcurate.storage import Location
from detcurate.structures import ImageScores

Content = TypeVar("Content")


def score_references_of(run: Run, objects_path: Location) -> dict[str, np.ndarray]:
    """Write the pool's reference boxes, an object each with the members' disagreement on it; return the components.

    Raises:
        ConfigError: A measure compares members and there is one member.
        PredictionError: A shard is missing or damaged, or they do not cover the pool.
    """
    settings, names = run.settings.score, run.class_names
    weights = class_weights(run.pool.class_counts())
    parts, writer = [], None
    with atomic_path(objects_path) as temporary:
        for one, image_ids in _shards(run, run.directory("predict") / REFERENCE, _read_answers):
            measures = [name for name in available_measures(one.class_probs.shape[1]) if name in MEASURES]
            objects = score_references(one.image_ids, one.boxes, one.class_probs, measures=measures)
            table = reference_table(objects, one.is_truth, names)
            writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
            writer.write_table(table)
            parts.append(
                image_components(
                    image_ids, objects, aggregation=settings.aggregation, k=settings.top_k, class_weights=weights
                )
            )
        if writer is not None:
            writer.close()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def score_densely(run: Run) -> tuple[ImageScores, str, dict[str, Any]]:
    """Return the images' scores from the dense mode's rows, a line for the terminal, and facts for later stages.

    There are no objects, so the component ``num_objects`` is the number of labelled boxes, crowd regions left out.

    Raises:
        ConfigError: The mode does not give the measures or the aggregation asked for.
        PredictionError: A shard is missing or damaged, or they do not cover the pool.
    """
    settings = score_settings(run.settings, "dense")
    (measure,) = settings.measures
    rows = [scores for scores, _ in _shards(run, run.directory("predict") / DENSE, _read_scores)]
    values = np.concatenate([scores[settings.aggregation] for scores in rows])
    weights = dict(zip(settings.measures, settings.weights, strict=True))
    image_score = combine({measure: values}, weights, normalization=settings.normalization)
    num_boxes = np.bincount(run.pool.image_index[~run.pool.iscrowd], minlength=len(run.pool)).astype(np.int64)
    components = {measure: values, "num_objects": num_boxes[run.pool.subset_rows(run.usable_image_ids)]}
    scores = ImageScores(run.usable_image_ids, image_score, components)
    correlation = score_box_correlation(scores)
    summary = (
        f"{len(scores):,} images by {measure} at every anchor, {settings.aggregation}; "
        f"rank correlation of score and number of labelled boxes {correlation:+.2f}"
    )
    return scores, summary, {"score_box_correlation": correlation}


def _read_answers(path: Location) -> tuple[Any, np.ndarray]:
    return read_references(path)


def _read_scores(path: Location) -> tuple[dict[str, np.ndarray], np.ndarray]:
    image_ids, scores = read_dense(path)
    return scores, image_ids


def _shards(
    run: Run, folder: Location, read: Callable[[Location], tuple[Content, np.ndarray]]
) -> Iterator[tuple[Content, np.ndarray]]:
    """Read the shards of a folder in order; all of the pool's images must be in them, in order, once each."""
    covered = [np.zeros(0, np.int64)]
    with tqdm(total=len(run.usable_image_ids), desc="score", unit="image", dynamic_ncols=True) as bar:
        for number in range(len(list(folder.glob("shard-*.parquet")))):
            content, image_ids = read(shard_path(folder, number))
            covered.append(image_ids)
            bar.update(len(image_ids))
            yield content, image_ids
    if not np.array_equal(np.concatenate(covered), run.usable_image_ids):
        raise PredictionError(
            f"the answers must cover the pool's {len(run.usable_image_ids)} images once each, in order, got "
            f"{sum(map(len, covered))} ({folder}); delete that directory and run the same command again"
        )
