"""COCO figures: by hand, against pycocotools on the same file, and on the files it trips over."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detcurate.coco.dataset import read_coco
from detcurate.errors import PredictionError
from detcurate.evaluate.coco_eval import FIGURES, CocoFigures, evaluate_coco
from detcurate.manifest.write import subset_bytes
from detcurate.structures import Detections


def coco_figures(dataset, detections):
    return evaluate_coco(dataset, detections)[0]


def coco(annotations, *, num_images=3, categories=((2, "person"), (5, "bike"))):
    return {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 480} for number in range(num_images)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


def boxes_of_three_sizes():
    """5 annotations on 3 images and 2 classes; none has an id, ``iscrowd`` or ``area``."""
    rows = [(0, 2, 20), (0, 5, 50), (1, 2, 120), (2, 5, 25), (2, 2, 60)]
    return [
        {"image_id": image, "category_id": category, "bbox": [10, 20, size, size]} for image, category, size in rows
    ]


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "val.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return read_coco(path)

    return read


def detect(dataset, rows=None, scores=0.9, boxes=None):
    """The annotations themselves as detections, or those of them that ``rows`` names."""
    rows = np.arange(dataset.num_boxes) if rows is None else np.asarray(rows)
    num_classes = len(dataset.class_names)
    index = dataset.class_index[rows]
    return Detections(
        image_ids=dataset.image_ids[dataset.image_index[rows]],
        member=np.zeros(len(rows), np.int32),
        boxes=(dataset.boxes[rows] if boxes is None else np.asarray(boxes)).astype(np.float32).reshape(-1, 4),
        scores=np.broadcast_to(np.asarray(scores, np.float32), len(rows)).copy(),
        class_index=index.astype(np.int32),
        class_probs=np.eye(num_classes + 1, dtype=np.float32)[index],
    )


def _as_is(records):
    return records


def _numbered_from_zero(records):
    return [{**record, "id": number} for number, record in enumerate(records)]


def _all_with_id_seven(records):
    return [{**record, "id": 7} for record in records]


def _complete(records):
    return [
        {**record, "id": number, "iscrowd": 0, "area": 1.0 * record["bbox"][2] ** 2}
        for number, record in enumerate(records, 1)
    ]


def _with_a_crowd(records):
    crowd = {"image_id": 1, "category_id": 5, "bbox": [200, 200, 99, 98], "iscrowd": 1, "id": 0}
    return [*records, crowd]


@pytest.mark.parametrize("change", [_as_is, _numbered_from_zero, _all_with_id_seven, _complete, _with_a_crowd])
@pytest.mark.parametrize("categories", [((2, "person"), (5, "bike")), ((0, "gap"), (2, "person"), (5, "b"), (90, "x"))])
def test_perfect_detections_give_100_and_none_give_0(read, change, categories):
    dataset = read(coco(change(boxes_of_three_sizes()), categories=categories))
    perfect = coco_figures(dataset, detect(dataset))
    nothing = coco_figures(dataset, Detections.empty(len(categories)))
    for name in FIGURES:
        assert getattr(perfect, name) == pytest.approx(100.0), name
        assert getattr(nothing, name) == 0.0, name
    with_truth = {name for number, name in categories if number in (2, 5)}
    for name, value in perfect.per_class.items():
        assert value == pytest.approx(100.0) if name in with_truth else math.isnan(value)
    assert (perfect.num_images, perfect.num_boxes) == (3, dataset.num_boxes)


def _with_text_ids(content):
    """Image ids become texts, one of which is written like a number; categories and annotations have texts too."""
    names = {0: "zero", 1: "a/1", 2: "2", 5: "b", 90: "c"}
    for image in content["images"]:
        image["id"] = names[image["id"]]
    for category in content["categories"]:
        category["id"] = names[category["id"]]
    for number, record in enumerate(content["annotations"]):
        image, category = names[record["image_id"]], names[record["category_id"]]
        record.update(id=f"x{number}", image_id=image, category_id=category)
    content["annotations"][3]["image_id"] = 2  # the file itself says "2"


def _with_large_ids(content):
    for record in (*content["images"], *content["annotations"]):
        key = "image_id" if "bbox" in record else "id"
        record[key] += 2**62
    for number, record in enumerate(content["annotations"]):
        record["id"] = 2**63 - 1 - number


def _in_another_order(content):
    for records in content.values():
        records.reverse()


def _with_negative_and_null_ids(content):
    for number, record in enumerate(content["annotations"]):
        record["id"] = (None, -1, 0, -1, None)[number]
        record.update(iscrowd=None, area=None)


@pytest.mark.parametrize("change", [_with_text_ids, _with_large_ids, _in_another_order, _with_negative_and_null_ids])
def test_perfect_detections_give_100_for_any_ids(read, change):
    content = coco(boxes_of_three_sizes())
    change(content)
    dataset = read(content)
    assert (len(dataset), dataset.num_boxes) == (3, 5)
    perfect, nothing = coco_figures(dataset, detect(dataset)), coco_figures(dataset, Detections.empty(2))
    for name in FIGURES:
        assert getattr(perfect, name) == pytest.approx(100.0), name
        assert getattr(nothing, name) == 0.0, name
    assert perfect.per_class == pytest.approx({"person": 100.0, "bike": 100.0})


@pytest.mark.parametrize("change", [_as_is, _numbered_from_zero, _all_with_id_seven, _with_a_crowd])
def test_repaired_file_evaluates_in_pycocotools(read, tmp_path, change):
    """Which by itself takes id 0 for no match, joins records of one id, and fails on missing fields."""
    path = tmp_path / "val.json"
    read(coco(change(boxes_of_three_sizes())))
    codes = ("annotation_id_zero", "duplicate_annotation_id", "missing_id", "missing_iscrowd", "missing_area")
    dataset = read_coco(path, dict.fromkeys(codes, "repair"))
    path.write_bytes(subset_bytes(dataset, dataset.image_ids))
    again = read_coco(path)
    assert not {finding.code for finding in again.findings} & set(codes)
    np.testing.assert_allclose(reference(path, again, detect(again)), 100.0)


def test_average_precision_by_hand(read):
    """One of two persons found, at IoU .6: precision 1 up to recall .5, which is 51 of 101 points, at 3 thresholds."""
    records = [{"image_id": 0, "category_id": 2, "bbox": [left, 0, 40, 40]} for left in (0, 100)]
    dataset = read(coco(records))
    figures = coco_figures(dataset, detect(dataset, rows=[0], boxes=[0, 0, 40, 24.1]))
    assert figures.AP50 == pytest.approx(100 * 51 / 101)
    assert figures.AP75 == 0
    assert figures.AP == pytest.approx(100 * 51 / 101 * 3 / 10)
    assert figures.AP_medium == pytest.approx(figures.AP)
    assert math.isnan(figures.AP_small)
    assert math.isnan(figures.AP_large)
    assert figures.per_class["person"] == pytest.approx(figures.AP)
    assert math.isnan(figures.per_class["bike"])


def test_false_positive_above_true_one_halves_precision(read):
    dataset = read(coco([{"image_id": 2, "category_id": 5, "bbox": [0, 0, 40, 40]}]))
    detections = detect(dataset, rows=[0, 0], scores=[0.3, 0.8], boxes=[[0, 0, 40, 40], [300, 300, 340, 340]])
    assert coco_figures(dataset, detections).AP == pytest.approx(50.0)


def test_object_size_is_its_area_field(read):
    records = [{"image_id": 0, "category_id": 2, "bbox": [0, 0, 100, 100], "area": 900.0}]
    figures = coco_figures(read(coco(records)), detect(read(coco(records))))
    assert figures.AP_small == pytest.approx(100.0)
    assert math.isnan(figures.AP_large)


def test_set_without_boxes_has_no_figures(read):
    figures = coco_figures(read(coco([])), Detections.empty(2))
    assert all(math.isnan(getattr(figures, name)) for name in FIGURES)
    assert figures.to_dict() == {
        **dict.fromkeys(FIGURES),
        "per_class": {"person": None, "bike": None},
        "num_images": 3,
        "num_boxes": 0,
    }


def test_member_is_ignored_and_nothing_is_printed(read, capfd):
    dataset = read(coco(boxes_of_three_sizes()))
    detections = detect(dataset)
    other = Detections(**{**vars(detections), "member": np.arange(5, dtype=np.int32)})
    assert coco_figures(dataset, detections) == coco_figures(dataset, other)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_figures_survive_json(read):
    dataset = read(coco(boxes_of_three_sizes()[:4]))
    figures = coco_figures(dataset, detect(dataset, rows=[0, 2]))
    text = json.dumps(figures.to_dict(), allow_nan=False)
    assert CocoFigures.from_dict(json.loads(text)).to_dict() == figures.to_dict()


def test_detections_of_another_set_raise(read):
    dataset = read(coco(boxes_of_three_sizes()))
    detections = detect(dataset)
    stray = Detections(**{**vars(detections), "image_ids": detections.image_ids + 1})
    with pytest.raises(PredictionError, match=r"val.json: .*image_id 3; 1 unknown"):
        coco_figures(dataset, stray)
    with pytest.raises(PredictionError, match=r"val.json: .*2 classes.*got a model with 4\)"):
        coco_figures(dataset, Detections.empty(4))


def test_detection_on_unknown_image_raises(read):
    """Text ids have numbers of our own inside; the number of no image is as unknown as ever."""
    content = coco(boxes_of_three_sizes())
    _with_text_ids(content)
    dataset = read(content)
    assert dataset.image_ids.tolist() == [1, 2, 3]
    stray = Detections(**{**vars(detect(dataset)), "image_ids": np.array([1, 2, 3, 3, 0])})
    with pytest.raises(PredictionError, match=r"val.json: .*image_id 0; 1 unknown"):
        coco_figures(dataset, stray)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_score_not_finite_raises(read, score):
    dataset = read(coco(boxes_of_three_sizes()))
    with pytest.raises(PredictionError, match="Detections.scores"):
        detect(dataset, scores=[0.9, 0.8, score, 0.6, 0.5])


def reference(path, dataset, detections):
    """The figures of pycocotools as everyone calls it: from the file, with the file's own ids."""
    results = [
        {
            "image_id": int(image),
            "category_id": int(dataset.category_ids[index]),
            "bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)],
            "score": float(score),
        }
        for image, index, (x1, y1, x2, y2), score in zip(
            detections.image_ids, detections.class_index, detections.boxes, detections.scores, strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return 100 * evaluator.stats[:6]


def noisy(dataset, seed):
    """Shifted, doubled, mislabelled and missing detections."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(dataset.num_boxes, size=int(1.3 * dataset.num_boxes))
    boxes = dataset.boxes[rows] + rng.normal(0, 2, (len(rows), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    detections = detect(dataset, rows, rng.random(len(rows)), boxes)
    wrong = rng.random(len(rows)) < 0.1
    index = np.where(wrong, 0, detections.class_index).astype(np.int32)
    return Detections(**{**vars(detections), "class_index": index})


def test_equal_to_pycocotools_on_a_generated_file(tmp_path):
    rng = np.random.default_rng(5)
    annotations = [
        {
            "id": number,
            "image_id": int(rng.integers(0, 23)),
            "category_id": int(rng.choice([2, 5, 11])),
            "bbox": [*rng.uniform(0, 300, 2).tolist(), *rng.uniform(4, 150, 2).tolist()],
            "iscrowd": int(rng.random() < 0.05),
            "area": float(rng.uniform(10, 15_000)),
        }
        for number in range(1, 201)
    ]
    categories = ((11, "car"), (2, "person"), (5, "bike"), (7, "none"))
    path = tmp_path / "val.json"
    path.write_text(json.dumps(coco(annotations, num_images=23, categories=categories)), encoding="utf-8")
    dataset = read_coco(path)
    detections = noisy(dataset, seed=6)
    figures = coco_figures(dataset, detections)
    ours = [getattr(figures, name) for name in FIGURES]
    assert 5 < figures.AP < 95
    np.testing.assert_allclose(ours, reference(path, dataset, detections), rtol=0, atol=1e-9)
    assert np.nanmean(list(figures.per_class.values())) == pytest.approx(figures.AP)


def test_equal_to_pycocotools_on_camvid(camvid):
    path = camvid / "val.json"
    dataset = read_coco(path)
    detections = noisy(dataset, seed=7)
    figures = coco_figures(dataset, detections)
    ours = [getattr(figures, name) for name in FIGURES]
    np.testing.assert_allclose(ours, reference(path, dataset, detections), rtol=0, atol=1e-9)
