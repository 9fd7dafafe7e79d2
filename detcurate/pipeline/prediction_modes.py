"""``CURATE.PREDICT.MODE``: how the members' predictions on the pool are made and scored, one class a mode.

=============  ======================================  ==================================================
mode           predictions, below ``predict/``         scored per image
=============  ======================================  ==================================================
``cluster``    ``set-NN/``: detections of each member  clusters of detections
``reference``  the same, and ``reference/``: class     labelled boxes and the ensemble's consensus boxes
               and box of each member for given boxes
``dense``      ``dense/``: disagreement at every       anchors and classes; there are no objects
               anchor and class
=============  ======================================  ==================================================

The predictions of another mode are left in place, and are used again when that mode is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from detcurate.config import CurateSettings, ScoreSettings
from detcurate.ensemble.index import MEMBER_INDEX, read_index
from detcurate.errors import ConfigError, PredictionError
from detcurate.io.files import atomic_path, sha256_json
from detcurate.io.storage import Location
from detcurate.pipeline.context import Run
from detcurate.pipeline.object_table import reference_table
from detcurate.pipeline.pool_scoring import score_predictions, trajectories
from detcurate.pipeline.prediction_jobs import (
    EMBEDDINGS,
    Preparation,
    count_shards,
    make_missing_shards,
    predict_detections,
    prediction_job,
    predictions_digest,
)
from detcurate.pipeline.training_jobs import training_config
from detcurate.predictions.shards import DENSE_AGGREGATIONS, read_dense, read_references, shard_path
from detcurate.predictions.store import open_predictions, read_members
from detcurate.score.aggregate import class_weights, combine
from detcurate.score.measures import LABEL_MEASURES, MEASURES, available_measures
from detcurate.score.reference_boxes import score_references
from detcurate.score.scoring import combine_images, image_components, score_box_correlation, validate_measures
from detcurate.structures import ImageScores

Weights = Mapping[str, tuple[Path, str]]
"""A member's name -> its file and digest, in the order of the members' numbers."""

_KEY, _THRESHOLD_KEY = "CURATE.PREDICT.MODE", "CURATE.SCORE.IOU_THRESHOLD"
_CROWD_BIAS = 0.7


@dataclass(frozen=True)
class PoolScores:
    """The scores of a pool.

    Args:
        images: The images' scores and their components.
        summary: A line for the log.
        facts: Values that later stages read from the stage metadata.
    """

    images: ImageScores
    summary: str
    facts: dict[str, Any]


class PredictionMode(ABC):
    """A way to predict with an ensemble and to score its predictions; see :func:`prediction_mode`."""

    name: ClassVar[str]
    """The value of ``CURATE.PREDICT.MODE``."""

    scored: ClassVar[str]
    """Plural noun of the elements that the score of an image aggregates."""

    has_objects: ClassVar[bool] = True
    """Whether :meth:`score` writes a table of objects."""

    passes: ClassVar[str] = ""
    """Forward passes besides one a member and image, as the plan of a run names them."""

    ignored: ClassVar[tuple[str, ...]] = ()
    """The fields of ``CURATE.SCORE`` that the mode does not read."""

    def settings(self, settings: CurateSettings) -> dict[str, Any]:
        """Return the settings that the mode adds to those of the stage ``predict``; none for the default mode."""
        return {_KEY: self.name}

    def score_settings(self, settings: CurateSettings) -> ScoreSettings:
        """Return ``CURATE.SCORE`` as far as it applies to the mode.

        Raises:
            ConfigError: A measure or an aggregation is not available in the mode, or a setting that the mode does not
                read differs from its default.
        """
        for name in self.ignored:
            value, default = getattr(settings.score, name), getattr(ScoreSettings(), name)
            if value != default:
                raise ConfigError(
                    f"CURATE.SCORE.{name.upper()}: the mode {self.name} does not read it (got {value}, default "
                    f"{default}). Leave it out, or set {_KEY} cluster."
                )
        return settings.score.model_copy(update={"weights": tuple(settings.score.measure_weights.values())})

    def validate(self, run: Run) -> None:
        """Check the detector and ``CURATE.SCORE`` before anything is trained or predicted.

        Raises:
            EnsembleError: The config's detector does not have the head that the mode needs.
            ConfigError: See :meth:`score_settings`.
        """
        self.score_settings(run.settings)

    def validate_members(self, settings: CurateSettings, num_members: int) -> None:
        """Raise ``ConfigError`` if the measures or the mode need more members."""
        measures = self.score_settings(settings).measures
        validate_measures(measures, num_members, known=(*MEASURES, *LABEL_MEASURES))

    @abstractmethod
    def predict(self, run: Run, weights: Weights, preparation: Preparation) -> list[Location]:
        """Make the predictions on the pool that are missing; return the files of all of them.

        Args:
            run: The run.
            weights: The members.
            preparation: Creates the folders of the predictions.
        """

    @abstractmethod
    def score(self, run: Run, objects_path: Location) -> PoolScores:
        """Score the pool from its predictions.

        Args:
            run: The run.
            objects_path: Destination of the table of objects, if the mode has one.

        Raises:
            ConfigError: The measures need more members than there are.
            PredictionError: A shard is missing or damaged, or the shards do not cover the pool.
        """


class ClusterMode(PredictionMode):
    """Detections of all members, associated to clusters; for any detector."""

    name = "cluster"
    scored = "objects"

    def settings(self, settings: CurateSettings) -> dict[str, Any]:
        """Return no setting, so that runs that never named a mode stay up to date."""
        return {}

    def predict(self, run: Run, weights: Weights, preparation: Preparation) -> list[Location]:
        """Predict with the members that have no detections yet."""
        directory, image_ids = run.directory("predict"), run.usable_image_ids
        return predict_detections(run, "pool", directory, weights, image_ids, preparation, desc="predict pool")

    def score(self, run: Run, objects_path: Location) -> PoolScores:
        """Associate the detections, and score clusters and labels."""
        members = self._predicted_members(run)
        components, calibration = score_predictions(
            open_predictions(run.directory("predict"), members),
            run.pool,
            run.usable_image_ids,
            settings=run.settings.score,
            shard_size=run.settings.predict.shard_size,
            trajectories=trajectories(read_index(run.directory("train") / MEMBER_INDEX), members),
            objects_path=objects_path,
            num_processes=run.settings.worker_processes,
            engine=run.engine,
        )
        found = _combine_objects(run, components)
        if calibration is None:
            return found
        before, after = calibration.error_before.mean(), calibration.error_after.mean()
        columns = {name: column.tolist() for name, column in vars(calibration).items()}
        return replace(
            found,
            summary=f"{found.summary}; calibration error {before:.3f} -> {after:.3f}",
            facts={**found.facts, "calibration": columns},
        )

    def _predicted_members(self, run: Run) -> list[str]:
        """Return the names of the members; raises ``ConfigError`` if they are too few for the measures."""
        members = read_members(run.directory("predict"))
        self.validate_members(run.settings, len(members))
        return members


class ReferenceMode(ClusterMode):
    """Class and box of every member for the labelled boxes and the consensus boxes; for two-stage detectors.

    The consensus boxes are clusters of the members' detections, so the predictions of the mode ``cluster`` come first.
    """

    name = "reference"
    scored = "reference boxes"
    passes = ", and as many about given boxes"
    ignored = ("association", "per_class", "missing", "calibration_images")

    def settings(self, settings: CurateSettings) -> dict[str, Any]:
        """Return the mode, and the IoU threshold that determines the consensus boxes."""
        return {_KEY: self.name, _THRESHOLD_KEY: settings.score.iou_threshold}

    def score_settings(self, settings: CurateSettings) -> ScoreSettings:
        """Return ``CURATE.SCORE``; measures that compare detections with labels are not available."""
        found = super().score_settings(settings)
        with_labels = [name for name in found.measures if name in LABEL_MEASURES]
        if with_labels:
            raise ConfigError(
                f"CURATE.SCORE.MEASURES: measures of labels are not available with {_KEY} {self.name} (got "
                f"{', '.join(with_labels)}). Use {', '.join(MEASURES)}, or set {_KEY} cluster."
            )
        return found

    def validate(self, run: Run) -> None:
        """Check that the detector has a softmax box head, and the score settings."""
        from detcurate.d2.checkpoints import model_of
        from detcurate.d2.infer.reference import require_two_stage

        require_two_stage(model_of(training_config(run)))
        super().validate(run)

    def predict(self, run: Run, weights: Weights, preparation: Preparation) -> list[Location]:
        """Predict detections, then class and box of all members for the reference boxes.

        The consensus boxes depend on all members: with another ensemble, all reference boxes are predicted again.
        """
        from detcurate.d2.infer.reference import ReferenceJob, predict_references

        written = super().predict(run, weights, preparation)
        image_ids, directory = run.usable_image_ids, run.directory("predict")
        folder, iou_threshold = directory / self.name, run.settings.score.iou_threshold
        depends = {
            "answers": predictions_digest(run, image_ids),  # the key is part of the digest of existing predictions
            "members": list(weights),
            "iou_threshold": iou_threshold,
        }
        preparation.folder(folder, sha256_json(depends))
        truth_boxes, truth_bounds = _truth(run, image_ids)

        def wrap(images: Any) -> ReferenceJob:
            first = images.first_shard * images.shard_size
            bounds = truth_bounds[first : first + len(images.image_ids)]
            start, end = bounds[0, 0], bounds[-1, 1]  # a worker receives the labels of its own block only
            return ReferenceJob(
                images, directory, tuple(weights), truth_boxes[start:end], bounds - start, iou_threshold
            )

        job = prediction_job(run, "pool", folder, list(weights.values()), image_ids)
        make_missing_shards(run, predict_references, job, desc="predict boxes", wrap=wrap)
        return [*written, *(shard_path(folder, number) for number in range(count_shards(run, image_ids)))]

    def score(self, run: Run, objects_path: Location) -> PoolScores:
        """Score the disagreement on each reference box; write one object a box."""
        self._predicted_members(run)
        settings, names = run.settings.score, run.class_names
        weights = class_weights(run.pool.class_counts())
        parts, writer = [], None
        with atomic_path(objects_path) as temporary:
            for found, image_ids in _shards(run, run.directory("predict") / self.name, read_references):
                measures = [name for name in available_measures(found.class_probs.shape[1]) if name in MEASURES]
                objects = score_references(found.image_ids, found.boxes, found.class_probs, measures=measures)
                table = reference_table(objects, found.is_truth, names)
                writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table)
                parts.append(
                    image_components(
                        image_ids, objects, aggregation=settings.aggregation, k=settings.top_k, class_weights=weights
                    )
                )
            if writer is not None:
                writer.close()
        return _combine_objects(run, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


class DenseMode(PredictionMode):
    """Mutual information of all members at every anchor and class; for RetinaNet and FCOS."""

    name = "dense"
    scored = "anchors and classes"
    has_objects = False
    ignored = ("association", "per_class", "missing", "calibration_images", "top_k", "without_objects")
    measure = "mutual_information"

    def score_settings(self, settings: CurateSettings) -> ScoreSettings:
        """Return ``CURATE.SCORE`` with mutual information as the one measure.

        The default measures are reduced to it; any other choice is an error.
        """
        found = super().score_settings(settings)
        if found.aggregation not in DENSE_AGGREGATIONS:
            raise ConfigError(
                f"CURATE.SCORE.AGGREGATION: not available with {_KEY} {self.name} (got {found.aggregation}). Use "
                f"{', '.join(DENSE_AGGREGATIONS)}: the scores are aggregated over anchors and classes."
            )
        if found.measures not in ((self.measure,), ScoreSettings().measures):
            raise ConfigError(
                f"CURATE.SCORE.MEASURES: {self.measure} is the only measure with {_KEY} {self.name} (got "
                f"{', '.join(found.measures)}). Set CURATE.SCORE.MEASURES \"('{self.measure}',)\", or set {_KEY} "
                "cluster."
            )
        return found.model_copy(update={"measures": (self.measure,), "weights": (1.0,)})

    def validate(self, run: Run) -> None:
        """Check that the detector is a RetinaNet or FCOS, and the score settings."""
        from detcurate.d2.checkpoints import model_of
        from detcurate.d2.infer.dense import require_dense

        require_dense(model_of(training_config(run)))
        super().validate(run)

    def validate_members(self, settings: CurateSettings, num_members: int) -> None:
        """Raise ``ConfigError`` if there are fewer than two members."""
        if num_members < 2:
            raise ConfigError(
                f"{_KEY}: {self.name} compares members and needs at least 2 members (got {num_members}). Train more."
            )

    def predict(self, run: Run, weights: Weights, preparation: Preparation) -> list[Location]:
        """Compare the members at every anchor of every image.

        The running sums are over all members: with another ensemble, all images are predicted again.
        """
        from detcurate.d2.infer.dense import predict_dense

        self.validate_members(run.settings, len(weights))
        image_ids, folder = run.usable_image_ids, run.directory("predict") / self.name
        depends = {"answers": predictions_digest(run, image_ids), "members": list(weights)}
        preparation.folder(folder, sha256_json(depends))
        embeddings = folder / EMBEDDINGS if run.settings.predict.embeddings else None
        job = prediction_job(run, "pool", folder, list(weights.values()), image_ids, embeddings)
        make_missing_shards(run, predict_dense, job, desc="compare anchors")
        folders = [folder, *([embeddings] if embeddings else [])]
        return [shard_path(one, number) for one in folders for number in range(count_shards(run, image_ids))]

    def score(self, run: Run, objects_path: Location) -> PoolScores:
        """Read the images' mutual information; the component ``num_objects`` counts labels without crowd regions."""
        settings = self.score_settings(run.settings)
        rows = [scores for scores, _ in _shards(run, run.directory("predict") / self.name, _read_dense_scores)]
        values = np.concatenate([scores[settings.aggregation] for scores in rows])
        weights = dict(zip(settings.measures, settings.weights, strict=True))
        image_score = combine({self.measure: values}, weights, normalization=settings.normalization)
        num_boxes = np.bincount(run.pool.image_index[~run.pool.iscrowd], minlength=len(run.pool)).astype(np.int64)
        components = {self.measure: values, "num_objects": num_boxes[run.pool.subset_rows(run.usable_image_ids)]}
        scores = ImageScores(run.usable_image_ids, image_score, components)
        correlation = score_box_correlation(scores)
        summary = (
            f"{len(scores):,} images by {self.measure} at every anchor, {settings.aggregation}; "
            f"rank correlation of score and number of labelled boxes {correlation:+.2f}"
        )
        return PoolScores(scores, summary, {"score_box_correlation": correlation})


MODES: Mapping[str, PredictionMode] = {mode.name: mode for mode in (ClusterMode(), ReferenceMode(), DenseMode())}


def prediction_mode(settings: CurateSettings) -> PredictionMode:
    """Return the mode that the config names."""
    return MODES[settings.predict.mode]


def predicted_mode(run: Run) -> PredictionMode:
    """Return the mode that the pool was predicted in, whatever the config names now."""
    return MODES[run.stage_metadata("predict")["settings"].get(_KEY, ClusterMode.name)]


def _truth(run: Run, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, 4) float32 labels without crowd regions, and the (I, 2) int64 first and end row of each image's."""
    pool = run.pool
    kept = ~pool.iscrowd
    index, rows = pool.image_index[kept], pool.subset_rows(image_ids)
    bounds = np.column_stack((np.searchsorted(index, rows, "left"), np.searchsorted(index, rows, "right")))
    return pool.boxes[kept].astype(np.float32), bounds


def _combine_objects(run: Run, components: Mapping[str, np.ndarray]) -> PoolScores:
    """Return the weighted score of each image, and a summary that warns of a bias to crowded images."""
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
        summary += ": the score favours crowded images, consider CURATE.SCORE.AGGREGATION mean"
    return PoolScores(scores, summary, {"score_box_correlation": correlation, "images_without_objects": empty})


def _read_dense_scores(path: Location) -> tuple[dict[str, np.ndarray], np.ndarray]:
    image_ids, scores = read_dense(path)
    return scores, image_ids


Content = TypeVar("Content")


def _shards(
    run: Run, folder: Location, read: Callable[[Location], tuple[Content, np.ndarray]]
) -> Iterator[tuple[Content, np.ndarray]]:
    """Read the shards of a folder in order; together they must hold each image of the pool once, in order."""
    covered = [np.zeros(0, np.int64)]
    with tqdm(total=len(run.usable_image_ids), desc="score", unit="image", dynamic_ncols=True) as bar:
        for number in range(len(list(folder.glob("shard-*.parquet")))):
            content, image_ids = read(shard_path(folder, number))
            covered.append(image_ids)
            bar.update(len(image_ids))
            yield content, image_ids
    if not np.array_equal(np.concatenate(covered), run.usable_image_ids):
        raise PredictionError(
            f"{folder}: the predictions must cover each of the pool's {len(run.usable_image_ids)} images once, in "
            f"order (got {sum(map(len, covered))} images). Delete that directory and run the same command again."
        )
