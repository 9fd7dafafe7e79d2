"""Boxes from segmentations: by hand, against pycocotools, and from invalid segmentations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask

from detcurate.coco.decode import box_of_segmentation


def encode(pixels):
    """Return a mask as pycocotools writes it, and the same uncompressed."""
    compressed = mask.encode(np.asfortranarray(pixels))
    flat = pixels.ravel(order="F")
    edges = [0, *np.flatnonzero(np.diff(flat)) + 1, len(flat)]
    counts = [0] * int(flat[0]) + np.diff(edges).tolist()
    text = {"counts": compressed["counts"].decode(), "size": list(pixels.shape)}
    return text, {"counts": counts, "size": list(pixels.shape)}


def test_box_of_polygons_by_hand():
    assert box_of_segmentation([[10, 12, 40, 12, 40.5, 30]]) == [10, 12, 30.5, 18]
    assert box_of_segmentation([[10, 12, 40, 12], [-2, 50]]) == [-2, 12, 42, 38]
    assert box_of_segmentation([[[1, 2], [3, 5]]]) == [1, 2, 2, 3]
    assert box_of_segmentation([[5, 6]]) == [5, 6, 0, 0]


def test_box_of_run_lengths_by_hand():
    """Of 4 rows and 6 columns: 5 pixels from row 1 of column 2 to row 1 of column 3."""
    assert box_of_segmentation({"counts": [9, 5, 10], "size": [4, 6]}) == [2, 0, 2, 4]
    assert box_of_segmentation({"counts": [9, 2], "size": [4, 6]}) == [2, 1, 1, 2]
    assert box_of_segmentation({"counts": [0, 24], "size": [4, 6]}) == [0, 0, 6, 4]
    assert box_of_segmentation({"counts": [9, 0, 3, 1, 4, 0], "size": [4, 6]}) == [3, 0, 1, 1]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_box_of_mask_equals_pycocotools(data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))
    pixels = np.zeros((height, width), np.uint8)
    for _ in range(data.draw(st.integers(1, 4))):
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        pixels[top : top + data.draw(st.integers(1, 9)), left : left + data.draw(st.integers(1, 20))] = 1
    text, counts = encode(pixels)
    rows, columns = np.nonzero(pixels)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert box_of_segmentation(text) == box_of_segmentation(counts) == mask.toBbox(text).tolist() == box


def test_box_of_a_large_mask_by_hand():
    pixels = np.zeros((1_080, 1_920), np.uint8)
    pixels[100:901, 37:1_900:3] = 1
    text, counts = encode(pixels)
    assert box_of_segmentation(text) == box_of_segmentation(counts) == [37, 100, 1_861, 801]


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        {},
        None,
        3,
        "text",
        True,
        [[]],
        [[1, 2, 3]],
        [["a", "b"]],
        [[1, None]],
        [{"x": 1}],
        [[1, 2], 3],
        [[10**400, 2]],
        [[float("inf"), 2]],
        [[-1e308, 0, 1e308, 5]],
        {"counts": [1, 2]},
        {"size": [4, 5]},
        {"counts": [1, 2], "size": [0, 0]},  # pycocotools divides by this height
        {"counts": "12", "size": [0, 5]},
        {"counts": [1, 2], "size": [2**32, 5]},  # 0 in 32 bits
        {"counts": [1, 2], "size": [4, 2**40]},
        {"counts": [1, 2], "size": [-4, -5]},
        {"counts": [1, 2], "size": [4.5, 5]},
        {"counts": [1, 2], "size": "45"},
        {"counts": [1, 2], "size": [4]},
        {"counts": [1, 2], "size": [4, 5, 6]},
        {"counts": [-1, 2], "size": [4, 5]},
        {"counts": [1, "b"], "size": [4, 5]},
        {"counts": [1, 2.5], "size": [4, 5]},
        {"counts": [1, 10**30], "size": [4, 5]},
        {"counts": 7, "size": [4, 5]},
        {"counts": None, "size": [4, 5]},
        {"counts": [10, 11], "size": [4, 5]},  # longer than the mask
        {"counts": "~" * 60, "size": [4, 5]},
        {"counts": "o" * 60, "size": [4, 5]},
        {"counts": "11P", "size": [4, 5]},  # truncated: pycocotools reads beyond the end
        {"counts": "1N", "size": [4, 5]},  # a length below 0
        {"counts": "é\U0001f697", "size": [4, 5]},
        {"counts": "1 1", "size": [4, 5]},
        {"counts": "", "size": [4, 5]},
        {"counts": [], "size": [4, 5]},
        {"counts": [20], "size": [4, 5]},
        {"counts": [20, 0], "size": [4, 5]},
    ],
)
def test_invalid_segmentation_has_no_box(segmentation):
    assert box_of_segmentation(segmentation) is None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.characters(min_codepoint=46, max_codepoint=113), max_size=30), st.integers(1, 9), st.integers(1, 9))
def test_box_of_any_counts_is_inside_the_mask(text, height, width):
    box = box_of_segmentation({"counts": text, "size": [height, width]})
    if box is not None:
        x, y, box_width, box_height = box
        assert 0 <= x < x + box_width <= width
        assert 0 <= y < y + box_height <= height
