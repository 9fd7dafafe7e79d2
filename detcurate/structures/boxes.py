"""Convert and compare boxes: xywh in COCO files, xyxy in absolute pixels everywhere else."""

from __future__ import annotations

import numpy as np


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Convert (N, 4) boxes from corner and size to two corners, of the same dtype; N may be 0.

    Example:
        >>> xywh_to_xyxy(np.array([[10.0, 20.0, 5.0, 8.0]])).tolist()
        [[10.0, 20.0, 15.0, 28.0]]
    """
    converted = np.array(boxes, copy=True).reshape(-1, 4)
    converted[:, 2:] += converted[:, :2]
    return converted


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Convert (N, 4) boxes from two corners to corner and size, of the same dtype; N may be 0.

    Example:
        >>> xyxy_to_xywh(np.array([[10.0, 20.0, 15.0, 28.0]])).tolist()
        [[10.0, 20.0, 5.0, 8.0]]
    """
    converted = np.array(boxes, copy=True).reshape(-1, 4)
    converted[:, 2:] -= converted[:, :2]
    return converted


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU over the leading axes of two broadcast arrays of boxes."""
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.prod(np.clip(size, 0.0, None), axis=-1)
    union = np.prod(a[..., 2:] - a[..., :2], axis=-1) + np.prod(b[..., 2:] - b[..., :2], axis=-1) - intersection
    iou: np.ndarray = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return iou


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union of every pair of boxes.

    Identical boxes give 1, disjoint ones 0, and a union without area 0, never NaN.

    Args:
        first: (N, 4) xyxy.
        second: (M, 4) xyxy.

    Returns:
        (N, M) float64 in [0, 1].

    Example:
        >>> box_iou(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [0, 0, 2, 2]])).round(3).tolist()
        [[0.333, 1.0]]
    """
    a, b = np.asarray(first, np.float64).reshape(-1, 4), np.asarray(second, np.float64).reshape(-1, 4)
    return _iou(a[:, None], b[None])


def paired_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union of the boxes of each row, with the same limits as :func:`box_iou`.

    Args:
        first: (N, 4) xyxy.
        second: (N, 4) xyxy.

    Returns:
        (N,) float64 in [0, 1].

    Example:
        >>> paired_iou(np.array([[0, 0, 2, 2], [0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [0, 0, 2, 2]])).round(3).tolist()
        [0.333, 1.0]
    """
    return _iou(np.asarray(first, np.float64).reshape(-1, 4), np.asarray(second, np.float64).reshape(-1, 4))
