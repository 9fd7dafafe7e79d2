"""Inference that keeps the full class posterior of every detection, not only the highest score."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.structures import ImageList, Instances
from torch import nn

from detcurate.d2.infer.posteriors.dense_heads import is_dense, predict_dense
from detcurate.d2.infer.posteriors.softmax import is_two_stage, predict_two_stage, require_finite
from detcurate.errors import PredictionError

__all__ = ["posterior_form", "predict_posteriors", "require_finite"]

_logger = logging.getLogger("detcurate")
_warned: set[str] = set()


def posterior_form(model: nn.Module) -> str:
    """Return the ``Detections.posterior_form`` of the output of :func:`predict_posteriors` for a detector.

    ``"sigmoid"`` for RetinaNet and FCOS; ``"softmax"`` for Faster and Cascade R-CNN, and for detectors with a known top
    score only.
    """
    return "sigmoid" if is_dense(model) else "softmax"


def predict_posteriors(
    model: nn.Module,
    batched_inputs: list[dict[str, Any]],
    num_classes: int,
    *,
    images: ImageList | None = None,
    features: dict[str, torch.Tensor] | None = None,
) -> list[Instances]:
    """Run a detector and add ``class_probs`` to its output.

    Boxes, scores and classes are those of Detectron2's own inference on the same input, in the same order. A row of
    ``class_probs`` holds the detection's score at its class; under autocast the row is computed from the logits in
    float32, and the score is Detectron2's rounded one.

    Args:
        model: A detector in evaluation mode.
        batched_inputs: Detectron2's input dicts; errors name ``image_id``.
        num_classes: C.
        images: ``model.preprocess_image(batched_inputs)``, if already computed (of a member with the same
            ``pixel_mean``, ``pixel_std`` and padding). Not changed.
        features: ``model.backbone(images.tensor)``, if already computed. Not changed. A detector with a known top score
            only ignores both.

    Returns:
        One ``Instances`` an image at its original size, with ``pred_boxes``, ``scores``, ``pred_classes`` and
        ``class_probs`` (n, C + 1), background last, in the form of :func:`posterior_form`:

        - Faster R-CNN: the row of its softmax. Cascade R-CNN: the mean of its stages' softmax rows, as it scores.
        - RetinaNet: the anchor's C sigmoids. FCOS: sqrt(sigmoid(class) * sigmoid(centerness)), as it scores. The last
          column is 1 less the maximum.
        - Another meta-architecture: only the top score is known (logged once). The row holds it at its class, and the
          remainder at the background.

    Raises:
        PredictionError: The model is in training mode, or predicts NaN or infinity, which Detectron2 drops without
            a warning.
    """
    if model.training:
        raise PredictionError("model: must be in evaluation mode (got training mode). Call model.eval().")
    for known, predict in ((is_two_stage, predict_two_stage), (is_dense, predict_dense)):
        if known(model):
            images = model.preprocess_image(batched_inputs) if images is None else images
            features = model.backbone(images.tensor) if features is None else features
            return predict(model, batched_inputs, images, features)
    return _predict_top_scores(model, batched_inputs, num_classes)


def _predict_top_scores(model: nn.Module, batched_inputs: list[dict[str, Any]], num_classes: int) -> list[Instances]:
    name = type(model).__name__
    if name not in _warned:
        _warned.add(name)
        _logger.warning(
            "posteriors: only the top scores of %s are used, because its class probabilities are not available", name
        )
    outputs = [output["instances"] for output in model(batched_inputs)]
    for output_name in ("scores", "pred_boxes"):
        columns = [getattr(output.get(output_name), "tensor", output.get(output_name)) for output in outputs]
        require_finite({output_name: columns}, batched_inputs)
    for instances in outputs:
        instances.class_probs = _top_score_only(instances, num_classes)
    return outputs


def _top_score_only(instances: Instances, num_classes: int) -> torch.Tensor:
    scores = instances.scores.float()
    probs = scores.new_zeros(len(instances), num_classes + 1)
    probs.scatter_(1, instances.pred_classes[:, None], scores[:, None])
    probs[:, -1] = 1 - scores
    return probs
