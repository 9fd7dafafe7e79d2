"""NaN and infinity: Detectron2 drops such rows in silence, so a broken member would look like one that sees nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from detcurate.errors import PredictionError


def require_finite(
    predictions: Mapping[str, torch.Tensor | Sequence[torch.Tensor]], batched_inputs: Sequence[dict[str, Any]]
) -> None:
    """Raise when a member predicted NaN or infinity on an image, and name the image.

    No image and no prediction are fine. All is checked in one go, so that a GPU is waited for once.

    Args:
        predictions: What it is -> one tensor of any shape an image, or one tensor with the images as its first axis.
        batched_inputs: Detectron2's input dicts, one an image, with ``image_id``.

    Raises:
        PredictionError: A value is NaN or infinite; names the first such image by its ``image_id``, or by its place
            in the batch where it has none. Who knows the member adds it.
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
                    f"the predicted {name} must be finite, got {broken} NaN or infinite values of "
                    f"{tensors[index].numel()} ({place}); the member's training has diverged or its precision does "
                    "not suffice: leave it out, train it again with a lower learning rate, or predict in float32"
                )
