"""The mode ``dense`` over a pool: one row an image, of running sums over the members before any box is formed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from detcurate.answers import DENSE_AGGREGATIONS, write_dense
from detcurate.d2.dense import DenseAccumulator, DenseMaps, anchors_inside, dense_outputs, require_dense
from detcurate.d2.embeddings import embed_images
from detcurate.d2.members import MemberModels
from detcurate.d2.shards import (
    Batch,
    ModelKeeper,
    PredictionPass,
    ask_in_parts,
    make_shards,
    naming_member,
    write_shard_embeddings,
)

_TOP_K = 3  # as top_k_mean over objects

_Found = tuple[dict[int, dict[str, float]], dict[int, np.ndarray]]
"""image_id -> its scores, and image_id -> its embedding."""


def run_dense_pass(job: PredictionPass, progress: Callable[[int], None], keeper: ModelKeeper | None = None) -> None:
    """Score every shard that is not there yet and that no other process is at; return when all are there.

    The sums of a batch want all members before the next batch, so members that are not in memory together are loaded
    anew for each batch: the memory is that of one batch's maps, whatever the shard and the ensemble.

    Args:
        job: What to score; ``directory`` takes dense scores.
        progress: Called with the number of images that this process has just scored.
        keeper: Of models that outlive this call.

    Raises:
        ConfigError: There are fewer than two members.
        DatasetError: An image does not decode to the size of its record.
        EnsembleError: A member cannot be used, or is no RetinaNet or FCOS.
        PredictionError: A member's answer is not finite, or the device's memory does not suffice for one image.
    """
    make_shards(job, functools.partial(_score_shard, job, progress), keeper)


def _score_shard(
    job: PredictionPass, progress: Callable[[int], None], models: MemberModels, number: int, batches: list[Batch]
) -> None:
    require_dense(models.any_model)
    scores: dict[int, dict[str, float]] = {}
    embeddings: dict[int, np.ndarray] = {}
    for batch in batches:
        for found, rows in ask_in_parts(functools.partial(_ask, job, models), batch, job, len(models)):
            scores.update(found)
            embeddings.update(rows)
        progress(len(batch))
    image_ids = job.image_ids[list(job.rows(number))]
    if job.embeddings is not None:  # before the shard, which says that all is there
        write_shard_embeddings(job, number, embeddings)
    columns = {
        name: np.array([scores[image_id][name] for image_id in image_ids.tolist()]) for name in DENSE_AGGREGATIONS
    }
    write_dense(job.shards[number], image_ids, columns)


def _ask(job: PredictionPass, models: MemberModels, batch: Batch) -> _Found:
    accumulator = DenseAccumulator(len(models))
    embeddings: dict[int, np.ndarray] = {}
    inside: list[Any] | None = None
    with models.inference():
        images = models.preprocess(batch)
        for group in models.groups():
            for number, model in group:
                features = model.backbone(images.tensor)
                with naming_member(job, number):
                    outputs = dense_outputs(model, features, batch)
                    accumulator.update(outputs.logits, outputs.centerness)
                inside = inside or anchors_inside(model, images, features)
                if number == 0 and job.embeddings is not None:
                    embeddings = embed_images(batch, images, features)
        scores = _scores(accumulator.result(), inside)
    rows = {
        sample["image_id"]: {name: float(scores[name][row]) for name in DENSE_AGGREGATIONS}
        for row, sample in enumerate(batch)
    }
    return rows, embeddings


def _scores(maps: DenseMaps, inside: list[Any] | None) -> dict[str, np.ndarray]:
    """Return (N,) float64 for each name in ``DENSE_AGGREGATIONS``."""
    return {
        "max": maps.image_scores(top_k=1, inside=inside),
        "top_k_mean": maps.image_scores(top_k=_TOP_K, inside=inside) / _TOP_K,
        "sum": maps.image_sums(inside=inside),
    }
