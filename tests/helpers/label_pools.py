"""Labels and detections, by hand and at random, for tests of measures with labels."""

import numpy as np

from detcurate.score.associate import associate
from detcurate.score.cluster_statistics import gather_cluster_statistics
from detcurate.score.label_errors import label_error_scores
from detcurate.score.label_measures import gather_label_statistics
from detcurate.structures import Detections, Labels

RUNS = ((0, 1, 2), (4, 3))


def labels_of(boxes, class_index=None, *, image_ids=None, iscrowd=None):
    j = len(boxes)
    return Labels(
        image_ids=np.full(j, 6) if image_ids is None else np.asarray(image_ids, np.int64),
        annotation_ids=np.arange(100, 100 + j),
        boxes=np.asarray(boxes, np.float64).reshape(j, 4),
        class_index=np.zeros(j, np.int64) if class_index is None else np.asarray(class_index, np.int64),
        iscrowd=np.zeros(j, bool) if iscrowd is None else np.asarray(iscrowd, bool),
    )


def detections_of(member, boxes, probs, *, image_ids=None, scores=None, form="softmax"):
    """Of softmax rows ``probs`` has the background, of sigmoid rows it has not."""
    n, probs = len(member), np.asarray(probs, np.float32)
    if form == "sigmoid":
        probs = np.column_stack((probs, 1 - probs.max(axis=1)))
    return Detections(
        image_ids=np.full(n, 6) if image_ids is None else np.asarray(image_ids, np.int64),
        member=np.asarray(member, np.int32),
        boxes=np.asarray(boxes, np.float32).reshape(n, 4),
        scores=probs[:, :-1].max(axis=1) if scores is None else np.asarray(scores, np.float32),
        class_index=probs[:, :-1].argmax(axis=1).astype(np.int32),
        class_probs=probs,
        posterior_form=form,
    )


def random_pool(seed=0, form="softmax", num_images=3, num_members=5, num_classes=3):
    """Crowded images, some of them without labels, some without detections; labels overlap each other too."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.uniform(0, 40, (n, 2))
        return np.concatenate((corner, corner + rng.uniform(8, 30, (n, 2))), axis=1)

    n, j = 35 * num_images, 7 * num_images
    probs = rng.dirichlet(np.full(num_classes + 1, 0.5), n)
    near = rng.integers(0, j, n)
    places = boxes(j)
    shaken = places[near] + rng.normal(0, 1.5, (n, 4))
    image_of = rng.integers(0, num_images, j)
    labels = labels_of(
        places, rng.integers(0, num_classes, j), image_ids=image_of * 10 + 3, iscrowd=rng.random(j) < 0.15
    )
    detections = detections_of(
        rng.integers(0, num_members, n),
        shaken,
        probs if form == "softmax" else probs[:, :-1],
        image_ids=np.where(rng.random(n) < 0.9, labels.image_ids[near], 103),  # and an image without labels
        form=form,
    )
    return detections, labels


def label_error_scores_of(detections, labels, *, num_members=4, iou_threshold=0.5, shuffle=None):
    """Return the label-error scores; ``shuffle`` reorders the clusters."""
    clusters = associate(detections, num_members=num_members, iou_threshold=iou_threshold)
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(len(clusters))
        clusters = type(clusters)(clusters.image_ids[order], clusters.boxes[order], clusters.votes[order])
    predictions = gather_label_statistics(detections, labels, num_members=num_members, iou_threshold=iou_threshold)
    statistics = gather_cluster_statistics(detections, clusters)
    label_error_score = label_error_scores(clusters, statistics, labels, predictions, iou_threshold=iou_threshold)
    return label_error_score, clusters, statistics, predictions
