"""What the documents say of the code is what the code does."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import REPOSITORY

from detcurate.choices import ARMS
from detcurate.coco.validation.findings import RULES
from detcurate.config import ScoreSettings, SearchSettings, SelectSettings
from detcurate.pipeline.object_table import object_table
from detcurate.pipeline.tables import ImagesTable
from detcurate.score.aggregate import AGGREGATIONS
from detcurate.score.label_errors import LABEL_ERRORS
from detcurate.score.measures import LABEL_MEASURES, MEASURES, SINGLE_MEMBER_MEASURES, available_measures
from detcurate.score.scoring import score_images, score_labelled_objects
from detcurate.select.strategies import STRATEGIES
from detcurate.structures import Detections, Labels


@pytest.mark.parametrize("code", RULES)
def test_every_finding_stands_in_the_table_with_its_policies(code):
    rule = RULES[code]
    others = ", ".join(policy for policy in rule.allowed if policy != rule.policy) or "–"
    row = f"| `{code}` | {rule.policy} | {others} | {rule.repair or '–'} |"
    assert row in (REPOSITORY / "docs" / "explanation" / "coco-files.md").read_text().splitlines()


@pytest.mark.parametrize("name", [*MEASURES, *LABEL_MEASURES, *LABEL_ERRORS, *AGGREGATIONS])
def test_every_measure_suspicion_and_aggregation_stands_in_the_document(name):
    text = (REPOSITORY / "docs" / "explanation" / "scoring.md").read_text()
    assert f"`{name}`" in text
    if name in MEASURES or name in LABEL_MEASURES:
        assert f"| `{name}`{' ¹' if name in SINGLE_MEMBER_MEASURES else ''} |" in text


QUERIES = re.findall(
    r"```python\n(.*?)```", (REPOSITORY / "docs" / "explanation" / "scoring.md").read_text(), re.DOTALL
)


def write_scores(folder):
    """Score seven images by hand-made members; image 6 has a label of another class than the members see."""
    n = 14
    detections = Detections(
        image_ids=np.repeat(np.arange(7), 2),
        member=np.tile([0, 1], 7).astype(np.int32),
        boxes=np.tile(np.array([0, 0, 10, 10], np.float32), (n, 1)),
        scores=np.full(n, 0.75, np.float32),
        class_index=np.zeros(n, np.int32),
        class_probs=np.tile(np.array([0.75, 0.125, 0.125], np.float32), (n, 1)),
    )
    labels = Labels(
        image_ids=np.arange(7),
        annotation_ids=np.arange(7) + 100,
        boxes=np.tile([0.0, 0.0, 10.0, 10.0], (7, 1)),
        class_index=np.array([0, 0, 0, 0, 0, 0, 1]),
        iscrowd=np.zeros(7, np.bool_),
    )
    objects, labelled = score_labelled_objects(detections, labels, num_members=2, measures=available_measures(2))
    scores = score_images(objects, np.arange(7), labels=labelled, weights={"mutual_information": 1.0})
    folder.mkdir()
    pq.write_table(object_table(objects, labelled, ("car", "truck")), folder / "objects.parquet")
    ImagesTable.within(folder).write_scores(scores)


@pytest.mark.parametrize(("query", "found"), list(zip(QUERIES, ("truck", "car", "shape: (6, "), strict=True)))
def test_the_queries_run(query, found, tmp_path, monkeypatch, capsys):
    pytest.importorskip(query.split()[1])
    write_scores(tmp_path / "score")
    monkeypatch.chdir(tmp_path)
    exec(query, {})
    printed = capsys.readouterr().out
    assert found in printed


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_has_a_row(strategy):
    assert f"\n| `{strategy}`" in (REPOSITORY / "docs" / "explanation" / "selection.md").read_text()


@pytest.mark.parametrize("setting", SelectSettings.model_fields)
def test_every_setting_of_the_selection_is_explained(setting):
    assert setting.upper() in (REPOSITORY / "docs" / "explanation" / "selection.md").read_text()


@pytest.mark.parametrize("setting", SearchSettings.model_fields)
def test_every_setting_of_the_search_stands_in_the_docs(setting):
    text = (REPOSITORY / "docs" / "explanation" / "selection.md").read_text().replace("CURATE.SEARCH.", "")
    assert f"`{setting.upper()}" in text


@pytest.mark.parametrize("setting", ScoreSettings.model_fields)
def test_every_setting_of_the_scores_is_explained(setting):
    assert f"`{setting.upper()}" in (REPOSITORY / "docs" / "explanation" / "scoring.md").read_text().replace(
        "CURATE.SCORE.", ""
    )


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_has_a_row(arm):
    assert f"\n| `{arm}` |" in (REPOSITORY / "docs" / "explanation" / "experiments.md").read_text()
