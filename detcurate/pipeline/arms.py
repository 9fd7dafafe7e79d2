"""The arms, the compared trainings: the images of the pool that each is trained on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from detcurate.io.files import sha256_json
from detcurate.pipeline.context import Run
from detcurate.pipeline.image_similarity import pool_hashes, read_pool_embeddings, vector_inputs
from detcurate.pipeline.pool_columns import boxes_per_class
from detcurate.pipeline.pool_scoring import score_predictions
from detcurate.pipeline.stage import output_digest
from detcurate.pipeline.tables import read_scores, read_selection
from detcurate.predictions.store import open_predictions, read_members
from detcurate.score.scoring import combine_images
from detcurate.select.compose import PoolColumns, select
from detcurate.select.limits import box_budget, image_budget, resolve_budget
from detcurate.structures import ImageScores


@dataclass(frozen=True)
class Pool:
    """A scored pool and its selection, from which the arms choose."""

    run: Run

    @cached_property
    def scores(self) -> ImageScores:
        """The pool's scores."""
        return read_scores(self.run)

    @cached_property
    def rows(self) -> np.ndarray:
        """(I,) int64: the scored images' rows in the annotation file."""
        return self.run.pool.subset_rows(self.scores.image_ids)

    @cached_property
    def curated(self) -> np.ndarray:
        """(K,) int64: the selected images, best first."""
        return read_selection(self.run).image_ids

    @cached_property
    def boxes(self) -> np.ndarray:
        """(I,) int64: the labelled boxes of each image."""
        counts: np.ndarray = self.run.pool.boxes_per_image[self.rows]
        return counts

    @cached_property
    def entropy(self) -> np.ndarray:
        """(I,) float64: the score computed from the entropy of the last member alone."""
        run, settings = self.run, self.run.settings.score
        last = read_members(run.directory("predict"))[-1:]
        with tempfile.TemporaryDirectory() as folder:
            components, _ = score_predictions(
                open_predictions(run.directory("predict"), last),
                run.pool,
                self.scores.image_ids,
                settings=settings,
                shard_size=run.settings.predict.shard_size,
                trajectories=(),
                objects_path=Path(folder) / "objects.parquet",
                num_processes=run.settings.worker_processes,
            )
        weights = {"entropy": 1.0}
        return combine_images(self.scores.image_ids, components, weights=weights).image_score

    def ranked_by(self, values: np.ndarray) -> ImageScores:
        """Return the pool with other scores."""
        return ImageScores(self.scores.image_ids, values.astype(np.float64), {})


def _curated(pool: Pool, seed: int) -> np.ndarray:
    """Return the selection itself."""
    return pool.curated


def _full(pool: Pool, seed: int) -> np.ndarray:
    """Return the whole pool."""
    return pool.scores.image_ids


def _random(pool: Pool, seed: int) -> np.ndarray:
    """Return random images, as many as the selection; each seed draws its own."""
    return select(pool.scores, budget=len(pool.curated), strategy="random", seed=seed).selection.image_ids


def _random_boxes(pool: Pool, seed: int) -> np.ndarray:
    """Return random images with at most as many boxes as the selection; each seed draws its own."""
    selected = np.isin(pool.scores.image_ids, pool.curated)
    budget = box_budget(pool.boxes, num_boxes=int(pool.boxes[selected].sum()))
    return select(pool.scores, budget=budget, strategy="random", seed=seed).selection.image_ids


def _stratified_random(pool: Pool, seed: int) -> np.ndarray:
    """Return random images in the pool's class proportions, as many as the selection; each seed draws its own."""
    columns = PoolColumns(boxes_per_class=boxes_per_class(pool.run)[pool.rows])
    budget = len(pool.curated)
    return select(
        pool.scores, budget=budget, strategy="stratified_random", seed=seed, columns=columns
    ).selection.image_ids


def _most_boxes(pool: Pool, seed: int) -> np.ndarray:
    """Return the images with the most labelled boxes, as many as the selection."""
    return select(pool.ranked_by(pool.boxes), budget=len(pool.curated)).selection.image_ids


def _without_duplicates(pool: Pool, seed: int) -> np.ndarray:
    """Return the whole pool without near-duplicates."""
    embeddings = read_pool_embeddings(pool.run, pool.scores.image_ids)
    hashes = pool_hashes(pool.run, pool.rows) if embeddings is None else None
    return select(
        pool.scores,
        budget=len(pool.scores),
        columns=PoolColumns(embeddings=embeddings, hashes=hashes),
        duplicate_similarity=_duplicate_similarity(pool.run),
    ).selection.image_ids


def _single_model_entropy(pool: Pool, seed: int) -> np.ndarray:
    """Return the images with the highest entropy of the last member, as many as the selection."""
    return select(pool.ranked_by(pool.entropy), budget=len(pool.curated)).selection.image_ids


ARMS: Mapping[str, Callable[[Pool, int], np.ndarray]] = {
    "curated": _curated,
    "random": _random,
    "full": _full,
    "random_boxes": _random_boxes,
    "stratified_random": _stratified_random,
    "most_boxes": _most_boxes,
    "without_duplicates": _without_duplicates,
    "single_model_entropy": _single_model_entropy,
}
"""Name -> function that returns the image ids of an arm for a seed, in any order."""


def trained_arms(pool: Pool) -> list[str]:
    """Return the arms to train: the configured ones, and those of the learning curve.

    A point of the curve with as many images as the arm ``random`` is skipped: it would have the same images.
    """
    settings = pool.run.settings.retrain
    requested = [*settings.arms]
    for arm, fraction in settings.curve_arms.items():
        size = resolve_budget(len(pool.scores), fraction=fraction, count=None)
        if "random" not in settings.arms or size != len(pool.curated):
            requested.append(arm)
    return requested


def arm_images(pool: Pool, arm: str, seed: int) -> np.ndarray:
    """Return the ids of the images that an arm is trained on with a seed, in any order.

    A smaller random subset is part of a larger one with the same seed.
    """
    fraction = pool.run.settings.retrain.curve_arms.get(arm)
    if fraction is None:
        return ARMS[arm](pool, seed)
    budget = image_budget(len(pool.scores), fraction=fraction)
    return select(pool.scores, budget=budget, strategy="random", seed=seed).selection.image_ids


def _duplicate_similarity(run: Run) -> float:
    """Return the similarity of a near-duplicate; that which the stage ``select`` found if the setting is ``auto``."""
    requested = run.settings.select.duplicate_similarity
    if isinstance(requested, str):
        requested = run.stage_metadata("select")["facts"]["duplicate_threshold"]["similarity"]
    return float(requested)


def arm_inputs(run: Run) -> dict[str, str]:
    """Return the digests of the inputs of the arms beside the pool and the manifest."""
    arms, inputs = run.settings.retrain.arms, {}
    if "without_duplicates" in arms:
        similarity = _duplicate_similarity(run)
        inputs["near-duplicates"] = sha256_json({"similarity": similarity, **vector_inputs(run)})
    if "single_model_entropy" in arms:
        inputs |= {name: output_digest(run.stage_metadata(name)) for name in ("predict", "score")}
    return inputs
