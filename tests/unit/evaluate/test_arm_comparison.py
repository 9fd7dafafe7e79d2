"""Arms over seeds: means, deviations, paired differences, and what is claimed of them."""

import json
import math

import numpy as np
import pytest

from detcurate.errors import PredictionError
from detcurate.evaluate.arm_comparison import markdown_table, summarise
from detcurate.evaluate.coco_eval import FIGURES, CocoFigures
from detcurate.evaluate.summary import curve_section, curve_sentence, difference_section, sections, training_section


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


def resampled(results, replicates=200):
    """Return the figures themselves as if every resampled set gave the same."""
    return {
        arm: {
            "figures": {name: np.tile([getattr(f, name) for f in found], (replicates, 1)) for name in FIGURES},
            "per_class": {
                name: np.tile([f.per_class[name] for f in found], (replicates, 1)) for name in ("car", "bike")
            },
        }
        for arm, found in results.items()
    }


def trained(results, **num_images: int):
    """Return one record a seed of each arm; seconds are known of every seed but the last of ``full``."""
    records = {
        arm: [
            {"num_images": num_images[arm], "num_boxes": 7 * num_images[arm] + seed, "iterations": 60,
             "images_seen": 480, "seconds": 10.0 + seed}
            for seed in range(len(found))
        ]
        for arm, found in results.items()
    }  # fmt: skip
    if "full" in records:
        records["full"][-1]["seconds"] = None
    return records


def test_summary_mean_and_deviation_by_hand():
    arm = summarise({"curated": [figures(ap, car=ap) for ap in (30.0, 34.0, 38.0)]})["arms"]["curated"]
    assert arm["num_seeds"] == 3
    assert arm["figures"]["AP"]["mean"] == pytest.approx(34.0)
    assert arm["figures"]["AP"]["std"] == pytest.approx(4.0)
    assert arm["figures"]["AP"]["interval"] == pytest.approx(4.3026527 * 4 / math.sqrt(3))
    assert arm["figures"]["AP"]["values"] == [30.0, 34.0, 38.0]
    assert arm["figures"]["AP50"]["mean"] == pytest.approx(54.0)
    assert arm["per_class"]["car"]["mean"] == pytest.approx(34.0)
    assert set(arm["training"].values()) == {None}
    absent = {"mean": None, "std": None, "interval": None, "values": [None, None, None]}
    assert arm["figures"]["AP_small"] == arm["per_class"]["bike"] == absent


def test_summary_of_one_seed_has_no_deviation():
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


def test_arms_with_other_number_of_seeds_are_not_paired():
    summary = summarise(arms(curated=[20.0, 30.0], random=[19.0, 28.0, 40.0], full=[25.0, 30.0]))
    assert list(summary["differences"]) == ["curated - full"]
    assert summarise(arms(random=[1.0], full=[2.0]))["differences"] == {}
    assert summarise({}) == {"arms": {}, "differences": {}}


def test_curated_is_compared_with_every_arm_random_and_full_first():
    summary = summarise(arms(most_boxes=[1.0], full=[2.0], curated=[3.0], random=[4.0]))
    assert list(summary["differences"]) == ["curated - random", "curated - full", "curated - most_boxes"]


def test_difference_is_claimed_if_both_intervals_exclude_0():
    results = arms(curated=[30.0, 33.0, 36.0], random=[20.0, 24.0, 25.0])
    summary = summarise(results, resampled(results))
    low, high = summary["differences"]["curated - random"]["bootstrap"]
    assert 9.0 <= low < high <= 11.0  # the differences are 10, 9 and 11
    assert f"+7.5 to +12.5 over the seeds, +{low:.1f} to +{high:.1f} over seeds and images): a gain" in _last(summary)
    doubtful = resampled(results)
    doubtful["curated"]["figures"]["AP"] += np.random.default_rng(0).normal(0, 20, (200, 1))
    assert "over seeds and images): no difference can be claimed" in _last(summarise(results, doubtful))
    nothing = resampled(results)
    nothing["random"]["figures"]["AP"][:] = np.nan
    unknown = summarise(results, nothing)
    assert unknown["differences"]["curated - random"]["bootstrap"] == [None, None]
    assert "(95 % interval +7.5 to +12.5): a gain" in _last(unknown)


def _last(summary):
    return markdown_table(summary, {}).splitlines()[-1]


def test_summary_is_json():
    summary = summarise(arms(curated=[20.0, 30.0], random=[19.0, 28.0]))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_results_of_different_sets_raise():
    with pytest.raises(PredictionError, match=r"results: .*full"):
        summarise({"curated": [figures(1.0)], "full": []})
    with pytest.raises(PredictionError, match=r"results: .*one evaluation set"):
        summarise({"curated": [figures(1.0)], "full": [figures(1.0, num_boxes=8)]})


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


def test_difference_within_deviation_is_not_claimed():
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
    assert "+50.0 AP: no difference can be claimed with 1 seed" in text
    assert "unknown" in text


def test_equal_arms_claim_nothing():
    assert "+0.0 AP (95 % interval +0.0 to +0.0): no difference" in sentence(curated=[5.0, 6.0], full=[5.0, 6.0])


def test_clear_differences_are_named_with_their_direction():
    curated, random, full = [30.0, 33.0, 36.0], [20.0, 24.0, 25.0], [40.0, 42.0, 47.0]
    text = sentence(curated=curated, random=random, full=full)
    assert "curated - random is +10.0 AP (95 % interval +7.5 to +12.5): a gain beyond the deviation of 3 seeds" in text
    assert "curated - full is -10.0 AP (95 % interval -12.5 to -7.5): a loss beyond the deviation of 3 seeds" in text
    assert text.count(".") - sum(character == "." for character in "4.2 10.0 7.5 12.5 10.0 12.5 7.5") == 1


def test_evaluation_set_without_boxes_is_reported():
    text = sentence(curated=[math.nan] * 2, random=[math.nan] * 2)
    assert "curated - random is undefined: the evaluation set has no boxes" in text


def test_all_figures_are_summarised():
    assert set(FIGURES) == set(summarise(arms(full=[1.0]))["arms"]["full"]["figures"])


def test_training_cost_is_averaged_over_seeds():
    results = arms(curated=[30.0, 31.0, 32.0], full=[33.0, 34.0, 35.0])
    summary = summarise(results, training=trained(results, curated=100, full=200))
    expected = {"num_images": 100, "num_boxes": 701, "iterations": 60, "images_seen": 480, "seconds": 11}
    assert summary["arms"]["curated"]["training"] == expected
    assert summary["arms"]["full"]["training"] == {**expected, "num_images": 200, "num_boxes": 1401, "seconds": None}
    lines = training_section(summary).splitlines()
    assert lines[2].split() == "| arm | images | boxes | iterations | images seen | seconds |".split()
    assert [line.split() for line in lines[4:6]] == [
        "| curated | 100 | 701 | 60 | 480 | 11 |".split(),
        "| full | 200 | 1,401 | 60 | 480 | – |".split(),
    ]
    assert training_section(summarise(results)) == ""


def test_differences_have_intervals_by_size_and_class():
    """``AP_large`` of curated is 10 above on every set; that of car varies between sets, so that 0 is not left out."""
    results = arms(curated=[30.0, 33.0, 36.0], random=[20.0, 24.0, 25.0])
    sets = resampled(results)
    sets["curated"]["per_class"]["car"] += np.random.default_rng(0).normal(0.5, 3, (200, 1))
    pair = summarise(results, sets)["differences"]["curated - random"]
    assert pair["figures"]["AP_large"]["bootstrap"] == pair["bootstrap"] == pair["figures"]["AP"]["bootstrap"]
    assert pair["figures"]["AP_small"]["bootstrap"] == pair["per_class"]["bike"]["bootstrap"] == [None, None]
    low, high = pair["per_class"]["car"]["bootstrap"]
    assert -7 < low < 0 < high < 8
    lines = difference_section(summarise(results, sets)).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines if line.startswith("|")}
    assert cells["AP_L"].startswith("+10.0* (+9.")
    assert cells["car"] == f"+0.0 ({low:+.1f} to {high:+.1f})"
    assert cells["AP_S"] == cells["bike"] == "–"
    assert "of 6 differences" in lines[-1]


def test_one_seed_has_no_interval_by_class():
    results = arms(curated=[30.0], random=[20.0])
    lines = difference_section(summarise(results, resampled(results))).splitlines()
    assert "| AP   |            +10.0 |" in lines
    assert "*" not in "".join(lines)
    assert difference_section(summarise(arms(full=[1.0]))) == ""


def curve_summary(*, curated=(32.0, 32.0), full=(35.0, 35.0), seeds=2):
    values = {
        "curated": curated,
        "random": (27.5, 27.5),
        "full": full,
        "random_25%": (20.0, 20.0),
        "random_50%": (30.0, 30.0),
    }
    results = arms(**{arm: list(of)[:seeds] for arm, of in values.items()})
    sizes = {"curated": 125, "random": 160, "full": 400, "random_25%": 100, "random_50%": 200}
    return summarise(
        results, resampled(results), training=trained(results, **sizes), curve_arms=["random_25%", "random_50%"]
    )


def test_equivalent_images_of_curated_by_hand():
    """The points lie on AP = 40 - 2000 / images, which gives 32 AP at 250 images."""
    summary = curve_summary()
    assert [point["arm"] for point in summary["learning_curve"]["points"]] == [
        "random_25%",
        "random",
        "random_50%",
        "full",
    ]
    worth = summary["learning_curve"]["equivalent"]
    assert (worth["images"], worth["more"]) == pytest.approx((250, 100), rel=1e-2)
    assert (worth["boxes"], worth["more_boxes"]) == pytest.approx((250 * 2800.5 / 400, 100.0), rel=1e-2)
    sentence = markdown_table(summary, {}).splitlines()[-1]
    assert sentence.startswith("The 125 curated images (32.0 AP) equal 100 % more random data: 250 random images with ")
    assert sentence.endswith("(95 % interval: 100 % more throughout).")
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_curve_arms_are_listed_but_not_compared():
    summary = curve_summary()
    assert list(summary["differences"]) == ["curated - random", "curated - full"]
    lines = markdown_table(summary, {}).splitlines()
    assert lines[5].startswith("| random_25% |")
    assert [cell.strip() for cell in lines[8].split("|")[1:-1]] == ["AP of class", "curated", "random", "full"]
    section = curve_section(summary)
    assert "| random_25%    |    100 | 20.0 ± 0.0 |" in section
    assert "Fitted over all seeds: AP = 40.0 - 20.0 · (images / 100)^-1.00, 0.0 AP from the points" in section
    assert [part.splitlines()[0] for part in sections(summary)] == [
        "## Differences by object size and class", "## Learning curve", "## Cost of the trainings",
    ]  # fmt: skip
    assert curve_section(summarise(arms(full=[1.0]))) == ""


def test_sentence_beyond_the_curve():
    worth = curve_sentence(curve_summary(curated=(36.2, 36.2))["learning_curve"])
    assert worth == (
        "The 125 curated images (36.2 AP) are above the curve: they equal more than 400 random images, over 220 % more "
        "data (95 % interval: over 220 % more throughout)."
    )
    worth = curve_sentence(curve_summary(curated=(10.0,), seeds=1)["learning_curve"])
    assert "are below the curve: they equal fewer than 100 random images, under 20 % less data (no interval" in worth
    worth = curve_sentence(curve_summary(curated=(35.5, 36.0))["learning_curve"])
    assert "are on average above the curve: they equal more than 400 random images, over 220 % more data (95" in worth
    assert worth.endswith(" to over 220 % more).")
    flat = curve_sentence(curve_summary(full=(1.0, 1.0))["learning_curve"])
    assert "have no equivalent: from 100 to 400 random images the AP does not rise (19.6 on average), and" in flat
    assert flat.endswith("the curated ones are above that.")


def test_sentence_for_interval_over_whole_curve():
    worth = curve_sentence(curve_summary(curated=(5.0, 55.0))["learning_curve"])
    assert worth == (
        "The 125 curated images (30.0 AP) cannot be placed on the curve with 2 seeds: the 95 % interval goes from "
        "fewer than 100 to more than 400 random images."
    )


def test_sentence_for_curve_without_fit_has_reason():
    results = arms(**{"curated": [30.0], "random_25%": [20.0], "random_50%": [25.0]})
    training = trained(results, **{"curated": 10, "random_25%": 5, "random_50%": 10})
    summary = summarise(results, training=training, curve_arms=["random_25%", "random_50%"])
    last = markdown_table(summary, {}).splitlines()[-1]
    assert last.startswith("No learning curve: CURATE.RETRAIN.CURVE_FRACTIONS: ") and "[5, 10]" in last
    assert "| random_50%    |     10 | 25.0 |      – |" in curve_section(summary)
