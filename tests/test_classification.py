import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from detcurate.errors import PredictionError
from detcurate.score import classification, existence
from detcurate.score.evidence import gather_evidence
from detcurate.structures import Clusters, Detections


def of_votes(measure):
    """A measure of the evidence, as a function of the detections and the clusters that the evidence is gathered of."""
    return lambda detections, clusters, **options: measure(gather_evidence(detections, clusters, **options))


consensus_probs = of_votes(lambda evidence: evidence.mean_probs)
entropy = of_votes(classification.entropy)
expected_entropy = of_votes(classification.expected_entropy)
mutual_information = of_votes(classification.mutual_information)
variation_ratio = of_votes(classification.variation_ratio)
vote_entropy = of_votes(classification.vote_entropy)
margin = of_votes(classification.margin)


def existence_entropy(clusters):
    rows = int(clusters.votes.max(initial=-1)) + 1
    return of_votes(existence.existence_entropy)(detections_of(np.full((rows, 2), 0.5)), clusters)


def detections_of(class_probs):
    class_probs = np.asarray(class_probs, np.float32)
    n = len(class_probs)
    return Detections(
        image_ids=np.full(n, 5, np.int64),
        member=np.zeros(n, np.int32),
        boxes=np.tile(np.array([0, 0, 10, 10], np.float32), (n, 1)),
        scores=class_probs[:, :-1].max(axis=1),
        class_index=class_probs[:, :-1].argmax(axis=1).astype(np.int32),
        class_probs=class_probs,
    )


def clusters_of(votes):
    votes = np.asarray(votes, np.int64)
    g = len(votes)
    return Clusters(np.full(g, 5, np.int64), np.tile(np.array([0, 0, 10, 10], np.float32), (g, 1)), votes)


def random_case(seed=0, g=7, e=5, c=3):
    """G clusters of E members over C classes, every third vote a miss."""
    rng = np.random.default_rng(seed)
    votes = np.arange(g * e).reshape(g, e)
    misses = rng.random((g, e)) < 1 / 3
    misses[:, 0] = False
    return detections_of(rng.dirichlet(np.full(c + 1, 0.4), g * e)), clusters_of(np.where(misses, -1, votes))


def posteriors(detections, clusters):
    """(G, E, C + 1) float64 with the misses written out as background."""
    full = detections.class_probs.astype(np.float64)[clusters.votes]
    full[clusters.votes < 0] = np.eye(full.shape[2])[-1]
    return full / full.sum(axis=2, keepdims=True)


# Arithmetic


def test_two_certain_members_that_differ():
    detections, clusters = detections_of([[1, 0, 0, 0], [0, 1, 0, 0]]), clusters_of([[0, 1]])
    assert consensus_probs(detections, clusters).tolist() == [[0.5, 0.5, 0, 0]]
    assert entropy(detections, clusters) == pytest.approx([math.log(2)])
    assert expected_entropy(detections, clusters).tolist() == [0.0]
    assert mutual_information(detections, clusters) == pytest.approx([math.log(2)])


def test_a_miss_is_background_with_certainty_and_counts_in_the_denominator():
    detections, clusters = detections_of([[0.8, 0.1, 0.1]]), clusters_of([[-1, 0, -1, -1]])
    assert consensus_probs(detections, clusters) == pytest.approx(np.array([[0.2, 0.025, 0.775]]))
    own = -(0.8 * math.log(0.8) + 0.2 * math.log(0.1))
    total = -(0.2 * math.log(0.2) + 0.025 * math.log(0.025) + 0.775 * math.log(0.775))
    assert expected_entropy(detections, clusters) == pytest.approx([own / 4], rel=1e-6)
    assert entropy(detections, clusters) == pytest.approx([total], rel=1e-6)
    assert mutual_information(detections, clusters) == pytest.approx([total - own / 4], rel=1e-6)


def test_rows_that_sum_to_a_little_less_are_renormalised():
    exact, short = np.array([[0.6, 0.3, 0.1]]), np.array([[0.6, 0.3, 0.1]]) * 0.9995
    clusters = clusters_of([[0, -1]])
    for measure in (consensus_probs, entropy, expected_entropy, mutual_information):
        np.testing.assert_allclose(
            measure(detections_of(short), clusters), measure(detections_of(exact), clusters), rtol=1e-6
        )


def test_existence_entropy_by_hand():
    clusters = clusters_of([[0, 1, 2, 3], [0, 1, -1, -1], [-1, -1, 2, -1], [0, 1, 2, -1]])
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert existence_entropy(clusters) == pytest.approx([0, math.log(2), quarter, quarter])


# Oracles


def test_entropies_against_scipy():
    detections, clusters = random_case()
    full = posteriors(detections, clusters)
    np.testing.assert_allclose(consensus_probs(detections, clusters), full.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(entropy(detections, clusters), scipy_entropy(full.mean(axis=1), axis=1), rtol=1e-12)
    np.testing.assert_allclose(
        expected_entropy(detections, clusters), scipy_entropy(full, axis=2).mean(axis=1), rtol=1e-12
    )


def test_mutual_information_of_two_members_is_the_jensen_shannon_divergence():
    detections, clusters = random_case(g=11, e=2, c=4)
    full = posteriors(detections, clusters)
    divergence = jensenshannon(full[:, 0], full[:, 1], axis=1) ** 2
    np.testing.assert_allclose(mutual_information(detections, clusters), divergence, atol=1e-12)


def test_mutual_information_is_the_mean_divergence_of_the_members_from_their_mean():
    detections, clusters = random_case(seed=3)
    full = posteriors(detections, clusters)
    mean = np.broadcast_to(full.mean(axis=1, keepdims=True), full.shape)
    divergence = scipy_entropy(full, mean, axis=2).mean(axis=1)
    np.testing.assert_allclose(mutual_information(detections, clusters), divergence, atol=1e-12)


def test_existence_entropy_against_scipy():
    _, clusters = random_case(seed=4)
    share = (clusters.votes >= 0).mean(axis=1)
    np.testing.assert_allclose(existence_entropy(clusters), scipy_entropy([share, 1 - share]), atol=1e-12)


# Properties


def test_identical_members_disagree_on_nothing():
    row = np.random.default_rng(0).dirichlet(np.ones(6))
    detections, clusters = detections_of(np.tile(row, (4, 1))), clusters_of([[0, 1, 2, 3]])
    assert mutual_information(detections, clusters) == pytest.approx([0], abs=1e-12)
    assert entropy(detections, clusters)[0] > 0.1  # the doubt that all share is entropy, not disagreement
    assert existence_entropy(clusters).tolist() == [0.0]
    assert not np.signbit(existence_entropy(clusters)).any()


def test_more_disagreement_is_higher():
    rows = [[0.9, 0.05, 0.05], [0.7, 0.25, 0.05], [0.4, 0.55, 0.05], [0.05, 0.9, 0.05]]
    detections, clusters = detections_of(rows), clusters_of([[0, 0], [0, 1], [0, 2], [0, 3], [0, -1]])
    information = mutual_information(detections, clusters)
    assert (np.diff(information[:4]) > 0).all()
    assert information[4] > information[3]  # an outright miss is stronger than another class named with 0.9


def test_the_order_of_members_does_not_matter():
    detections, clusters = random_case(seed=5)
    turned = clusters_of(clusters.votes[:, [3, 1, 4, 0, 2]])
    for measure in (consensus_probs, entropy, expected_entropy, mutual_information):
        np.testing.assert_allclose(measure(detections, turned), measure(detections, clusters), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("e", "c"), [(2, 5), (6, 2), (9, 3)])
def test_mutual_information_stays_in_its_range_and_reaches_its_top(e, c):
    detections, clusters = random_case(g=13, e=e, c=c)
    information = mutual_information(detections, clusters)
    assert (information >= 0).all() and (information <= math.log(min(e, c + 1)) + 1e-12).all()
    m = min(e, c + 1)
    apart = detections_of(np.eye(c + 1)[:m])
    assert mutual_information(apart, clusters_of([np.arange(m)])) == pytest.approx([math.log(m)])


def test_no_cluster_gives_no_value():
    detections, clusters = Detections.empty(4), clusters_of(np.zeros((0, 3)))
    for measure in (entropy, expected_entropy, mutual_information):
        assert measure(detections, clusters).shape == (0,)
    assert consensus_probs(detections, clusters).shape == (0, 5)
    assert existence_entropy(clusters).shape == (0,)


# Messages


@pytest.mark.parametrize("measure", [consensus_probs, entropy, expected_entropy, mutual_information])
def test_votes_of_other_detections_are_refused(measure):
    with pytest.raises(PredictionError, match="Clusters.votes must name rows below 1, the number of detections, got 2"):
        measure(detections_of([[0.5, 0.5]]), clusters_of([[0, 2, -1]]))


# Sigmoids: 6 members, 4 classes, 9 clusters


def sigmoids_of(foreground):
    foreground = np.asarray(foreground, np.float32)
    columns = vars(detections_of(np.eye(foreground.shape[1] + 1, dtype=np.float32)[np.zeros(len(foreground), int)]))
    class_probs = np.column_stack((foreground, 1 - foreground.max(axis=1)))
    return Detections(**{**columns, "class_probs": class_probs, "posterior_form": "sigmoid"})


def random_sigmoids(seed=0, g=9, e=6, c=4):
    rng = np.random.default_rng(seed)
    foreground = rng.beta(0.4, 0.8, (g * e, c))
    foreground[::5, 0], foreground[1::5, 1] = 0.0, 1.0  # what float32 gives far from the middle
    _, clusters = random_case(seed, g, e, c)
    return sigmoids_of(foreground), clusters


def answers(detections, clusters):
    """(G, E, C) float64 with the misses written out as no."""
    full = detections.class_probs[:, :-1].astype(np.float64)[clusters.votes]
    full[clusters.votes < 0] = 0.0
    return full


def h(p):
    return sum(-value * math.log(value) for value in (p, 1 - p) if value > 0)


def test_sigmoids_by_hand_each_measure_at_its_own_class():
    # Class 0: 0.5 and 0.5, all doubt and no disagreement. Class 1: 1 and 0, no doubt and all disagreement.
    detections, clusters = sigmoids_of([[0.5, 1.0, 0.1], [0.5, 0.2, 0.1]]), clusters_of([[0, 1]])
    assert consensus_probs(detections, clusters) == pytest.approx(np.array([[0.5, 0.6, 0.1, 0.4]]))
    assert entropy(detections, clusters) == pytest.approx([math.log(2)])
    assert expected_entropy(detections, clusters) == pytest.approx([math.log(2)])
    assert mutual_information(detections, clusters) == pytest.approx([h(0.6) - h(0.2) / 2], rel=1e-6)


def test_a_miss_says_no_to_every_class_and_counts_in_the_denominator():
    detections, clusters = sigmoids_of([[0.8, 0.3]]), clusters_of([[-1, 0, -1, -1]])
    assert consensus_probs(detections, clusters) == pytest.approx(np.array([[0.2, 0.075, 0.8]]))
    assert entropy(detections, clusters) == pytest.approx([h(0.2)], rel=1e-6)
    assert expected_entropy(detections, clusters) == pytest.approx([h(0.3) / 4], rel=1e-6)
    assert mutual_information(detections, clusters) == pytest.approx([h(0.2) - h(0.8) / 4], rel=1e-6)


def test_sigmoids_against_scipy():
    detections, clusters = random_sigmoids()
    full = answers(detections, clusters)
    total = scipy_entropy([full.mean(axis=1), 1 - full.mean(axis=1)], axis=0)
    own = scipy_entropy([full, 1 - full], axis=0).mean(axis=1)
    consensus = consensus_probs(detections, clusters)
    np.testing.assert_allclose(consensus[:, :-1], full.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(consensus[:, -1], 1 - full.mean(axis=1).max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(entropy(detections, clusters), total.max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(expected_entropy(detections, clusters), own.max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(mutual_information(detections, clusters), (total - own).max(axis=1), atol=1e-12)
    assert (mutual_information(detections, clusters) > 0.01).all()


def test_one_class_of_sigmoids_is_the_softmax_of_two():
    """A sigmoid against all else is a softmax of that class and the background."""
    rng = np.random.default_rng(2)
    probs, clusters = rng.random((7 * 3, 1)).astype(np.float32), random_case(2, 7, 3)[1]
    softmax = detections_of(np.column_stack((probs, 1 - probs)))
    for measure in (consensus_probs, entropy, expected_entropy, mutual_information):
        np.testing.assert_allclose(measure(sigmoids_of(probs), clusters), measure(softmax, clusters), rtol=1e-5)


def test_identical_sigmoids_disagree_on_nothing():
    detections, clusters = sigmoids_of(np.tile([0.3, 0.9, 0.02], (5, 1))), clusters_of([[0, 1, 2, 3, 4]])
    assert mutual_information(detections, clusters) == pytest.approx([0], abs=1e-12)
    assert entropy(detections, clusters) == pytest.approx([h(0.3)], rel=1e-6)


def test_the_order_of_members_with_sigmoids_does_not_matter():
    detections, clusters = random_sigmoids(seed=5)
    turned = clusters_of(clusters.votes[:, [3, 1, 5, 4, 0, 2]])
    for measure in (consensus_probs, entropy, expected_entropy, mutual_information):
        np.testing.assert_allclose(measure(detections, turned), measure(detections, clusters), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("e", "c"), [(2, 5), (6, 2), (9, 3)])
def test_measures_of_sigmoids_stay_in_their_range_and_reach_its_top(e, c):
    detections, clusters = random_sigmoids(g=13, e=e, c=c)
    for measure in (entropy, expected_entropy, mutual_information):
        values = measure(detections, clusters)
        assert (values >= 0).all() and (values <= math.log(2) + 1e-12).all()
    halves = sigmoids_of([[1.0] + [0.0] * (c - 1), [0.0] * c])
    assert mutual_information(halves, clusters_of([[0, 1]])) == pytest.approx([math.log(2)])


def test_no_cluster_of_sigmoids_gives_no_value():
    detections, clusters = Detections.empty(4, "sigmoid"), clusters_of(np.zeros((0, 3)))
    for measure in (entropy, expected_entropy, mutual_information):
        assert measure(detections, clusters).shape == (0,)
    assert consensus_probs(detections, clusters).shape == (0, 5)


@pytest.mark.parametrize("measure", [consensus_probs, entropy, expected_entropy, mutual_information])
def test_votes_of_other_sigmoids_are_refused(measure):
    with pytest.raises(PredictionError, match="Clusters.votes must name rows below 1, the number of detections, got 2"):
        measure(sigmoids_of([[0.5, 0.4]]), clusters_of([[0, 2, -1]]))
