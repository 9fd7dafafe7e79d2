"""Merges of small files: records byte for byte, every conflict reported, ids without collisions."""

import gzip
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from detcurate.coco.dataset import read_coco
from detcurate.errors import SelectionError
from detcurate.io import files
from detcurate.io.files import sha256_file
from detcurate.manifest.compare import diff_manifests, open_manifest
from detcurate.manifest.merge import merge_manifests
from detcurate.manifest.write import subset_bytes

CATEGORIES = '[{"id": 9, "name": "car"}, {"id":2,"name":"person"}]'


def image(key, **changes: object):
    fields = {"id": key, "file_name": f"{key}.jpg", "width": 64, "height": 48, **changes}
    return json.dumps(fields).replace('"width": ', '"width" :')  # spaces that a dump would not reproduce


def box(key, image_id, left=1.5):
    shape = f'"bbox": [{left:.2f}, 2, 10, 1e1], "category_id": 9, "iscrowd": 0, "area": 100'
    return f'{{"id":{key}, "image_id": {image_id}, {shape}}}'


def coco(images, boxes, categories=CATEGORIES, info=2024):
    return (
        f'{{"info": {{"year": {info}.0}}, "images": [{", ".join(images)}], '
        f'"annotations": [{", ".join(boxes)}], "categories": {categories}}}'
    )


@pytest.fixture
def write(tmp_path):
    counter = itertools.count()

    def write_one(*arguments: object, **options: object):
        path = tmp_path / f"{next(counter)}" / "subset.json"
        path.parent.mkdir()
        path.write_text(coco(*arguments, **options), encoding="utf-8")
        return open_manifest(path)

    return write_one


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_merge_overlapping_files_writes_union_byte_for_byte(write, tmp_path):
    first = write([image(30), image(7)], [box(4, 30), box(2, 30)])
    second = write([image(12), image(30)], [box(2, 30), box(9, 12), box(4, 30)], info=2025)
    third = write([image(1)], [])
    output = tmp_path / "out" / "merged.json"
    lineage = merge_manifests([first, second, third], output)
    assert output.read_text() == (
        f'{{"info": {{"year": 2024.0}},\n"images": [\n{image(30)},\n{image(7)},\n{image(12)},\n{image(1)}\n],\n'
        f'"annotations": [\n{box(4, 30)},\n{box(2, 30)},\n{box(9, 12)}\n],\n"categories": {CATEGORIES}}}\n'
    )
    assert lineage == {
        "sources": [
            {"file_name": "subset.json", "sha256": sha256_file(dataset.path), "num_images": total, "taken": taken}
            for dataset, total, taken in ((first, 2, 2), (second, 2, 1), (third, 1, 1))
        ],
        "num_images": 4,
        "num_boxes": 3,
        "renumbered": 0,
        "conflicts": [],
        "sha256": sha256_file(output),
    }
    assert load(output.with_name("merged.lineage.json")) == lineage
    assert str(tmp_path) not in json.dumps(lineage)


def test_merge_file_with_itself_gives_same_bytes(write, tmp_path):
    dataset = write([image(30), image(7)], [box(4, 30), box(2, 7)])
    lineage = merge_manifests([dataset, dataset, dataset], tmp_path / "m.json")
    assert (tmp_path / "m.json").read_bytes() == subset_bytes(dataset, dataset.image_ids)
    assert [source["taken"] for source in lineage["sources"]] == [2, 0, 0]


def test_merge_two_halves_gives_pool(write, tmp_path):
    images = [image(key) for key in range(1, 12)]
    boxes = [box(key, 1 + key % 9) for key in range(1, 31)]
    whole = write(images, boxes)
    halves = []
    for name, ids in (("a", whole.image_ids[:7]), ("b", whole.image_ids[4:])):
        path = tmp_path / f"{name}.json"
        path.write_bytes(subset_bytes(whole, ids))
        halves.append(read_coco(path))
    lineage = merge_manifests(halves, tmp_path / "m.json")
    found = diff_manifests(whole, read_coco(tmp_path / "m.json"))["images"]
    assert (found["jaccard"], found["changed"]) == (1.0, [])
    assert (lineage["num_images"], lineage["num_boxes"], lineage["renumbered"]) == (11, 30, 0)


def test_merge_files_without_boxes_keeps_images(write, tmp_path):
    merge_manifests([write([image(3)], []), write([image(1)], [])], tmp_path / "m.json")
    merged = read_coco(tmp_path / "m.json")
    assert (merged.image_ids.tolist(), merged.num_boxes) == ([1, 3], 0)


def test_merge_equal_input_gives_equal_bytes(write, tmp_path):
    datasets = [write([image(30)], [box(4, 30)]), write([image(12)], [box(4, 12)])]
    for folder in ("one", "two"):
        for name in ("m.json", "m.json.gz"):
            merge_manifests(datasets, tmp_path / folder / name)
    for name in ("m.json", "m.json.gz", "m.lineage.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    packed = (tmp_path / "one" / "m.json.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "one" / "m.json").read_bytes()
    assert load(tmp_path / "one" / "m.lineage.json")["sha256"] == sha256_file(tmp_path / "one" / "m.json.gz")


def test_merge_used_annotation_ids_are_renumbered(write, tmp_path):
    first = write([image(30)], [box(4, 30), box(7, 30)])
    second = write([image(12)], [box(4, 12), box(8, 12), box(7, 12)])
    third = write([image(1)], [box(9, 1), box(4, 1)])
    lineage = merge_manifests([first, second, third], tmp_path / "m.json")
    found = [(b["image_id"], b["id"]) for b in load(tmp_path / "m.json")["annotations"]]
    # 9 is the highest id of all files, so new ids start at 10.
    assert found == [(30, 4), (30, 7), (12, 10), (12, 8), (12, 11), (1, 9), (1, 12)]
    assert lineage["renumbered"] == 3
    # All but the new id stays as it was written.
    text = (tmp_path / "m.json").read_text()
    assert '{"id":10,"image_id":12,"bbox":[1.50, 2, 10, 1e1],"category_id":9,"iscrowd":0,"area":100}' in text
    assert box(8, 12) in text


@pytest.mark.parametrize("seed", range(6))
def test_merge_new_ids_are_unique(write, tmp_path, seed):
    random = np.random.default_rng(seed)
    datasets, expected = [], Counter()
    for number in range(4):
        keys = [10 * number + k for k in range(1, 4)]
        ids = random.permutation(14)[:6] + 1
        boxes = [box(int(key), int(random.choice(keys)), left=number + at / 10) for at, key in enumerate(ids)]
        expected.update((b["image_id"], b["bbox"][0]) for b in map(json.loads, boxes))
        datasets.append(write([image(key) for key in keys], boxes))
    merge_manifests(datasets, tmp_path / "m.json")
    merged = load(tmp_path / "m.json")["annotations"]
    assert max(Counter(b["id"] for b in merged).values()) == 1
    assert Counter((b["image_id"], b["bbox"][0]) for b in merged) == expected


def test_merge_annotations_without_id_stay_without(write, tmp_path):
    nameless = '{"image_id": 12, "bbox": [1, 2, 3, 4], "category_id": 2, "iscrowd": 0, "area": 12}'
    merge_manifests([write([image(30)], [box(4, 30)]), write([image(12)], [nameless])], tmp_path / "m.json")
    assert nameless in (tmp_path / "m.json").read_text()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # "b" has the internal number 1 in the first file and 2 in the second: the texts count.
        (['"b"'], ['"a"', '"b"'], ["b", "a", 3]),
        (['"b"'], ['"a"'], ["b", "a"]),
        ([1], ['"a"'], [1, "a"]),
        (['"7"'], [7], ["7", 8]),
        # Above 2^53 tools lose digits, so new ids are then the smallest free ones.
        ([2**63 - 1, 1], [2**63 - 1, 3], [2**63 - 1, 1, 2, 3]),
        ([2**53 - 3], [2**53 - 3], [2**53 - 3, 2**53 - 2]),
        ([2**53 - 1], [2**53 - 1], [2**53 - 1, 1]),
        ([-3], [-3], [-3, 1]),
        ([0], [0, 5], [0, 6, 5]),
        ([5, 5], [5, 6], [5, 5, 7, 6]),
    ],
)
def test_merge_ids_of_any_kind_collide_with_equal_ids_only(write, tmp_path, first, second, expected):
    parts = [write([image(key)], [box(number, key) for number in ids]) for key, ids in ((30, first), (12, second))]
    merge_manifests(parts, tmp_path / "m.json")
    assert [record["id"] for record in load(tmp_path / "m.json")["annotations"]] == expected


def test_merge_annotation_without_id_takes_no_id(write, tmp_path):
    """Its internal number is 5, which is free in its own file only."""
    nameless = {key: box(0, key).replace('"id":0, ', "") for key in (30, 12)}
    first = write([image(30)], [box(4, 30), nameless[30]])
    lineage = merge_manifests([first, write([image(12)], [nameless[12], box(5, 12)])], tmp_path / "m.json")
    assert lineage["renumbered"] == 0
    assert [record.get("id") for record in load(tmp_path / "m.json")["annotations"]] == [4, None, None, 5]


def conflicting(write):
    first = write([image(30), image(7), image(8)], [box(4, 30), box(2, 7)])
    second = write([image(30), image(7, width=65), image(5)], [box(4, 30, left=2.25), box(2, 7), box(6, 5)])
    return [first, second]


CONFLICTS = [
    "image_id 30 is labelled differently in file 1 (subset.json) and file 2 (subset.json)",
    "image_id 7 is described differently in file 1 (subset.json) and file 2 (subset.json)",
]


def test_merge_conflicts_raise_and_name_each(write, tmp_path):
    with pytest.raises(SelectionError, match="on_conflict.*got 2 conflicts") as stop:
        merge_manifests(conflicting(write), tmp_path / "m.json")
    for conflict in CONFLICTS:
        assert conflict in str(stop.value)
    assert "--on-conflict first" in str(stop.value)
    assert not list(tmp_path.glob("*.json"))


def test_merge_many_conflicts_names_three_and_count(write, tmp_path):
    first = write([image(key) for key in range(1, 7)], [])
    second = write([image(key, height=50) for key in range(1, 7)], [])
    with pytest.raises(SelectionError, match=r"got 6 conflicts: .*image_id 3 .*; and 3 more"):
        merge_manifests([first, second], tmp_path / "m.json")


def test_merge_on_conflict_first_keeps_first_file(write, tmp_path):
    lineage = merge_manifests(conflicting(write), tmp_path / "m.json", on_conflict="first")
    assert lineage["conflicts"] == CONFLICTS
    assert [source["taken"] for source in lineage["sources"]] == [3, 1]
    merged = load(tmp_path / "m.json")
    assert {record["id"]: record["width"] for record in merged["images"]} == {30: 64, 7: 64, 8: 64, 5: 64}
    assert {record["id"]: record["bbox"][0] for record in merged["annotations"]} == {4: 1.5, 2: 1.5, 6: 1.5}
    assert load(tmp_path / "m.lineage.json")["conflicts"] == CONFLICTS


def test_merge_image_without_boxes_in_one_file_is_conflict(write, tmp_path):
    with pytest.raises(SelectionError, match="image_id 30 is labelled differently"):
        merge_manifests([write([image(30)], [box(4, 30)]), write([image(30)], [])], tmp_path / "m.json")


def test_merge_file_name_with_two_ids_is_conflict(write, tmp_path):
    """It would be counted twice, and may stand in two splits later."""
    first, second = write([image(30)], [box(4, 30)]), write([image(31, file_name="30.jpg")], [box(5, 31)])
    message = "30.jpg is image_id 30 in file 1 (subset.json) and 31 in file 2 (subset.json)"
    with pytest.raises(SelectionError) as stop:
        merge_manifests([first, second], tmp_path / "m.json")
    assert message in str(stop.value)
    lineage = merge_manifests([first, second], tmp_path / "m.json", on_conflict="first")
    assert (lineage["conflicts"], lineage["num_images"], lineage["num_boxes"]) == ([message], 1, 1)


def test_merge_repeated_file_name_within_one_file_is_no_conflict(write, tmp_path):
    first = write([image(30), image(31, file_name="30.jpg")], [])
    assert merge_manifests([first, write([image(2)], [])], tmp_path / "m.json")["num_images"] == 3


@pytest.mark.parametrize(
    "categories",
    [
        '[{"id": 9, "name": "car"}]',
        '[{"id": 9, "name": "car"}, {"id": 3, "name": "person"}]',
        '[{"id": 9, "name": "person"}, {"id": 2, "name": "car"}]',
        '[{"id": "nine", "name": "car"}, {"id": 2, "name": "person"}]',
    ],
)
def test_merge_other_categories_raise(write, tmp_path, categories):
    others = write([image(12)], [], categories=categories)
    with pytest.raises(SelectionError, match=r"categories.*subset\.json"):
        merge_manifests([write([image(30)], []), others], tmp_path / "m.json")
    assert not list(tmp_path.glob("*.json"))


def test_merge_reordered_categories_is_accepted(write, tmp_path):
    other = write([image(12)], [], categories='[{"id": 2, "name": "person"}, {"id": 9, "name": "car"}]')
    assert merge_manifests([write([image(30)], []), other], tmp_path / "m.json")["num_images"] == 2


def test_merge_text_ids_are_compared_as_texts(write, tmp_path):
    """Both have the internal number 1."""
    first, second = (
        write([image("x")], [box(4, '"x"')]),
        write([image("y"), image("x")], [box(4, '"x"'), box(5, '"y"')]),
    )
    lineage = merge_manifests([first, second], tmp_path / "m.json")
    assert (lineage["num_images"], lineage["renumbered"]) == (2, 0)
    assert {b["image_id"] for b in load(tmp_path / "m.json")["annotations"]} == {"x", "y"}
    assert open_manifest(tmp_path / "m.json").num_boxes == 2


@pytest.mark.parametrize("writer", ["write_json", "sha256_file"])
def test_merge_failed_write_leaves_nothing(write, tmp_path, monkeypatch, writer):
    datasets = [write([image(30)], []), write([image(12)], [])]
    merge_manifests(datasets, tmp_path / "m.json")

    def fail(*_: object):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, writer, fail)
    with pytest.raises(OSError, match="No space left"):
        merge_manifests(datasets[:1], tmp_path / "m.json")
    assert not list(tmp_path.glob("*m*.json*"))


def test_merge_output_among_inputs_raises(write):
    first, second = write([image(30)], [box(4, 30)]), write([image(12)], [box(5, 12)])
    before = second.path.read_bytes()
    with pytest.raises(SelectionError, match=rf"output.*{second.path}"):
        merge_manifests([first, second], second.path)
    assert second.path.read_bytes() == before


def test_merge_camvid_halves_gives_all_images(camvid, tmp_path):
    train = read_coco(camvid / "train.json")
    parts = []
    for name, ids in (("a", train.image_ids[:300]), ("b", train.image_ids[200:])):
        path = tmp_path / f"{name}.json"
        path.write_bytes(subset_bytes(train, ids))
        parts.append(read_coco(path))
    lineage = merge_manifests(parts, tmp_path / "m.json")
    assert [source["taken"] for source in lineage["sources"]] == [300, len(train) - 300]
    assert lineage["num_boxes"] == train.num_boxes
    assert diff_manifests(train, read_coco(tmp_path / "m.json"))["images"]["changed"] == []
