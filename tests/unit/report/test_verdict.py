"""The verdict: claims that the confidence intervals support, and no others."""

import math

import pytest

from detcurate.evaluate.arm_comparison import summarise
from detcurate.evaluate.coco_eval import CocoFigures
from detcurate.report.report_data import Comparison
from detcurate.report.verdict import claims, signed, span, verdict


def figures(ap):
    return CocoFigures(ap, 2 * ap, ap, ap, math.nan, math.nan, {"car": ap, "bus": math.nan}, 9, 40)


def comparison(**arms: list):
    summary = summarise({arm: [figures(ap) for ap in values] for arm, values in arms.items()})
    models = [{"arm": arm, "seed": k} for arm, values in arms.items() for k in range(len(values))]
    return Comparison(summary, models, "", "iterations")


def test_claims_gain_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, half the interval 4.303 / sqrt(3) = 2.484.
    [claim] = claims(comparison(curated=[11, 12, 13], full=[10, 10, 10]).summary)
    assert (claim.other, claim.kind, claim.num_seeds, claim.mean) == ("full", "unclear", 3, 2.0)
    assert claim.over_seeds == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-3)
    [claim] = claims(comparison(curated=[12, 12.1, 12.2], full=[10, 10, 10]).summary)
    assert claim.kind == "gain"
    assert verdict(comparison(curated=[12, 12.1, 12.2], full=[10, 10, 10])).headline == (
        "The subset trains a better detector than the whole pool: +2.1 AP."
    )


def test_verdict_interval_below_0_is_loss():
    found = verdict(comparison(curated=[8, 8.1, 8.2], random=[10, 10, 10]))
    assert found.tone == "loss"
    assert found.headline == "The subset trains a worse detector than as many random images: −1.9 AP."
    assert found.sentences[0].endswith("a loss.")


def test_verdict_interval_including_0_is_unclear():
    found = verdict(comparison(curated=[10, 14], random=[11, 11], full=[9, 15]))
    assert found.tone == "unclear"
    assert "whole pool" in found.headline and "2 seeds" in found.headline
    assert "includes 0" in found.sentences[0]
    assert "set CURATE.RETRAIN.NUM_SEEDS to 5 or more" in found.sentences[-1]


def test_claims_interval_over_images_must_exclude_0():
    found = comparison(curated=[12, 12.1, 12.2], full=[10, 10, 10])
    found.summary["differences"]["curated - full"]["bootstrap"] = [-0.1, 3.0]
    [claim] = claims(found.summary)
    assert claim.kind == "unclear"
    assert claim.over_images == (-0.1, 3.0)
    assert "−0.1 to +3.0 over seeds and evaluation images" in claim.sentence


def test_verdict_warns_of_detectors_that_hardly_learned():
    assert "No arm reaches 1 AP: these detectors have hardly learned" in " ".join(
        verdict(comparison(curated=[0.2, 0.3], full=[0.9, 0.9])).sentences
    )
    for learned in ([0.9, 1.2], [float("nan")] * 2):
        found = verdict(comparison(curated=[0.2, 0.3], full=learned))
        assert "hardly learned" not in " ".join(found.sentences)


def test_verdict_of_one_seed_has_no_interval():
    found = verdict(comparison(curated=[12], random=[10], full=[11]))
    assert found.tone == "no_interval"
    assert "+1.0 AP" in found.headline and "one seed" in found.headline
    assert [claim.over_seeds for claim in found.claims] == [None, None]
    assert "no difference can be claimed" in found.sentences[0]


def test_claims_are_ordered_full_random_others():
    found = claims(comparison(curated=[1, 2], most_boxes=[1, 1], random=[1, 1], full=[1, 1]).summary)
    assert [claim.other for claim in found] == ["full", "random", "most_boxes"]


def test_verdict_without_boxes_or_arms():
    nothing = float("nan")
    assert verdict(comparison(curated=[nothing, nothing], full=[nothing, nothing])).tone == "undefined"
    assert verdict(None).tone == "none"
    assert "full" in verdict(comparison(full=[1, 2])).headline


def test_verdict_of_five_seeds_has_no_warning():
    found = verdict(comparison(curated=[12, 12.1, 12.2, 12, 12], full=[10] * 5))
    assert len(found.sentences) == 1


def test_signed_uses_real_minus():
    assert (signed(-1.26), signed(0.04), signed(-0.04)) == ("−1.3", "+0.0", "+0.0")
    assert span((-1.0, 2.0)) == "−1.0 to +2.0"
