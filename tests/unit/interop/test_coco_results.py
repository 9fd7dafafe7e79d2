"""COCO results files: 4 usable images and one in quarantine, 3 classes, records by hand and at random."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detcurate.coco.dataset import read_coco
from detcurate.errors import DatasetError, PredictionError
from detcurate.interop.coco_results import index_pool, read_results
from detcurate.structures import Detections
from detcurate.structures.boxes import xyxy_to_xywh

IDS, QUARANTINED = (3, 7, 8, 12, 41), 8
SIZES = ((64, 40), (100, 50), (30, 30), (80, 60), (64, 48))
CATEGORIES = (2, 5, 9)
C = len(CATEGORIES)


def write_pool(folder, ids=IDS):
    images = [
        {"id": id_, "file_name": f"left/{number:06d}.jpg", "width": width, "height": height}
        for number, (id_, (width, height)) in enumerate(zip(ids, SIZES, strict=True))
    ]
    categories = [{"id": id_, "name": f"class {id_}"} for id_ in CATEGORIES]
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    return read_coco(path, {"string_id": "repair"})


@pytest.fixture
def dataset(tmp_path):
    return write_pool(tmp_path)


def usable(dataset):
    return np.array([id_ for id_ in dataset.image_ids.tolist() if id_ != QUARANTINED])


@pytest.fixture
def read(dataset, tmp_path):
    """Write records, or a text, as a results file and read it."""

    def run(records, *, image_key="id", category_key="id", **options: object):
        path = tmp_path / "epoch1.json"
        path.write_text(records if isinstance(records, str) else json.dumps(records))
        pool = index_pool(dataset, usable(dataset), image_key=image_key, category_key=category_key)
        return read_results(path, pool, **options)

    return run


def record(image_id=7, category_id=5, bbox=(10, 20, 5, 8), score=0.75, **more: object):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score, **more}


def everything(results):
    return results.detections(0, len(results.pool.image_ids))


def test_detections_score_alone_is_probability_of_class(read):
    found = everything(read([record(), record(image_id=41, category_id=9, score=0.5)]))
    assert found.image_ids.tolist() == [7, 41]
    assert found.boxes.tolist() == [[10, 20, 15, 28], [10, 20, 15, 28]]
    assert found.class_index.tolist() == [1, 2]
    assert found.class_probs.tolist() == [[0, 0.75, 0, 0.25], [0, 0, 0.5, 0.5]]
    assert found.posterior_form == "softmax"
    assert found.member.tolist() == [0, 0]


def test_detections_class_probs_with_and_without_background(read):
    softmax = everything(read([record(class_probs=[0.125, 0.75, 0, 0.125])]))
    assert softmax.posterior_form == "softmax"
    assert softmax.class_probs.tolist() == [[0.125, 0.75, 0, 0.125]]
    sigmoid = everything(read([record(class_probs=[0.25, 0.75, 0.5])]))
    assert sigmoid.posterior_form == "sigmoid"
    assert sigmoid.class_probs.tolist() == [[0.25, 0.75, 0.5, 0.25]]


def test_detections_any_range_of_images_is_sorted_by_image_and_score(read):
    scores = [(41, 0.2), (3, 0.3), (41, 0.9), (7, 0.4), (3, 0.3), (41, 0.5)]
    records = [record(image_id, score=score, bbox=(number, 0, 5, 8)) for number, (image_id, score) in enumerate(scores)]
    results = read(records)
    found = everything(results)
    assert found.boxes[:, 0].tolist() == [1, 4, 3, 2, 5, 0]
    assert results.detections(1, 3).image_ids.tolist() == [7]
    assert len(results.detections(2, 3)) == 0
    assert results.detections(3, 4).scores.round(3).tolist() == pytest.approx([0.9, 0.5, 0.2])


def test_read_results_skipped_records_are_counted(read):
    records = [
        record(score=0.04), record(score=0.05), record(score=0.9), record(score=0.8),
        record(bbox=(10, 20, 0, 8)), record(bbox=(10, 20, 5, -8)), record(bbox=(100, 20, 5, 8)),
        record(QUARANTINED), record(QUARANTINED, bbox=(0, 0, 0, 0)),
    ]  # fmt: skip
    results = read(records, max_per_image=2)
    assert results.counts == {
        "records": 9, "kept": 2, "below_threshold": 1, "beyond_best": 1, "without_area": 3, "quarantined": 2, "cut": 0,
    }  # fmt: skip
    assert everything(results).scores.tolist() == pytest.approx([0.9, 0.8])
    assert read(records, score_threshold=0, max_per_image=0).counts["kept"] == 4


def test_read_results_boxes_are_clipped_to_their_image(read):
    results = read([record(3, bbox=(-5, -6, 200, 300)), record(12, bbox=(70, 50, 20, 1e308)), record(41)])
    assert everything(results).boxes.tolist() == [[0, 0, 64, 40], [70, 50, 80, 60], [10, 20, 15, 28]]
    assert results.counts["cut"] == 2


def test_read_results_normalized_boxes_raise(read):
    """They would be kept as boxes within the first pixel, and every label would count as missed."""
    shares = [record(bbox=(0.1, 0.2, 0.3, side)) for side in (0.4, 0.5, 0.8)]
    with pytest.raises(PredictionError, match=r"bbox.*got 3 of 5 boxes.*epoch1.json"):
        read([*shares, record(), record()])
    assert read([*shares, record(), record(), record()]).counts["kept"] == 6  # a detector may have dots in a corner


def test_read_results_empty_list_gives_no_detections(read):
    results = read([])
    assert (results.form, results.counts["records"]) == (None, 0)
    for form in ("softmax", "sigmoid"):
        found = results.detections(0, 4, posterior_form=form)
        assert (len(found), found.num_classes, found.posterior_form) == (0, C, form)


def test_read_results_image_and_category_keys_are_resolved(read, tmp_path):
    records = [record(4, category_id=0), record("000001", category_id=2)]
    found = everything(read(records, image_key="stem", category_key="from-0"))
    assert found.image_ids.tolist() == [7, 41]
    assert found.class_index.tolist() == [2, 0]
    found = everything(read([record(category_id=3)], category_key="from-1"))
    assert found.class_index.tolist() == [2]
    with pytest.raises(PredictionError, match=r"category_id.*\(1, 2, 3\).*got 0\)"):
        read([record(category_id=0)], category_key="from-1")


def test_index_pool_equal_stems_raise(tmp_path):
    dataset = write_pool(tmp_path)
    names = ("a/1.jpg", "b/1.png", "c.jpg", "d.jpg", "e.jpg")
    object.__setattr__(dataset, "file_names", names)
    with pytest.raises(PredictionError, match=r"stem.*'1'.*'b/1.png'.*7.*train.json"):
        index_pool(dataset, dataset.image_ids, image_key="stem")


def test_read_results_text_ids_are_resolved(tmp_path):
    dataset = write_pool(tmp_path, ids=("frame-c", "frame-a", "frame-b", "0815", "41"))
    path = tmp_path / "r.json"
    path.write_text(json.dumps([record("frame-a"), record("41"), record("0815")]))
    found = everything(read_results(path, index_pool(dataset, dataset.image_ids)))
    rows = np.searchsorted(dataset.image_ids, found.image_ids)
    assert {dataset.original_id(row) for row in rows.tolist()} == {"frame-a", "0815", 41}
    path.write_text(json.dumps([record(1)]))  # the internal number of a text id is not a name
    with pytest.raises(PredictionError, match="image_id.*got 1\\)"):
        read_results(path, index_pool(dataset, dataset.image_ids))


def test_read_results_gzip_with_unknown_fields_is_read(dataset, tmp_path):
    path = tmp_path / "r.json.gz"
    path.write_bytes(gzip.compress(json.dumps([record(file_name="x.jpg", segmentation=[], id=4)]).encode()))
    assert len(everything(read_results(path, index_pool(dataset, dataset.image_ids)))) == 1


GOOD = (record(), record(41))
BAD = [
    (record(99), r"results\[2\].image_id.*got 99\).*epoch1.json, image_id 99; 1 such.*--image-key stem"),
    (record("x.jpg"), r"results\[2\].image_id.*got 'x.jpg'"),
    (record(category_id=3), r"results\[2\].category_id.*\(2, 5, 9\).*got 3\).*image_id 7.*--category-key from-0"),
    (record(score=1.2), r"results\[2\].score.*\[0, 1\].*got 1.2\)"),
    (record(score=-0.1), r"results\[2\].score.*\[0, 1\].*got -0.1\)"),
    (record(class_probs=[0.5, 0.5]), r"results\[2\].class_probs.*3.*4.*got \[0.5, 0.5\]"),
    (record(class_probs=[0.2, 0.3, 0.5]), r"results\[2\].class_probs.*\(absent\).*got \[0.2, 0.3, 0.5\]"),
    (record(bbox=(1, 2, 3)), r"results\[2\].bbox.*got \[1, 2, 3\].*epoch1.json, image_id 7\)"),
    (record(score="high"), r"results\[2\].score.*got 'high'"),
    (record(category_id=2.5), r"results\[2\].category_id.*got 2.5\)"),
    (record(image_id=None), r"results\[2\].image_id.*got None\).*image_id None"),
    ({"image_id": 7, "category_id": 5, "score": 0.5}, r"results\[2\].*'bbox'.*image_id 7"),
    ([7, 5], r"results\[2\].*got \[7, 5\].*epoch1.json"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_read_results_unusable_record_names_position_image_and_file(read, bad, message):
    with pytest.raises(PredictionError, match=message):
        read([*GOOD, bad, record(3)])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('"bbox": [1, NaN, 3, 4], "score": 0.5', r"bbox: .*got \[1, null, 3, 4\]\)"),
        ('"bbox": [1, 2, 3, 4], "score": -Infinity', "score: .*got None\\)"),
        ('"bbox": [1, 2, 3, 4], "score": 1e999', "score: .*got inf\\)"),
        ('"bbox": [1, 2, 3, -1e999], "score": 0.5', r"bbox: .*got \[1, 2, 3, -Infinity\]\)"),
    ],
)
def test_read_results_numbers_not_finite_raise(read, text, shown):
    good = json.dumps(record())
    with pytest.raises(PredictionError, match=rf"results\[1\].{shown} \(.*epoch1.json, image_id 12\)"):
        read(f'[{good}, {{"image_id": 12, "category_id": 5, {text}}}]')


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([0.5, 0.4, 0.3, 0.2], r"got \[0.5, 0.4, 0.3, 0.2\]"),
        ([-0.5, 1.0, 0.25, 0.25], r"got \[-0.5, 1"),
        ([0.5, 1.5, 0.1], r"\(softmax\).*got \[0.5, 1.5, 0.1\]"),
        (None, r"\(softmax\).*got none"),
    ],
)
def test_read_results_class_probs_of_wrong_form_raise(read, probs, message):
    first = record(class_probs=[0.25, 0.25, 0.25, 0.25])
    with pytest.raises(PredictionError, match=rf"results\[1\].class_probs.*{message}"):
        read([first, record(class_probs=probs)])


def test_read_results_sigmoid_probs_out_of_range_raise(read):
    with pytest.raises(PredictionError, match=r"results\[0\].class_probs.*\[0, 1\].*got \[0.5"):
        read([record(class_probs=[0.5, 1.5, 0.1])])


def test_read_results_each_kind_of_fault_is_named_with_count(read):
    with pytest.raises(PredictionError) as error:
        read([record(99), record(98), record(category_id=77), record(score=2), record(score=3), record(score=4)])
    first, second, third = str(error.value).splitlines()
    assert "got 99" in first
    assert "2 such records" in first
    assert "results[2].category_id" in second
    assert "results[3].score" in third
    assert "3 such records" in third


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [], "annotations": [], "categories": []}', r"epoch1.json.*images, annotations, categories"),
        ("17", r"epoch1.json.*not a list"),
        ('[{"image_id": 7,', r"results file.*line 1"),
        ("[1,\n2,]", r"results file.*line 2, column 3"),
        ("", r"epoch1.json.*results file.*empty"),
        ("[" * 10_000 + "]" * 10_000, "results file.*nested"),
    ],
)  # fmt: skip
def test_read_results_other_content_raises(read, text, message):
    with pytest.raises(DatasetError, match=message):
        read(text)


def test_read_results_missing_file_raises(dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"absent.json.*results file"):
        read_results(tmp_path / "absent.json", index_pool(dataset, dataset.image_ids))


@st.composite
def detections(draw, form):
    """Draw any detections of a detector, sorted by image and descending score, as shards hold them."""
    n = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = np.sort(rng.integers(0, len(IDS), n))
    sizes = np.array(SIZES, np.float32)[rows]
    corners = np.sort((rng.uniform(0, 1, (2, n, 2)) * sizes).astype(np.float32), axis=0)
    corners[1] = np.maximum(corners[1], np.nextafter(corners[0], np.float32(1e9)))
    scores = rng.uniform(0, 1, n).astype(np.float32)
    order = np.lexsort((-scores, rows))
    probs = rng.dirichlet(np.ones(C + 1), n).astype(np.float32)
    if form == "sigmoid":
        probs = np.column_stack((probs[:, :-1], 1 - probs[:, :-1].max(axis=1, initial=0)))
    return Detections(
        image_ids=np.array(IDS)[rows],
        member=np.zeros(n, np.int32),
        boxes=np.hstack(corners),
        scores=scores[order],
        class_index=rng.integers(0, C, n).astype(np.int32),
        class_probs=probs,
        posterior_form=form,
    )


def as_records(found):
    """Return detections as records of another framework: xywh, category ids, the background last or absent."""
    width = C + (found.posterior_form == "softmax")
    rows = zip(
        found.image_ids.tolist(), found.class_index.tolist(), xyxy_to_xywh(found.boxes.astype(np.float64)).tolist(),
        found.scores.astype(np.float64).tolist(), found.class_probs[:, :width].astype(np.float64).tolist(), strict=True,
    )  # fmt: skip
    return [
        record(image_id, CATEGORIES[index], bbox, score, class_probs=probs)
        for image_id, index, bbox, score, probs in rows
    ]


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_read_results_written_detections_round_trip(form, data, tmp_path_factory):
    before = data.draw(detections(form))
    folder = tmp_path_factory.mktemp("trip")
    dataset = write_pool(folder)
    path = folder / "r.json"
    path.write_text(json.dumps(as_records(before)))
    pool = index_pool(dataset, dataset.image_ids)
    results = read_results(path, pool, score_threshold=0, max_per_image=0)
    found = results.detections(0, len(IDS), posterior_form=form)
    assert found.posterior_form == form
    for name in ("image_ids", "member", "boxes", "scores", "class_index", "class_probs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(before, name), strict=True)


def test_read_results_more_records_than_a_block_are_read(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("detcurate.coco.records._BLOCK", 7)
    rng = np.random.default_rng(0)
    records = [
        record(int(id_), score=float(score))
        for id_, score in zip(rng.choice(IDS, 50), rng.uniform(0, 1, 50), strict=True)
    ]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(records))
    found = everything(read_results(path, index_pool(dataset, dataset.image_ids), score_threshold=0.25))
    expected = sorted((r for r in records if r["score"] >= 0.25), key=lambda r: (r["image_id"], -r["score"]))
    assert found.image_ids.tolist() == [r["image_id"] for r in expected]
    assert found.scores.tolist() == pytest.approx([r["score"] for r in expected])
    records[45]["image_id"] = 99
    path.write_text(json.dumps(records))
    with pytest.raises(PredictionError, match=r"results\[45\].image_id"):
        read_results(path, index_pool(dataset, dataset.image_ids))
