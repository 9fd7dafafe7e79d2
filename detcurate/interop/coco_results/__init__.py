"""COCO results files: predictions of any detector, read into :class:`~detcurate.structures.Detections`.

A file is read twice: first to check every record and choose the kept ones, then to load these image by image. Memory
holds a few numbers per record, never the records themselves.
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
