"""COCO results files: what a detector of any framework answered, read into :class:`~detcurate.structures.Detections`.

A file is gone over twice: once to check every record and to know which are kept, once, image by image, to read those.
So memory holds some numbers a record, never the records themselves.
"""

from detcurate.interop.coco_results.result_columns import CATEGORY_KEYS, IMAGE_KEYS, PoolIndex, index_pool
from detcurate.interop.coco_results.results_file import Results, posterior_form_of, read_results

__all__ = [
    "CATEGORY_KEYS",
    "IMAGE_KEYS",
    "PoolIndex",
    "Results",
    "index_pool",
    "posterior_form_of",
    "read_results",
]
