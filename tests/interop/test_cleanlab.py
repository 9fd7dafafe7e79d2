"""ObjectLab as an oracle: for isolated objects, its scores of each box rank the labels as detcurate does.

It scores one detector, so all members agree here; it scores quality, so a lower score is more suspicious.
"""

import numpy as np
import pytest
from helpers.label_pools import detections_of, label_error_scores_of, labels_of
from scipy.stats import rankdata

E, NUM_CLASSES, NUM_OBJECTS = 3, 2, 7


@pytest.fixture(scope="module")
def rank():
    pytest.importorskip("cleanlab", reason="cleanlab is not installed: pip install cleanlab")
    return pytest.importorskip("cleanlab.object_detection.rank", reason="a dependency of cleanlab is missing")


def scene_of(label_boxes, label_class, boxes, class_index, probability):
    """Return one object an image: detections of E members that agree, and cleanlab's input of one of them."""
    n, image_ids = len(boxes), np.arange(len(boxes))
    probs = np.zeros((n, NUM_CLASSES + 1))
    probs[:, -1] = 1 - np.asarray(probability)
    probs[image_ids, class_index] = probability
    detections = detections_of(
        np.repeat(np.arange(E), n), np.tile(boxes, (E, 1)), np.tile(probs, (E, 1)), image_ids=np.tile(image_ids, E)
    )
    labels = labels_of(label_boxes, label_class, image_ids=image_ids)
    predictions = []
    for box, kind, p in zip(boxes, class_index, probability, strict=True):
        rows = np.empty(NUM_CLASSES, dtype=object)
        for k in range(NUM_CLASSES):
            rows[k] = np.array([[*box, p]]) if k == kind else np.zeros((0, 5))
        predictions.append(rows)
    cleanlab_labels = [
        {"bboxes": np.array([box], float), "labels": np.array([kind])}
        for box, kind in zip(label_boxes, label_class, strict=True)
    ]
    return detections, labels, {"labels": cleanlab_labels, "predictions": predictions}


BOXES = np.tile([100.0, 100.0, 140.0, 120.0], (NUM_OBJECTS, 1))
NOTHING = np.zeros(NUM_OBJECTS, int)


def test_inaccurate_box_ranks_as_objectlab(rank):
    shift = np.array([0, 25, 5, 15, 1, 20, 10])[:, None] * [1, 0, 1, 0]
    detections, labels, cleanlab_input = scene_of(BOXES + shift, NOTHING, BOXES, NOTHING, np.full(NUM_OBJECTS, 0.97))
    label_error_score, *_ = label_error_scores_of(detections, labels, num_members=E)
    quality = np.concatenate(rank.compute_badloc_box_scores(**cleanlab_input))
    assert rankdata(label_error_score.inaccurate_box).tolist() == rankdata(-quality.round(9)).tolist()


def test_wrong_class_finds_labels_of_objectlab(rank):
    label_class = np.array([0, 1, 0, 0, 1, 0, 1])
    places = BOXES.copy()
    places[0, 0] += 10  # its scores are clipped at the smallest similarity of the whole data set
    detections, labels, cleanlab_input = scene_of(places, label_class, BOXES, NOTHING, np.full(NUM_OBJECTS, 0.97))
    label_error_score, *_ = label_error_scores_of(detections, labels, num_members=E)
    quality = np.concatenate(rank.compute_swap_box_scores(**cleanlab_input))
    assert (label_error_score.wrong_class > 0.5).tolist() == (label_class == 1).tolist()
    assert (quality < 1).tolist() == (label_class == 1).tolist()


def test_missing_label_ranks_as_objectlab(rank):
    probability = np.array([0.93, 0.99, 0.7, 0.95, 0.91, 0.8, 0.97])
    far = BOXES - 90  # of the other class, because cleanlab ranks by the distance to it
    detections, labels, cleanlab_input = scene_of(far, NOTHING + 1, BOXES, NOTHING, probability)
    label_error_score, *_ = label_error_scores_of(detections, labels, num_members=E)
    quality = np.concatenate(rank.compute_overlooked_box_scores(**cleanlab_input, high_probability_threshold=0.5))
    assert rankdata(label_error_score.missing_label).tolist() == rankdata(-quality.round(9)).tolist()


def test_missing_label_with_touching_box_is_found_unlike_objectlab(rank):
    touching = BOXES + [39, 0, 39, 0]
    detections, labels, cleanlab_input = scene_of(touching, NOTHING, BOXES, NOTHING, np.full(NUM_OBJECTS, 0.97))
    label_error_score, *_ = label_error_scores_of(detections, labels, num_members=E)
    assert np.isnan(np.concatenate(rank.compute_overlooked_box_scores(**cleanlab_input))).all()
    assert (label_error_score.missing_label > 0.9).all()
