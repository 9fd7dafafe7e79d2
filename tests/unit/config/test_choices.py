"""The names in ``detcurate.choices`` are the keys of the registries that they stand for."""

import pytest

from detcurate import choices
from detcurate.engines import ENGINES
from detcurate.ensemble.index import AUGMENTATIONS, DTYPES
from detcurate.ensemble.schedule import SCHEDULES
from detcurate.interop.coco_results import CATEGORY_KEYS, IMAGE_KEYS
from detcurate.interop.export.formats import FORMATS, IMAGES
from detcurate.manifest.merge import ON_CONFLICT
from detcurate.pipeline import STAGE_NAMES
from detcurate.pipeline.arms import ARMS
from detcurate.pipeline.commands.export import WHAT
from detcurate.score.aggregate import AGGREGATIONS, NORMALIZATIONS
from detcurate.score.associate import ASSOCIATIONS
from detcurate.score.cluster_statistics import MISSING
from detcurate.score.measures import LABEL_MEASURES, MEASURES
from detcurate.score.scoring import WITHOUT_OBJECTS
from detcurate.select.compose import NOISE_FILTERS
from detcurate.select.strategies import STRATEGIES

REGISTRIES = {
    "AGGREGATIONS": AGGREGATIONS,
    "ARMS": ARMS,
    "ASSOCIATIONS": ASSOCIATIONS,
    "AUGMENTATIONS": AUGMENTATIONS,
    "CATEGORY_KEYS": CATEGORY_KEYS,
    "CONFLICT_POLICIES": ON_CONFLICT,
    "DISAGREEMENT_MEASURES": MEASURES,
    "DTYPES": DTYPES,
    "ENGINES": ENGINES,
    "EXPORT_CONTENTS": WHAT,
    "EXPORT_FORMATS": FORMATS,
    "EXPORT_IMAGES": IMAGES,
    "IMAGE_KEYS": IMAGE_KEYS,
    "LABEL_MEASURES": LABEL_MEASURES,
    "MISSING": MISSING,
    "NOISE_FILTERS": NOISE_FILTERS,
    "NORMALIZATIONS": NORMALIZATIONS,
    "SCHEDULES": SCHEDULES,
    "STAGES": STAGE_NAMES,
    "STRATEGIES": STRATEGIES,
    "WITHOUT_OBJECTS": WITHOUT_OBJECTS,
}


def test_choices_all_tuples_have_a_registry():
    assert {name for name in vars(choices) if name.isupper()} == set(REGISTRIES)


@pytest.mark.parametrize("name", REGISTRIES)
def test_choices_equal_the_keys_of_the_registry(name):
    assert getattr(choices, name) == tuple(REGISTRIES[name])
