"""Arms over seeds: means, deviations, paired differences, and what is claimed of them."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from detcurate.errors import PredictionError
from detcurate.evaluate.coco_eval import FIGURES, CocoFigures
from detcurate.evaluate.compare import _t_95, markdown_table, summarise


def figures(ap, *, car=50.0, bike=math.nan, num_boxes=7):
    return CocoFigures(
        AP=ap,
        AP50=ap + 20,
        AP75=ap - 5,
        AP_small=math.nan,
        AP_medium=ap + 1,
        AP_large=ap + 2,
        per_class={"car": car, "bike": bike},
        num_images=3,
        num_boxes=num_boxes,
    )


def arms(**values: list[float]):
    return {arm: [figures(ap) for ap in aps] for arm, aps in values.items()}


def test_mean_and_deviation_by_hand():
    arm = summarise({"curated": [figures(ap, car=ap) for ap in (30.0, 34.0, 38.0)]})["arms"]["curated"]
    assert arm["num_seeds"] == 3
    assert arm["figures"]["AP"]["mean"] == pytest.approx(34.0)
    assert arm["figures"]["AP"]["std"] == pytest.approx(4.0)
    assert arm["figures"]["AP"]["interval"] == pytest.approx(4.303 * 4 / math.sqrt(3))
    assert arm["figures"]["AP"]["values"] == [30.0, 34.0, 38.0]
    assert arm["figures"]["AP50"]["mean"] == pytest.approx(54.0)
    assert arm["per_class"]["car"]["mean"] == pytest.approx(34.0)
    absent = {"mean": None, "std": None, "interval": None, "values": [None, None, None]}
    assert arm["figures"]["AP_small"] == arm["per_class"]["bike"] == absent


def test_one_seed_has_no_deviation():
    figure = summarise(arms(random=[31.5]))["arms"]["random"]["figures"]["AP"]
    assert figure == {"mean": 31.5, "std": None, "interval": None, "values": [31.5]}


def test_differences_are_paired_by_seed():
    """The seeds deviate by 10 AP, the pairs by 1: pairing is what finds the difference."""
    summary = summarise(arms(curated=[20.0, 30.0, 43.0], random=[19.0, 28.0, 40.0], full=[25.0, 30.0, 35.0]))
    assert list(summary["differences"]) == ["curated - random", "curated - full"]
    paired = summary["differences"]["curated - random"]["figures"]["AP"]
    assert paired["values"] == [1.0, 2.0, 3.0]
    assert paired["mean"] == pytest.approx(2.0)
    assert paired["std"] == pytest.approx(1.0)
    assert summary["differences"]["curated - full"]["figures"]["AP"]["values"] == [-5.0, 0.0, 8.0]
    assert summary["differences"]["curated - full"]["per_class"]["car"]["mean"] == 0.0


def test_arms_with_another_number_of_seeds_are_not_paired():
    summary = summarise(arms(curated=[20.0, 30.0], random=[19.0, 28.0, 40.0], full=[25.0, 30.0]))
    assert list(summary["differences"]) == ["curated - full"]
    assert summarise(arms(random=[1.0], full=[2.0]))["differences"] == {}
    assert summarise({}) == {"arms": {}, "differences": {}}


def test_curated_is_compared_with_every_arm_and_those_that_everyone_asks_about_first():
    summary = summarise(arms(most_boxes=[1.0], full=[2.0], curated=[3.0], random=[4.0]))
    assert list(summary["differences"]) == ["curated - random", "curated - full", "curated - most_boxes"]


def test_a_difference_is_claimed_when_both_intervals_leave_out_0():
    results = arms(curated=[30.0, 33.0, 36.0], random=[20.0, 24.0, 25.0])
    ap = {arm: np.tile([f.AP for f in found], (200, 1)) for arm, found in results.items()}
    summary = summarise(results, ap)
    low, high = summary["differences"]["curated - random"]["bootstrap"]
    assert 9.0 <= low < high <= 11.0  # the differences are 10, 9 and 11
    assert f"+7.5 to +12.5 over the seeds, +{low:.1f} to +{high:.1f} over seeds and images): a gain" in _last(summary)
    doubtful = {**ap, "curated": ap["curated"] + np.random.default_rng(0).normal(0, 20, (200, 1))}
    assert "over seeds and images): no difference can be claimed" in _last(summarise(results, doubtful))
    unknown = summarise(results, {arm: np.full((4, 3), np.nan) for arm in results})
    assert unknown["differences"]["curated - random"]["bootstrap"] == [None, None]
    assert "(95 % interval +7.5 to +12.5): a gain" in _last(unknown)


def _last(summary):
    return markdown_table(summary, {}).splitlines()[-1]


def test_the_summary_is_json():
    summary = summarise(arms(curated=[20.0, 30.0], random=[19.0, 28.0]))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_results_that_cannot_be_compared():
    with pytest.raises(PredictionError, match="every arm must have at least one result, got none for full"):
        summarise({"curated": [figures(1.0)], "full": []})
    with pytest.raises(PredictionError, match="results must be of one evaluation set, got "):
        summarise({"curated": [figures(1.0)], "full": [figures(1.0, num_boxes=8)]})


@pytest.mark.parametrize("degrees", [1, 2, 5, 17, 30])
def test_student_t_against_scipy(degrees):
    assert _t_95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=6e-4)


def test_above_the_table_the_factor_stays_on_the_careful_side():
    assert _t_95(500) == _t_95(30) > stats.t.ppf(0.975, 500)


def test_tables():
    results = {
        "curated": [figures(30.04, car=61.0), figures(34.04, car=63.0)],
        "a|b": [figures(9.0)],
    }
    info = {"curated": {"num_images": 240, "num_boxes": 3_111}}
    lines = markdown_table(summarise(results), info).splitlines()
    assert lines[0].split() == "| arm | images | boxes | seeds | AP | AP50 | AP75 | AP_S | AP_M | AP_L |".split()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("curated", "240", "3,111", "2", "32.0 ± 2.8", "52.0 ± 2.8", "27.0 ± 2.8", "–", "33.0 ± 2.8", "34.0 ± 2.8")
    ]
    assert lines[3].startswith("| a\\|b    |      – |     – |     1 |        9.0 |")
    assert lines[5:9] == [
        "| AP of class |    curated | a\\|b |",
        "| ----------- | ---------: | ---: |",
        "| car         | 62.0 ± 1.4 | 50.0 |",
        "| bike        |          – |    – |",
    ]
    for table in (lines[:4], lines[5:9]):
        assert len({len(line) for line in table}) == 1
    assert lines[10:] == ["Seeds of one arm deviate by up to 2.8 AP."]


def sentence(**values: list[float]):
    return markdown_table(summarise(arms(**values)), {}).splitlines()[-1]


def test_a_difference_within_the_deviation_is_not_claimed():
    text = sentence(curated=[30.0, 36.0, 33.0], random=[29.0, 37.0, 31.0])
    assert text == (
        "Seeds of one arm deviate by up to 4.2 AP; curated - random is +0.7 AP (95 % interval -3.1 to +4.5): "
        "no difference can be claimed with 3 seeds."
    )


def test_two_seeds_need_more_than_two_standard_errors():
    # Differences 1 and 3: mean 2, standard error 1.
    assert "no difference can be claimed with 2 seeds" in sentence(curated=[31.0, 33.0], random=[30.0, 30.0])


def test_one_seed_claims_nothing():
    text = sentence(curated=[60.0], random=[10.0])
    assert (
        text
        == "The seeds' deviation is unknown; curated - random is +50.0 AP: no difference can be claimed with 1 seed."
    )


def test_equal_arms_claim_nothing():
    assert "+0.0 AP (95 % interval +0.0 to +0.0): no difference" in sentence(curated=[5.0, 6.0], full=[5.0, 6.0])


def test_clear_differences_are_named_with_their_direction():
    curated, random, full = [30.0, 33.0, 36.0], [20.0, 24.0, 25.0], [40.0, 42.0, 47.0]
    text = sentence(curated=curated, random=random, full=full)
    assert "curated - random is +10.0 AP (95 % interval +7.5 to +12.5): a gain beyond the deviation of 3 seeds" in text
    assert "curated - full is -10.0 AP (95 % interval -12.5 to -7.5): a loss beyond the deviation of 3 seeds" in text
    assert text.count(".") - sum(character == "." for character in "4.2 10.0 7.5 12.5 10.0 12.5 7.5") == 1


def test_a_set_without_boxes_says_so():
    text = sentence(curated=[math.nan] * 2, random=[math.nan] * 2)
    assert "curated - random is not defined: the evaluation set has no boxes" in text


def test_every_figure_of_the_record_is_summarised():
    assert set(FIGURES) == set(summarise(arms(full=[1.0]))["arms"]["full"]["figures"])
