"""Records that stages exchange: frozen columns, validated when they are created.

Axes in the whole project: I images, E members, N detections, G clusters, J ground-truth boxes, C classes. Boxes
are xyxy in absolute pixels. ``class_index`` is contiguous from 0; ``class_probs`` has C + 1 columns, the background
last. ``posterior_form`` is their form: one distribution a row, or one a class.
"""

from detcurate.structures.columns import validate_ascending
from detcurate.structures.detections import POSTERIOR_FORMS, Clusters, Detections, Labels, is_posterior
from detcurate.structures.scores import ImageScores, ObjectScores, Selection

__all__ = [
    "POSTERIOR_FORMS",
    "Clusters",
    "Detections",
    "ImageScores",
    "Labels",
    "ObjectScores",
    "Selection",
    "is_posterior",
    "validate_ascending",
]
