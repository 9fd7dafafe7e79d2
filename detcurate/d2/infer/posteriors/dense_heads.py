"""One-stage detectors with one sigmoid a class: RetinaNet and FCOS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.meta_arch import FCOS, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from detcurate.d2.infer.posteriors.softmax import require_finite

_METHODS = (
    "forward_inference",
    "inference_single_image",
    "_decode_multi_level_predictions",
    "_decode_per_level_predictions",
    "_transpose_dense_predictions",
)


def is_dense(model: nn.Module) -> bool:
    """Return whether a model is a RetinaNet or FCOS with Detectron2's inference unchanged."""
    for known in (RetinaNet, FCOS):
        if isinstance(model, known):
            return all(getattr(type(model), name) is getattr(known, name) for name in (*_METHODS, "forward"))
    return False


@dataclass(frozen=True)
class DenseOutputs:
    """The outputs of a dense head for N images at every anchor, lists over L levels.

    Args:
        logits: (N, A_l, C) each, before the sigmoid.
        deltas: (N, A_l, 4) each.
        centerness: (N, A_l, 1) each, before the sigmoid; None for a head without it.
    """

    logits: list[torch.Tensor]
    deltas: list[torch.Tensor]
    centerness: list[torch.Tensor] | None

    def scores(self, index: int) -> list[torch.Tensor]:
        """Return the (A_l, C) scores of one image a level, as the detector computes them."""
        centerness = self.centerness or [None] * len(self.logits)
        return [
            class_scores(one[index], None if other is None else other[index])
            for one, other in zip(self.logits, centerness, strict=True)
        ]

    def in_float32(self) -> DenseOutputs:
        """Return the outputs in float32, for rows of full precision after inference in half precision."""
        centerness = None if self.centerness is None else [level.float() for level in self.centerness]
        return DenseOutputs([level.float() for level in self.logits], self.deltas, centerness)


def class_scores(logits: torch.Tensor, centerness: torch.Tensor | None) -> torch.Tensor:
    """Return sigmoid(logits), or with centerness sqrt(sigmoid(logits) * sigmoid(centerness)).

    Args:
        logits: (..., C), before the sigmoid.
        centerness: (..., 1), before the sigmoid, or None.

    Returns:
        (..., C) in [0, 1].

    Source:
        FCOS as in Tian et al. 2020 (arXiv 2006.09214), equation 4.
    """
    probs = logits.sigmoid()
    return probs if centerness is None else torch.sqrt(probs * centerness.sigmoid())


def dense_outputs(
    model: DenseDetector, features: dict[str, torch.Tensor], batched_inputs: list[dict[str, Any]]
) -> DenseOutputs:
    """Run the head of a model that ``is_dense`` on its backbone's features; NaN or infinity raises PredictionError."""
    predictions = model.head([features[name] for name in model.head_in_features])
    dims = [model.num_classes, 4, 1][: len(predictions)]
    outputs = model._transpose_dense_predictions(predictions, dims)
    for levels in zip(*outputs, strict=True):
        named = dict(zip(("class logits", "box deltas", "centerness logits"), levels, strict=False))
        require_finite(named, batched_inputs)
    return DenseOutputs(outputs[0], outputs[1], outputs[2] if len(outputs) > 2 else None)


def predict_dense(
    model: DenseDetector, batched_inputs: list[dict[str, Any]], images: ImageList, features: dict[str, torch.Tensor]
) -> list[Instances]:
    """Follow ``DenseDetector.forward``, and gather the rows that its NMS kept; see ``predict_posteriors``."""
    outputs = dense_outputs(model, features, batched_inputs)
    finer = outputs.in_float32()
    anchors = model.anchor_generator([features[name] for name in model.head_in_features])
    results = []
    for index, (sample, image_size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
        deltas = [level[index] for level in outputs.deltas]
        scores = outputs.scores(index)
        rows = finer.scores(index) if scores[0].dtype in (torch.float16, torch.bfloat16) else scores
        instances = _detect(model, anchors, scores, rows, deltas, image_size)
        require_finite({"boxes": [instances.pred_boxes.tensor]}, [sample])
        height, width = sample.get("height", image_size[0]), sample.get("width", image_size[1])
        results.append(detector_postprocess(instances, height, width))
    return results


def _detect(
    model: DenseDetector,
    anchors: list[Boxes],
    scores: list[torch.Tensor],
    rows: list[torch.Tensor],
    deltas: list[torch.Tensor],
    image_size: tuple[int, int],
) -> Instances:
    """Follow ``inference_single_image`` step by step, and keep each candidate's row."""
    candidates, candidate_rows = [], []
    for level_anchors, level_scores, level_rows, level_deltas in zip(anchors, scores, rows, deltas, strict=True):
        above = level_scores > model.test_score_thresh
        places = torch.nonzero(above)  # (K, 2): anchor, class
        best, order = level_scores[above].topk(min(len(places), model.test_topk_candidates))
        anchor, class_index = places[order].unbind(dim=1)
        boxes = model.box2box_transform.apply_deltas(level_deltas[anchor], level_anchors.tensor[anchor])
        candidates.append(Instances(image_size, pred_boxes=Boxes(boxes), scores=best, pred_classes=class_index))
        candidate_rows.append(level_rows[anchor])
    found = Instances.cat(candidates)
    keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, model.test_nms_thresh)
    keep = keep[: model.max_detections_per_image]
    kept_rows = torch.cat(candidate_rows)[keep]
    instances = found[keep]
    instances.class_probs = torch.cat((kept_rows, 1 - kept_rows.amax(dim=1, keepdim=True)), dim=1)
    return instances
