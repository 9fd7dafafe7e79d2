"""Settings that the stage ``score`` records: equal weights are written out."""

import pytest

from detcurate.config import curate_settings
from detcurate.pipeline.prediction_modes import MODES


@pytest.mark.parametrize("mode", ["cluster", "reference"])
def test_score_settings_empty_weights_are_recorded_as_explicit_equal_ones(mode):
    explicit = curate_settings({"SCORE": {"WEIGHTS": [1.0, 1.0, 1.0]}})
    recorded = MODES[mode].score_settings(curate_settings({}))
    assert recorded == MODES[mode].score_settings(explicit)
    assert recorded.model_dump(mode="json")["weights"] == [1.0, 1.0, 1.0]


def test_score_settings_single_measure_needs_no_weights():
    one = curate_settings({"SCORE": {"MEASURES": ["entropy"]}})
    assert MODES["cluster"].score_settings(one).weights == (1.0,)
    dense = curate_settings({"SCORE": {"MEASURES": ["mutual_information"]}})
    assert MODES["dense"].score_settings(dense).weights == (1.0,)
