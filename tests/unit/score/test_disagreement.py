import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from detcurate.errors import ConfigError, PredictionError
from detcurate.score import disagreement as classification
from detcurate.score import disagreement as existence
from detcurate.score import disagreement as localization
from detcurate.score.cluster_statistics import gather_cluster_statistics
from detcurate.structures import Clusters, Detections


def of_votes(measure):
    """Return a measure as a function of detections and clusters."""
    return lambda detections, clusters, **options: measure(gather_cluster_statistics(detections, clusters, **options))


consensus_probs = of_votes(lambda statistics: statistics.mean_probs)
entropy = of_votes(classification.entropy)
expected_entropy = of_votes(classification.expected_entropy)
mutual_information = of_votes(classification.mutual_information)
variation_ratio = of_votes(classification.variation_ratio)
vote_entropy = of_votes(classification.vote_entropy)
margin = of_votes(classification.margin)


CLASS_MEASURES = (entropy, expected_entropy, mutual_information, variation_ratio, vote_entropy, margin)
PLACE_MEASURES = (of_votes(localization.iou_dispersion), of_votes(localization.box_std))


def existence_entropy(clusters):
    """Of members that are certain of what they detect."""
    rows = int(clusters.votes.max(initial=-1)) + 1
    return of_votes(existence.existence_entropy)(detections_of(np.tile([1.0, 0.0], (rows, 1))), clusters)


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


def test_two_certain_members_that_differ_by_hand():
    detections, clusters = detections_of([[1, 0, 0, 0], [0, 1, 0, 0]]), clusters_of([[0, 1]])
    assert consensus_probs(detections, clusters).tolist() == [[0.5, 0.5, 0, 0]]
    assert entropy(detections, clusters) == pytest.approx([math.log(2)])
    assert expected_entropy(detections, clusters).tolist() == [0.0]
    assert mutual_information(detections, clusters) == pytest.approx([math.log(2)])


def test_miss_counts_as_certain_background():
    detections, clusters = detections_of([[0.8, 0.1, 0.1]]), clusters_of([[-1, 0, -1, -1]])
    assert consensus_probs(detections, clusters) == pytest.approx(np.array([[0.2, 0.025, 0.775]]))
    own = -(0.8 * math.log(0.8) + 0.2 * math.log(0.1))
    total = -(0.2 * math.log(0.2) + 0.025 * math.log(0.025) + 0.775 * math.log(0.775))
    assert expected_entropy(detections, clusters) == pytest.approx([own / 4], rel=1e-6)
    assert entropy(detections, clusters) == pytest.approx([total], rel=1e-6)
    assert mutual_information(detections, clusters) == pytest.approx([total - own / 4], rel=1e-6)


def test_rows_with_rounded_sum_are_renormalised():
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


def test_existence_counts_background_prediction_as_no_object():
    detections = detections_of([[0.05, 0.04, 0.91], [0.3, 0.3, 0.4], [0.4, 0.3, 0.3]])
    clusters = clusters_of([[0, 1, -1, -1], [0, 1, 2, -1], [2, 2, 2, -1]])
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    got = of_votes(existence.existence_entropy)(detections, clusters)
    assert got == pytest.approx([0, quarter, quarter])


def test_votes_and_margin_by_hand():
    rows = [[0.7, 0.2, 0.05, 0.05], [0.3, 0.6, 0.05, 0.05], [0.8, 0.1, 0.05, 0.05]]
    detections, clusters = detections_of(rows), clusters_of([[0, 1, 2, -1], [-1, 0, 2, 0]])
    quarters = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    mostly = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert variation_ratio(detections, clusters) == pytest.approx([0.5, 0.25])
    assert vote_entropy(detections, clusters) == pytest.approx([quarters, mostly])
    # Means 0.45, 0.225, 0.0375, 0.2875, and 0.55, 0.125, 0.0375, 0.2875
    assert margin(detections, clusters) == pytest.approx([1 - (0.45 - 0.2875), 1 - (0.55 - 0.2875)], rel=1e-6)


def test_ignored_misses_leave_members_that_fired():
    rows = [[0.7, 0.2, 0.05, 0.05], [0.3, 0.6, 0.05, 0.05], [0.8, 0.1, 0.05, 0.05]]
    detections, clusters = detections_of(rows), clusters_of([[0, -1, 1, 2, -1]])
    own = [-sum(p * math.log(p) for p in row) for row in rows]
    total = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 2 * 0.05 * math.log(0.05))
    expected = {
        consensus_probs: [0.6, 0.3, 0.05, 0.05],
        entropy: total,
        expected_entropy: sum(own) / 3,
        mutual_information: total - sum(own) / 3,
        variation_ratio: 1 / 3,
        vote_entropy: -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)),
        margin: 0.7,
    }
    for measure, value in expected.items():
        assert measure(detections, clusters, missing="ignore")[0] == pytest.approx(value, rel=1e-6)


# Oracles


@pytest.mark.parametrize("missing", ["background", "ignore"])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_votes_and_margin_equal_loop(form, missing):
    detections, clusters = random_case(seed=8, g=17) if form == "softmax" else random_sigmoids(seed=8, g=17)
    background = detections.num_classes
    for g, votes in enumerate(clusters.votes):
        requested = votes if missing == "background" else votes[votes >= 0]
        favourite = [background if row < 0 else detections.class_probs[row].argmax() for row in requested]
        counts = np.bincount(favourite, minlength=background + 1)
        mean = consensus_probs(detections, clusters, missing=missing)[g]
        expected = [1 - counts.max() / len(requested), scipy_entropy(counts), 1 - np.sort(mean)[-1] + np.sort(mean)[-2]]
        got = [measure(detections, clusters, missing=missing)[g] for measure in (variation_ratio, vote_entropy, margin)]
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_ignored_misses_equal_ensemble_of_members_that_fired(form):
    detections, clusters = random_case(seed=9) if form == "softmax" else random_sigmoids(seed=9)
    for measure in (consensus_probs, *CLASS_MEASURES, *PLACE_MEASURES):
        got = measure(detections, clusters, missing="ignore")
        for g, votes in enumerate(clusters.votes):
            fired = Clusters(clusters.image_ids[[g]], clusters.boxes[[g]], votes[votes >= 0][None])
            np.testing.assert_allclose(got[g], measure(detections, fired)[0], rtol=1e-12, atol=1e-12)


def test_existence_and_box_measures_are_independent_of_missing():
    detections, clusters = random_case(seed=10)
    for measure in (of_votes(existence.existence_entropy), *PLACE_MEASURES):
        ignored = measure(detections, clusters, missing="ignore")
        assert ignored.tolist() == measure(detections, clusters).tolist()


def test_entropies_equal_scipy():
    detections, clusters = random_case()
    full = posteriors(detections, clusters)
    np.testing.assert_allclose(consensus_probs(detections, clusters), full.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(entropy(detections, clusters), scipy_entropy(full.mean(axis=1), axis=1), rtol=1e-12)
    np.testing.assert_allclose(
        expected_entropy(detections, clusters), scipy_entropy(full, axis=2).mean(axis=1), rtol=1e-12
    )


def test_mutual_information_of_two_members_equals_jensen_shannon():
    detections, clusters = random_case(g=11, e=2, c=4)
    full = posteriors(detections, clusters)
    divergence = jensenshannon(full[:, 0], full[:, 1], axis=1) ** 2
    np.testing.assert_allclose(mutual_information(detections, clusters), divergence, atol=1e-12)


def test_mutual_information_equals_mean_divergence_from_mean():
    detections, clusters = random_case(seed=3)
    full = posteriors(detections, clusters)
    mean = np.broadcast_to(full.mean(axis=1, keepdims=True), full.shape)
    divergence = scipy_entropy(full, mean, axis=2).mean(axis=1)
    np.testing.assert_allclose(mutual_information(detections, clusters), divergence, atol=1e-12)


def test_existence_entropy_equals_scipy():
    detections, clusters = random_case(seed=4)
    share = (posteriors(detections, clusters).argmax(axis=2) < 3).mean(axis=1)
    assert ((clusters.votes >= 0).mean(axis=1) != share).any()
    got = of_votes(existence.existence_entropy)(detections, clusters)
    np.testing.assert_allclose(got, scipy_entropy([share, 1 - share]), atol=1e-12)


# Properties


def test_identical_members_have_no_disagreement():
    row = np.random.default_rng(0).dirichlet(np.ones(6))
    detections, clusters = detections_of(np.tile(row, (4, 1))), clusters_of([[0, 1, 2, 3]])
    assert mutual_information(detections, clusters) == pytest.approx([0], abs=1e-12)
    assert entropy(detections, clusters)[0] > 0.1  # the doubt that all share is entropy, not disagreement
    assert existence_entropy(clusters).tolist() == [0.0]
    assert not np.signbit(existence_entropy(clusters)).any()


def test_measures_grow_with_disagreement():
    rows = [[0.9, 0.05, 0.05], [0.7, 0.25, 0.05], [0.4, 0.55, 0.05], [0.05, 0.9, 0.05]]
    detections, clusters = detections_of(rows), clusters_of([[0, 0], [0, 1], [0, 2], [0, 3], [0, -1]])
    information = mutual_information(detections, clusters)
    assert (np.diff(information[:4]) > 0).all()
    assert information[4] > information[3]  # an outright miss is stronger than another class named with 0.9


def test_measures_ignore_order_of_members():
    detections, clusters = random_case(seed=5)
    turned = clusters_of(clusters.votes[:, [3, 1, 4, 0, 2]])
    for measure in (consensus_probs, entropy, expected_entropy, mutual_information):
        np.testing.assert_allclose(measure(detections, turned), measure(detections, clusters), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("missing", ["background", "ignore"])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_measures_ignore_order_of_members_and_rows(form, missing):
    detections, clusters = random_case(seed=6, e=5) if form == "softmax" else random_sigmoids(seed=6, e=5)
    order = np.random.default_rng(0).permutation(len(detections))
    place = np.append(np.argsort(order), -1)  # a miss stays a miss
    turned = clusters_of(place[clusters.votes[:, [3, 1, 4, 0, 2]]])
    for measure in CLASS_MEASURES:
        expected = measure(detections, clusters, missing=missing)
        got = measure(detections.take(order), turned, missing=missing)
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("missing", ["background", "ignore"])
def test_equal_members_have_equal_favourites(form, missing):
    row = [[0.1, 0.3, 0.55, 0.05]] if form == "softmax" else [[0.1, 0.3, 0.55]]
    make = detections_of if form == "softmax" else sigmoids_of
    clusters = clusters_of([[0, 1, 2, 3, 4]])
    for measure in (variation_ratio, vote_entropy):
        assert measure(make(row * 5), clusters, missing=missing).tolist() == [0.0]
        assert not np.signbit(measure(make(row * 5), clusters, missing=missing)).any()
    certain = make([[0.0, 1.0, 0.0, 0.0]] * 5 if form == "softmax" else [[0.0, 1.0, 0.0]] * 5)
    for measure in CLASS_MEASURES:
        assert measure(certain, clusters, missing=missing).tolist() == [0.0]


@pytest.mark.parametrize("measure", [m for m in CLASS_MEASURES if m is not expected_entropy])
@pytest.mark.parametrize("make", ["softmax", "sigmoid", "miss"])
def test_changing_votes_towards_a_split_never_lowers_a_measure(measure, make):
    """Of 8 certain members none, 1, 2, 3 or 4 see another class, or nothing."""
    rows = np.eye(4)[[0] * 8 + [1] * 8]
    detections = sigmoids_of(rows[:, :-1]) if make == "sigmoid" else detections_of(rows)
    others = [-1] * 8 if make == "miss" else list(range(8, 16))
    clusters = clusters_of([[*others[:k], *range(k, 8)] for k in range(5)])
    values = measure(detections, clusters)
    assert values[0] == 0
    assert (np.diff(values) > 0).all()


def test_votes_over_more_classes_are_higher():
    detections = detections_of(np.eye(5))
    clusters = clusters_of([[0] * 6, [0] * 5 + [1], [0] * 4 + [1] * 2, [0] * 4 + [1, 2], [0] * 3 + [1, 2, 3]])
    assert (np.diff(vote_entropy(detections, clusters)) > 0).all()
    assert (np.diff(variation_ratio(detections, clusters)) >= 0).all()


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_less_certain_members_are_higher(form):
    doubt = np.array([0.0, 0.1, 0.2, 0.3, 0.45])
    rows = np.column_stack((1 - doubt, doubt, 0 * doubt))
    detections = detections_of(rows) if form == "softmax" else sigmoids_of(rows[:, :-1])
    clusters = clusters_of([[row] * 3 for row in range(5)])
    for measure in (entropy, expected_entropy, margin):
        assert (np.diff(measure(detections, clusters)) > 0).all()


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("e", "c"), [(2, 5), (6, 2), (9, 3)])
def test_votes_and_margin_stay_in_range_and_reach_its_top(e, c, form):
    detections, clusters = random_case(g=13, e=e, c=c) if form == "softmax" else random_sigmoids(g=13, e=e, c=c)
    m = min(e, c + 1)
    tops = {variation_ratio: 1 - 1 / m, vote_entropy: math.log(m), margin: 1.0}
    apart = detections_of(np.eye(c + 1)[:m]) if form == "softmax" else sigmoids_of(np.eye(c + 1)[:m, :c])
    for measure, top in tops.items():
        for missing in ("background", "ignore"):
            values = measure(detections, clusters, missing=missing)
            assert (values >= 0).all() and (values <= top + 1e-12).all()
        if measure is not margin or form == "softmax":
            assert measure(apart, clusters_of([np.arange(m)])) == pytest.approx([top])


@pytest.mark.parametrize(("e", "c"), [(2, 5), (6, 2), (9, 3)])
def test_mutual_information_stays_in_range_and_reaches_its_top(e, c):
    detections, clusters = random_case(g=13, e=e, c=c)
    information = mutual_information(detections, clusters)
    assert (information >= 0).all() and (information <= math.log(min(e, c + 1)) + 1e-12).all()
    m = min(e, c + 1)
    apart = detections_of(np.eye(c + 1)[:m])
    assert mutual_information(apart, clusters_of([np.arange(m)])) == pytest.approx([math.log(m)])


def test_no_clusters_give_no_values():
    detections, clusters = Detections.empty(4), clusters_of(np.zeros((0, 3)))
    for measure in CLASS_MEASURES:
        assert measure(detections, clusters).shape == (0,)
        assert measure(detections, clusters, missing="ignore").shape == (0,)
    assert consensus_probs(detections, clusters).shape == (0, 5)
    assert existence_entropy(clusters).shape == (0,)


# Messages


@pytest.mark.parametrize("measure", [consensus_probs, entropy, expected_entropy, mutual_information])
def test_votes_beyond_detections_raise(measure):
    with pytest.raises(PredictionError, match="Clusters.votes.*got 2"):
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


def predictions(detections, clusters):
    """(G, E, C) float64 with the misses written out as no."""
    full = detections.class_probs[:, :-1].astype(np.float64)[clusters.votes]
    full[clusters.votes < 0] = 0.0
    return full


def h(p):
    return sum(-value * math.log(value) for value in (p, 1 - p) if value > 0)


def test_sigmoid_measures_by_hand():
    # Class 0: 0.5 and 0.5, all doubt and no disagreement. Class 1: 1 and 0, no doubt and all disagreement.
    detections, clusters = sigmoids_of([[0.5, 1.0, 0.1], [0.5, 0.2, 0.1]]), clusters_of([[0, 1]])
    assert consensus_probs(detections, clusters) == pytest.approx(np.array([[0.5, 0.6, 0.1, 0.4]]))
    assert entropy(detections, clusters) == pytest.approx([math.log(2)])
    assert expected_entropy(detections, clusters) == pytest.approx([math.log(2)])
    assert mutual_information(detections, clusters) == pytest.approx([h(0.6) - h(0.2) / 2], rel=1e-6)


def test_sigmoid_votes_and_margin_by_hand():
    # Favourites: class 0, none of them (0.6 against 0.4), and a miss.
    detections, clusters = sigmoids_of([[0.8, 0.3], [0.1, 0.4]]), clusters_of([[0, 1, -1]])
    assert variation_ratio(detections, clusters) == pytest.approx([1 / 3])
    assert vote_entropy(detections, clusters) == pytest.approx([h(1 / 3)])
    assert margin(detections, clusters) == pytest.approx([1 - (0.7 - 0.3)], rel=1e-6)
    assert variation_ratio(detections, clusters, missing="ignore") == pytest.approx([0.5])
    assert vote_entropy(detections, clusters, missing="ignore") == pytest.approx([math.log(2)])
    assert margin(detections, clusters, missing="ignore") == pytest.approx([1 - (0.55 - 0.45)], rel=1e-6)


def test_sigmoid_miss_has_probability_0_for_every_class():
    detections, clusters = sigmoids_of([[0.8, 0.3]]), clusters_of([[-1, 0, -1, -1]])
    assert consensus_probs(detections, clusters) == pytest.approx(np.array([[0.2, 0.075, 0.8]]))
    assert entropy(detections, clusters) == pytest.approx([h(0.2)], rel=1e-6)
    assert expected_entropy(detections, clusters) == pytest.approx([h(0.3) / 4], rel=1e-6)
    assert mutual_information(detections, clusters) == pytest.approx([h(0.2) - h(0.8) / 4], rel=1e-6)


def test_sigmoid_entropies_equal_scipy():
    detections, clusters = random_sigmoids()
    full = predictions(detections, clusters)
    total = scipy_entropy([full.mean(axis=1), 1 - full.mean(axis=1)], axis=0)
    own = scipy_entropy([full, 1 - full], axis=0).mean(axis=1)
    consensus = consensus_probs(detections, clusters)
    np.testing.assert_allclose(consensus[:, :-1], full.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(consensus[:, -1], 1 - full.mean(axis=1).max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(entropy(detections, clusters), total.max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(expected_entropy(detections, clusters), own.max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(mutual_information(detections, clusters), (total - own).max(axis=1), atol=1e-12)
    assert (mutual_information(detections, clusters) > 0.01).all()


def test_sigmoid_of_one_class_equals_softmax_of_two():
    """A sigmoid against all else is a softmax of that class and the background."""
    rng = np.random.default_rng(2)
    probs, clusters = rng.random((7 * 3, 1)).astype(np.float32), random_case(2, 7, 3)[1]
    softmax = detections_of(np.column_stack((probs, 1 - probs)))
    for measure in (consensus_probs, entropy, expected_entropy, mutual_information):
        np.testing.assert_allclose(measure(sigmoids_of(probs), clusters), measure(softmax, clusters), rtol=1e-5)


def test_identical_sigmoids_have_no_disagreement():
    detections, clusters = sigmoids_of(np.tile([0.3, 0.9, 0.02], (5, 1))), clusters_of([[0, 1, 2, 3, 4]])
    assert mutual_information(detections, clusters) == pytest.approx([0], abs=1e-12)
    assert entropy(detections, clusters) == pytest.approx([h(0.3)], rel=1e-6)


def test_sigmoid_measures_ignore_order_of_members():
    detections, clusters = random_sigmoids(seed=5)
    turned = clusters_of(clusters.votes[:, [3, 1, 5, 4, 0, 2]])
    for measure in (consensus_probs, entropy, expected_entropy, mutual_information):
        np.testing.assert_allclose(measure(detections, turned), measure(detections, clusters), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("e", "c"), [(2, 5), (6, 2), (9, 3)])
def test_sigmoid_measures_stay_in_range_and_reach_its_top(e, c):
    detections, clusters = random_sigmoids(g=13, e=e, c=c)
    for measure in (entropy, expected_entropy, mutual_information):
        values = measure(detections, clusters)
        assert (values >= 0).all() and (values <= math.log(2) + 1e-12).all()
    halves = sigmoids_of([[1.0] + [0.0] * (c - 1), [0.0] * c])
    assert mutual_information(halves, clusters_of([[0, 1]])) == pytest.approx([math.log(2)])


def test_no_sigmoid_clusters_give_no_values():
    detections, clusters = Detections.empty(4, "sigmoid"), clusters_of(np.zeros((0, 3)))
    for measure in CLASS_MEASURES:
        assert measure(detections, clusters).shape == (0,)
        assert measure(detections, clusters, missing="ignore").shape == (0,)
    assert consensus_probs(detections, clusters).shape == (0, 5)


@pytest.mark.parametrize("measure", [consensus_probs, entropy, expected_entropy, mutual_information])
def test_sigmoid_votes_beyond_detections_raise(measure):
    with pytest.raises(PredictionError, match="Clusters.votes.*got 2"):
        measure(sigmoids_of([[0.5, 0.4]]), clusters_of([[0, 2, -1]]))


@pytest.mark.parametrize("measure", CLASS_MEASURES)
def test_unknown_missing_raises_with_known_names(measure):
    with pytest.raises(ConfigError, match="CURATE.SCORE.MISSING .*background, ignore.*got 'zero'"):
        measure(*random_case(), missing="zero")
