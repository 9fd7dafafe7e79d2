"""Posteriors of two-stage detectors with a softmax over the classes: Faster R-CNN and Cascade R-CNN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import ImageList, Instances
from torch import nn

from detcurate.errors import PredictionError


def require_finite(
    predictions: Mapping[str, torch.Tensor | Sequence[torch.Tensor]], batched_inputs: Sequence[dict[str, Any]]
) -> None:
    """Raise if a member predicted NaN or infinity on an image.

    Empty input passes. All tensors are checked together, so that a GPU is synchronized once.

    Args:
        predictions: Name -> one tensor of any shape an image, or one tensor with the images as its first axis.
        batched_inputs: Detectron2's input dicts, one an image, with ``image_id``.

    Raises:
        PredictionError: A value is NaN or infinite. Names the first such image by its ``image_id``, or by its position
            in the batch; the caller adds the member.
    """
    checks = [
        torch.isfinite(tensor).all()
        for tensors in predictions.values()
        for tensor in ([tensors] if isinstance(tensors, torch.Tensor) else tensors)
    ]
    if not checks or bool(torch.stack(checks).all()):
        return
    for index, sample in enumerate(batched_inputs):
        for name, tensors in predictions.items():
            broken = int((~torch.isfinite(tensors[index])).sum())
            if broken:
                place = f"image_id {sample['image_id']}" if "image_id" in sample else f"image {index} of the batch"
                raise PredictionError(
                    f"{name}: not finite (got {broken} NaN or infinite values of {tensors[index].numel()}, {place}). "
                    "Exclude the member, train with a lower learning rate, or set CURATE.PREDICT.PRECISION fp32."
                )


def is_two_stage(model: nn.Module) -> bool:
    """Return whether a model is a Faster or Cascade R-CNN with Detectron2's softmax box head unchanged."""
    heads = getattr(model, "roi_heads", None)
    if not isinstance(model, GeneralizedRCNN) or type(model).inference is not GeneralizedRCNN.inference:
        return False
    for known in (CascadeROIHeads, StandardROIHeads):
        if isinstance(heads, known):
            own = all(getattr(type(heads), name) is getattr(known, name) for name in ("forward", "_forward_box"))
            predictor = heads.box_predictor
            predictors = list(predictor) if known is CascadeROIHeads else [predictor]
            return own and all(type(one) is FastRCNNOutputLayers and not one.use_sigmoid_ce for one in predictors)
    return False


def predict_two_stage(
    model: GeneralizedRCNN, batched_inputs: list[dict[str, Any]], images: ImageList, features: dict[str, torch.Tensor]
) -> list[Instances]:
    """Follow ``GeneralizedRCNN.inference``, and gather the rows that its NMS kept; see ``predict_posteriors``."""
    proposals = propose(model, batched_inputs, images, features)
    outputs = box_head_outputs(model, features, proposals, batched_inputs)
    predictor = _last_predictor(model)
    results, kept = fast_rcnn_inference(
        outputs.boxes,
        outputs.scores,
        [one.image_size for one in proposals],
        predictor.test_score_thresh,
        predictor.test_nms_thresh,
        predictor.test_topk_per_image,
    )
    for instances, image_rows, image_kept in zip(results, outputs.class_probs, kept, strict=True):
        # The indices count finite rows; box_head_outputs has checked that all rows are finite.
        instances.class_probs = image_rows[image_kept]
    processed = GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)
    return [output["instances"] for output in processed]


def propose(
    model: GeneralizedRCNN, batched_inputs: list[dict[str, Any]], images: ImageList, features: dict[str, torch.Tensor]
) -> list[Instances]:
    """Return the region proposals of each image, computed or given with the input; raises for NaN."""
    if model.proposal_generator is None:
        return [sample["proposals"].to(model.device) for sample in batched_inputs]
    with _outputs_of(getattr(model.proposal_generator, "rpn_head", None)) as seen:
        proposals, _ = model.proposal_generator(images, features, None)
    for logits, deltas in seen:  # empty if the generator has no RPN head
        for level_logits, level_deltas in zip(logits, deltas, strict=True):
            require_finite({"objectness logits": level_logits, "proposal deltas": level_deltas}, batched_inputs)
    return proposals


@dataclass(frozen=True)
class BoxHeadOutputs:
    """The outputs of a box head for R_n given boxes of N images, lists over the images.

    Args:
        boxes: (R_n, C * 4), or (R_n, 4) for class-agnostic boxes; not clipped.
        scores: (R_n, C + 1), the softmax in the precision of the inference.
        class_probs: (R_n, C + 1), the softmax with the background last; after inference in half precision it is
            computed from the logits in float32, because rows in bfloat16 sum to 1 only within 0.01.
    """

    boxes: list[torch.Tensor]
    scores: list[torch.Tensor]
    class_probs: list[torch.Tensor]


def box_head_outputs(
    model: GeneralizedRCNN,
    features: dict[str, torch.Tensor],
    proposals: list[Instances],
    batched_inputs: list[dict[str, Any]],
) -> BoxHeadOutputs:
    """Run the box head on given boxes, without threshold or NMS.

    Args:
        model: One that ``is_two_stage``.
        features: The output of its backbone for N images.
        proposals: N ``Instances`` with ``proposal_boxes``, in pixels of the network's input.
        batched_inputs: The images' input dicts, for error messages.

    Returns:
        For a cascade, the boxes of the last stage and the mean rows of all stages.

    Raises:
        PredictionError: A value is NaN or infinite.
    """
    heads = model.roi_heads
    pyramid = [features[name] for name in heads.box_in_features]
    if not isinstance(heads, CascadeROIHeads):
        pooled = heads.box_pooler(pyramid, [one.proposal_boxes for one in proposals])
        return _decode(heads.box_predictor, heads.box_predictor(heads.box_head(pooled)), proposals, batched_inputs)
    image_sizes = [one.image_size for one in proposals]
    stages: list[BoxHeadOutputs] = []
    for stage in range(heads.num_cascade_stages):
        if stage > 0:
            proposals = heads._create_proposals_from_boxes(stages[-1].boxes, image_sizes)
        predictions = heads._run_stage(pyramid, proposals, stage)
        stages.append(_decode(heads.box_predictor[stage], predictions, proposals, batched_inputs))
    return BoxHeadOutputs(
        stages[-1].boxes, _average([one.scores for one in stages]), _average([one.class_probs for one in stages])
    )


def _average(rows_per_stage: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Average over stages as Detectron2 does, to the last bit: a sum times 1/n, not a mean."""
    return [sum(list(rows)) * (1.0 / len(rows_per_stage)) for rows in zip(*rows_per_stage, strict=True)]


def _decode(
    predictor: FastRCNNOutputLayers,
    predictions: tuple[torch.Tensor, torch.Tensor],
    proposals: list[Instances],
    batched_inputs: list[dict[str, Any]],
) -> BoxHeadOutputs:
    """Return boxes and rows of each image from one predictor's output, all finite."""
    boxes = list(predictor.predict_boxes(predictions, proposals))
    scores = list(predictor.predict_probs(predictions, proposals))
    logits = predictions[0].split([len(one) for one in proposals])
    require_finite({"class logits": logits, "boxes": boxes}, batched_inputs)
    is_half = predictions[0].dtype in (torch.float16, torch.bfloat16)
    class_probs = [torch.softmax(one.float(), dim=-1) for one in logits] if is_half else scores
    return BoxHeadOutputs(boxes, scores, class_probs)


def _last_predictor(model: GeneralizedRCNN) -> FastRCNNOutputLayers:
    predictor = model.roi_heads.box_predictor
    return predictor[-1] if isinstance(predictor, nn.ModuleList) else predictor


@contextmanager
def _outputs_of(module: nn.Module | None) -> Iterator[list[Any]]:
    """Collect the outputs of a module while the context is open."""
    seen: list[Any] = []
    if module is None:
        yield seen
        return
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
