"""Names that settings and options accept, in a module without imports.

The command line and the settings check names against these tuples, so that neither loads the code behind a name. The
functions stand in registries such as ``detcurate.score.measures.MEASURES``; ``tests/unit/config/test_choices.py``
checks that each tuple equals the keys of its registry.
"""

from __future__ import annotations

STAGES = ("pool", "search", "train", "predict", "score", "select", "manifest", "retrain", "evaluate", "report")
ENGINES = ("local", "ray")

SCHEDULES = ("last_fraction", "explicit", "every_n", "cosine_cycles")
DTYPES = ("fp32", "bf16", "fp16")
AUGMENTATIONS = ("default", "no_flip", "crop")

DISAGREEMENT_MEASURES = (
    "mutual_information",
    "entropy",
    "expected_entropy",
    "variation_ratio",
    "vote_entropy",
    "margin",
    "iou_dispersion",
    "box_std",
    "existence_entropy",
)
LABEL_MEASURES = ("error_count", "el2n", "forgetting", "low_confidence", "variability", "prediction_variance")
AGGREGATIONS = ("max", "mean", "sum", "top_k_mean", "sqrt_sum", "class_weighted_sum")
NORMALIZATIONS = ("rank", "zscore", "none")
ASSOCIATIONS = ("sequential", "optimal")
MISSING = ("background", "ignore")
WITHOUT_OBJECTS = ("zero", "lowest", "median", "highest")

STRATEGIES = ("top_n", "threshold", "strata", "random", "stratified_random", "k_center", "facility_location")
NOISE_FILTERS = ("off", "drop", "queue")
ARMS = (
    "curated",
    "random",
    "full",
    "random_boxes",
    "stratified_random",
    "most_boxes",
    "without_duplicates",
    "single_model_entropy",
)

EXPORT_FORMATS = ("cvat", "label-studio", "fiftyone", "yolo")
EXPORT_CONTENTS = ("relabel", "subset")
EXPORT_IMAGES = ("none", "link")
IMAGE_KEYS = ("id", "stem")
CATEGORY_KEYS = ("id", "from-0", "from-1")
CONFLICT_POLICIES = ("error", "first")
