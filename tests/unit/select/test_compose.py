import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detcurate.errors import SelectionError
from detcurate.select.compose import NOISE_FILTERS, PoolColumns, select
from detcurate.select.limits import Budget, Quota, box_budget, image_budget, resolve_budget, time_budget
from detcurate.select.strategies import STRATEGIES
from detcurate.structures import ImageScores


def taken_ids(scores, **options: object):
    return select(scores, **options).selection.image_ids


def scores_of(image_score, image_ids=None):
    image_score = np.asarray(image_score, np.float64)
    image_ids = np.arange(len(image_score)) * 10 + 5 if image_ids is None else np.asarray(image_ids)
    return ImageScores(image_ids, image_score, {})


# Budget


@pytest.mark.parametrize(
    ("num_images", "fraction", "expected"),
    [
        (600, 0.5, 300),
        (600, 1.0, 600),
        (7, 0.5, 4),
        (25, 0.1, 3),
        (50, 0.29, 15),
        (3, 0.001, 1),
        (1, 0.2, 1),
        (9, 0.05, 1),
    ],
)
def test_fraction_rounds_half_up_to_at_least_one_image(num_images, fraction, expected):
    assert resolve_budget(num_images, fraction=fraction, count=None) == expected


@pytest.mark.parametrize("num_images", [1, 2, 17, 600])
def test_fraction_stays_within_the_pool_and_is_monotone(num_images):
    budgets = [resolve_budget(num_images, fraction=step / 97, count=None) for step in range(1, 98)]
    assert budgets == sorted(budgets)
    assert 1 <= budgets[0] and budgets[-1] == num_images


@pytest.mark.parametrize("count", [1, 40, 600])
def test_count_is_returned_unchanged(count):
    assert resolve_budget(600, fraction=None, count=count) == count


@pytest.mark.parametrize(
    ("num_images", "fraction", "count", "message"),
    [
        (600, None, 700, "count .*600.*got 700"),
        (600, None, 0, "count .*got 0"),
        (600, 0.0, None, "fraction .*got 0.0"),
        (600, 1.5, None, "fraction .*got 1.5"),
        (600, float("nan"), None, "fraction .*got nan"),
        (600, 0.5, 300, "fraction=0.5 and count=300"),
        (600, None, None, "fraction=None and count=None"),
        (0, 0.5, None, "pool .*got 0"),
    ],
)
def test_resolve_budget_out_of_range_names_value(num_images, fraction, count, message):
    with pytest.raises(SelectionError, match=message):
        resolve_budget(num_images, fraction=fraction, count=count)


@pytest.fixture
def boxes_per_image():
    return np.array([3, 0, 4, 2, 1])


def test_box_budget_costs_are_the_boxes(boxes_per_image):
    budget = box_budget(boxes_per_image, num_boxes=6)
    assert (budget.costs.tolist(), budget.limit, budget.text) == ([3, 0, 4, 2, 1], 6, "6 boxes")


def test_time_budget_costs_are_exact(boxes_per_image):
    budget = time_budget(boxes_per_image, seconds=5.2, seconds_per_image=0.1, seconds_per_box=0.7)
    assert budget.costs.tolist() == [2_200_000, 100_000, 2_900_000, 1_500_000, 800_000]
    assert (budget.limit, budget.text) == (5_200_000, "5.2 s of annotation")
    # Ten times a tenth is 1, which the nearest floats miss.
    tenths = time_budget(np.zeros(11, np.int64), seconds=1, seconds_per_image=0.1, seconds_per_box=0)
    assert len(select(scores_of(np.zeros(11)), budget=tenths).taken) == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda boxes: box_budget(boxes, num_boxes=11), "num_boxes .*10 boxes.*got 11"),
        (lambda boxes: box_budget(boxes, num_boxes=0), "budget .*got 0 boxes"),
        (
            lambda boxes: time_budget(boxes, seconds=9, seconds_per_image=1, seconds_per_box=0),
            "cost_seconds .*5.*got 9",
        ),
        (
            lambda boxes: time_budget(boxes, seconds=9, seconds_per_image=0, seconds_per_box=0),
            "seconds_per_image .*seconds_per_box .*got 0 and 0",
        ),
        (lambda boxes: Budget(boxes - 1, 2, "2"), "costs .*got -1"),
    ],
)
def test_budget_out_of_range_names_value(boxes_per_image, make, message):
    with pytest.raises(SelectionError, match=message):
        make(boxes_per_image)


def test_select_stops_at_first_image_over_budget(boxes_per_image):
    # 3 + 0 = 3 of 6; the image of 4 boxes does not fit, and the two after it would.
    log = select(scores_of([0.9, 0.8, 0.7, 0.6, 0.5]), budget=box_budget(boxes_per_image, num_boxes=6))
    assert log.selection.image_ids.tolist() == [5, 15]
    assert (log.counts(taken=True), log.counts(taken=False)) == ({"top_n": 2}, {"budget": 3})


# Top-N


def test_top_n_orders_by_score_then_image_id():
    selection = select(scores_of([0.2, 0.9, 0.5, 0.9, 0.5, 0.5]), budget=4).selection
    assert selection.image_ids.tolist() == [15, 35, 25, 45]
    assert selection.reasons == ("top_n",) * 4


def test_top_n_equals_plain_sort():
    scores = scores_of(np.round(np.random.default_rng(0).uniform(0, 1, 211), 1))
    expected = sorted(zip(-scores.image_score, scores.image_ids, strict=True))[:57]
    assert taken_ids(scores, budget=57).tolist() == [image_id for _, image_id in expected]


def test_smaller_budget_selects_prefix_of_larger():
    scores = scores_of(np.random.default_rng(1).uniform(0, 1, 31))
    assert taken_ids(scores, budget=7).tolist() == taken_ids(scores, budget=19)[:7].tolist()


def test_top_n_ignores_seed():
    scores = scores_of(np.random.default_rng(2).uniform(0, 1, 31))
    assert taken_ids(scores, budget=7, seed=1).tolist() == taken_ids(scores, budget=7, seed=2).tolist()


# Threshold


def test_threshold_excludes_scores_below_it_only():
    log = select(scores_of([0.2, 0.9, 0.5, 0.49]), budget=4, strategy="threshold", threshold=0.5)
    assert log.selection.image_ids.tolist() == [15, 25]
    assert log.counts(taken=False) == {"below_threshold": 2}


def test_threshold_respects_budget():
    log = select(scores_of([0.2, 0.9, 0.5, 0.6]), budget=2, strategy="threshold", threshold=0.5)
    assert log.selection.image_ids.tolist() == [15, 35]
    assert log.counts(taken=False) == {"below_threshold": 1, "budget": 1}


# Strata


def test_strata_by_hand():
    # Two strata, [0.5, 1] and [0, 0.5): one image of each in turn, then the rest of the fuller one.
    scores = scores_of([0.0, 0.1, 0.2, 0.3, 0.9, 1.0])
    halves = [0, 0, 0, 0, 1, 1]
    order = ((taken_ids(scores, budget=6, strategy="strata", num_strata=2, seed=4) - 5) // 10).tolist()
    assert [halves[row] for row in order] == [1, 0, 1, 0, 0, 0]


def coverage_centric(scores, budget, num_strata):
    """Algorithm 1 of Zheng et al.: images selected of each stratum, the emptiest first, equal shares of the rest."""
    high, width = scores.max(), (scores.max() - scores.min()) / num_strata
    stratum = np.minimum(((high - scores) / width).astype(int), num_strata - 1)
    left = {number: int((stratum == number).sum()) for number in range(num_strata) if (stratum == number).any()}
    selected = {}
    while left:
        number = min(left, key=left.get)
        selected[number] = min(left.pop(number), budget // (len(left) + 1))
        budget -= selected[number]
    return selected, stratum


@pytest.mark.parametrize("budget", [3, 17, 60, 113])
def test_strata_equal_the_papers_allocation(budget):
    scores = scores_of(np.random.default_rng(6).beta(1, 4, 131))
    expected, stratum = coverage_centric(scores.image_score, budget, 7)
    rows = (taken_ids(scores, budget=budget, strategy="strata", num_strata=7) - 5) // 10
    got = np.bincount(stratum[rows], minlength=7)
    # The same, but for who gets the images that cannot be shared equally.
    assert all(abs(int(got[number]) - count) <= 1 for number, count in expected.items())
    assert got.sum() == budget


def test_strata_of_equal_scores_are_one():
    assert len(taken_ids(scores_of(np.full(9, 0.4)), budget=4, strategy="strata")) == 4


# Random


def test_random_ignores_score_and_repeats_with_seed():
    first, second = scores_of(np.linspace(0, 1, 31)), scores_of(np.linspace(1, 0, 31))
    drawn = [taken_ids(scores, budget=11, strategy="random", seed=3).tolist() for scores in (first, second)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != taken_ids(first, budget=11, strategy="random", seed=4).tolist()


def test_random_draw_is_independent_of_other_candidates():
    scores = scores_of(np.linspace(0, 1, 31))
    whole = taken_ids(scores, budget=31, strategy="random")
    columns = PoolColumns(label_error_score=np.where(np.arange(31) % 3 == 0, 1.0, 0.0))
    guarded = taken_ids(
        scores, budget=31, strategy="random", columns=columns, noise_filter="drop", noise_filter_quantile=0.5
    )
    assert guarded.tolist() == [image_id for image_id in whole.tolist() if (image_id - 5) // 10 % 3]


def test_random_is_uniform():
    scores = scores_of(np.linspace(0, 1, 10))
    counts = np.zeros(10)
    for seed in range(1500):
        counts[(taken_ids(scores, budget=4, strategy="random", seed=seed) - 5) // 10] += 1
    # 600 expected each; the deviation of a binomial of 1500 at 0.4 is 19.
    assert (np.abs(counts - 600) < 5 * 19).all()


def test_strategies_with_one_seed_draw_independently():
    scores, columns = scores_of(np.zeros(200)), PoolColumns(boxes_per_class=np.ones((200, 1), np.int64))
    drawn = [set(taken_ids(scores, budget=50, strategy=name, columns=columns)) for name in sorted(STRATEGIES)[2:5]]
    assert all(len(first & second) < 30 for first, second in itertools.combinations(drawn, 2))  # 12.5 by chance


def test_stratified_random_keeps_proportions_in_every_prefix():
    rng = np.random.default_rng(8)
    rarest = rng.permutation(np.repeat([0, 1, 2], [60, 30, 10]))  # 2 is the rarest: only its own images have it
    boxes = np.zeros((100, 4), np.int32)
    boxes[:, 3] = 1  # everyone's class, the commonest
    boxes[np.arange(100), rarest] = 1
    boxes[rarest == 0, 0] = 0
    scores = scores_of(rng.uniform(0, 1, 100))
    order = taken_ids(scores, budget=100, strategy="stratified_random", columns=PoolColumns(boxes_per_class=boxes))
    groups = rarest[(order - 5) // 10]
    for head in range(1, 101):
        for group, share in enumerate((0.6, 0.3, 0.1)):
            assert abs((groups[:head] == group).sum() - share * head) <= 1 + 1e-9


def test_stratified_random_ignores_score():
    boxes = np.random.default_rng(9).poisson(0.5, (23, 3))
    first, second = scores_of(np.linspace(0, 1, 23)), scores_of(np.linspace(1, 0, 23))
    columns = PoolColumns(boxes_per_class=boxes)
    drawn = [
        sorted(taken_ids(scores, budget=7, strategy="stratified_random", columns=columns)) for scores in (first, second)
    ]
    assert drawn[0] == drawn[1]


# All


def every_column(num_images, seed=0):
    rng = np.random.default_rng(seed)
    return PoolColumns(
        label_error_score=rng.uniform(0, 1, num_images).round(1),
        embeddings=rng.normal(size=(num_images, 3)).astype(np.float16),
        hashes=rng.integers(0, 2**63, num_images).astype(np.uint64),
        sequences=rng.integers(-1, 4, num_images),
        frame_index=rng.integers(0, 2 * num_images, num_images),
        boxes_per_class=rng.poisson(0.8, (num_images, 5)),
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_budget_of_whole_pool_selects_every_image_once(strategy):
    scores = scores_of(np.random.default_rng(5).uniform(0, 1, 13))
    log = select(scores, budget=13, strategy=strategy, columns=every_column(13))
    assert sorted(log.selection.image_ids.tolist()) == scores.image_ids.tolist()
    assert set(log.selection.reasons) == {strategy}
    assert log.counts(taken=False) == {}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_select_keeps_all_limits_and_gives_one_reason_per_image(data):
    num_images = data.draw(st.integers(8, 40))
    seed = data.draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    scores = scores_of(rng.uniform(0, 1, num_images).round(1))
    columns = every_column(num_images, seed)
    boxes = columns.boxes_per_class.sum(axis=1)
    budget = data.draw(
        st.sampled_from(
            [
                image_budget(num_images, fraction=0.4),
                box_budget(boxes + 1, num_boxes=num_images // 2 + 3),
                time_budget(boxes, seconds=num_images, seconds_per_image=2.5, seconds_per_box=0.3),
            ]
        )
    )
    minimums = [Quota("class 1", columns.boxes_per_class[:, 1], data.draw(st.integers(0, 2)))]
    maximums = [Quota("class 2", columns.boxes_per_class[:, 2], data.draw(st.integers(1, 9)))]
    options = {
        "budget": budget,
        "strategy": data.draw(st.sampled_from(sorted(STRATEGIES))),
        "seed": seed,
        "columns": columns,
        "noise_filter": data.draw(st.sampled_from(sorted(NOISE_FILTERS))),
        "noise_filter_quantile": 0.9,
        "duplicate_similarity": data.draw(st.sampled_from([0.0, 0.97])),
        "sequence_gap": data.draw(st.sampled_from([0, 3])),
        "minimums": minimums,
        "maximums": maximums,
        "threshold": 0.3,
        "num_strata": 4,
        "oversampling": 2.0,
    }
    try:
        log = select(scores, **options)
    except SelectionError as error:
        assert "minimum class 1" in str(error) or "no image is left" in str(error)
        return
    taken = log.taken
    assert budget.costs[taken].sum() <= budget.limit
    assert minimums[0].amounts[taken].sum() >= minimums[0].limit
    assert maximums[0].amounts[taken].sum() <= maximums[0].limit
    counts = [log.counts(taken=True), log.counts(taken=False)]
    assert sum(sum(found.values()) for found in counts) == num_images
    assert (log.reason_index >= 0).all() and (np.sort(log.rank[taken]) == np.arange(1, len(taken) + 1)).all()
    again = select(scores, **options, num_threads=3)
    assert again.selection.image_ids.tolist() == log.selection.image_ids.tolist()
    assert again.selection.reasons == log.selection.reasons
    given_way = np.flatnonzero(log.replaced_by >= 0)
    keepers = np.searchsorted(scores.image_ids, log.replaced_by[given_way])
    assert (scores.image_score[keepers] >= scores.image_score[given_way]).all()


def test_steps_run_in_documented_order():
    #             noisy  dup of 35  gap to 25  minim. maxim.  select, select, budget
    scores = scores_of([0.9, 0.60, 0.95, 0.7, 0.1, 0.85, 0.8, 0.5])
    columns = PoolColumns(
        label_error_score=np.array([1.0, 0, 0, 0, 0, 0, 0, 0]),
        hashes=np.array([7, 12, 2**60, 12, 2**40 - 1, 2**50 - 1, 2**30 - 1, 2**62 - 1], np.uint64),
        sequences=np.array([0, 0, 0, 1, -1, 0, -1, 1]),
        frame_index=np.array([0, 9, 4, 4, -1, 5, -1, 40]),
    )
    log = select(
        scores,
        budget=3,
        columns=columns,
        noise_filter="drop",
        noise_filter_quantile=0.8,
        duplicate_similarity=0.97,
        sequence_gap=2,
        minimums=[Quota("empty images", np.array([0, 0, 0, 0, 1, 0, 0, 0]), 1)],
        maximums=[Quota("class bus", np.array([0, 0, 0, 0, 0, 0, 5, 0]), 4)],
    )
    assert log.selection.image_ids.tolist() == [45, 25, 35]
    assert log.selection.reasons == ("minimum empty images=1", "top_n", "top_n")
    named = {int(image): log.reasons[code] for image, code in zip(log.image_ids, log.reason_index, strict=True)}
    assert named == {
        5: "label_noise",
        15: "near_duplicate",
        25: "top_n",
        35: "top_n",
        45: "minimum empty images=1",
        55: "sequence_gap",
        65: "maximum class bus=4",
        75: "budget",
    }
    assert dict(zip(log.image_ids.tolist(), log.replaced_by.tolist(), strict=True)) == {
        5: -1, 15: 35, 25: -1, 35: -1, 45: -1, 55: 25, 65: -1, 75: -1,
    }  # fmt: skip
    assert list(log.counts(taken=False)) == [
        "label_noise", "near_duplicate", "sequence_gap", "maximum class bus=4", "budget",
    ]  # fmt: skip


# Bad input


@pytest.mark.parametrize("budget", [0, -1, 4])
def test_budget_outside_pool_raises(budget):
    with pytest.raises(SelectionError, match=rf"budget .*\[1, 3\].*got {budget}"):
        select(scores_of([0.1, 0.2, 0.3]), budget=budget)


def test_unknown_strategy_raises_with_known_names():
    with pytest.raises(SelectionError, match="strategy .*top_n, threshold, .*got 'best'"):
        select(scores_of([0.1, 0.2, 0.3]), budget=2, strategy="best")


def test_negative_seed_raises():
    with pytest.raises(SelectionError, match="seed .*got -1"):
        select(scores_of([0.1, 0.2, 0.3]), budget=2, strategy="random", seed=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_filter": "on"}, "noise_filter .*off, drop, queue.*got 'on'"),
        ({"noise_filter": "drop"}, "CURATE.SELECT.NOISE_FILTER drop .*label-error scores"),
        (
            {
                "noise_filter": "drop",
                "noise_filter_quantile": 1.2,
                "columns": PoolColumns(label_error_score=np.zeros(3)),
            },
            "noise_filter_quantile .*got 1.2",
        ),
        (
            {"noise_filter": "drop", "columns": PoolColumns(label_error_score=np.array([0, np.nan, 1]))},
            "label_error_score .*finite",
        ),
        ({"duplicate_similarity": 0.9}, "duplicate_similarity 0.9 .*embeddings or hashes"),
        (
            {"duplicate_similarity": 1.5, "columns": PoolColumns(hashes=np.zeros(3, np.uint64))},
            "duplicate_similarity .*got 1.5",
        ),
        ({"sequence_gap": 5}, "CURATE.SELECT.SEQUENCE_GAP: .*5 frames.*`sequence`"),
        (
            {"sequence_gap": 5, "columns": PoolColumns(sequences=np.array([0, -1, 0]))},
            "CURATE.SELECT.SEQUENCE_GAP: .*`frame_index` .*2 of them",
        ),
        ({"strategy": "k_center"}, "CURATE.SELECT.STRATEGY k_center .*embeddings"),
        ({"strategy": "facility_location"}, "CURATE.SELECT.STRATEGY facility_location .*embeddings"),
        ({"strategy": "stratified_random"}, "stratified_random .*boxes_per_class"),
        ({"strategy": "threshold", "threshold": 0.9}, r"\(removed: below_threshold 3\)"),
        ({"oversampling": 0.5}, "oversampling .*got 0.5"),
        ({"num_strata": 0}, "num_strata .*got 0"),
        (
            {"columns": PoolColumns(embeddings=np.zeros((4, 2)))},
            "embeddings .*3 .*got 4",
        ),
        ({"budget": image_budget(4, count=2)}, "budget .*3 images .*got 4"),
        ({"budget": Budget(np.full(3, 9), 5, "5 boxes")}, "budget of 5 boxes"),
    ],
)
def test_missing_or_invalid_option_is_named(options, message):
    with pytest.raises(SelectionError, match=message):
        select(scores_of([0.1, 0.2, 0.3]), **{"budget": 2, **options})


@pytest.mark.parametrize(
    ("image_ids", "image_score", "message"),
    [
        ([5, 5, 8], [0.1, 0.2, 0.3], r"image_ids.*got 5 after 5"),
        ([5, 8, 9], [0.1, np.nan, 0.3], "image_score.*finite"),
    ],
)
def test_invalid_scores_raise(image_ids, image_score, message):
    with pytest.raises(SelectionError, match=message):
        select(scores_of(image_score, image_ids), budget=2)


# Images selected before


def test_held_images_come_first_and_count_for_budget():
    scores = scores_of([0.9, 0.1, 0.7, 0.5, 0.3])
    log = select(scores, budget=4, held=[(np.array([45, 15]), "seed_set"), (np.array([35]), "round_1")])
    assert log.selection.image_ids.tolist() == [45, 15, 35, 5]
    assert log.selection.reasons == ("seed_set", "seed_set", "round_1", "top_n")
    assert log.counts(taken=False) == {"budget": 1}


def test_held_images_replace_others_and_stay():
    scores = scores_of([0.9, 0.1, 0.7, 0.5, 0.3])
    columns = PoolColumns(
        label_error_score=np.array([0.1, 0.9, 0.0, 0.2, 0.8]),
        sequences=np.array([0, 0, 0, 1, 1]),
        frame_index=np.array([1, 2, 9, 1, 2]),
    )
    options = {"columns": columns, "noise_filter": "drop", "noise_filter_quantile": 0.6, "sequence_gap": 3}
    assert taken_ids(scores, budget=5, **options).tolist() == [5, 25, 35]
    log = select(scores, budget=5, held=[(np.array([15, 45]), "seed_set")], **options)
    assert log.selection.image_ids.tolist() == [15, 45, 25]
    assert log.replaced_by.tolist() == [15, -1, -1, 45, -1]


def test_held_images_may_be_near_duplicates():
    scores, columns = scores_of([0.9, 0.8, 0.7]), PoolColumns(embeddings=np.tile([1.0, 2.0], (3, 1)))
    log = select(scores, budget=3, columns=columns, duplicate_similarity=0.99, held=[(np.array([25, 15]), "seed_set")])
    assert log.selection.image_ids.tolist() == [25, 15]
    assert log.counts(taken=False) == {"near_duplicate": 1}


@pytest.mark.parametrize("way", ["embeddings", "hashes"])
def test_near_duplicates_of_labelled_images_are_removed(way):
    """Of two labelled ones that are alike, each has its own follower; one candidate replaces another."""
    angles = np.array([0.0, 0.2, -0.2, 0.4, 2.0, 2.1])  # labelled: the first two; cosine 0.98 of a step of 0.2
    vectors = np.column_stack((np.cos(angles), np.sin(angles)))
    if way == "hashes":
        vectors = np.array([0b1111, 0b0111, 0b11111, 0b0011, 2**60, 2**60 + 2**59], np.uint64)
    columns = PoolColumns(**{way: vectors[2:]}, labelled=vectors[:2])
    log = select(scores_of([0.6, 0.5, 0.4, 0.9]), budget=4, columns=columns, duplicate_similarity=0.975)
    assert log.selection.image_ids.tolist() == [35]
    assert log.counts(taken=False) == {"like_labelled": 2, "near_duplicate": 1}
    assert log.replaced_by.tolist() == [-1, -1, 35, -1]


def test_near_duplicates_of_either_held_image_are_removed():
    scores, columns = (
        scores_of([0.9, 0.8, 0.7]),
        PoolColumns(sequences=np.zeros(3, int), frame_index=np.array([4, 6, 8])),
    )
    log = select(scores, budget=3, columns=columns, sequence_gap=3, held=[(np.array([5, 15]), "seed_set")])
    assert log.selection.image_ids.tolist() == [5, 15]
    assert log.replaced_by.tolist() == [-1, -1, 15]


def test_held_images_count_for_quotas():
    scores = scores_of([0.9, 0.8, 0.7, 0.6, 0.5])
    bicycles = np.array([1, 0, 1, 0, 2])
    held = [(np.array([45]), "seed_set")]
    minimum, maximum = Quota("class bicycle", bicycles, 2), Quota("class bicycle", bicycles, 1)
    assert taken_ids(scores, budget=2, minimums=[minimum], held=held).tolist() == [45, 5]
    assert taken_ids(scores, budget=4, maximums=[maximum], held=held).tolist() == [45, 15, 35]


@pytest.mark.parametrize(
    ("image_ids", "message"),
    [
        ([5, 15, 25], "budget of 2 images: .*3 images"),
        ([5, 16], "image_id 16.*1 that are not"),
        ([99], "image_id 99"),
    ],
)
def test_invalid_held_images_raise(image_ids, message):
    with pytest.raises(SelectionError, match=message):
        select(scores_of([0.9, 0.8, 0.7, 0.6]), budget=2, held=[(np.array(image_ids), "seed_set")])
