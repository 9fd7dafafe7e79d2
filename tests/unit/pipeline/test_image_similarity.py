"""Planted copies of the pool's images."""

import numpy as np
import pytest

from detcurate.pipeline.image_similarity import COPIES, copied_rows


@pytest.fixture
def image():
    rows, columns = np.indices((70, 110))
    return np.stack((rows + columns, 2 * rows, 250 - columns), axis=-1).astype(np.uint8)


def test_cropped_copy_loses_four_pixels_at_each_side(image):
    assert np.array_equal(COPIES["cropped"](image), image[4:-4, 4:-4])
    assert COPIES["cropped"](image[:32]).shape == (28, 106, 3)  # a sixteenth of a small side


def test_brightened_copy_is_15_percent_brighter_and_saturates(image):
    expected = np.minimum(np.round(image * 1.15), 255)
    assert np.abs(COPIES["brightened"](image) - expected).max() <= 1
    assert COPIES["brightened"](image).max() == 255


def test_jpeg_copy_is_near_but_not_equal(image):
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 9, image.shape), 0, 255).astype(np.uint8)
    difference = np.abs(COPIES["jpeg"](noisy).astype(int) - noisy)
    assert 0 < difference.mean() < 12


def test_copied_rows_are_a_repeatable_sample():
    assert copied_rows(np.arange(7)).tolist() == list(range(7))
    rows = copied_rows(np.arange(5000))
    assert len(set(rows.tolist())) == 100 and (np.diff(rows) > 0).all()
    assert rows.tolist() == copied_rows(np.arange(5000)).tolist()
