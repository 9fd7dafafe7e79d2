"""Dense mode: the members are compared at every anchor and class, before any threshold or suppression.

Two running sums, of p and of its entropy, are all that is kept: the memory is that of one member's maps.
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
    """What the ensemble says of N images at every anchor and class, one tensor a level of the pyramid.

    Args:
        mean_probs: (N, A_l, C) float32 each, in [0, 1], the mean over members.
        mutual_information: (N, A_l, C) float32 each, in [0, ln 2], nats; higher = more disagreement.
    """

    mean_probs: tuple[torch.Tensor, ...]
    mutual_information: tuple[torch.Tensor, ...]

    def image_scores(self, *, top_k: int = 1, inside: Sequence[torch.Tensor] | None = None) -> np.ndarray:
        """Sum the ``top_k`` highest values of mutual information over anchors and classes; 1 is the maximum.

        0 where all members agree at every anchor. With fewer than ``top_k`` values the sum is of all.

        Args:
            top_k: How many values, at least 1.
            inside: (N, A_l) bool each, from :func:`anchors_inside`; the others count as 0. None takes all.

        Returns:
            (N,) float64, 0 or more, nats; higher = keep first.

        Raises:
            ConfigError: ``top_k`` is below 1.

        Source:
            Haussmann et al. 2020 (arXiv 2004.04699): mutual information at each position, maximum over classes and
            positions; the sum over the highest few [ours] stands between that and a sum over all.
        """
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}; 1 is the maximum")
        highest = [flat.topk(min(top_k, flat.shape[1]), dim=1).values for flat in self._flat(inside)]
        joined = torch.cat(highest, dim=1)
        best = joined.topk(min(top_k, joined.shape[1]), dim=1).values
        scores: np.ndarray = best.double().sum(dim=1).cpu().numpy()
        return scores

    def image_sums(self, *, inside: Sequence[torch.Tensor] | None = None) -> np.ndarray:
        """Sum mutual information over all anchors and classes; 0 where all members agree at every anchor.

        Args:
            inside: As in :meth:`image_scores`.

        Returns:
            (N,) float64, 0 or more, nats; higher = keep first.
        """
        levels = torch.stack([flat.sum(dim=1, dtype=torch.float64) for flat in self._flat(inside)])
        sums: np.ndarray = levels.sum(dim=0).cpu().numpy()
        return sums

    def _flat(self, inside: Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
        """(N, A_l * C) float32 mutual information a level, 0 outside."""
        kept = [
            values if inside is None else values * inside[level][..., None]
            for level, values in enumerate(self.mutual_information)
        ]
        return [values.reshape(len(values), -1) for values in kept]


class DenseAccumulator:
    """Takes the members' answers on the same images one after another, in any order, and keeps two running sums.

    Args:
        num_members: E, at least 2: one member has nobody to disagree with.

    Raises:
        ConfigError: ``num_members`` is below 2.

    Source:
        BALD (Houlsby et al. 2011, arXiv 1112.5745, equation 2) of a Bernoulli variable at each anchor and class,
        H(p̄) − (1/E) Σ_e H(p_e), H(p) = −p ln p − (1 − p) ln(1 − p); the ensemble of Chitta et al. 2019 (arXiv
        1905.12737) and the per-position maps of Haussmann et al. 2020 (arXiv 2004.04699).

    Example:
        >>> accumulator = DenseAccumulator(num_members=2)
        >>> for logit in (-50.0, 50.0):  # one anchor, one class: the members are certain of the contrary
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
        """Add one member's answer, such as the ``logits`` and ``centerness`` of :func:`dense_outputs`.

        Args:
            logits: (N, A_l, C) each level, before the sigmoid.
            centerness: (N, A_l, 1) each level, before the sigmoid, for FCOS: p is its score, the root of the product.

        Raises:
            PredictionError: More answers than members, or an answer of another shape than the first.
        """
        if self._num_seen == self._num_members:
            raise PredictionError(f"the accumulator must be given {self._num_members} members, got one more")
        if self._num_seen == 0:
            self._probs = [torch.zeros_like(level, dtype=torch.float32) for level in logits]
            self._entropies = [torch.zeros_like(level, dtype=torch.float32) for level in logits]
        shapes, expected = ([tuple(level.shape) for level in levels] for levels in (logits, self._probs))
        if shapes != expected:
            raise PredictionError(
                f"members must answer at the same anchors and classes, got {shapes} after {expected}; "
                "an ensemble is of detectors with one config, and sees the same input"
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
            PredictionError: Fewer answers than members were added.
        """
        if self._num_seen != self._num_members:
            raise PredictionError(f"the accumulator must be given {self._num_members} members, got {self._num_seen}")
        means = [total / self._num_members for total in self._probs]
        # It is 0 or more by Jensen's inequality; the difference of two rounded sums need not be.
        information = [
            (_entropy(mean) - total / self._num_members).clamp_(min=0.0)
            for mean, total in zip(means, self._entropies, strict=True)
        ]
        return DenseMaps(tuple(means), tuple(information))


def require_several(num_members: int) -> None:
    """Raise ``ConfigError`` when there are fewer than two members."""
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
    """Tell which anchors have their centre in the image and not in the padding of the batch.

    Args:
        model: One that ``is_dense``.
        images: What its backbone saw, N images.
        features: What its backbone answered.

    Returns:
        (N, A_l) bool a level, in the order of the logits.
    """
    inside = []
    for anchors in model.anchor_generator([features[name] for name in model.head_in_features]):
        x, y = anchors.get_centers().unbind(dim=1)
        inside.append(torch.stack([(x < width) & (y < height) for height, width in images.image_sizes]))
    return inside


def _entropy(probs: torch.Tensor) -> torch.Tensor:
    """Entropy of yes or no, in nats, of float32 probabilities."""
    return torch.special.entr(probs) + torch.special.entr(1 - probs)


_TOP_K = 3  # as top_k_mean over objects

_Found = tuple[dict[int, dict[str, float]], dict[int, np.ndarray]]
"""image_id -> its scores, and image_id -> its embedding."""


def predict_dense(job: PredictionJob, progress: Callable[[int], None], keeper: ModelKeeper | None = None) -> None:
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
    if job.embeddings is not None:  # before the shard, which says that all is there
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
