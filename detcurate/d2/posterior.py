"""Inference that keeps the whole posterior of every detection, not the winning score alone."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Instances
from torch import nn

_logger = logging.getLogger("detcurate")
_told: set[str] = set()


def predict_posteriors(model: nn.Module, batched_inputs: list[dict[str, Any]], num_classes: int) -> list[Instances]:
    """Run a detector and add ``class_probs`` to what it returns.

    Boxes, scores and classes are those of Detectron2's own inference on the same input, in the same order.

    Args:
        model: A detector in evaluation mode.
        batched_inputs: Detectron2's input dicts.
        num_classes: C.

    Returns:
        One ``Instances`` an image at its original size, with ``pred_boxes``, ``scores``, ``pred_classes`` and
        ``class_probs`` (n, C + 1), background last. For Faster R-CNN the rows are its softmax; for other
        meta-architectures only the top score is known (said once in the log): it stands at its class, the rest at
        the background.
    """
    if _is_faster_rcnn(model):
        return _faster_rcnn(model, batched_inputs)
    name = type(model).__name__
    if name not in _told:
        _told.add(name)
        _logger.warning("the posterior of a %s is not known to detcurate: only its top score is used", name)
    outputs = [output["instances"] for output in model(batched_inputs)]
    for instances in outputs:
        instances.class_probs = _top_score_only(instances, num_classes)
    return outputs


def _is_faster_rcnn(model: nn.Module) -> bool:
    heads = getattr(model, "roi_heads", None)
    return (
        isinstance(model, GeneralizedRCNN)
        and isinstance(heads, StandardROIHeads)
        and type(heads)._forward_box is StandardROIHeads._forward_box
        and type(heads.box_predictor) is FastRCNNOutputLayers
        and not heads.box_predictor.use_sigmoid_ce
    )


def _faster_rcnn(model: GeneralizedRCNN, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
    """Follow ``GeneralizedRCNN.inference``, and gather the softmax rows that its NMS kept."""
    heads = model.roi_heads
    images = model.preprocess_image(batched_inputs)
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    pooled = heads.box_pooler([features[name] for name in heads.box_in_features], [p.proposal_boxes for p in proposals])
    predictions = heads.box_predictor(heads.box_head(pooled))
    results, kept = heads.box_predictor.inference(predictions, proposals)
    rows = heads.box_predictor.predict_probs(predictions, proposals)
    boxes = heads.box_predictor.predict_boxes(predictions, proposals)
    for instances, image_rows, image_boxes, image_kept in zip(results, rows, boxes, kept, strict=True):
        # Detectron2 drops rows that are not finite before it counts, so its indices are into what is left.
        finite = torch.isfinite(image_boxes).all(dim=1) & torch.isfinite(image_rows).all(dim=1)
        instances.class_probs = image_rows[finite][image_kept]
    outputs = GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)
    return [output["instances"] for output in outputs]


def _top_score_only(instances: Instances, num_classes: int) -> torch.Tensor:
    probs = instances.scores.new_zeros(len(instances), num_classes + 1)
    probs.scatter_(1, instances.pred_classes[:, None], instances.scores[:, None])
    probs[:, -1] = 1 - instances.scores
    return probs
