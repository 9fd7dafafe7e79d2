"""The label-noise filter, near-duplicates and the sequence gap: by hand, and against plain loops over all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detcurate.errors import SelectionError
from detcurate.select import filters as thin
from detcurate.select import neighbours
from detcurate.select.filters import (
    close_frames,
    difference_hash,
    hash_duplicates,
    near_duplicates,
    noisy_rows,
)
from detcurate.select.neighbours import KeptRows, nearest_rows, require_same_images, unit_rows


def plain_thinning(is_near, num_kept=0):
    """Thin rows, best first: each is kept unless a better kept row is near; the best of those replaces it."""
    keeper = [-1] * min(num_kept, len(is_near))
    for row in range(len(keeper), len(is_near)):
        kept = [other for other in range(row) if keeper[other] < 0 and is_near[row, other]]
        keeper.append(kept[0] if kept else -1)
    return keeper


# Label-noise filter


def test_noise_filter_takes_its_share_highest_score_first():
    label_error_score = np.array([0.3, 0.9, 0.1, 0.9, 0.5, 0.2, 0.4])
    assert noisy_rows(label_error_score, quantile=0.5).tolist() == [1, 3, 4, 6]  # 3.5 of 7, so 4
    assert noisy_rows(label_error_score, quantile=1).tolist() == []
    assert len(noisy_rows(label_error_score, quantile=0)) == 7


def test_noise_filter_of_clean_pool_removes_none():
    assert noisy_rows(np.zeros(9), quantile=0.1).tolist() == []
    assert noisy_rows(np.array([0, 0, 0.2, 0, 0]), quantile=0.1).tolist() == [2]


# Near-duplicates by embedding


def test_chain_of_small_differences_keeps_distant_frames():
    # Neighbours are alike (cosine 0.98), the next but one is not (0.92): every second one stays.
    angles = np.arange(7) * 0.2
    units = np.column_stack((np.cos(angles), np.sin(angles)))
    assert near_duplicates(units, similarity=0.97).tolist() == [-1, 0, -1, 2, -1, 4, -1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_rows=st.integers(0, 23),
    similarity=st.sampled_from([0.5, 0.9, 0.99]),
    num_kept=st.sampled_from([0, 1, 8, 23]),
)
def test_near_duplicates_equal_all_pairs(seed, num_rows, similarity, num_kept):
    num_kept, rng = min(num_kept, num_rows), np.random.default_rng(seed)
    embeddings = rng.normal(size=(num_rows, 3)).astype(np.float16)
    units = unit_rows(embeddings).astype(np.float64)
    cosines = units @ units.T
    if num_rows and np.abs(cosines - similarity).min() < 1e-6:  # at the bound float32 decides
        return
    found = near_duplicates(embeddings, similarity=similarity, num_kept=num_kept)
    assert found.tolist() == plain_thinning(cosines >= similarity, num_kept)


def test_similarity_1_finds_equal_embeddings_but_not_zeros():
    embeddings = np.array([[3, 4, 0], [0, 0, 0], [3, 4, 0], [0, 0, 0], [6, 8, 0.1]], np.float16)
    assert near_duplicates(embeddings, similarity=0.99999).tolist() == [-1, -1, 0, -1, -1]


def test_near_duplicates_in_cells_find_nearly_all(monkeypatch):
    rng = np.random.default_rng(3)
    drives = np.repeat(rng.normal(size=(60, 16)), 20, axis=0)
    units = unit_rows(drives + 0.15 * rng.normal(size=drives.shape))[rng.permutation(1200)]
    exact = near_duplicates(units, similarity=0.95)
    monkeypatch.setattr(neighbours, "_EXACT_UP_TO", 500)
    monkeypatch.setattr(thin, "_BLOCK", 256)
    found = near_duplicates(units, similarity=0.95)
    held = near_duplicates(units, similarity=0.95, num_kept=300)  # over the edge of a block
    assert (held[:300] == -1).all() and (held[300:] >= 0).mean() > (found[300:] >= 0).mean()
    assert 0.4 < (exact >= 0).mean() < 0.97
    assert (found == exact).mean() > 0.99
    assert near_duplicates(units, similarity=0.95, num_threads=3).tolist() == found.tolist()


def test_nearest_rows_equal_all_pairs():
    rng = np.random.default_rng(4)
    units, queries = unit_rows(rng.normal(size=(31, 5))), unit_rows(rng.normal(size=(7, 5)))
    cosines, rows = nearest_rows(units, queries, k=4)
    expected = np.argsort(-(queries @ units.T), axis=1)[:, :4]
    assert rows.tolist() == expected.tolist()
    np.testing.assert_allclose(cosines, np.take_along_axis(queries @ units.T, expected, axis=1), rtol=1e-5)
    assert nearest_rows(units[:3], queries, k=9)[1].shape == (7, 3)


def test_kept_rows_are_found_with_threads():
    units = unit_rows(np.random.default_rng(5).normal(size=(40, 3)))
    for num_threads in (1, 3):
        kept = KeptRows(units, num_threads)
        kept.keep(np.array([7, 30]))
        kept.keep(np.array([2]))
        starts, rows = kept.near(units[10:17], 0.3)
        expected = [[row for row in (7, 30, 2) if units[row] @ units[at] >= 0.3] for at in range(10, 17)]
        assert [sorted(rows[starts[at] : starts[at + 1]]) for at in range(7)] == [sorted(found) for found in expected]


@pytest.mark.parametrize(
    ("embedded", "message"),
    [
        ([3, 5], "2 images have none; .*image_id 8"),
        ([3, 5, 8, 9, 11], "1 are of other images; .*image_id 11"),
        ([5, 3, 8, 9], "another order"),
    ],
)
def test_embeddings_of_another_pool_raise(embedded, message):
    ids = np.array([3, 5, 8, 9])
    require_same_images(ids, ids.copy())
    with pytest.raises(SelectionError, match=message + ".*CURATE.PREDICT.EMBEDDINGS"):
        require_same_images(ids, np.array(embedded))


def test_embeddings_not_finite_raise():
    with pytest.raises(SelectionError, match="embeddings must be finite"):
        near_duplicates(np.array([[1.0, np.nan]]), similarity=0.9)


# Near-duplicates by hash


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_rows=st.integers(0, 23),
    most_bits=st.sampled_from([0, 1, 3, 4, 6, 9]),
    num_kept=st.sampled_from([0, 1, 8, 23]),
)
def test_hash_duplicates_equal_all_pairs(seed, num_rows, most_bits, num_kept):
    num_kept, rng = min(num_kept, num_rows), np.random.default_rng(seed)
    hashes = rng.choice(rng.integers(0, 2**63, 4), num_rows).astype(np.uint64)
    for row in range(num_rows):
        for bit in rng.choice(64, rng.integers(0, 9), replace=False):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    differ = np.array([[bin(int(a) ^ int(b)).count("1") for a in hashes] for b in hashes]).reshape(num_rows, num_rows)
    expected = plain_thinning(differ <= most_bits, num_kept)
    assert hash_duplicates(hashes, similarity=1 - most_bits / 64, num_kept=num_kept).tolist() == expected


def test_difference_hash_by_hand():
    falling = np.tile(np.arange(9, 0, -1), (8, 1))
    assert difference_hash(falling) == 0
    assert difference_hash(falling[:, ::-1]) == 2**64 - 1
    one_step = falling.copy()
    one_step[7, 8] = 99  # the last bit: the last patch of the last row is brighter than its left neighbour
    assert difference_hash(one_step) == 1


# The sequence gap


def test_close_frames_ignore_frame_order():
    sequences = np.array([2, 2, 0, 2, 2, 0])
    frame_index = np.array([30, 10, 10, 24, 19, 11])
    assert close_frames(sequences, frame_index, gap=10).tolist() == [-1, -1, -1, 0, 1, 2]


def test_close_frames_keep_images_without_sequence():
    assert close_frames(np.array([-1, -1, 0]), np.array([3, 3, 3]), gap=9).tolist() == [-1, -1, -1]


def test_close_frames_keep_best_of_cameras():
    assert close_frames(np.array([0, 0, 0]), np.array([5, 5, 6]), gap=1).tolist() == [-1, 0, -1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_rows=st.integers(0, 29),
    gap=st.sampled_from([1, 2, 7]),
    num_kept=st.sampled_from([0, 1, 8, 29]),
)
def test_close_frames_equal_all_pairs(seed, num_rows, gap, num_kept):
    num_kept, rng = min(num_kept, num_rows), np.random.default_rng(seed)
    sequences, frame_index = rng.integers(-1, 3, num_rows), rng.integers(0, 40, num_rows)
    same = (sequences[:, None] == sequences) & (sequences >= 0)
    near = same & (np.abs(frame_index[:, None] - frame_index) < gap)
    assert close_frames(sequences, frame_index, gap=gap, num_kept=num_kept).tolist() == plain_thinning(near, num_kept)


def test_close_frames_without_frame_index_raises():
    with pytest.raises(SelectionError, match="gap .*got 0"):
        close_frames(np.array([0]), np.array([0]), gap=0)
    with pytest.raises(SelectionError, match="CURATE.SELECT.SEQUENCE_GAP: .*`frame_index` .*2 of them"):
        close_frames(np.array([0, 0, 1, -1]), np.array([-1, 4, -1, -1]), gap=3)
