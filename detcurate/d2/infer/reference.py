"""Inference of the mode ``reference``: every member's box head on labelled boxes and the ensemble's consensus boxes.

The consensus needs the detections of all members, so this second step reads the shards of the mode ``cluster``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from detcurate.d2.infer.models import MemberModels
from detcurate.d2.infer.posteriors.softmax import box_head_outputs, is_two_stage
from detcurate.d2.infer.worker import (
    Batch,
    Group,
    ModelKeeper,
    PredictionJob,
    make_shards,
    naming_member,
    predict_groups,
)
from detcurate.errors import EnsembleError, PredictionError
from detcurate.io.storage import Location
from detcurate.predictions.shards import References, write_references
from detcurate.predictions.store import Predictions, open_predictions
from detcurate.score.associate import associate
from detcurate.score.reference_boxes import choose_references


@dataclass(frozen=True)
class ReferencePredictions:
    """One member's predictions for the R given boxes of one image, row r for box r.

    Args:
        class_probs: (R, C + 1) float32, softmax rows that sum to 1, background last.
        boxes: (R, 4) float32, xyxy in pixels of the original image and clipped to it: the box that the member predicts
            for the row's most probable class other than background. Empty (x1 = x2 or y1 = y2) if it is outside the
            image.
    """

    class_probs: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def reference_predictions(
    model: nn.Module,
    batched_inputs: list[dict[str, Any]],
    boxes: Sequence[np.ndarray],
    *,
    images: ImageList | None = None,
    features: dict[str, torch.Tensor] | None = None,
) -> list[ReferencePredictions]:
    """Run a member's box head on given boxes, such as the ground truth or the ensemble's consensus.

    Region proposals, score threshold and NMS are not used. For a model's own proposals, the rows equal those of its own
    inference. Zero boxes give zero rows.

    Args:
        model: A Faster or Cascade R-CNN in evaluation mode.
        batched_inputs: Detectron2's input dicts of N images; ``height`` and ``width`` are those of the original image
            (default: of the network's input); errors name ``image_id``.
        boxes: N arrays (R, 4) floating, xyxy in pixels of the original image. They are clipped to it.
        images: ``model.preprocess_image(batched_inputs)``, if already computed. Not changed.
        features: ``model.backbone(images.tensor)``, if already computed. Not changed.

    Returns:
        N records with one row a box. For a cascade the row is the mean of its stages and the box is that of the last.

    Raises:
        EnsembleError: The model has no box head with a softmax.
        PredictionError: The model is in training mode; the boxes are not one (R, 4) array an image, not finite, or
            outside the image; or the member predicts NaN or infinity.

    Source:
        The box head of Fast R-CNN (Girshick 2015, arXiv 1504.08083) on external regions; common boxes for an ensemble
        [ours].
    """
    require_two_stage(model)
    if model.training:
        raise PredictionError("model: must be in evaluation mode (got training mode). Call model.eval().")
    if len(boxes) != len(batched_inputs):
        raise PredictionError(f"boxes: must be one array an image (got {len(boxes)} for {len(batched_inputs)} images).")
    images = model.preprocess_image(batched_inputs) if images is None else images
    features = model.backbone(images.tensor) if features is None else features
    sizes = [
        (sample.get("height", size[0]), sample.get("width", size[1]))
        for sample, size in zip(batched_inputs, images.image_sizes, strict=True)
    ]
    proposals = []
    for sample, one, size, original in zip(batched_inputs, boxes, images.image_sizes, sizes, strict=True):
        clipped = _clip(one, original, str(sample.get("image_id", "not given")))
        instances = Instances(size)
        scaled = torch.from_numpy((clipped * _scales(original, size)).astype(np.float32))
        instances.proposal_boxes = Boxes(scaled.to(images.tensor.device))
        proposals.append(instances)
    outputs = box_head_outputs(model, features, proposals, batched_inputs)
    per_image = zip(outputs.boxes, outputs.class_probs, images.image_sizes, sizes, strict=True)
    return [
        ReferencePredictions(
            class_probs=image_rows.float().cpu().numpy(),
            boxes=_refined_box(image_boxes, image_rows, size, original),
        )
        for image_boxes, image_rows, size, original in per_image
    ]


def require_two_stage(model: nn.Module) -> None:
    """Raise ``EnsembleError`` unless a model has a softmax box head."""
    if not is_two_stage(model):
        raise EnsembleError(
            "CURATE.PREDICT.MODE: reference needs a two-stage detector with a softmax box head (got "
            f"{type(model).__name__}). Set dense for RetinaNet and FCOS, or cluster for any detector."
        )


def _scales(size: tuple[int, int], other: tuple[int, int]) -> np.ndarray:
    """(4,) factors that take xyxy from an image of (height, width) ``size`` to ``other``."""
    return np.tile([other[1] / size[1], other[0] / size[0]], 2)


def _clip(boxes: np.ndarray, size: tuple[int, int], image_id: str) -> np.ndarray:
    """(R, 4) float64 boxes clipped to the image of (height, width) ``size``, none of them empty."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind != "f" or not np.isfinite(boxes).all():
        raise PredictionError(
            f"boxes: must be a finite floating array of shape (R, 4) (got {boxes.dtype} of shape {boxes.shape}, "
            f"image_id {image_id})."
        )
    limits = np.array([size[1], size[0], size[1], size[0]], np.float64)
    clipped: np.ndarray = np.clip(boxes.astype(np.float64), 0.0, limits)
    empty = np.flatnonzero((clipped[:, :2] >= clipped[:, 2:]).any(axis=1))
    if len(empty):
        raise PredictionError(
            f"boxes: must have x1 < x2 and y1 < y2 inside the image of {size[1]}x{size[0]} (got "
            f"{boxes[empty[0]].tolist()}, row {empty[0]}, image_id {image_id}). Exclude such boxes."
        )
    return clipped


def _refined_box(
    boxes: torch.Tensor, rows: torch.Tensor, size: tuple[int, int], original: tuple[int, int]
) -> np.ndarray:
    """(R, 4) float32: from (R, C * 4) or (R, 4) boxes the one of each row's best class, in the original image."""
    num_per_row = boxes.shape[1] // 4  # C, or 1 box for all classes
    best = rows[:, :-1].argmax(dim=1).clamp(max=num_per_row - 1)
    per_class = boxes.reshape(len(boxes), num_per_row, 4)
    chosen = Boxes(per_class[torch.arange(len(boxes), device=boxes.device), best])
    chosen.scale(original[1] / size[1], original[0] / size[0])
    chosen.clip(original)
    refined: np.ndarray = chosen.tensor.float().cpu().numpy()
    return refined


_Boxes = dict[int, tuple[np.ndarray, np.ndarray]]
"""image_id -> (R, 4) float32 boxes and (R,) bool, True for labelled boxes."""

_Predictions = dict[tuple[int, int], ReferencePredictions]
"""image_id and member number -> predictions."""


@dataclass(frozen=True)
class ReferenceJob:
    """All members to run on the reference boxes of images, for one process.

    Args:
        images: Members, images and destination; the shards have the images of the detections' shards.
        predictions: Directory of the prediction sets with the members' detections.
        member_names: The members' names there, in the order of their numbers.
        truth_boxes: (T, 4) float32, xyxy in pixels, the labels of all images without crowd regions, by image.
        truth_bounds: (I, 2) int64, the first and the end row of each image's labels.
        iou_threshold: Of the association, in (0, 1].
    """

    images: PredictionJob
    predictions: Location
    member_names: tuple[str, ...]
    truth_boxes: np.ndarray
    truth_bounds: np.ndarray
    iou_threshold: float

    @property
    def name(self) -> str:
        """The name of these shards in messages."""
        return self.images.name


def predict_references(job: ReferenceJob, progress: Callable[[int], None], keeper: ModelKeeper | None = None) -> None:
    """Predict the missing shards that no other process holds a lease on; return when all shards exist.

    Args:
        job: Members, images, reference boxes and destination.
        progress: Called with the number of images that this process has just predicted.
        keeper: Holds the models between calls.

    Raises:
        DatasetError: An image does not decode to the size of its record.
        EnsembleError: A member's file is missing, changed, or does not fit the config; or it has no softmax box head.
        PredictionError: The detections cannot be read, a prediction is not finite, or the device's memory is too small
            for one image.
    """
    make_shards(job.images, functools.partial(_predict_shard, job, progress), keeper)


def _predict_shard(
    job: ReferenceJob, progress: Callable[[int], None], models: MemberModels, number: int, batches: list[Batch]
) -> None:
    boxes = _boxes_of(job, number)
    predictions: _Predictions = {}
    for found in predict_groups(models, batches, functools.partial(_predict, job, models, boxes), job.images, progress):
        predictions.update(found)
    image_ids = job.images.image_ids[list(job.images.rows(number))]
    write_references(job.images.shards[number], _collect(job, image_ids.tolist(), boxes, predictions), image_ids)


@functools.lru_cache(maxsize=1)
def _opened(directory: Location, member_names: tuple[str, ...]) -> Predictions:
    """Open the detections, which are complete, once for all shards."""
    return open_predictions(directory, member_names)


def _boxes_of(job: ReferenceJob, number: int) -> _Boxes:
    """Return the reference boxes of one shard's images."""
    detections, _ = _opened(job.predictions, job.member_names).read(job.images.first_shard + number)
    clusters = associate(detections, num_members=len(job.member_names), iou_threshold=job.iou_threshold)
    boxes = {}
    for row in job.images.rows(number):
        image_id, (first, end) = int(job.images.image_ids[row]), job.truth_bounds[row]
        of_image = slice(*np.searchsorted(clusters.image_ids, [image_id, image_id + 1]))
        boxes[image_id] = choose_references(
            job.truth_boxes[first:end],
            clusters.boxes[of_image],
            size=(int(job.images.sizes[row, 0]), int(job.images.sizes[row, 1])),
            iou_threshold=job.iou_threshold,
        )
    return boxes


def _predict(job: ReferenceJob, models: MemberModels, boxes: _Boxes, group: Group, batch: Batch) -> _Predictions:
    """Return the predictions of a group of members on a batch; images without a reference box are skipped."""
    batch = [sample for sample in batch if len(boxes[sample["image_id"]][0])]
    if not batch:
        return {}
    given = [boxes[sample["image_id"]][0] for sample in batch]
    predictions: _Predictions = {}
    with models.inference():
        images = models.preprocess(batch)
        for number, model in group:
            with naming_member(job.images, number):
                found = reference_predictions(model, batch, given, images=images)
            predictions.update(((sample["image_id"], number), one) for sample, one in zip(batch, found, strict=True))
    return predictions


def _collect(job: ReferenceJob, image_ids: list[int], boxes: _Boxes, predictions: _Predictions) -> References:
    """Return the predictions as columns, by image in the given order."""
    members, num_columns = range(len(job.images.members)), job.images.num_classes + 1
    with_boxes = [image_id for image_id in image_ids if len(boxes[image_id][0])]

    def stack(name: str, width: int) -> np.ndarray:
        """(R, E, width) float32."""
        parts = [
            np.stack([getattr(predictions[image_id, e], name) for e in members], axis=1) for image_id in with_boxes
        ]
        return np.concatenate([np.zeros((0, len(members), width), np.float32), *parts])

    counts = [len(boxes[image_id][0]) for image_id in with_boxes]
    return References(
        image_ids=np.repeat(np.array(with_boxes, np.int64), counts),
        is_truth=np.concatenate([np.zeros(0, np.bool_), *(boxes[image_id][1] for image_id in with_boxes)]),
        given=np.concatenate([np.zeros((0, 4), np.float32), *(boxes[image_id][0] for image_id in with_boxes)]),
        boxes=stack("boxes", 4),
        class_probs=stack("class_probs", num_columns),
    )
