"""Rendered pool: 160 images of 97x65 px in sequences of 11, seven classes, each kind of defect with its own share."""

import collections
import json
import re
from dataclasses import astuple, replace

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY

from detcurate.coco.dataset import read_coco
from detcurate.coco.image_files import examine_images
from detcurate.errors import ConfigError
from detcurate.structures.boxes import box_iou, xywh_to_xyxy
from detcurate.synthetic import CLASSES, SyntheticConfig, render_sequence, scene, write_dataset
from detcurate.synthetic import rendered_pool as dataset
from detcurate.synthetic import rendered_pool as defects
from detcurate.synthetic.actors import Actor
from detcurate.synthetic.rendered_pool import Labels, plant_defects
from detcurate.synthetic.world import LOCATIONS, TIMES, WEATHERS

PACKAGE = REPOSITORY / "detcurate"
WIDTH, HEIGHT, NUM_IMAGES, PER_SEQUENCE = 97, 65, 160, 11
FRACTIONS = {
    "wrong_class_fraction": 0.04,
    "shifted_box_fraction": 0.07,
    "missing_box_fraction": 0.1,
    "spurious_box_fraction": 0.13,
}
CONFIG = SyntheticConfig(
    num_images=NUM_IMAGES,
    width=WIDTH,
    height=HEIGHT,
    seed=5,
    frames_per_sequence=PER_SEQUENCE,
    near_duplicate_fraction=0.3,
    **FRACTIONS,
)
# Between what the noise of two frames leaves after a 5x5 mean, and what anything that moves changes.
MOVED_LEVELS = 14.0


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    write_dataset(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    write_dataset(folder, replace(CONFIG, **dict.fromkeys(FRACTIONS, 0.0)))
    return folder


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def annotations(folder):
    return {record["id"]: record for record in json.loads((folder / "train.json").read_bytes())["annotations"]}


def planted(folder):
    return json.loads((folder / "train-defects.json").read_bytes())


def image_records(folder):
    return json.loads((folder / "train.json").read_text())["images"]


def label(record):
    return record["image_id"], record["category_id"], tuple(record["bbox"])


def street(*actors: Actor):
    """Return a function that stands in for ``make_world``: a straight, clear street by day with these actors."""

    def make(rng, distance):
        world = make_world(rng, distance)
        return replace(world, location="suburb", weather="clear", timeofday="day", lanes=2, bend=0.0, actors=actors)

    make_world = scene.make_world
    return make


def first_frame(monkeypatch, *actors: Actor):
    with monkeypatch.context() as patch:
        patch.setattr(scene, "make_world", street(*actors))
        return next(render_sequence(SyntheticConfig(num_images=1, width=256, height=160), 0))


# ------------------------------------------------------------------------------------------------- bytes and layout


def test_equal_configs_give_equal_bytes(damaged, tmp_path):
    write_dataset(tmp_path, CONFIG)
    assert len(tree(damaged)) == NUM_IMAGES + 2
    assert tree(tmp_path) == tree(damaged)


def test_other_seed_gives_other_images_and_labels(damaged, tmp_path):
    write_dataset(tmp_path, replace(CONFIG, num_images=PER_SEQUENCE, seed=6))
    other, known = tree(tmp_path), tree(damaged)
    assert len(other) == PER_SEQUENCE + 2
    assert [name for name, data in other.items() if data == known[name]] == []


def test_sequence_is_independent_of_earlier_ones(damaged):
    dataset_read = read_coco(damaged / "train.json")
    for frame in render_sequence(CONFIG, 4):
        name = dataset_read.file_names[4 * PER_SEQUENCE + frame.frame_index]
        _, data = cv2.imencode(".jpg", frame.image, (cv2.IMWRITE_JPEG_QUALITY, 92))
        assert (damaged / "images-train" / name).read_bytes() == data.tobytes()


def test_written_pool_is_valid_coco(damaged):
    pool = read_coco(damaged / "train.json")
    assert examine_images(pool, damaged / "images-train", num_processes=1, desc="check") == []
    assert {finding.code for finding in pool.findings} <= {"empty_image"}
    assert len(pool) == NUM_IMAGES
    assert pool.class_names == CLASSES
    assert pool.category_ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert len(set(pool.file_names)) == NUM_IMAGES
    assert sorted(path.name for path in damaged.iterdir()) == ["images-train", "train-defects.json", "train.json"]
    assert sorted(path.name for path in (damaged / "images-train").iterdir()) == sorted(pool.file_names)
    np.testing.assert_allclose(pool.areas, np.prod(pool.boxes[:, 2:] - pool.boxes[:, :2], axis=1), atol=0.006)
    assert not pool.iscrowd.any()


def test_name_is_the_prefix_of_the_files(tmp_path):
    seen = []
    write_dataset(tmp_path / "a" / "b", replace(CONFIG, num_images=3), name="val", progress=seen.append)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "images-val",
        "val-defects.json",
        "val.json",
    ]
    assert seen == [1, 1, 1]


def test_attributes_are_constant_in_a_sequence_and_cover_all_values(damaged):
    found = collections.defaultdict(set)
    for record in image_records(damaged):
        found[record["sequence"]].add((record["location"], record["weather"], record["timeofday"]))
    assert len(found) == 15
    assert all(len(values) == 1 for values in found.values())
    columns = list(zip(*(value for values in found.values() for value in values), strict=True))
    assert [set(column) for column in columns] == [set(LOCATIONS), set(WEATHERS), set(TIMES)]


@pytest.mark.parametrize("num_images", [1, 2, 10, 11, 12, 25])
@pytest.mark.parametrize("near_duplicate_fraction", [0.0, 0.9])
def test_frame_index_counts_within_a_sequence(tmp_path, num_images, near_duplicate_fraction):
    write_dataset(
        tmp_path,
        replace(CONFIG, num_images=num_images, near_duplicate_fraction=near_duplicate_fraction, width=34, height=33),
    )
    pool = read_coco(tmp_path / "train.json")
    places = [divmod(number, PER_SEQUENCE) for number in range(num_images)]
    assert pool.image_ids.tolist() == list(range(1, num_images + 1))
    assert pool.sequences == tuple(f"seq-{sequence:04d}" for sequence, _ in places)
    assert pool.frame_index.tolist() == [frame for _, frame in places]
    assert pool.file_names == tuple(f"seq-{sequence:04d}_{frame:06d}.jpg" for sequence, frame in places)


@pytest.mark.parametrize(("width", "height"), [(97, 65), (640, 400), (643, 47), (32, 32), (33, 121), (1281, 35)])
def test_pool_of_any_size_is_rendered(tmp_path, width, height):
    config = replace(CONFIG, num_images=9, width=width, height=height, seed=2, frames_per_sequence=5)
    write_dataset(tmp_path, config)
    pool = read_coco(tmp_path / "train.json")
    assert set(zip(pool.widths.tolist(), pool.heights.tolist(), strict=True)) == {(width, height)}
    for name in pool.file_names:
        image = cv2.imread(str(tmp_path / "images-train" / name))
        assert image.shape == (height, width, 3)
        assert image.std() > 5
    assert pool.num_boxes > 0
    assert_inside(pool)


def assert_inside(pool):
    """Check every box; xy and wh are rounded to 0.01 px each, so that their sum may be that much too large."""
    sizes = np.stack((pool.widths, pool.heights), axis=1)[pool.image_index]
    assert (pool.boxes[:, :2] >= 0).all()
    assert (pool.boxes[:, 2:] <= sizes + 0.0101).all()
    assert (pool.boxes[:, 2:] - pool.boxes[:, :2] >= 0.1).all()


# --------------------------------------------------------------------------------------------------------- the truth


def test_boxes_are_inside_their_images(damaged, clean):
    assert_inside(read_coco(damaged / "train.json"))
    assert_inside(read_coco(clean / "train.json"))


def test_cars_are_frequent_and_buses_rare(clean):
    pool = read_coco(clean / "train.json")
    counts = dict(zip(pool.class_names, pool.class_counts().tolist(), strict=True))
    assert counts["car"] > 0.4 * pool.num_boxes
    assert min(counts, key=counts.get) == "bus"
    assert 0 < counts["bus"] < 0.1 * counts["car"]


def test_some_images_are_empty(clean):
    empty = int((read_coco(clean / "train.json").boxes_per_image == 0).sum())
    assert 0 < empty < NUM_IMAGES / 2


@pytest.mark.parametrize(
    "actor",
    [
        Actor("pedestrian", 1.0, 9.0, color=(60, 50, 180), accent=(90, 60, 40)),
        Actor("cyclist", -2.0, 7.0, color=(60, 50, 180), accent=(90, 60, 40)),
        Actor("pedestrian", -3.0, 14.0, variant=3, color=(40, 160, 210), accent=(45, 42, 40)),
    ],
)
def test_box_is_tight_around_the_pixels_of_its_object(monkeypatch, actor):
    frame, without = first_frame(monkeypatch, actor), first_frame(monkeypatch)
    rows, columns = np.nonzero((frame.image != without.image).any(axis=2))
    changed = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert [CLASSES[number] for number in frame.class_index] == [actor.kind]
    np.testing.assert_allclose(frame.boxes, [changed], atol=1.0)
    assert without.boxes.shape == (0, 4)


def test_occluded_object_has_the_box_of_its_visible_part_or_none(monkeypatch):
    bus = Actor("bus", 0.0, 12.0)
    # The bus ends at 1.27 m / 12 m = 0.106; trucks span (x - 1.22) / 30 to (x + 1.22) / 30: 26 % and 51 % remain.
    for x, is_labelled in ((2.6, False), (3.2, True)):
        truck = Actor("truck", x, 30.0)
        (whole,) = first_frame(monkeypatch, truck).boxes
        frame = first_frame(monkeypatch, truck, bus)
        parts = frame.boxes[frame.class_index == CLASSES.index("truck")]
        assert (len(frame.boxes), len(parts)) == (1 + is_labelled, is_labelled)
        for part in parts:
            assert part[2] == whole[2]
            np.testing.assert_allclose(part[0], 128 + 0.85 * 256 * 1.27 / 12, atol=1.0)


# -------------------------------------------------------------------------------------------------- near-duplicates


def largest_change(first, second):
    """Return the largest difference in grey levels that a 5x5 mean leaves: noise goes, an edge that moved stays."""
    return np.abs(cv2.blur(first.astype(np.float32) - second.astype(np.float32), (5, 5))).max()


def test_near_duplicates_differ_only_by_noise():
    repeated, moved = [], []
    for sequence in range(6):
        frames = list(render_sequence(CONFIG, sequence))
        assert len(frames) == PER_SEQUENCE
        for before, frame in zip(frames, frames[1:], strict=False):
            change = largest_change(before.image, frame.image)
            (repeated if frame.is_duplicate else moved).append(change)
            if frame.is_duplicate:
                assert (frame.image != before.image).any()
                np.testing.assert_array_equal(frame.boxes, before.boxes)
                np.testing.assert_array_equal(frame.class_index, before.class_index)
    assert (len(repeated), len(moved)) == (20, 40)
    assert max(repeated) < MOVED_LEVELS < min(moved)


def test_groups_of_near_duplicates_equal_those_of_the_image_files(damaged):
    pool, groups = read_coco(damaged / "train.json"), planted(damaged)["near_duplicates"]
    images = [cv2.imread(str(damaged / "images-train" / name)) for name in pool.file_names]
    alike = [
        number
        for number in range(1, NUM_IMAGES)
        if pool.sequences[number] == pool.sequences[number - 1]
        and largest_change(images[number - 1], images[number]) < MOVED_LEVELS
    ]
    assert [image_id - 1 for group in groups for image_id in group[1:]] == alike
    assert len(alike) == round(0.3 * NUM_IMAGES)
    for group in groups:
        assert group == list(range(group[0], group[0] + len(group)))
        assert len({pool.sequences[image_id - 1] for image_id in group}) == 1


def test_near_duplicates_never_fill_a_sequence(tmp_path):
    write_dataset(tmp_path, replace(CONFIG, num_images=7, frames_per_sequence=3, near_duplicate_fraction=0.9))
    assert planted(tmp_path)["near_duplicates"] == [[1, 2, 3], [4, 5, 6]]


# ----------------------------------------------------------------------------------------------------------- defects


def test_defects_do_not_change_images(damaged, clean):
    assert tree(damaged / "images-train") == tree(clean / "images-train")


def test_clean_pool_lists_no_defect(clean):
    found = planted(clean)
    for kind in ("wrong_class", "shifted_boxes", "missing_boxes", "spurious_boxes"):
        assert found[kind] == []


def test_defects_have_the_requested_shares(damaged, clean):
    found, num_true = planted(damaged), len(annotations(clean))
    counts = {kind: len(found[kind]) for kind in ("wrong_class", "shifted_boxes", "missing_boxes", "spurious_boxes")}
    assert counts == {
        "wrong_class": round(0.04 * num_true),
        "shifted_boxes": round(0.07 * num_true),
        "missing_boxes": round(0.1 * num_true),
        "spurious_boxes": round(0.13 * num_true),
    }
    assert min(counts.values()) > 10
    assert len(annotations(damaged)) == num_true - counts["missing_boxes"] + counts["spurious_boxes"]


def test_label_has_at_most_one_defect(damaged):
    found = planted(damaged)
    numbers = [entry["annotation_id"] for kind in ("wrong_class", "shifted_boxes") for entry in found[kind]]
    numbers += found["spurious_boxes"]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) <= set(annotations(damaged))


def test_reverted_defects_give_the_true_labels(damaged, clean):
    shown, found = annotations(damaged), planted(damaged)
    for entry in found["wrong_class"]:
        shown[entry["annotation_id"]]["category_id"] = entry["true_category_id"]
    for entry in found["shifted_boxes"]:
        shown[entry["annotation_id"]]["bbox"] = entry["true_bbox"]
    for number in found["spurious_boxes"]:
        del shown[number]
    restored = [label(record) for record in (*shown.values(), *found["missing_boxes"])]
    assert sorted(restored) == sorted(label(record) for record in annotations(clean).values())


def test_wrong_classes_differ_and_cover_every_class(damaged):
    shown = annotations(damaged)
    pairs = [
        (shown[entry["annotation_id"]]["category_id"], entry["true_category_id"])
        for entry in planted(damaged)["wrong_class"]
    ]
    assert all(wrong != true for wrong, true in pairs)
    assert {wrong for wrong, _ in pairs} == set(range(1, len(CLASSES) + 1))


def test_shifted_boxes_overlap_their_objects_partly(damaged):
    shown, entries = annotations(damaged), planted(damaged)["shifted_boxes"]
    moved = xywh_to_xyxy(np.array([shown[entry["annotation_id"]]["bbox"] for entry in entries]))
    true = xywh_to_xyxy(np.array([entry["true_bbox"] for entry in entries]))
    overlap = box_iou(moved, true).diagonal()
    assert (overlap < 0.61).all()
    assert (overlap > 0).all()
    assert (moved[:, 2:] - moved[:, :2] >= 0.5 * (true[:, 2:] - true[:, :2]) - 0.02).all()


def test_shifted_boxes_move_by_their_own_size():
    sides = np.array([24.0, 10.0])
    true = np.concatenate(([40.0, 30.0], [40.0, 30.0] + sides))
    fractions = {"wrong_class": 0.0, "shifted_box": 1.0, "missing_box": 0.0, "spurious_box": 0.0}
    labels = Labels([0] * 50, [1] * 50, [true] * 50)
    damaged, truths, _ = plant_defects(labels, fractions, num_classes=4, size=(97, 65), seed=0)
    moved = np.stack(damaged.boxes)
    offsets = ((moved[:, :2] + moved[:, 2:]) / 2 - (true[:2] + true[2:]) / 2) / sides
    stretches = (moved[:, 2:] - moved[:, :2]) / sides
    assert [kind for kind, _ in truths] == ["shifted_box"] * 50
    assert ((np.abs(offsets) > 0.29999) & (np.abs(offsets) < 0.60001)).all()
    assert {tuple(signs) for signs in np.sign(offsets).tolist()} == {(-1, -1), (-1, 1), (1, -1), (1, 1)}
    assert ((stretches > 0.79999) & (stretches < 1.25001)).all()
    assert damaged.class_index == labels.class_index


def test_spurious_boxes_overlap_no_object(damaged, clean):
    shown, numbers = annotations(damaged), planted(damaged)["spurious_boxes"]
    true = collections.defaultdict(list)
    for record in annotations(clean).values():
        true[record["image_id"]].append(record["bbox"])
    spurious = collections.defaultdict(list)
    for number in numbers:
        spurious[shown[number]["image_id"]].append(shown[number]["bbox"])
    for image_id, boxes in spurious.items():
        boxes = xywh_to_xyxy(np.array(boxes))
        assert box_iou(boxes, xywh_to_xyxy(np.array(true[image_id]))).max() < 0.105
        assert np.triu(box_iou(boxes, boxes), 1).max() < 0.105


def test_rare_class_lists_the_images_with_buses(damaged, clean):
    bus = CLASSES.index("bus") + 1
    images = sorted({record["image_id"] for record in annotations(clean).values() if record["category_id"] == bus})
    assert planted(damaged)["rare_class"] == {"category_id": bus, "image_ids": images}
    assert images


def test_spurious_boxes_shrink_where_objects_leave_no_space(monkeypatch):
    calls = iter(range(5_000))

    def count(first, second):
        if next(calls, None) is None:
            raise TimeoutError("no place for a spurious box in 5,000 tries")
        return box_iou(first, second)

    monkeypatch.setattr(defects, "box_iou", count)
    truth = Labels([0, 0, 0], [2, 2, 1], [np.array([0.0, 0.0, 97.0, 65.0])] * 3)
    damaged, truths, _ = plant_defects(
        truth,
        {"wrong_class": 0.0, "shifted_box": 0.0, "missing_box": 0.0, "spurious_box": 2.0},
        num_classes=4,
        size=(97, 65),
        seed=0,
    )
    assert [kind for kind, _ in truths] == [""] * 3 + ["spurious_box"] * 6
    boxes = np.stack(damaged.boxes)
    assert ((boxes >= 0) & (boxes <= [97, 65, 97, 65])).all()
    assert (boxes[:, 2:] - boxes[:, :2] > 1).all()
    assert box_iou(boxes[3:], boxes[:1]).max() < 0.1


def test_pool_without_boxes_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(scene, "make_world", street())
    write_dataset(tmp_path, replace(CONFIG, num_images=3))
    pool = read_coco(tmp_path / "train.json")
    assert (len(pool), pool.num_boxes, pool.class_names) == (3, 0, CLASSES)
    found = planted(tmp_path)
    assert found.pop("rare_class") == {"category_id": 3, "image_ids": []}
    assert [len(group) for group in found.pop("near_duplicates")] == [2]
    assert found == {"wrong_class": [], "shifted_boxes": [], "missing_boxes": [], "spurious_boxes": []}


def test_defects_file_is_not_read_by_the_package(damaged):
    keys = set(planted(damaged)) - {"wrong_class"}  # which is a label error's name too
    name = re.compile(r"defects\.json|-defects|_defects\b|(" + "|".join(keys) + r")['\"]\]")
    knowing = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if name.search(path.read_text())}
    assert knowing == {"synthetic"}


# -------------------------------------------------------------------------------------------------- the order of files


@pytest.mark.parametrize("num_written", [0, 3])
@pytest.mark.parametrize("has_older", [False, True])
def test_annotation_file_is_absent_after_a_failed_image(tmp_path, monkeypatch, num_written, has_older):
    config = replace(CONFIG, num_images=5, frames_per_sequence=4)
    if has_older:
        write_dataset(tmp_path, config)
    write_image, left = dataset._write_image, iter(range(num_written))

    def fail(path, image):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        write_image(path, image)

    monkeypatch.setattr(dataset, "_write_image", fail)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(tmp_path, replace(config, seed=6))
    assert not (tmp_path / "train.json").exists()


def test_annotation_file_is_written_last(tmp_path, monkeypatch):
    there, write_json = {}, dataset.write_json

    def watch(path, value):
        there[path.name] = {found.name for found in tmp_path.rglob("*") if found.is_file()}
        write_json(path, value)

    monkeypatch.setattr(dataset, "write_json", watch)
    write_dataset(tmp_path, replace(CONFIG, num_images=4))
    images = {f"seq-0000_{frame:06d}.jpg" for frame in range(4)}
    assert there == {"train-defects.json": images, "train.json": {*images, "train-defects.json"}}


# ---------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "value", "limit"),
    [
        ("num_images", 0, "1"),
        ("width", 31, "32"),
        ("height", -5, "32"),
        ("seed", -1, "0"),
        ("frames_per_sequence", 1, "2"),
        ("near_duplicate_fraction", 0.91, "0.9]"),
        ("near_duplicate_fraction", -0.1, "0.9]"),
        ("wrong_class_fraction", 0.26, "0.25]"),
        ("shifted_box_fraction", float("nan"), "0.25]"),
        ("missing_box_fraction", 1, "0.25]"),
        ("spurious_box_fraction", float("inf"), "0.25]"),
    ],
)
def test_setting_out_of_range_raises(setting, value, limit):
    with pytest.raises(ConfigError) as caught:
        SyntheticConfig(**{setting: value})
    message = str(caught.value)
    assert message.startswith(f"{setting}: ")
    assert f"got {value}" in message and limit in message


def test_settings_at_their_limits_are_allowed():
    least, most = (1, 32, 32, 0, 2, *(0.0,) * 5), (1, 32, 32, 0, 2, 0.9, *(0.25,) * 4)
    for values in (least, most):
        assert astuple(SyntheticConfig(*values)) == values


def test_clean_config_plants_no_defect():
    found = SyntheticConfig.clean(num_images=9, width=64, height=48, seed=3)
    assert found == SyntheticConfig(9, 64, 48, 3, 20, 0.0, 0.0, 0.0, 0.0, 0.0)
