"""Import of corrections: matching of labels, the written pool, and corrections that do not fit."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from helpers.export_content import SIZES, content, file_name, pool_json, write_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from detcurate.coco.dataset import read_coco
from detcurate.errors import DatasetError
from detcurate.interop.corrections.apply import LINEAGE, Matching, apply_corrections, match_labels
from detcurate.interop.corrections.readers import read_corrected
from detcurate.interop.export.content import Content
from detcurate.interop.export.cvat import write_cvat
from detcurate.interop.export.fiftyone import write_fiftyone
from detcurate.interop.export.label_studio import write_label_studio
from detcurate.io.files import sha256_file

WRITERS = {"coco": write_fiftyone, "cvat": write_cvat, "label-studio": write_label_studio}


@pytest.fixture
def pool(tmp_path):
    return write_pool(tmp_path)


def apply(pool, *files: Path, name="new.json"):
    output = pool.path.with_name(name)
    lineage = apply_corrections(pool, [read_corrected(file) for file in files], output)
    return read_coco(output), json.loads(output.read_text()) if name.endswith(".json") else None, lineage


def corrected_coco(pool, *edits: Callable, keep=(41, 12), name="corrected.json"):
    """Write a COCO correction of some images: the records of the pool, edited by some functions."""
    value = pool_json()
    value["images"] = [record for record in value["images"] if record["id"] in keep]
    value["annotations"] = [record for record in value["annotations"] if record["image_id"] in keep]
    for edit in edits:
        edit(value)
    path = pool.path.with_name(name)
    path.write_text(json.dumps(value))
    return path


def record_of(value, key):
    return next(record for record in value["annotations"] if record["id"] == key)


# Round trip


@pytest.mark.parametrize("image_key", [int, lambda key: f"img-{key}"])
@pytest.mark.parametrize("name", WRITERS)
def test_apply_unchanged_export_gives_equal_records(tmp_path, name, image_key):
    found = content(tmp_path, image_key=image_key)
    path = WRITERS[name](tmp_path / "out", found)[0]
    file = read_corrected(path)
    assert file.format == name
    new, value, lineage = apply(found.dataset, path)
    source = pool_json(image_key=image_key)
    assert {key: value[key] for key in ("images", "annotations", "categories")} == {
        key: source[key] for key in ("images", "annotations", "categories")
    }
    assert lineage["images"] == {"changed": 0, "confirmed": 2, "not_reviewed": 3}
    assert lineage["boxes"] == {"unchanged": 4, "changed": 0, "added": 0, "removed": 0, "not_reviewed": 3}
    assert lineage["skipped"] == {"coco": {"crowd_regions": 1}, "cvat": {"proposals": 2}, "label-studio": {}}[name]


@pytest.mark.parametrize("name", WRITERS)
def test_apply_label_past_border_is_unchanged(tmp_path, pool, name):
    found = Content(pool, tmp_path / "images", (), np.arange(len(pool)))
    path = WRITERS[name](tmp_path / "out", found)[0]
    _, value, lineage = apply(pool, path)
    assert lineage["boxes"] == {"unchanged": 6, "changed": 0, "added": 0, "removed": 0, "not_reviewed": 1}
    assert record_of(value, 107) == record_of(pool_json(), 107)


def edit_cvat(path):
    """Edit as an annotator: 102 becomes a bike, 101 moves, 103 is deleted, the bus is accepted, a person is added."""
    tree = ET.parse(path)
    first, second = tree.getroot().findall("image")
    first[0].set("label", "bike")
    second[0].set("xtl", "4.00")
    second[0].set("xbr", "14.50")
    accepted = second[2]
    next(found for found in accepted if found.get("name") == "proposal").text = "false"
    second.remove(second[1])
    sides = {"xtl": "20", "ytl": "2", "xbr": "25.5", "ybr": "9"}
    ET.SubElement(first, "box", {"label": "person", "occluded": "0", **sides})
    tree.write(path, encoding="utf-8")


def edit_label_studio(path):
    tasks = json.loads(path.read_text())
    first, second = (task["annotations"][0]["result"] for task in tasks)
    first[0]["value"]["rectanglelabels"] = ["bike"]
    second[0]["value"]["x"] = 400 / 65
    second[1] = {**tasks[1]["predictions"][0]["result"][0], "id": "aB3"}
    share = {"x": 2000 / 63, "y": 200 / 47, "width": 550 / 63, "height": 700 / 47}
    first.append({**first[1], "id": "xYz", "value": {**share, "rotation": 0, "rectanglelabels": ["person"]}})
    path.write_text(json.dumps(tasks))


def edit_coco(path):
    value = json.loads(path.read_text())
    record_of(value, 102)["category_id"] = 5
    record_of(value, 101)["bbox"] = [4, 5, 10.5, 12]
    value["annotations"].remove(record_of(value, 103))
    value["annotations"].append({"id": 1, "image_id": 41, "category_id": 11, "bbox": [50, 6.5, 10.5, 13.5]})
    value["annotations"].append({"id": 2, "image_id": 12, "category_id": 2, "bbox": [20, 2, 5.5, 7]})
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "edit"), [("cvat", edit_cvat), ("label-studio", edit_label_studio), ("coco", edit_coco)]
)
def test_apply_edits_of_annotator_by_hand(tmp_path, name, edit):
    found = content(tmp_path)
    path = WRITERS[name](tmp_path / "out", found)[0]
    edit(path)
    before = found.dataset.path.read_bytes()
    new, value, lineage = apply(found.dataset, path)
    source = pool_json()
    wrong_class, moved = record_of(source, 102), record_of(source, 101)
    wrong_class["category_id"] = 5
    moved |= {"bbox": [4.0, 5.0, 10.5, 12.0], "area": 126.0}
    moved.pop("segmentation")  # that of the old box
    source["annotations"].remove(record_of(source, 103))
    added = {record["image_id"]: record for record in value["annotations"][-2:]}
    assert sorted(record["id"] for record in added.values()) == [108, 109]
    bus, person = added[41], added[12]
    assert (bus["category_id"], bus["iscrowd"]) == (11, 0)
    assert bus["bbox"] == pytest.approx([50, 6.5, 10.5, 13.5], abs=0.01)
    assert (person["category_id"], person["area"]) == (2, pytest.approx(38.5))
    assert value["annotations"][:-2] == source["annotations"]
    assert value["images"] == source["images"]
    assert lineage["images"] == {"changed": 2, "confirmed": 0, "not_reviewed": 3}
    assert lineage["boxes"] == {"unchanged": 1, "changed": 2, "added": 2, "removed": 1, "not_reviewed": 3}
    assert found.dataset.path.read_bytes() == before


def test_apply_writes_lineage(tmp_path, pool):
    path = corrected_coco(pool, lambda value: value["annotations"].remove(record_of(value, 105)))
    _, value, lineage = apply(pool, path)
    entry = value["info"][LINEAGE][0]
    assert value["info"]["year"] == 2024
    assert entry["pool"] == {"file_name": "train.json", "sha256": sha256_file(pool.path)}
    assert entry["corrections"] == [
        {"file_name": "corrected.json", "format": "coco", "sha256": sha256_file(path), "num_images": 2}
    ]
    written = json.loads((tmp_path / "new.lineage.json").read_text())
    assert written == lineage
    assert {key: written[key] for key in entry} == entry
    assert written["output"] == {"file_name": "new.json", "sha256": sha256_file(tmp_path / "new.json")}
    counts = {"changed": 0, "added": 0}
    assert written["corrected_images"] == [
        {"image_id": 12, "file_name": "12.png", "unchanged": 1, "removed": 1, **counts},
        {"image_id": 41, "file_name": "cam 1/deep/41.png", "unchanged": 2, "removed": 0, **counts},
    ]
    assert str(tmp_path) not in (tmp_path / "new.lineage.json").read_text() + (tmp_path / "new.json").read_text()
    # and once more, on the new pool
    again = corrected_coco(pool, keep=(7,), name="again.json")
    _, value, _ = apply(read_coco(tmp_path / "new.json"), again, name="newer.json")
    assert [found["corrections"][0]["file_name"] for found in value["info"][LINEAGE]] == [
        "corrected.json", "again.json"
    ]  # fmt: skip


@pytest.mark.parametrize(("info", "expected"), [(None, {}), ("made by hand", {"info": "made by hand"})])
def test_apply_info_absent_or_no_object_is_kept(tmp_path, info, expected):
    source = pool_json()
    del source["info"]
    if info is not None:
        source["info"] = info
    (tmp_path / "train.json").write_text(json.dumps(source))
    pool = read_coco(tmp_path / "train.json")
    _, value, _ = apply(pool, corrected_coco(pool))
    lineage = value["info"].pop(LINEAGE)
    assert (value["info"], len(lineage)) == (expected, 1)


def test_apply_several_files_to_gzip(tmp_path, pool):
    first, second = (corrected_coco(pool, keep=(key,), name=f"{key}.json") for key in (12, 41))
    new, _, lineage = apply(pool, first, second, name="new.json.gz")
    assert lineage["images"]["confirmed"] == 2
    assert (
        json.loads(gzip.decompress((tmp_path / "new.json.gz").read_bytes()))["annotations"]
        == (pool_json()["annotations"])
    )
    assert (tmp_path / "new.lineage.json").is_file()
    assert new.num_boxes == 7


def test_apply_keeps_repairs_of_pool(tmp_path):
    source = pool_json()
    source["annotations"][3]["bbox"] = [2, 5, -1, 3]
    del source["annotations"][6]["area"]
    (tmp_path / "train.json").write_text(json.dumps(source))
    pool = read_coco(tmp_path / "train.json", {"invalid_box": "repair", "missing_area": "repair"})
    new, value, _ = apply(pool, corrected_coco(pool))
    assert [record["id"] for record in value["annotations"]] == [101, 102, 103, 105, 106, 107]
    assert record_of(value, 107)["area"] == pytest.approx(127.5)


def test_apply_keeps_crowd_regions(pool):
    _, value, lineage = apply(
        pool, corrected_coco(pool, lambda value: value["annotations"].remove(record_of(value, 106)))
    )
    assert record_of(value, 106) == record_of(pool_json(), 106)
    assert lineage["boxes"]["removed"] == 0


def test_apply_image_without_boxes_removes_labels(pool):
    def empty(value):
        value["annotations"] = [record for record in value["annotations"] if record["image_id"] != 12]

    new, value, lineage = apply(pool, corrected_coco(pool, empty))
    assert lineage["boxes"]["removed"] == 2
    assert len(new) == 5


def test_apply_repeated_file_name_is_resolved_by_id(tmp_path):
    source = pool_json()
    for record in source["images"]:
        if record["id"] in (7, 12):
            record |= {"file_name": "same.png", "width": 63, "height": 47}
    (tmp_path / "train.json").write_text(json.dumps(source))
    pool = read_coco(tmp_path / "train.json")
    value = {**source, "images": [record for record in source["images"] if record["id"] == 12]}
    value["annotations"] = [record_of(source, 105)]
    (tmp_path / "corrected.json").write_text(json.dumps(value))
    _, _, lineage = apply(pool, tmp_path / "corrected.json")
    assert [image["image_id"] for image in lineage["corrected_images"]] == [12]
    assert lineage["boxes"]["removed"] == 1
    text = '<annotations><image name="same.png" width="63" height="47"/></annotations>'
    (tmp_path / "corrected.xml").write_text(text)
    with pytest.raises(DatasetError, match=r"corrected\.xml.*'same\.png'.*None"):
        apply(pool, tmp_path / "corrected.xml", name="other.json")


# Corrections that do not fit


def no_images(value):
    value["annotations"] = []


REFUSED = {
    "an image that is not in the pool": (
        lambda value: value["images"][1].update(file_name="cam 1/deep/4.png"),
        r"corrected.json.*'cam 1/deep/4.png'.*'cam 1/deep/41.png'",
    ),
    "an unknown class": (
        lambda value: value["categories"][0].update(name="cars"),
        r"corrected.json.*'cam 1/deep/41.png'.*'cars'.*'car'.*person, bike, car, bus",
    ),
    "a box outside the image": (
        lambda value: record_of(value, 103).update(bbox=[60, 5, 10, 12]),
        r"corrected.json.*65x49.*60, 5, 70, 17 of 'person' on 'cam 1/deep/41.png'",
    ),
    "another size": (
        lambda value: value["images"][1].update(width=130, height=98),
        r"corrected.json.*'cam 1/deep/41.png'.*130x98.*65x49",
    ),
    "the same image twice": (
        lambda value: value["images"].append({**value["images"][1], "id": 5}),
        r"corrected.json.*'cam 1/deep/41.png'",
    ),
    "no boxes at all": (
        no_images,
        r"corrected.json.*2 images.*5 boxes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_apply_corrections_of_another_pool_raise(tmp_path, pool, case):
    edit, message = REFUSED[case]
    path = corrected_coco(pool, edit)
    with pytest.raises(DatasetError, match=message):
        apply(pool, path)
    assert not list(tmp_path.glob("*new*"))  # and no partial file either


def test_apply_image_in_two_files_raises(pool):
    files = [corrected_coco(pool, keep=(12,), name=f"{name}.json") for name in ("a", "b")]
    with pytest.raises(DatasetError, match=r"a.json and .*b.json.*'12.png'"):
        apply(pool, *files)


def test_apply_box_a_pixel_past_border_is_clipped(pool):
    _, value, _ = apply(
        pool, corrected_coco(pool, lambda value: record_of(value, 103).update(bbox=[30.25, 5, 35.75, 12]))
    )
    assert record_of(value, 103)["bbox"] == [30.25, 5.0, 34.75, 12.0]


def test_apply_existing_output_raises_and_stays(tmp_path, pool):
    path = corrected_coco(pool)
    for name in ("train.json", "corrected.json"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(DatasetError, match=rf"output.*{name}"):
            apply(pool, path, name=name)
        assert (tmp_path / name).read_bytes() == before
    (tmp_path / "new.lineage.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"output.*new.lineage.json"):
        apply(pool, path)


def test_apply_failed_write_leaves_nothing(tmp_path, pool, monkeypatch):
    def fail(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detcurate.interop.corrections.apply.write_json", fail)
    with pytest.raises(OSError, match="No space"):
        apply(pool, corrected_coco(pool))
    assert not list(tmp_path.glob("*new*"))


IMAGE = '<image name="12.png" width="63" height="47">'
SIDES = 'xtl="1" ytl="1" xbr="9" ybr="9"'
BAD_FILES = {
    "empty.json": ("", r"empty\.json"),
    "words.txt": ("hello", r"words\.txt.*'h'"),
    "broken.xml": ("<annotations><image>", r"broken\.xml.*no element found"),
    "voc.xml": ("<annotation/>", r"voc\.xml.*<annotation>"),
    "video.xml": ("<annotations><track/></annotations>", r"video\.xml.*tracks"),
    "entity.xml": ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', r"entity\.xml.*document type"),
    "none.xml": ("<annotations/>", r"none\.xml"),
    "nameless.xml": ("<annotations><image/></annotations>", r"nameless\.xml.*<image>.*'name'"),
    "polygon.xml": (
        f"<annotations>{IMAGE}<polygon/></image></annotations>", r"polygon\.xml.*'12.png'.*<polygon>"
    ),
    "turned.xml": (
        f'<annotations>{IMAGE}<box label="car" rotation="45" {SIDES}/></image></annotations>',
        r"turned\.xml.*'12.png'.*rotated",
    ),
    "words.xml": (
        f'<annotations>{IMAGE}<box label="car" xtl="left"/></image></annotations>',
        r"words\.xml.*'xtl'.*'12.png'.*'left'",
    ),
    "infinite.xml": (
        f'<annotations>{IMAGE}<box label="car" xtl="1" ytl="1" xbr="inf" ybr="9"/></image></annotations>',
        r"infinite\.xml.*'xbr'.*'inf'",
    ),
    "flat.xml": (
        f'<annotations>{IMAGE}<box label="car" xtl="5" ytl="1" xbr="5" ybr="9"/></image></annotations>',
        r"flat\.xml.*5, 1, 5, 9 of 'car' on '12.png'",
    ),
    "broken.json": ('[{"data": ', r"broken\.json.*Label Studio"),
    "min.json": ('[{"image": "/data/upload/12.png", "label": []}]', r"min\.json.*task 0.*JSON-MIN"),
    "nothing.json": ("[]", r"nothing\.json"),
    "todo.json": ('[{"data": {"image": "12.png"}, "annotations": []}]', r"todo\.json"),
    "ellipse.json": (
        '[{"data": {"image": "12.png"}, "annotations": [{"result": [{"type": "ellipselabels", "original_width": 63,'
        ' "original_height": 47}]}]}]',
        r"ellipse\.json.*'12.png'.*ellipselabels",
    ),
    "two.json": (
        '[{"data": {"image": "12.png"}, "annotations": [{"result": [{"type": "rectanglelabels", "original_width": 63,'
        ' "original_height": 47, "value": {"x": 1, "y": 1, "width": 9, "height": 9,'
        ' "rectanglelabels": ["a", "b"]}}]}]}]',
        r"two\.json.*task 0.*too many values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_read_corrected_unusable_file_raises(tmp_path, pool, name):
    text, message = BAD_FILES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        apply(pool, tmp_path / name)


def test_read_corrected_missing_file_raises(tmp_path):
    with pytest.raises(DatasetError, match=r"absent\.json.*correction"):
        read_corrected(tmp_path / "absent.json")


def test_read_corrected_label_studio_takes_latest_annotation_not_cancelled(tmp_path, pool):
    (tmp_path / "out").mkdir()
    path = write_label_studio(tmp_path / "out", content(tmp_path))[0]
    tasks = json.loads(path.read_text())
    given = tasks[0]["annotations"][0]
    one = {**given, "result": given["result"][:1], "updated_at": "2026-03-02T10:00:00Z"}
    later = {**given, "result": given["result"], "updated_at": "2026-03-03T09:00:00Z"}
    skipped = {**given, "result": [], "updated_at": "2026-03-04T09:00:00Z", "was_cancelled": True}
    tasks[0]["annotations"] = [later, one, skipped]
    tasks[1]["annotations"] = [skipped]
    path.write_text(json.dumps(tasks))
    file = read_corrected(path)
    assert [(image.file_name, len(image.boxes)) for image in file.images] == [("12.png", 2)]
    assert file.skipped == {"not_annotated": 1}


def test_apply_label_studio_without_exported_fields_matches_by_name(tmp_path, pool):
    path = write_label_studio(tmp_path / "out", content(tmp_path))[0]
    tasks = json.loads(path.read_text())
    for task in tasks:
        task["data"] = {"image": task["data"]["image"]}
        for region in task["annotations"][0]["result"]:
            region["id"] = "made-by-hand"
    path.write_text(json.dumps(tasks))
    _, _, lineage = apply(pool, path)
    assert lineage["boxes"]["unchanged"] == 4


@pytest.mark.parametrize("name", ["cvat", "label-studio"])
def test_apply_export_of_version_0_1_is_read(tmp_path, name):
    """Version 0.1 named the note ``suspicion`` and the kinds ``swapped`` and so on; annotators may still have it."""
    found = content(tmp_path)
    path = WRITERS[name](tmp_path / "out", found)[0]
    text = path.read_text()
    for new, old in (("label_error", "suspicion"), ("wrong_class", "swapped"), ("missing_label", "overlooked")):
        assert new in text
        text = text.replace(new, old)
    path.write_text(text)
    (edit_cvat if name == "cvat" else edit_label_studio)(path)
    _, _, lineage = apply(found.dataset, path)
    assert lineage["boxes"] == {"unchanged": 1, "changed": 2, "added": 2, "removed": 1, "not_reviewed": 3}


# Matching


def boxes(*lefts: float):
    return np.array([[left, 0, left + 10, 10] for left in lefts], float).reshape(-1, 4)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # equal box and class, in another order and renumbered
        (([0, 20], [1, 2], "ab"), ([20, 0], [2, 1], "ab"), Matching((0, 1), (), (), ())),
        # two equal boxes of one class: the id tells which of them went
        (([0, 0], [1, 1], "ab"), ([0], [1], "b"), Matching((1,), (), (), (0,))),
        # the same id with any overlap
        (([0], [1], "a"), ([9], [1], "a"), Matching((), ((0, 0),), (), ())),
        # but not without one
        (([0], [1], "a"), ([30], [1], "a"), Matching((), (), (0,), (0,))),
        # no id: the greatest overlap first
        (([0, 4], [1, 1], "ab"), ([3], [1], [""]), Matching((), ((1, 0),), (), (0,))),
        # an overlap of less than a half is another object
        (([0], [1], "a"), ([4], [1], [""]), Matching((), (), (0,), (0,))),
        # another class at one place is a change
        (([0], [1], "a"), ([0], [2], [""]), Matching((), ((0, 0),), (), ())),
        (([], [], ""), ([0], [1], [""]), Matching((), (), (0,), ())),
        (([0], [1], "a"), ([], [], ""), Matching((), (), (), (0,))),
    ],
)
def test_match_labels_by_hand(before, after, expected):
    lefts, classes, keys = before
    new_lefts, new_classes, new_keys = after
    found = match_labels(
        boxes(*lefts), np.array(classes, int), list(keys), boxes(*new_lefts), np.array(new_classes, int), list(new_keys)
    )
    assert found == expected


_LABEL = st.tuples(st.integers(0, 12), st.integers(0, 2), st.sampled_from(["", "a", "b", "c"]))


@given(st.lists(_LABEL, max_size=7), st.lists(_LABEL, max_size=5))
@settings(deadline=None)
def test_match_labels_uses_every_label_once(before, after):
    columns = [
        (boxes(*(left * 3 for left, _, _ in rows)), np.array([of for _, of, _ in rows], int), [key for *_, key in rows])
        for rows in (before, after)
    ]
    found = match_labels(*columns[0], *columns[1])
    used_before = [*found.unchanged, *(row for row, _ in found.changed), *found.removed]
    assert sorted(used_before) == list(range(len(before)))
    used_after = [*found.added, *(row for _, row in found.changed)]
    assert len(used_after) == len(set(used_after))
    assert len(used_after) + len(found.unchanged) == len(after)
    same = match_labels(*columns[0], *columns[0])
    assert same.unchanged == tuple(range(len(before)))


def test_pool_fixture_has_images_of_different_sizes():
    assert len({*SIZES.values()}) == len(SIZES) == 5
    assert file_name(41).count("/") == 2
