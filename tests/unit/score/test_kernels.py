"""The compiled code is compiled once, whatever arrays it is given."""

import numpy as np
import pytest

from detcurate.score.kernels.association import associate_images
from detcurate.score.kernels.cluster_sums import (
    compare_clusters,
    gather_predictions,
    judge_predictions,
    match_predictions,
)
from detcurate.score.measures import available_measures
from detcurate.score.scoring import score_labelled_objects
from detcurate.structures import Detections, Labels

KERNELS = (associate_images, gather_predictions, match_predictions, judge_predictions, compare_clusters)


def read_only(values):
    values = np.array(values)
    values.flags.writeable = False
    return values


def other_types(values):
    return np.asfortranarray(values.astype({"i": np.int64, "f": np.float64, "b": np.bool_}[values.dtype.kind]))


@pytest.mark.parametrize("change", [np.array, read_only, other_types], ids=["plain", "read-only", "other types"])
@pytest.mark.parametrize("num_boxes", [0, 3])
def test_kernels_compile_one_signature(change, num_boxes):
    boxes = np.tile(np.array([0, 0, 10, 10], np.float32), (num_boxes, 1))
    columns = {
        "image_ids": np.arange(num_boxes),
        "member": np.zeros(num_boxes, np.int32),
        "boxes": boxes,
        "scores": np.full(num_boxes, 0.75, np.float32),
        "class_index": np.zeros(num_boxes, np.int32),
        "class_probs": np.tile(np.array([0.75, 0.0, 0.25], np.float32), (num_boxes, 1)),
    }
    labels = {
        "image_ids": np.arange(num_boxes),
        "annotation_ids": np.arange(num_boxes),
        "boxes": boxes,
        "class_index": np.zeros(num_boxes, np.int64),
        "iscrowd": np.zeros(num_boxes, np.bool_),
    }
    score_labelled_objects(
        Detections(**{name: change(column) for name, column in columns.items()}),
        Labels(**{name: change(column) for name, column in labels.items()}),
        num_members=2,
        measures=available_measures(2),
    )
    assert {kernel.__name__: len(kernel.signatures) for kernel in KERNELS} == {kernel.__name__: 1 for kernel in KERNELS}
