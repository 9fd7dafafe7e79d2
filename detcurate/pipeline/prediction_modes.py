"""``CURATE.PREDICT.MODE``: what the stage ``predict`` asks beside, or instead of, each member's detections.

The answers about reference boxes are below ``predict/reference``, beside the passes; the rows of the dense mode
are below ``predict/dense``, instead of passes. What another mode has left stays where it is, and is good again when
that mode is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from detcurate.config import CurateSettings, ScoreSettings
from detcurate.errors import ConfigError, PredictionError
from detcurate.io.files import atomic_path, sha256_json
from detcurate.io.storage import Location
from detcurate.pipeline.context import Run
from detcurate.pipeline.object_table import reference_table
from detcurate.pipeline.prediction_jobs import (
    EMBEDDINGS,
    Preparation,
    count_shards,
    make_missing_shards,
    prediction_job,
    predictions_digest,
)
from detcurate.pipeline.training_jobs import training_config
from detcurate.predictions.shards import DENSE_AGGREGATIONS, read_dense, read_references, shard_path
from detcurate.score.aggregate import class_weights, combine
from detcurate.score.measures import LABEL_MEASURES, MEASURES, available_measures
from detcurate.score.reference_boxes import score_references
from detcurate.score.scoring import image_components, score_box_correlation
from detcurate.structures import ImageScores

REFERENCE, DENSE = "reference", "dense"
"""The folders below ``predict/``, by mode."""

Weights = Mapping[str, tuple[Path, str]]
"""A member's name -> its file and digest, in the order of the members' numbers."""

_KEY, _THRESHOLD_KEY = "CURATE.PREDICT.MODE", "CURATE.SCORE.IOU_THRESHOLD"
_DENSE_MEASURE = "mutual_information"

_UNREAD = {
    "cluster": (),
    "reference": ("association", "per_class", "missing", "calibration_images"),
    "dense": ("association", "per_class", "missing", "calibration_images", "top_k", "without_objects"),
}
"""The settings of the scores that have no meaning in a mode."""


def mode_settings(settings: CurateSettings) -> dict[str, Any]:
    """Return the settings of the stage ``predict`` that the mode adds; the default mode leaves no trace."""
    mode = settings.predict.mode
    added: dict[str, Any] = {} if mode == "cluster" else {_KEY: mode}
    if mode == "reference":
        added[_THRESHOLD_KEY] = settings.score.iou_threshold  # it decides which boxes are asked about
    return added


def predicted_mode(run: Run) -> str:
    """Return the mode that the pool was predicted in, whatever the config says by now."""
    return str(run.stage_metadata("predict")["settings"].get(_KEY, "cluster"))


def require_mode(run: Run) -> None:
    """Find what does not go with the mode, before anything is trained or predicted.

    Raises:
        EnsembleError: The config's detector cannot be asked in this mode.
        ConfigError: ``CURATE.SCORE`` asks for what the mode does not give.
    """
    mode = run.settings.predict.mode
    if mode == "cluster":
        return
    from detcurate.d2.infer.modes import require_detector

    require_detector(training_config(run), mode)
    score_settings(run.settings, mode)


def score_settings(settings: CurateSettings, mode: str) -> ScoreSettings:
    """Return the settings that a pool predicted in a mode is scored with: ``CURATE.SCORE``, as far as the mode goes.

    The dense mode has one measure, mutual information. The default measures are cut down to it; others are refused,
    and so are settings that a mode would leave unread.

    Raises:
        ConfigError: The mode does not give the measures or the aggregation asked for.
    """
    requested = settings.score
    for name in _UNREAD[mode]:
        value, default = getattr(requested, name), getattr(ScoreSettings(), name)
        if value != default:
            raise ConfigError(
                f"CURATE.SCORE.{name.upper()} must be {default} with CURATE.PREDICT.MODE {mode}, got {value}: the mode "
                "does not read it; leave it out, or set the mode cluster"
            )
    with_labels = [name for name in requested.measures if name in LABEL_MEASURES]
    if mode == "reference" and with_labels:
        raise ConfigError(
            f"CURATE.SCORE.MEASURES must be among {', '.join(MEASURES)} with CURATE.PREDICT.MODE reference, got "
            f"{', '.join(with_labels)}; what compares detections with labels needs the mode cluster"
        )
    if mode != "dense":
        return requested.model_copy(update={"weights": tuple(requested.measure_weights.values())})
    if requested.aggregation not in DENSE_AGGREGATIONS:
        raise ConfigError(
            f"CURATE.SCORE.AGGREGATION must be one of {', '.join(DENSE_AGGREGATIONS)} with CURATE.PREDICT.MODE dense, "
            f"got {requested.aggregation}; there are no objects to count: it is over anchors and classes"
        )
    if requested.measures not in ((_DENSE_MEASURE,), ScoreSettings().measures):
        raise ConfigError(
            f"CURATE.SCORE.MEASURES must be {_DENSE_MEASURE} alone with CURATE.PREDICT.MODE dense, got "
            f"{', '.join(requested.measures)}; other measures compare boxes, of which it has none: set "
            f"CURATE.SCORE.MEASURES \"('{_DENSE_MEASURE}',)\", or the mode cluster"
        )
    return requested.model_copy(update={"measures": (_DENSE_MEASURE,), "weights": (1.0,)})


def predict_pool_references(run: Run, weights: Weights, preparation: Preparation) -> list[Location]:
    """Ask all members about the reference boxes of the pool, once their passes are there; return the files.

    What a member says of a box depends on all members, for their consensus is among the boxes: another ensemble is
    asked anew, about everything.
    """
    from detcurate.d2.infer.reference import ReferenceJob, predict_references

    image_ids, directory = run.usable_image_ids, run.directory("predict")
    folder, iou_threshold = directory / REFERENCE, run.settings.score.iou_threshold
    depends = {
        "answers": predictions_digest(run, image_ids),
        "members": list(weights),
        "iou_threshold": iou_threshold,
    }
    preparation.folder(folder, sha256_json(depends))
    truth_boxes, truth_bounds = _truth(run, image_ids)

    def wrap(images: Any) -> ReferenceJob:
        first = images.first_shard * images.shard_size
        bounds = truth_bounds[first : first + len(images.image_ids)]
        start, end = bounds[0, 0], bounds[-1, 1]  # of a block, a worker is given its own alone
        return ReferenceJob(images, directory, tuple(weights), truth_boxes[start:end], bounds - start, iou_threshold)

    job = prediction_job(run, "pool", folder, list(weights.values()), image_ids)
    make_missing_shards(run, predict_references, job, desc="ask about boxes", wrap=wrap)
    return [shard_path(folder, number) for number in range(count_shards(run, image_ids))]


def _truth(run: Run, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, 4) float32 labels without crowd regions, and the (I, 2) int64 first and end row of each image's."""
    pool = run.pool
    kept = ~pool.iscrowd
    index, rows = pool.image_index[kept], pool.subset_rows(image_ids)
    bounds = np.column_stack((np.searchsorted(index, rows, "left"), np.searchsorted(index, rows, "right")))
    return pool.boxes[kept].astype(np.float32), bounds


def predict_pool_densely(run: Run, weights: Weights, preparation: Preparation) -> list[Location]:
    """Compare all members at every anchor of every image of the pool; return the files.

    The running sums are over all members, so another ensemble is asked anew.

    Raises:
        ConfigError: There are fewer than two members.
    """
    from detcurate.d2.infer.dense import predict_dense, require_several

    require_several(len(weights))
    image_ids, folder = run.usable_image_ids, run.directory("predict") / DENSE
    preparation.folder(folder, sha256_json({"answers": predictions_digest(run, image_ids), "members": list(weights)}))
    embeddings = folder / EMBEDDINGS if run.settings.predict.embeddings else None
    job = prediction_job(run, "pool", folder, list(weights.values()), image_ids, embeddings)
    make_missing_shards(run, predict_dense, job, desc="compare anchors")
    folders = [folder] + ([embeddings] if embeddings else [])
    return [shard_path(one, number) for one in folders for number in range(count_shards(run, image_ids))]


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
        for one, image_ids in _shards(run, run.directory("predict") / REFERENCE, _read_reference_shard):
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


def _read_reference_shard(path: Location) -> tuple[Any, np.ndarray]:
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
