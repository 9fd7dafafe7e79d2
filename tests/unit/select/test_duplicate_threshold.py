"""The threshold of near-duplicates: by hand, against plain loops, and properties."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcurate.errors import SelectionError
from detcurate.select.duplicate_threshold import (
    EMBEDDING_STEP,
    duplicate_threshold,
    hash_similarity,
    hash_units,
    nearest_similarity,
    pair_similarity,
    smallest_threshold,
)
from detcurate.select.filters import hash_duplicates, near_duplicates


def at_angles(*degrees: float):
    angles = np.radians(degrees)
    return np.column_stack((np.cos(angles), np.sin(angles)))


def random_pool(seed, n=150, num_sequences=5):
    """Drifting sequences: frames near each other in a sequence are alike, those of others less so."""
    rng = np.random.default_rng(seed)
    sequences = rng.integers(-1, num_sequences, n)
    centres = rng.normal(size=(num_sequences + 1, 6))
    return centres[sequences] + rng.normal(0, 0.2, (n, 6)), sequences


# By hand


def test_threshold_by_hand_lies_above_the_nearest_pair_of_two_sequences():
    embeddings = at_angles(0, 1, 20, 21)
    found = duplicate_threshold(
        embeddings=embeddings,
        sequences=np.array([4, 4, 7, 7]),
        copies={"jpeg": at_angles(0.5, 20.5), "cropped": at_angles(30, 22)},
        originals=np.array([0, 2]),
    )
    assert found.similarity == pytest.approx(math.cos(math.radians(19)) + EMBEDDING_STEP, abs=1e-7)
    assert (found.false_neighbours, found.num_images, found.num_copies) == (0.0, 4, 4)
    assert (found.recall, found.recall_by_kind) == (0.75, {"jpeg": 1.0, "cropped": 0.5})
    assert found.compared_with == "other sequences"
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    for value in ("0.94552", "0.00%", "75.0%", "4 planted copies"):
        assert value in found.text


def test_threshold_of_hashes_by_hand_is_a_number_of_bits():
    hashes = np.array([0, 1, 0b1111000, 0b1111001], np.uint64)  # the sequences differ in 4 bits at least
    copies = {"jpeg": np.array([0b111, 0b11111000], np.uint64)}
    found = duplicate_threshold(
        hashes=hashes, sequences=np.array([0, 0, 1, 1]), copies=copies, originals=np.array([0, 2])
    )
    assert (found.similarity, found.recall) == (61 / 64, 1.0)
    assert hash_duplicates(hashes, similarity=found.similarity).tolist() == [-1, 0, -1, 2]


def test_threshold_allows_one_image_in_a_thousand():
    nearest = np.linspace(0, 0.999, 3000)
    assert smallest_threshold(nearest, step=1e-9) == pytest.approx(nearest[-4] + 1e-9)
    assert smallest_threshold(nearest[:999], step=1e-9) == pytest.approx(nearest[998] + 1e-9)
    assert smallest_threshold(np.zeros(0), step=0.25) == 0.25
    assert smallest_threshold(np.array([-1.0, -1.0]), step=0.25) == 0.25


def test_identical_images_of_two_sequences_give_1_and_their_share():
    found = duplicate_threshold(embeddings=at_angles(0, 0, 40, 80), sequences=np.array([0, 1, 2, 2]))
    assert (found.similarity, found.false_neighbours, found.recall) == (1.0, 0.5, None)
    assert "unknown" in found.text


def test_images_without_a_sequence_are_not_compared():
    embeddings = at_angles(0, 20, 20.1)
    found = duplicate_threshold(embeddings=embeddings, sequences=np.array([0, 1, -1]))
    assert found.similarity == pytest.approx(math.cos(math.radians(20)) + EMBEDDING_STEP, abs=1e-7)
    assert found.num_images == 2


def test_without_sequences_pairs_as_near_as_copies_are_taken_for_duplicates():
    embeddings, originals = at_angles(0, 0.5, 30, 50), np.array([0, 2])
    copies = {"jpeg": at_angles(1, 31), "brightened": at_angles(10, 40)}  # half of the nearer kind: 1 degree
    found = duplicate_threshold(embeddings=embeddings, copies=copies, originals=originals)
    assert found.similarity == pytest.approx(math.cos(math.radians(20)) + EMBEDDING_STEP, abs=1e-7)
    assert (found.recall, found.compared_with, found.num_images) == (1.0, "all images", 4)
    one_sequence = duplicate_threshold(
        embeddings=embeddings, sequences=np.zeros(4, int), copies=copies, originals=originals
    )
    assert one_sequence == found


def test_threshold_without_sequences_and_copies_names_the_setting():
    with pytest.raises(SelectionError, match=r"CURATE.SELECT.DUPLICATE_SIMILARITY: .*sequences"):
        duplicate_threshold(embeddings=at_angles(0, 20), sequences=np.array([3, 3]))
    with pytest.raises(SelectionError, match=r"CURATE.SELECT.DUPLICATE_SIMILARITY: .*embeddings"):
        duplicate_threshold(sequences=np.array([3, 3]))


# Oracles


@pytest.mark.parametrize("seed", range(3))
def test_nearest_similarity_equals_a_loop_over_all_pairs(seed, monkeypatch):
    monkeypatch.setattr("detcurate.select.duplicate_threshold._QUERY_BLOCK", 32)
    monkeypatch.setattr("detcurate.select.duplicate_threshold._BLOCK", 17)
    embeddings, groups = random_pool(seed)
    units = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    queries, pool = np.arange(3, 150, 2), np.arange(1, 140)
    expected = [
        max(float(units[i] @ units[j]) for j in pool if groups[i] != groups[j] and units[i] @ units[j] < 0.95)
        for i in queries
    ]
    got = nearest_similarity(units, groups, queries, pool=pool, ceiling=0.95)
    assert got == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=1, max_size=20))
def test_hash_similarity_equals_counted_bits(pairs):
    first, second = (hash_units(np.array(column, np.uint64)) for column in zip(*pairs, strict=True))
    got = hash_similarity((first * second).sum(axis=1))
    assert got.tolist() == [1 - (a ^ b).bit_count() / 64 for a, b in pairs]


@given(st.lists(st.integers(0, 99), min_size=1, max_size=60), st.sampled_from([0.001, 0.1, 0.5]))
def test_threshold_is_the_smallest_of_all_that_hold(values, share):
    nearest, step = np.array(values) / 100, 1e-6
    found = smallest_threshold(nearest, step=step, share=share)
    candidates = sorted({step, *(nearest + step).tolist()})
    holds = [t for t in candidates if (nearest >= t).mean() <= share]
    assert found == pytest.approx(holds[0], abs=0)


# Properties


@pytest.mark.parametrize("way", ["embeddings", "hashes"])
@pytest.mark.parametrize("seed", range(3))
def test_threshold_removes_no_image_for_one_of_another_sequence(seed, way):
    embeddings, sequences = random_pool(seed)
    if way == "embeddings":
        found = duplicate_threshold(embeddings=embeddings, sequences=sequences)
        keeper = near_duplicates(embeddings, similarity=found.similarity)
    else:
        signs = embeddings @ np.random.default_rng(9).normal(size=(6, 64)) > 0
        hashes = np.packbits(signs, axis=1).view(np.uint64)[:, 0]
        found = duplicate_threshold(hashes=hashes, sequences=sequences)
        keeper = hash_duplicates(hashes, similarity=found.similarity)
    removed = np.flatnonzero((keeper >= 0) & (sequences >= 0) & (sequences[keeper] >= 0))
    assert len(removed) > 0 or found.similarity == 1
    if found.false_neighbours == 0:
        assert (sequences[removed] == sequences[keeper[removed]]).all()


def test_threshold_does_not_depend_on_the_order_of_images():
    embeddings, sequences = random_pool(4)
    order = np.random.default_rng(0).permutation(len(sequences))
    first, second = (
        duplicate_threshold(embeddings=embeddings[rows], sequences=sequences[rows])
        for rows in (np.arange(len(order)), order)
    )
    assert first.similarity == pytest.approx(second.similarity, abs=1e-6)


def test_large_pools_are_sampled_with_the_seed(monkeypatch):
    monkeypatch.setattr("detcurate.select.duplicate_threshold._MOST_QUERIES", 40)
    embeddings, sequences = random_pool(6)
    every = [duplicate_threshold(embeddings=embeddings, sequences=sequences, seed=seed) for seed in (1, 1, 2)]
    assert every[0] == every[1] and every[0].num_images == 40
    assert every[0].similarity != every[2].similarity or every[0].false_neighbours == every[2].false_neighbours


# Random pairs


def test_pair_similarity_draws_each_pair_equally_often():
    """Of three images only the first two are alike: a third of all pairs."""
    embeddings = np.array([[3.0, 0.0], [9.0, 0.0], [0.0, 0.5]])
    assert pair_similarity((0.6, 0.72), embeddings=embeddings, hashes=None) == (0.0, 1.0)
    hashes = np.array([0, 0, 2**64 - 1], np.uint64)
    assert pair_similarity((0.6, 0.72), embeddings=None, hashes=hashes) == (0.0, 1.0)


@pytest.mark.parametrize("way", ["embeddings", "hashes"])
def test_pair_similarity_quantiles_equal_those_of_all_pairs(way):
    rng = np.random.default_rng(5)
    embeddings, hashes = rng.normal(size=(60, 7)), rng.integers(0, 2**64, 60, np.uint64)
    first, second = np.triu_indices(60, 1)
    if way == "embeddings":
        units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        every = (units[first] * units[second]).sum(axis=1)
    else:
        every = np.array(
            [1 - bin(int(a ^ b)).count("1") / 64 for a, b in zip(hashes[first], hashes[second], strict=True)]
        )
    found = pair_similarity((0.1, 0.5, 0.9), embeddings=embeddings if way == "embeddings" else None, hashes=hashes)
    assert found == pytest.approx(np.quantile(every, (0.1, 0.5, 0.9)), abs=0.02)


def test_pair_similarity_of_one_image_is_empty():
    assert pair_similarity((0.5,), embeddings=np.ones((1, 4)), hashes=None) == ()
