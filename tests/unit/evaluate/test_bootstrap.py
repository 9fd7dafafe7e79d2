import dataclasses
import json
import math

import numpy as np
import pytest

from detcurate.coco.dataset import read_coco
from detcurate.errors import PredictionError
from detcurate.evaluate.bootstrap import image_weights, paired_interval, student_t, weighted_ap, weighted_figures
from detcurate.evaluate.coco_eval import evaluate_coco
from detcurate.structures import Detections


@pytest.fixture
def dataset(tmp_path):
    """Eleven images, two of them empty; three classes, one without a box; a crowd."""
    rng = np.random.default_rng(5)
    images = [{"id": 10 * i, "file_name": f"{i}.png", "width": 500, "height": 500} for i in range(1, 12)]
    annotations = [
        {
            "id": number,
            "image_id": int(rng.integers(1, 10)) * 10,
            "category_id": int(rng.choice([2, 5])),
            "bbox": [*rng.uniform(0, 300, 2).tolist(), *rng.uniform(8, 150, 2).tolist()],
            "iscrowd": int(number % 17 == 0),
            "area": 900.0,
        }
        for number in range(1, 61)
    ]
    categories = [{"id": number, "name": name} for number, name in ((2, "person"), (5, "bike"), (7, "none"))]
    path = tmp_path / "val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_coco(path)


@pytest.fixture
def sized(dataset):
    """The same with areas from small to large."""
    return dataclasses.replace(
        dataset, areas=np.random.default_rng(6).choice([500.0, 2000.0, 30000.0], dataset.num_boxes)
    )


def noisy(dataset, seed, rows=None):
    """Shifted and doubled boxes with coarse scores, so that there are ties."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(dataset.num_boxes, size=int(1.4 * dataset.num_boxes)) if rows is None else rows
    boxes = dataset.boxes[rows] + rng.normal(0, 5, (len(rows), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    n, num_classes = len(rows), len(dataset.class_names)
    return Detections(
        image_ids=dataset.image_ids[dataset.image_index[rows]],
        member=np.zeros(n, np.int32),
        boxes=boxes.astype(np.float32),
        scores=np.round(rng.random(n), 1).astype(np.float32),
        class_index=dataset.class_index[rows].astype(np.int32),
        class_probs=np.full((n, num_classes + 1), 1 / (num_classes + 1), np.float32),
    )


def resampled(dataset, detections, weights, tmp_path):
    """Write the file with each image as often as its weight says, and evaluate that."""
    content = {
        "categories": [
            {"id": int(i), "name": n} for i, n in zip(dataset.category_ids, dataset.class_names, strict=True)
        ]
    }
    images, annotations, parts = [], [], []
    for row, weight in enumerate(weights.tolist()):
        for _ in range(weight):
            image_id = len(images) + 1
            images.append({"id": image_id, "file_name": f"{image_id}.png", "width": 500, "height": 500})
            for a in np.flatnonzero(dataset.image_index == row).tolist():
                x1, y1, x2, y2 = dataset.boxes[a].tolist()
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": int(dataset.category_ids[dataset.class_index[a]]),
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "iscrowd": int(dataset.iscrowd[a]),
                        "area": float(dataset.areas[a]),
                    }
                )
            own = detections.take(detections.image_ids == dataset.image_ids[row])
            parts.append(Detections(**{**vars(own), "image_ids": np.full(len(own), image_id)}))
    path = tmp_path / "resampled.json"
    path.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
    return evaluate_coco(read_coco(path), Detections.concatenate(parts))[0].AP


# Oracle


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_1_equal_pycocotools(dataset, seed):
    figures, table = evaluate_coco(dataset, noisy(dataset, seed))
    assert 5 < figures.AP < 95
    ones = np.ones((1, len(dataset)), np.int64)
    np.testing.assert_allclose(weighted_ap(table, ones), [figures.AP], rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_all_figures_and_classes_equal_pycocotools(sized, seed):
    figures, table = evaluate_coco(sized, noisy(sized, seed))
    found = weighted_figures(table, np.ones((1, len(sized)), np.int64))
    classes = found.pop("per_class")
    assert list(found) == ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    for name, values in found.items():
        assert 1 < getattr(figures, name) < 95
        np.testing.assert_allclose(values, [getattr(figures, name)], rtol=0, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(classes, [list(figures.per_class.values())], rtol=0, atol=1e-9)
    assert np.isnan(classes).sum() == 1


@pytest.mark.parametrize("seed", range(3))
def test_image_drawn_twice_counts_twice(sized, seed):
    """Without ties between images, because the file order would decide them."""
    rng = np.random.default_rng(seed)
    detections = noisy(sized, seed)
    distinct = rng.permutation(len(detections)) / len(detections)
    _, table = evaluate_coco(sized, Detections(**{**vars(detections), "scores": distinct.astype(np.float32)}))
    weights = rng.integers(0, 4, (5, len(sized)))
    for name, part in {"AP": table, **table.by_size}.items():
        expected = [slow_ap(part, row) for row in weights]
        np.testing.assert_allclose(weighted_figures(table, weights)[name], expected, rtol=0, atol=1e-9)


def slow_ap(table, weights):
    """AP with each detection as a step as high as its image's weight, threshold by threshold."""
    parts = []
    for c in range(table.num_labels.shape[1]):
        num_labels = int(weights @ table.num_labels[:, c])
        for matched, ignored in zip(table.is_matched, table.is_ignored, strict=True):
            rows = np.flatnonzero((table.class_index == c) & ~ignored & (weights[table.image_index] > 0))
            if num_labels == 0:
                continue
            steps = weights[table.image_index[rows]]
            true, total = np.cumsum(steps * matched[rows]), np.cumsum(steps)
            precision = np.maximum.accumulate((true / np.maximum(total, 1))[::-1])[::-1]
            at = np.searchsorted(true / num_labels, np.linspace(0, 1, 101), side="left")
            parts.append(np.append(precision, 0)[at].mean())
    return 100 * np.mean(parts) if parts else np.nan


@pytest.mark.parametrize("seed", range(3))
def test_resampled_set_equals_written_file(dataset, seed, tmp_path):
    rng = np.random.default_rng(seed)
    detections = noisy(dataset, seed)
    # No ties between images: which of two equal scores comes first depends on where their images stand in the file.
    distinct = rng.permutation(len(detections)) / len(detections)
    detections = Detections(**{**vars(detections), "scores": distinct.astype(np.float32)})
    _, table = evaluate_coco(dataset, detections)
    weights = image_weights(len(dataset), 3, seed=seed)
    # A detection that stands twice is two steps of the curve there and one step of two here.
    expected = [resampled(dataset, detections, row, tmp_path) for row in weights]
    np.testing.assert_allclose(weighted_ap(table, weights), expected, rtol=0, atol=1.5)


# Arithmetic


def test_weights_by_hand(dataset):
    perfect = noisy(dataset, 0, rows=np.flatnonzero(~dataset.iscrowd))
    perfect = Detections(**{**vars(perfect), "boxes": dataset.boxes[~dataset.iscrowd].astype(np.float32)})
    _, table = evaluate_coco(dataset, perfect)
    weights = np.zeros((3, len(dataset)), np.int64)
    weights[0], weights[1, 0], weights[2, -2:] = 1, 5, 3  # all; the first image five times; the two empty ones
    figures = weighted_ap(table, weights)
    assert figures[:2] == pytest.approx([100, 100])
    assert np.isnan(figures[2])


def test_intervals_by_hand():
    ap = np.full((50, 3), 40.0)
    assert paired_interval(ap + 2, ap) == pytest.approx((2, 2))
    by_seed = ap + np.array([0.0, 3.0, 6.0])  # the mean of three draws of three seeds
    low, high = paired_interval(by_seed, ap)
    assert 0 <= low < 3 < high <= 6
    assert np.isnan(paired_interval(np.full((4, 2), np.nan), np.zeros((4, 2)))).all()


# Properties


def test_image_weights_keep_size_and_repeat_with_seed():
    weights = image_weights(37, 11, seed=4)
    assert (weights.sum(axis=1) == 37).all() and (weights >= 0).all()
    assert weights.tobytes() == image_weights(37, 11, seed=4).tobytes()
    assert weights.tobytes() != image_weights(37, 11, seed=5).tobytes()
    # Blocks do not show: all at once gives the same.
    at_once = np.random.default_rng(4).multinomial(37, np.full(37, 1 / 37), size=230)
    np.testing.assert_array_equal(image_weights(37, 230, seed=4), at_once)


def test_interval_covers_true_value():
    """Arms that differ by 1 AP on average: of 200 experiments of 6 seeds about 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    held = 0
    for number in range(200):
        seeds, images = rng.normal(1, 1, 6), rng.normal(0, 0.5, (400, 6))
        low, high = paired_interval(seeds + images, np.zeros((400, 6)), seed=number)
        held += low <= 1 <= high
    assert 0.85 < held / 200 < 0.99


# Messages


def test_weights_of_another_set_raise(dataset):
    _, table = evaluate_coco(dataset, noisy(dataset, 0))
    with pytest.raises(PredictionError, match=r"weights .*\(B, 11\).*\(2, 9\)"):
        weighted_ap(table, np.ones((2, 9), np.int64))
    with pytest.raises(PredictionError, match=r"replicates and seeds"):
        paired_interval(np.zeros((4, 2)), np.zeros((4, 3)))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_student_t_equals_closed_forms_of_one_two_and_four_degrees(level):
    p = (1 + level) / 2
    alpha = 4 * p * (1 - p)
    q = math.cos(math.acos(math.sqrt(alpha)) / 3) / math.sqrt(alpha)
    assert student_t(1, level=level) == pytest.approx(math.tan(math.pi * (p - 0.5)))
    assert student_t(2, level=level) == pytest.approx(2 * (p - 0.5) * math.sqrt(2 / alpha))
    assert student_t(4, level=level) == pytest.approx(2 * math.sqrt(q - 1))


def test_student_t_falls_to_the_normal_quantile():
    values = [student_t(degrees) for degrees in (1, 2, 5, 30, 31, 500, 10**6)]
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)
    assert values[-1] == pytest.approx(1.959964, abs=1e-5)
