"""Inference of the mode ``dense``: mutual information at every anchor and class, before any threshold or NMS.

Only two running sums are kept, of p and of its entropy, so the memory does not grow with the number of members.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList
from torch import nn

from detcurate.d2.infer.cluster import embed_images
from detcurate.d2.infer.models import MemberModels
from detcurate.d2.infer.posteriors.dense_heads import class_scores, dense_outputs, is_dense
from detcurate.d2.infer.worker import (
    Batch,
    ModelKeeper,
    PredictionJob,
    make_shards,
    naming_member,
    predict_in_parts,
    write_shard_embeddings,
)
from detcurate.errors import ConfigError, EnsembleError, PredictionError
from detcurate.predictions.shards import DENSE_AGGREGATIONS, write_dense

__all__ = [
    "DenseAccumulator",
    "DenseMaps",
    "anchors_inside",
    "dense_outputs",
    "is_dense",
    "require_dense",
    "require_several",
]


@dataclass(frozen=True)
class DenseMaps:
    """The ensemble's predictions for N images at every anchor and class, one tensor a level of the pyramid.

    Args:
        mean_probs: (N, A_l, C) float32 each, in [0, 1], the mean over members.
        mutual_information: (N, A_l, C) float32 each, in [0, ln 2], nats; higher = more disagreement.
    """

    mean_probs: tuple[torch.Tensor, ...]
    mutual_information: tuple[torch.Tensor, ...]

    def image_scores(self, *, top_k: int = 1, inside: Sequence[torch.Tensor] | None = None) -> np.ndarray:
        """Sum the ``top_k`` highest values of mutual information over anchors and classes; 1 gives the maximum.

        0 if all members agree at every anchor. With fewer than ``top_k`` values, all are summed.

        Args:
            top_k: Number of values, at least 1.
            inside: (N, A_l) bool each, from :func:`anchors_inside`; other anchors count as 0. None uses all anchors.

        Returns:
            (N,) float64, 0 or more, nats; higher = more informative.

        Raises:
            ConfigError: ``top_k`` is below 1.

        Source:
            Haussmann et al. 2020 (arXiv 2004.04699): mutual information at each position, maximum over classes and
            positions; the sum over the highest few [ours] lies between that and a sum over all.
        """
        if top_k < 1:
            raise ConfigError(f"top_k: must be at least 1 (got {top_k}); 1 gives the maximum.")
        highest = [flat.topk(min(top_k, flat.shape[1]), dim=1).values for flat in self._flat(inside)]
        joined = torch.cat(highest, dim=1)
        best = joined.topk(min(top_k, joined.shape[1]), dim=1).values
        scores: np.ndarray = best.double().sum(dim=1).cpu().numpy()
        return scores

    def image_sums(self, *, inside: Sequence[torch.Tensor] | None = None) -> np.ndarray:
        """Sum mutual information over all anchors and classes; 0 if all members agree at every anchor.

        Args:
            inside: As in :meth:`image_scores`.

        Returns:
            (N,) float64, 0 or more, nats; higher = more informative.
        """
        levels = torch.stack([flat.sum(dim=1, dtype=torch.float64) for flat in self._flat(inside)])
        sums: np.ndarray = levels.sum(dim=0).cpu().numpy()
        return sums

    def _flat(self, inside: Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
        """(N, A_l * C) float32 mutual information a level, 0 outside the images."""
        kept = [
            values if inside is None else values * inside[level][..., None]
            for level, values in enumerate(self.mutual_information)
        ]
        return [values.reshape(len(values), -1) for values in kept]


class DenseAccumulator:
    """Accumulates the members' outputs on the same images, in any order, in two running sums.

    Args:
        num_members: E, at least 2.

    Raises:
        ConfigError: ``num_members`` is below 2.

    Source:
        BALD (Houlsby et al. 2011, arXiv 1112.5745, equation 2) of a Bernoulli variable at each anchor and class,
        H(p̄) − (1/E) Σ_e H(p_e), H(p) = −p ln p − (1 − p) ln(1 − p); the ensemble of Chitta et al. 2019 (arXiv
        1905.12737) and the per-position maps of Haussmann et al. 2020 (arXiv 2004.04699).

    Example:
        >>> accumulator = DenseAccumulator(num_members=2)
        >>> for logit in (-50.0, 50.0):  # one anchor and class: two certain members that contradict each other
        ...     accumulator.update([torch.full((1, 1, 1), logit)])
        >>> accumulator.result().image_scores().round(4).tolist()
        [0.6931]
    """

    def __init__(self, num_members: int) -> None:
        require_several(num_members)
        self._num_members, self._num_seen = num_members, 0
        self._probs: list[torch.Tensor] = []
        self._entropies: list[torch.Tensor] = []

    def update(self, logits: Sequence[torch.Tensor], centerness: Sequence[torch.Tensor] | None = None) -> None:
        """Add one member's outputs, such as ``logits`` and ``centerness`` of :func:`dense_outputs`.

        Args:
            logits: (N, A_l, C) each level, before the sigmoid.
            centerness: (N, A_l, 1) each level, before the sigmoid, for FCOS: p is its score, the root of the product.

        Raises:
            PredictionError: More calls than members, or shapes that differ from the first call's.
        """
        if self._num_seen == self._num_members:
            raise PredictionError(
                f"num_members: the accumulator is complete with {self._num_members} members (got one more)."
            )
        if self._num_seen == 0:
            self._probs = [torch.zeros_like(level, dtype=torch.float32) for level in logits]
            self._entropies = [torch.zeros_like(level, dtype=torch.float32) for level in logits]
        shapes, expected = ([tuple(level.shape) for level in levels] for levels in (logits, self._probs))
        if shapes != expected:
            raise PredictionError(
                f"logits: all members must have the shapes {expected} (got {shapes}). Use members of one config on the "
                "same input."
            )
        for level, values in enumerate(logits):
            probs = class_scores(
                values.detach().float(), None if centerness is None else centerness[level].detach().float()
            )
            self._probs[level] += probs
            self._entropies[level] += _entropy(probs)
        self._num_seen += 1

    def result(self) -> DenseMaps:
        """Return the maps of the whole ensemble.

        Raises:
            PredictionError: Outputs of a member are missing.
        """
        if self._num_seen != self._num_members:
            raise PredictionError(
                f"num_members: the accumulator needs {self._num_members} members (got {self._num_seen})."
            )
        means = [total / self._num_members for total in self._probs]
        # Not negative by Jensen's inequality, but for the rounding of the two sums.
        information = [
            (_entropy(mean) - total / self._num_members).clamp_(min=0.0)
            for mean, total in zip(means, self._entropies, strict=True)
        ]
        return DenseMaps(tuple(means), tuple(information))


def require_several(num_members: int) -> None:
    """Raise ``ConfigError`` if there are fewer than two members."""
    if num_members < 2:
        raise ConfigError(
            f"the mode dense compares members and needs at least 2 (got {num_members}). Train more members."
        )


def require_dense(model: nn.Module) -> None:
    """Raise ``EnsembleError`` unless a model is a RetinaNet or FCOS."""
    if not is_dense(model):
        raise EnsembleError(
            "CURATE.PREDICT.MODE: dense needs a one-stage detector, RetinaNet or FCOS (got "
            f"{type(model).__name__}). Set reference for Faster and Cascade R-CNN, or cluster for any detector."
        )


def anchors_inside(model: DenseDetector, images: ImageList, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return which anchors have their centre inside the image and not in the padding of the batch.

    Args:
        model: One that ``is_dense``.
        images: The input of its backbone, N images.
        features: The output of its backbone.

    Returns:
        (N, A_l) bool a level, in the order of the logits.
    """
    inside = []
    for anchors in model.anchor_generator([features[name] for name in model.head_in_features]):
        x, y = anchors.get_centers().unbind(dim=1)
        inside.append(torch.stack([(x < width) & (y < height) for height, width in images.image_sizes]))
    return inside


def _entropy(probs: torch.Tensor) -> torch.Tensor:
    """Binary entropy in nats of float32 probabilities."""
    return torch.special.entr(probs) + torch.special.entr(1 - probs)


_TOP_K = 3  # as top_k_mean over objects

_Found = tuple[dict[int, dict[str, float]], dict[int, np.ndarray]]
"""image_id -> its scores, and image_id -> its embedding."""


def predict_dense(job: PredictionJob, progress: Callable[[int], None], keeper: ModelKeeper | None = None) -> None:
    """Predict the missing shards that no other process holds a lease on; return when all shards exist.

    A batch needs all members before the next batch begins, so members that do not fit in memory together are loaded
    again for each batch: the memory is that of one batch's maps, whatever the size of shard and ensemble.

    Args:
        job: Members, images and destination of the dense scores.
        progress: Called with the number of images that this process has just predicted.
        keeper: Holds the models between calls.

    Raises:
        ConfigError: There are fewer than two members.
        DatasetError: An image does not decode to the size of its record.
        EnsembleError: A member's file is missing, changed, or does not fit the config; or no RetinaNet or FCOS.
        PredictionError: A prediction is not finite, or the device's memory is too small for one image.
    """
    make_shards(job, functools.partial(_score_shard, job, progress), keeper)


def _score_shard(
    job: PredictionJob, progress: Callable[[int], None], models: MemberModels, number: int, batches: list[Batch]
) -> None:
    require_dense(models.any_model)
    scores: dict[int, dict[str, float]] = {}
    embeddings: dict[int, np.ndarray] = {}
    for batch in batches:
        for found, rows in predict_in_parts(functools.partial(_predict, job, models), batch, job, len(models)):
            scores.update(found)
            embeddings.update(rows)
        progress(len(batch))
    image_ids = job.image_ids[list(job.rows(number))]
    if job.embeddings is not None:  # before the shard, which marks the images as complete
        write_shard_embeddings(job, number, embeddings)
    columns = {
        name: np.array([scores[image_id][name] for image_id in image_ids.tolist()]) for name in DENSE_AGGREGATIONS
    }
    write_dense(job.shards[number], image_ids, columns)


def _predict(job: PredictionJob, models: MemberModels, batch: Batch) -> _Found:
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
