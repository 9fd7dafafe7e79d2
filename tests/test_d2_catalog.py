# ruff: noqa: E402  Detectron2 may be absent, and is asked for first
"""The pool as Detectron2 sees it: 4 images, 3 classes, 5 boxes, one of them a crowd; and the stream of samples."""

import itertools
import json
import random

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed: `make setup` installs it")

import numpy as np
import torch
from detectron2.structures import BoxMode

from detcurate.coco.dataset import read_coco
from detcurate.d2.catalog import SampleStream, SeededDataset, detection_dicts


@pytest.fixture
def dataset(tmp_path):
    images = [(30, "c.jpg", 64, 48), (7, "a.jpg", 62, 46), (12, "sub/b.jpg", 63, 47), (41, "d.jpg", 65, 49)]
    boxes = [(41, 9, [1, 2, 10, 20], 0), (12, 2, [3, 4, 5, 6], 0), (41, 2, [5, 6, 7, 8], 1), (30, 5, [0, 0, 9.5, 8], 0)]
    boxes.append((41, 5, [2, 2, 2, 2], 0))
    text = {
        "images": [dict(zip(("id", "file_name", "width", "height"), image, strict=True)) for image in images],
        "annotations": [
            dict(zip(("image_id", "category_id", "bbox", "iscrowd"), box, strict=True), id=number)
            for number, box in enumerate(boxes)
        ],
        "categories": [{"id": 9, "name": "car"}, {"id": 2, "name": "person"}, {"id": 5, "name": "bike"}],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(text))
    return read_coco(path)


def take(stream, count):
    return list(itertools.islice(stream, count))


def indices(codes, num_images):
    return [code % num_images for code in codes]


def test_records_by_hand(dataset, tmp_path):
    records = detection_dicts(dataset, tmp_path / "images")
    assert [(record["image_id"], record["width"], record["height"]) for record in records] == [
        (7, 62, 46), (12, 63, 47), (30, 64, 48), (41, 65, 49),
    ]  # fmt: skip
    assert records[1]["file_name"] == str(tmp_path / "images" / "sub" / "b.jpg")
    found = [[(box["category_id"], box["bbox"], box["iscrowd"]) for box in record["annotations"]] for record in records]
    assert found == [
        [],
        [(0, [3, 4, 8, 10], 0)],
        [(1, [0, 0, 9.5, 8], 0)],
        [(2, [1, 2, 11, 22], 0), (0, [5, 6, 12, 14], 1), (1, [2, 2, 4, 4], 0)],
    ]
    assert {box["bbox_mode"] for record in records for box in record["annotations"]} == {BoxMode.XYXY_ABS}


def test_a_part_of_the_images_in_any_order(dataset, tmp_path):
    whole = detection_dicts(dataset, tmp_path)
    assert detection_dicts(dataset, tmp_path, np.array([41, 7])) == [whole[0], whole[3]]
    assert detection_dicts(dataset, tmp_path, np.zeros(0, np.int64)) == []


def test_detectron2_reads_the_same_from_the_file(dataset, tmp_path):
    """Its own COCO reader is the oracle; it keeps images without objects too, and only the box's mode differs."""
    from detectron2.data.datasets import load_coco_json

    theirs = {record["image_id"]: record for record in load_coco_json(str(dataset.path), str(tmp_path / "images"))}
    for record in detection_dicts(dataset, tmp_path / "images"):
        other = theirs.pop(record["image_id"])
        assert {key: record[key] for key in ("file_name", "width", "height")} == {
            key: other[key] for key in ("file_name", "width", "height")
        }
        ids = {old: new for new, old in enumerate(dataset.category_ids.tolist())}
        for ours, box in zip(record["annotations"], other["annotations"], strict=True):
            assert ours["category_id"] == ids[box["category_id"]]
            assert ours["bbox"] == BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS)
            assert ours["iscrowd"] == box["iscrowd"]
    assert theirs == {}


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 20, 700])
def test_a_stream_from_anywhere_is_the_tail_of_the_whole(start):
    whole = take(SampleStream(7, seed=3), start + 30)
    assert take(SampleStream(7, seed=3, start=start), 30) == whole[start:]


def test_every_epoch_is_a_permutation_and_no_position_comes_twice():
    codes = take(SampleStream(7, seed=3), 7 * 40)
    epochs = np.array(indices(codes, 7)).reshape(40, 7)
    assert (np.sort(epochs, axis=1) == np.arange(7)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 30
    assert [code // 7 for code in codes] == list(range(7 * 40))


@pytest.mark.parametrize("start", [0, 9])
def test_ranks_share_the_stream_in_turns(start):
    whole = take(SampleStream(7, seed=3, start=start), 30)
    shares = [take(SampleStream(7, seed=3, start=start, rank=rank, world_size=3), 10) for rank in range(3)]
    assert [code for turn in zip(*shares, strict=True) for code in turn] == whole


def test_a_stream_is_its_seeds_and_can_be_begun_again():
    stream = SampleStream(7, seed=3)
    first = take(stream, 20)
    assert take(stream, 20) == first
    assert take(SampleStream(7, seed=4), 20) != first
    assert indices(take(SampleStream(1, seed=3), 4), 1) == [0, 0, 0, 0]


def test_two_walks_through_one_stream_do_not_disturb_each_other():
    stream = SampleStream(5, seed=3)
    expected = take(stream, 23)
    slow, fast = iter(stream), iter(stream)
    found = [(next(slow), take(fast, 2))[0] for _ in range(23)]
    assert found == expected


def random_numbers(record):
    return record["image_id"], random.random(), np.random.random(), torch.rand(()).item()


def test_a_sample_is_the_same_whatever_came_before():
    records = [{"image_id": image_id} for image_id in (7, 12, 30)]
    samples = SeededDataset(records, random_numbers, seed=5)
    expected = [samples[code] for code in range(12)]
    assert len(samples) == 3
    assert [sample[0] for sample in expected] == [7, 12, 30] * 4
    for code in (11, 0, 5, 5):
        random.random(), np.random.random(), torch.rand(3)
        assert samples[code] == expected[code]
    assert SeededDataset(records, random_numbers, seed=5)[8] == expected[8]
    assert SeededDataset(records, random_numbers, seed=6)[8] != expected[8]
    by_position = [{sample[1:] for sample in expected[3 * p : 3 * p + 3]} for p in range(4)]
    assert [len(draws) for draws in by_position] == [1, 1, 1, 1]
    assert len(set.union(*by_position)) == 4


def test_loading_a_sample_leaves_the_draws_of_the_step_alone():
    samples = SeededDataset([{"image_id": 7}], random_numbers, seed=5)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    samples[4]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of loader workers, from Python 3.12 on
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_gives_the_same_samples_with_any_number_of_workers(num_workers):
    from detectron2.data import build_detection_train_loader

    records = [{"image_id": image_id} for image_id in (7, 12, 30, 41, 50)]
    samples, stream = SeededDataset(records, random_numbers, seed=5), SampleStream(5, seed=3, start=4)
    loader = build_detection_train_loader(
        dataset=samples, mapper=None, sampler=stream, total_batch_size=3, num_workers=num_workers,
        aspect_ratio_grouping=False,
    )  # fmt: skip
    found = [sample for batch in itertools.islice(loader, 4) for sample in batch]
    assert found == [samples[code] for code in take(stream, 12)]
