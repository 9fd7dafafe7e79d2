"""The whole path of scoring, from detections and labels to images, against the definitions in plain Python.

Random pools of 5 members, 3 classes, 8 images (two without labels, two without detections) in two shapes of posterior.
"""

import numpy as np
import pytest
from helpers.label_pools import RUNS, detections_of, labels_of, random_pool
from helpers.plain_scoring import (
    associate_slowly,
    label_error,
    match_slowly,
    measure_cluster,
    measure_label,
)
from scipy.stats import rankdata

from detcurate.errors import ConfigError, PredictionError
from detcurate.score.associate import associate
from detcurate.score.label_errors import LABEL_ERRORS
from detcurate.score.measures import LABEL_MEASURES, MEASURES, SINGLE_MEMBER_MEASURES
from detcurate.score.scoring import (
    combine_images,
    image_components,
    score_clusters,
    score_labelled_objects,
    score_objects,
)
from detcurate.structures import Detections, Labels

E = 5
COLUMNS = tuple(Detections.__annotations__)
ALL = (*MEASURES, *LABEL_MEASURES)
POOL = np.array([3, 13, 23, 33, 43, 53, 73, 103])  # 73 has nothing at all, 103 detections only


def pool_of(seed, form="softmax"):
    detections, labels = random_pool(seed, form, num_images=6)
    return detections.take(detections.image_ids != 33), labels


def score(detections, labels, **options: object):
    options = {"num_members": E, "measures": ALL, "trajectories": RUNS, **options}
    return score_labelled_objects(detections, labels, **options)


def score_slowly(detections, labels, iou_threshold, missing):
    """Rows of the clusters and of the labels, as dicts."""
    image_ids, all_votes, boxes = associate_slowly(detections, E, iou_threshold)
    clusters, counted = [], []
    for image_id, votes, box in zip(image_ids, all_votes, boxes, strict=True):
        box = box.astype(np.float32)
        measures, mean = measure_cluster(detections, votes, box, missing)
        with_misses, mean_with_misses = measure_cluster(detections, votes, box)
        agreement = 1 - with_misses["iou_dispersion"]
        counted.append(
            {"image_id": image_id, "box": box, "confidence": max(mean_with_misses[:-1]), "agreement": agreement}
        )
        clusters.append(row_of(detections, image_id, votes, mean, int(np.argmax(mean[:-1])), measures))
    objects = labels.take(~labels.iscrowd)
    votes, overlaps = match_slowly(detections, objects, E, iou_threshold)
    truths, means = [], []
    for j, y in enumerate(objects.class_index):
        measures, mean = measure_label(detections, y, votes[j], overlaps[j], RUNS)
        means.append(mean)
        truths.append(row_of(detections, objects.image_ids[j], votes[j], mean, y, measures))
        truths[-1]["annotation_ids"] = objects.annotation_ids[j]
    label_errors, nearest, _ = label_error(counted, labels, means, iou_threshold)
    for g, cluster in enumerate(clusters):
        cluster["measures"]["missing_label"] = label_errors["missing_label"][g]
        cluster["annotation_ids"] = objects.annotation_ids[nearest[g]] if nearest[g] >= 0 else -1
    for j, truth in enumerate(truths):
        truth["measures"] |= {name: label_errors[name][j] for name in ("wrong_class", "inaccurate_box")}
    return clusters, truths


def row_of(detections, image_id, votes, mean, class_index, measures):
    return {
        "image_ids": image_id,
        "num_fired": sum(row >= 0 for row in votes),
        "class_index": class_index,
        "confidence": mean[class_index],
        "votes": [int(np.argmax(detections.class_probs[row])) if row >= 0 else -1 for row in votes],
        "measures": measures,
    }


def assert_same(scores, rows):
    assert len(scores) == len(rows)
    for name in ("image_ids", "num_fired", "class_index", "annotation_ids", "votes"):
        assert getattr(scores, name).tolist() == [row[name] for row in rows]
    np.testing.assert_allclose(scores.confidence, [row["confidence"] for row in rows], atol=1e-6)
    for name, values in scores.measures.items():
        np.testing.assert_allclose(values, [row["measures"][name] for row in rows], atol=1e-6, err_msg=name)


# Oracle


@pytest.mark.parametrize("missing", ["background", "ignore"])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("seed", "iou_threshold"), [(0, 0.5), (1, 0.4), (2, 0.6)])
def test_scoring_equals_definitions_in_plain_python(seed, iou_threshold, form, missing):
    detections, labels = pool_of(seed, form)
    clusters, truths = score_slowly(detections, labels, iou_threshold, missing)
    objects, labelled = score(detections, labels, iou_threshold=iou_threshold, missing=missing)
    assert set(objects.measures) == {*MEASURES, "missing_label"}
    assert set(labelled.measures) == {*LABEL_MEASURES, "wrong_class", "inaccurate_box"}
    assert_same(objects, clusters)
    assert_same(labelled, truths)

    components = image_components(POOL, objects, labelled, k=2)
    for name in (*ALL, *LABEL_ERRORS):
        rows = clusters if name in objects.measures else truths
        of_image = [sorted((r["measures"][name] for r in rows if r["image_ids"] == i), reverse=True) for i in POOL]
        kept = [values[:1] if name in LABEL_ERRORS else values[:2] for values in of_image]
        expected = [np.mean(values) if values else 0.0 for values in kept]
        np.testing.assert_allclose(components[name], expected, atol=1e-6, err_msg=name)
    weights = {"mutual_information": 2.0, "iou_dispersion": 0.5, "el2n": 1.0, "missing_label": 0.25}
    scores = combine_images(POOL, components, weights=weights)
    ranks = {name: (rankdata(components[name]) - 1) / (len(POOL) - 1) for name in weights}
    expected = sum(weight * ranks[name] for name, weight in weights.items()) / sum(weights.values())
    np.testing.assert_allclose(scores.image_score, expected, atol=1e-12)


def test_overlaps_equal_torchvision():
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    detections, labels = pool_of(3)
    clusters = associate(detections, num_members=E)
    objects = score_clusters(detections, clusters, measures=["iou_dispersion"])
    for g, votes in enumerate(clusters.votes):
        fired = torch.from_numpy(detections.boxes[votes[votes >= 0]]).double()
        overlap = ops.box_iou(fired, torch.from_numpy(clusters.boxes[[g]]).double()).mean().item()
        assert objects.measures["iou_dispersion"][g] == pytest.approx(1 - overlap, abs=1e-9)
    _, labelled = score(detections, labels)
    overlaps = ops.box_iou(torch.from_numpy(labelled.boxes).double(), torch.from_numpy(detections.boxes).double())
    at_half = (overlaps.numpy() >= 0.5) & (labelled.image_ids[:, None] == detections.image_ids)
    assert not labelled.num_fired[~at_half.any(axis=1)].any()


# Properties


def shuffled(detections, seed=0):
    return detections.take(np.random.default_rng(seed).permutation(len(detections)))


@pytest.mark.parametrize("method", ["sequential", "optimal"])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_result_ignores_order_of_rows(form, method):
    detections, labels = pool_of(4, form)
    first, second = (score(rows, labels, association=method) for rows in (detections, shuffled(detections)))
    for expected, got in zip(first, second, strict=True):
        assert got.image_ids.tolist() == expected.image_ids.tolist()
        assert got.votes.tolist() == expected.votes.tolist()
        for name, values in expected.measures.items():
            assert got.measures[name].tobytes() == values.tobytes()


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_images_are_scored_independently(form):
    detections, labels = pool_of(5, form)
    together = score(detections, labels)
    for image_id in (3, 33, 103):
        alone = score(detections.take(detections.image_ids == image_id), labels.take(labels.image_ids == image_id))
        for of_all, of_one in zip(together, alone, strict=True):
            here = of_all.image_ids == image_id
            for name, values in of_one.measures.items():
                assert values.tolist() == of_all.measures[name][here].tolist()
            assert of_one.annotation_ids.tolist() == of_all.annotation_ids[here].tolist()


def test_clusters_with_labels_equal_those_without():
    detections, labels = pool_of(6)
    objects, _ = score(detections, labels, missing="ignore", association="optimal")
    alone = score_objects(detections, num_members=E, measures=tuple(MEASURES), missing="ignore", association="optimal")
    assert alone.boxes.tolist() == objects.boxes.tolist()
    assert (alone.annotation_ids == -1).all()
    for name, values in alone.measures.items():
        assert objects.measures[name].tolist() == values.tolist()


def test_missing_label_is_independent_of_ignored_misses():
    detections, labels = pool_of(7)
    label_errors = [
        score(detections, labels, missing=missing)[0].measures["missing_label"] for missing in ("ignore", "background")
    ]
    assert label_errors[0].tolist() == label_errors[1].tolist()


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_float64_columns_give_results_of_float32(form):
    detections, labels = pool_of(8, form)
    columns = {name: getattr(detections, name) for name in COLUMNS}
    wide = {name: columns[name].astype(np.float64) for name in ("boxes", "scores", "class_probs")}
    got = score(Detections(**{**columns, **wide, "member": detections.member.astype(np.int64)}), labels)
    for expected, scores in zip(score(detections, labels), got, strict=True):
        assert scores.boxes.dtype == np.float32 and scores.class_index.dtype == np.int32
        for name, values in expected.measures.items():
            assert scores.measures[name].dtype == np.float64
            assert scores.measures[name].tolist() == values.tolist()


# Small and empty pools


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("num_classes", [1, 2])
@pytest.mark.parametrize("num_members", [1, 3])
def test_small_ensembles_and_few_classes_are_finite(num_members, num_classes, form):
    detections, labels = random_pool(9, form, num_members=num_members, num_classes=num_classes)
    measures = ALL if num_members > 1 else SINGLE_MEMBER_MEASURES
    objects, labelled = score(detections, labels, num_members=num_members, measures=measures, trajectories=())
    assert objects.votes.shape[1] == labelled.votes.shape[1] == num_members
    for scores in (objects, labelled):
        assert len(scores) > 0
        assert all(np.isfinite(values).all() for values in scores.measures.values())
    assert set(objects.measures) | set(labelled.measures) == {*measures, *LABEL_ERRORS}


@pytest.mark.parametrize("name", [name for name in ALL if name not in SINGLE_MEMBER_MEASURES])
def test_comparing_measure_of_one_member_raises(name):
    detections, labels = random_pool(9, num_members=1)
    with pytest.raises(ConfigError, match=f"CURATE.SCORE.MEASURES: .*entropy, .*got {name}"):
        score(detections, labels, num_members=1, measures=["el2n", name], trajectories=())


def test_pool_without_detections():
    _, labels = pool_of(10)
    objects, labelled = score(Detections.empty(3), labels)
    assert len(objects) == 0 and objects.votes.shape == (0, E)
    assert len(labelled) == (~labels.iscrowd).sum()
    assert (labelled.votes == -1).all() and not labelled.num_fired.any() and not labelled.confidence.any()
    assert (labelled.measures["error_count"] == 1).all()
    assert not labelled.measures["wrong_class"].any() and not labelled.measures["inaccurate_box"].any()
    components = image_components(POOL, objects, labelled)
    assert components["num_objects"].tolist() == [0] * len(POOL)
    assert not components["missing_label"].any() and components["el2n"].max() > 1


def test_pool_without_labels():
    detections, labels = pool_of(11)
    objects, labelled = score(detections, labels.take(np.zeros(0, np.int64)))
    assert len(labelled) == 0 and (objects.annotation_ids == -1).all()
    assert objects.measures["missing_label"].max() > 0.1
    components = image_components(POOL, objects, labelled)
    assert not components["error_count"].any() and not components["num_labels"].any()


def test_empty_pool():
    nothing = Labels(**{name: column[:0] for name, column in vars(labels_of([[0, 0, 1, 1]])).items()})
    objects, labelled = score(Detections.empty(3, "sigmoid"), nothing)
    components = image_components(np.zeros(0, np.int64), objects, labelled)
    assert set(components) == {*ALL, *LABEL_ERRORS, "num_objects", "num_labels"}
    assert all(column.shape == (0,) for column in components.values())
    assert len(combine_images(np.zeros(0, np.int64), components, weights={"el2n": 1.0})) == 0


def test_thin_boxes_are_finite():
    sliver = [[5.0, 5.0, 5.0001, 400.0], [5.0, 5.0, 5.0002, 300.0], [3e7, 0, 3e7 + 4, 2]]
    detections = detections_of([0, 1, 2], sliver, [[0.7, 0.3]] * 3)
    for method in ("sequential", "optimal"):
        objects, labelled = score(detections, labels_of(sliver), num_members=4, trajectories=(), association=method)
        for scores in (objects, labelled):
            assert all(np.isfinite(values).all() for values in scores.measures.values())


def test_boxes_without_size_in_float32_raise():
    thin = np.array([[1e6, 0, 1e6 + 1e-3, 10.0]])  # of 1/1000 px where float32 has steps of 1/16
    columns = {name: getattr(detections_of([0], thin + [0, 0, 1, 0], [[0.7, 0.3]]), name) for name in COLUMNS}
    with pytest.raises(PredictionError, match="Detections.boxes"):
        Detections(**{**columns, "boxes": thin})
