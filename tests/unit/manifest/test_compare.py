"""Statistics and differences of two files: 5 and 4 images, 3 classes, 7 and 6 boxes, 2 metadata fields."""

import json

import pytest

from detcurate.errors import DatasetError
from detcurate.manifest.compare import diff_manifests, manifest_stats, open_manifest

CATEGORIES = [{"id": 9, "name": "car"}, {"id": 2, "name": "person"}, {"id": 5, "name": "bike"}]


def coco(images, boxes, **changes: object):
    """Return a COCO file: images as id -> fields, boxes as (id, image, category, side)."""
    return {
        "images": [
            {"id": key, "file_name": f"{key}.jpg", "width": 200, "height": 150, **fields}
            for key, fields in images.items()
        ],
        "annotations": [
            {"id": key, "image_id": image, "category_id": category, "bbox": [1, 2, side, side], "area": side * side,
             "iscrowd": 0}
            for key, image, category, side in boxes
        ],
        "categories": CATEGORIES,
        **changes,
    }  # fmt: skip


FIRST = coco(
    {
        30: {"sequence": "b", "weather": "rain"},
        7: {"sequence": "a", "weather": "clear"},
        12: {"sequence": "a", "weather": "clear"},
        41: {"sequence": "b"},
        9: {"sequence": "a", "weather": "clear"},
    },
    [(1, 30, 9, 10), (2, 30, 9, 40), (3, 12, 2, 100), (4, 12, 2, 31), (5, 12, 5, 32), (6, 41, 9, 96), (7, 41, 2, 95)],
)
SECOND = coco(
    {
        41: {"sequence": "b"},
        12: {"sequence": "a", "weather": "clear"},
        30: {"sequence": "b", "weather": "snow"},
        50: {"sequence": "c", "weather": "rain"},
    },
    [(7, 41, 2, 95), (6, 41, 9, 96), (3, 12, 2, 100), (4, 12, 2, 31), (5, 12, 5, 33), (8, 50, 5, 20)],
)


@pytest.fixture
def read(tmp_path):
    def write(content, name="train.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return open_manifest(path)

    return write


def test_manifest_stats_by_hand(read):
    assert manifest_stats(read(FIRST)) == {
        "file": "train.json",
        "num_images": 5,
        "num_boxes": 7,
        "num_empty_images": 2,
        "boxes_per_image": {"mean": 1.4, "median": 2.0, "max": 3},
        "histograms": {
            "classes": {"person": 3, "bike": 1, "car": 3},
            # Sides of 10 and 31 are small; 32, 40 and 95 medium; 96 and 100 large.
            "box_size": {"small": 2, "medium": 3, "large": 2},
            "sequence": {"a": 3, "b": 2},
            "weather": {"clear": 3, "rain": 1},
        },
    }


def test_manifest_stats_without_boxes_are_zero(read):
    stats = manifest_stats(read(coco({3: {}, 1: {}}, [])))
    assert (stats["num_images"], stats["num_boxes"], stats["num_empty_images"]) == (2, 0, 2)
    assert stats["boxes_per_image"] == {"mean": 0.0, "median": 0.0, "max": 0}
    assert stats["histograms"]["classes"] == {"person": 0, "bike": 0, "car": 0}
    assert set(stats["histograms"]) == {"classes", "box_size"}


def test_manifest_stats_metadata_named_classes_gets_prefix(read):
    stats = manifest_stats(read(coco({3: {"classes": 4, "box_size": "big"}, 1: {"classes": 2}}, [(1, 3, 9, 5)])))
    assert stats["histograms"]["classes"] == {"person": 0, "bike": 0, "car": 1}
    assert stats["histograms"]["box_size"] == {"small": 1, "medium": 0, "large": 0}
    assert stats["histograms"]["image.classes"] == {"2": 1, "4": 1}
    assert stats["histograms"]["image.box_size"] == {"big": 1}


def test_diff_manifests_by_hand(read):
    first, second = read(FIRST, "a.json"), read(SECOND, "b.json")
    found = diff_manifests(first, second)
    assert found["first"] == {"file": str(first.path), "num_images": 5, "num_boxes": 7}
    assert found["second"] == {"file": str(second.path), "num_images": 4, "num_boxes": 6}
    assert found["images"]["added"] == [50]
    assert found["images"]["removed"] == [7, 9]
    assert found["images"]["kept"] == [12, 30, 41]
    # 12 has another box, 30 another record; 41 has the same boxes in another order.
    assert found["images"]["changed"] == [12, 30]
    assert found["images"]["jaccard"] == 3 / 6
    assert found["histograms"]["classes"]["values"] == {"person": [3, 3], "bike": [1, 2], "car": [3, 1]}
    # |3/7 - 3/6| + |1/7 - 2/6| + |3/7 - 1/6| = 3/42 + 8/42 + 11/42, halved
    assert found["histograms"]["classes"]["shift"] == pytest.approx(11 / 42)
    assert found["histograms"]["sequence"]["values"] == {"a": [3, 1], "b": [2, 2], "c": [0, 1]}
    assert found["histograms"]["sequence"]["shift"] == pytest.approx((0.35 + 0.1 + 0.25) / 2)
    assert found["histograms"]["weather"]["values"] == {"clear": [3, 1], "rain": [1, 1], "snow": [0, 1]}


def test_diff_manifests_reversed_is_mirrored(read):
    first, second = read(FIRST, "a.json"), read(SECOND, "b.json")
    there, back = diff_manifests(first, second), diff_manifests(second, first)
    assert (back["images"]["added"], back["images"]["removed"]) == (
        there["images"]["removed"],
        there["images"]["added"],
    )
    assert back["images"]["jaccard"] == there["images"]["jaccard"]
    assert back["images"]["changed"] == there["images"]["changed"]
    for name, histogram in there["histograms"].items():
        assert back["histograms"][name]["shift"] == pytest.approx(histogram["shift"])
        assert back["histograms"][name]["values"] == {key: [b, a] for key, (a, b) in histogram["values"].items()}


def test_diff_manifests_equal_sets_have_no_difference(read):
    found = diff_manifests(read(FIRST, "a.json"), read(FIRST, "b.json"))
    assert found["images"]["jaccard"] == 1.0
    assert found["images"]["added"] == found["images"]["removed"] == found["images"]["changed"] == []
    assert {histogram["shift"] for histogram in found["histograms"].values()} == {0.0}


def test_diff_manifests_disjoint_sets_have_shift_one(read):
    first = coco({1: {"sequence": "a"}, 2: {"sequence": "a"}}, [(1, 1, 9, 10), (2, 2, 9, 10), (3, 2, 9, 10)])
    second = coco({3: {"sequence": "b"}}, [(1, 3, 2, 100)])
    found = diff_manifests(read(first, "a.json"), read(second, "b.json"))
    assert found["images"] == {"added": [3], "removed": [1, 2], "kept": [], "changed": [], "jaccard": 0.0}
    assert {name: histogram["shift"] for name, histogram in found["histograms"].items()} == {
        "classes": 1.0,
        "box_size": 1.0,
        "sequence": 1.0,
    }


def test_diff_manifests_field_counted_in_one_set_is_left_out(read):
    """``serial`` has too many values to be counted in the large set, but not in the small one."""
    large = coco({key: {"serial": key, "light": key % 2} for key in range(70)}, [])
    small = coco({key: {"serial": key, "light": key % 2} for key in range(8)}, [])
    found = diff_manifests(read(large, "a.json"), read(small, "b.json"))["histograms"]
    assert set(found) == {"classes", "box_size", "light"}
    assert found["light"] == {"shift": 0.0, "values": {"0": [35, 4], "1": [35, 4]}}


def test_diff_manifests_other_classes_are_all_counted(read):
    other = {**SECOND, "categories": [*CATEGORIES[:2], {"id": 5, "name": "tricycle"}]}
    values = diff_manifests(read(FIRST, "a.json"), read(other, "b.json"))["histograms"]["classes"]["values"]
    assert values == {"person": [3, 3], "bike": [1, 0], "car": [3, 1], "tricycle": [0, 2]}


def test_diff_manifests_text_ids_are_compared_as_texts(read):
    """The internal numbers of equal texts differ between two files."""

    def named(keys):
        content = coco({key: {} for key in keys}, [])
        return (
            json.dumps(content)
            .replace('"id": 1, "file', '"id": "x1", "file')
            .replace('"id": 2, "file', '"id": "x2", "file')
        )

    found = diff_manifests(read(named([1, 2]), "a.json"), read(named([2, 30]), "b.json"))["images"]
    assert (found["kept"], found["removed"], found["added"]) == (["x2"], ["x1"], [30])
    assert found["changed"] == []


def test_open_manifest_folder_file_or_missing(read, tmp_path):
    read(FIRST, "subset.json")
    assert len(open_manifest(tmp_path)) == 5
    with pytest.raises(DatasetError, match=r"no\.json"):
        open_manifest(tmp_path / "no.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty.*subset\.json"):
        open_manifest(tmp_path / "empty")


def test_open_manifest_accepts_findings_of_run(read):
    assert read(coco({3: {"file_name": "/data/3.jpg"}}, [(1, 3, 9, 5)])).num_boxes == 1
    outside = coco({3: {}}, [(1, 3, 9, 5)])
    outside["annotations"][0]["bbox"] = [500, 500, 5, 5]
    assert read(outside).num_boxes == 1
