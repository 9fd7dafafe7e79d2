"""Image embeddings from the features that a member has computed anyway: no pass of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.structures import ImageList

from detcurate.errors import ConfigError, PredictionError


def pool_features(
    features: Mapping[str, torch.Tensor],
    images: ImageList,
    *,
    level: str | None = None,
    normalize: bool = False,
) -> np.ndarray:
    """Average a backbone's features over each image, the padding of the batch left out.

    No image gives no row. Equal images give equal rows, up to the rounding of a convolution over another batch.

    Args:
        features: Level -> (B, D_l, H, W), as ``model.backbone`` gives them.
        images: What the backbone saw, B images.
        level: A name in ``features``, such as ``"p5"``; None concatenates the averages of all, in their order.
        normalize: Scale each row to length 1, so that distances are of directions. A row of zeros stays one.

    Returns:
        (B, D) float16, D the channels of the level, or of all together.

    Raises:
        ConfigError: There is no level of the name.
        PredictionError: A value is NaN, infinite, or beyond float16 (65504).
    """
    if level is not None and level not in features:
        raise ConfigError(f"the embedding's level must be one of {', '.join(features)}, got {level!r}")
    chosen = list(features.values()) if level is None else [features[level]]
    rows = torch.cat([_average(maps, images) for maps in chosen], dim=1)
    if normalize:
        rows = torch.nn.functional.normalize(rows, dim=1)
    embeddings: np.ndarray = rows.half().cpu().numpy()
    if not np.isfinite(embeddings).all():
        broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        raise PredictionError(
            f"embeddings must be finite in float16, got NaN, infinity or beyond 65504 in {len(broken)} of "
            f"{len(embeddings)} rows (image {broken[0]} of the batch); normalise them, or leave out the member"
        )
    return embeddings


def _average(maps: torch.Tensor, images: ImageList) -> torch.Tensor:
    """(B, D) float32 means of (B, D, H, W) over the cells that begin inside each image."""
    height, width = maps.shape[-2:]
    padded_height, padded_width = images.tensor.shape[-2:]
    means = [
        # Rounded up: a cell that lies half in the image is the image's, and the smallest image has one.
        one[:, : -(-h * height // padded_height), : -(-w * width // padded_width)].float().mean(dim=(1, 2))
        for one, (h, w) in zip(maps, images.image_sizes, strict=True)
    ]
    return torch.stack(means) if means else maps.new_zeros(0, maps.shape[1])


def embed_images(
    batch: list[dict[str, Any]], images: ImageList, features: dict[str, torch.Tensor]
) -> dict[int, np.ndarray]:
    """Return the embedding of each image of a batch, normalised, by ``image_id``; see :func:`pool_features`."""
    rows = pool_features(features, images, normalize=True)
    return {sample["image_id"]: row for sample, row in zip(batch, rows, strict=True)}
